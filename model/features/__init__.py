"""Features: windows of log-mel, their records in shards, near copies, and the split into training and held-out data."""
