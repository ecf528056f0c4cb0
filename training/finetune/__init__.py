"""Fine-tuning on one's own recordings: checks, plan, emotion head or stages, verdict.

It builds on the stages and the evaluation.
"""
