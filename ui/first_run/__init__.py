"""The first-run wizard: model, microphone and speaker, recording.

It reuses device choice, sound check and retention from the settings.
"""
