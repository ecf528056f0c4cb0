"""The errors of this package. Every message is one line and says what to do."""


class ModelError(Exception):
    """Base of all expected errors of `model`."""


class BadInput(ModelError):
    """The user's input cannot be used, for example a file that is missing, empty, silent or not audio."""


class WeightsMissing(ModelError):
    """Weights, a device or a part of the environment are missing or damaged."""
