"""Audio for the model: files to samples, log-mel features, prosody features.

It knows no language model and no checkpoint folder.
"""
