"""Metrics that several packages share: word error rate, emotion scores with confidence intervals.

It knows no model and no training.
"""
