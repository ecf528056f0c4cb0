"""Weights on this machine: pinned downloads, verified and converted once.

It knows file formats, but no network built from them.
"""
