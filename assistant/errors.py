"""The errors of this package. Every message says in one line what to do."""


class AssistantError(Exception):
    """Base of everything that `assistant` raises on purpose."""


class BadInput(AssistantError):
    """The user's input cannot be used."""


class SpeechUnavailable(AssistantError):
    """No voice is available, or the synthesizer failed."""
