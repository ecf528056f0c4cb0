"""Checkpoint folders: read safely, planned for memory, loaded, converted, quantized.

It knows no conversation and no command line.
"""
