"""Commands and the model process's server, built on everything else in `model`.

Nothing else in `model` imports this package, except the stubs for `python -m model.NAME`.
"""
