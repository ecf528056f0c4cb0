"""The first start: model, microphone and speaker, recording choice.

It borrows device choice and consent from the settings.
"""
