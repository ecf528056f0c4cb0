"""Synthetic speech: texts, voices, rules of expressive prosody, corpora made of them.

It knows no training.
"""
