"""Evaluation: word errors, emotion recognition, agreement of replies, fit of replies to emotions.

It changes no weights.
"""
