"""Judging: a model compared with baselines, and its report."""
