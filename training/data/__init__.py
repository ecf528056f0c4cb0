"""Training data: manifests, labels, tokenised rows, cached encoder states, evaluation cases.

It knows no optimiser.
"""
