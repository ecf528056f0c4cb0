"""Fine-tuning on the user's own recordings: checks, plan, emotion head or stages, comparison.

It builds on the stages and the evaluation.
"""
