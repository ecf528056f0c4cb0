"""The two stages of BLSP-Emo: initial checkpoint, losses, trainer, memory plan.

It knows nothing of the wizard and of emotion corpora.
"""
