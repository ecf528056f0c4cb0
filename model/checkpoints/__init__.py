"""Checkpoint folders: safe reading, memory plan, loading, conversion, quantization.

It knows no conversation and no command line.
"""
