"""The errors of this package. Every message is one line and says what to do."""


class ModelError(Exception):
    """Base of all expected errors of `model`."""


class BadInput(ModelError):
    """The user's input cannot be used, for example a file that is missing, empty, silent or not audio."""


class NothingHeard(BadInput):
    """A recording that is silent or too short to contain a word.

    Attributes:
        seconds: its duration.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class WeightsMissing(ModelError):
    """Weights, a device or a part of the environment are missing or damaged."""
