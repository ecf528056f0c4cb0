"""Measurements of the full-size model with random weights on this machine's GPU; see `__main__`."""
