"""Training: shards to a model, on one host or several."""
