"""Sound for the model: files to samples, log-mel features, prosody.

It knows no language model and no checkpoint folder.
"""
