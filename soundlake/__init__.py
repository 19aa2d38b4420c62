"""soundlake: a folder of raw audio in, a searchable table of embeddings out."""
