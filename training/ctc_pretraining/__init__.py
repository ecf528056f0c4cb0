"""CTC pretraining of the adapter on transcripts, before stage 1.

It needs no pass through the language model.
"""
