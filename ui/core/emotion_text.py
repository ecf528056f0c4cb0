"""How an emotion is worded for the user."""

from __future__ import annotations

from assistant.events import UNSURE
from ui.core.translations import tr


def voice_sounds(label: str) -> str:
    """Return the headline of a reading. It speaks of the voice, not of the person's feelings."""
    if label == UNSURE:
        return tr("Emotion unclear")
    return tr("Voice sounds {0}").format(tr("surprised" if label == "surprise" else label))
