"""Metrics that several packages share: word error rate, emotion scores with confidence intervals.

It knows no model, no torch and no training.
"""
