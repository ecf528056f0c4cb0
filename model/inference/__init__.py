"""Inference: prompt, KV cache, decode steps, sampling, and the engine that streams replies.

It knows loaded checkpoints, but not where they come from.
"""
