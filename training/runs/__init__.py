"""Run folders, their checkpoints, and the options that they store.

It knows no torch and no model.
"""
