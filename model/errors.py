"""The errors of this package. Every message says in one line what to do."""


class ModelError(Exception):
    """Base of everything that `model` raises on purpose."""


class BadInput(ModelError):
    """The user's input cannot be used: a file that is missing, empty, silent or not audio."""


class WeightsMissing(ModelError):
    """Weights, a device or a part of the environment are missing or damaged."""
