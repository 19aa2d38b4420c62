"""Judging: what is a model worth beside baselines, and what does its report say?"""
