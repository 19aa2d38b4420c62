"""Saved models: the files in a model's folder, and the record of which model is in use."""
