"""Saved models: what does a model's folder hold, and which model is in use?"""
