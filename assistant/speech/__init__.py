"""Speech out: sentences, text normalisation, synthesis in a child process, playback.

It knows no conversation and no model.
"""
