"""The network: what it computes from a window, and changes after which a sound still counts as the same."""
