"""Commands and the model process's server, built on everything else in `model`.

Nothing else in `model` knows this package.
"""
