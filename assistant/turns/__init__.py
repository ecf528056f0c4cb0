"""The conversation: a pure state machine, its history, and the loop that runs it.

It knows no device, no model and no file: they are handed to it.
"""
