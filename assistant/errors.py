"""The errors of this package. Every message says in one line what to do."""


class AssistantError(Exception):
    """Base of everything that `assistant` raises on purpose."""


class BadInput(AssistantError):
    """What the user named or gave cannot be used."""


class SpeechUnavailable(AssistantError):
    """No voice can be had, or the synthesizer failed."""
