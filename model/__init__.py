"""Sound and learning: features, the VAE, training. Imports neither `pipelines` nor Beam."""
