"""Training: how does a model come out of shards, on one host or several?"""
