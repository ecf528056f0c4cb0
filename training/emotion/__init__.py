"""The emotion head: fitted on frozen encoder states, measured, and described in a card.

It knows no language model.
"""
