"""Checkpoint folders: read safely, planned for memory, loaded, converted, quantised.

It knows no conversation and no command line.
"""
