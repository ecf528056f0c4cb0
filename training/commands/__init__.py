"""Command lines of `python -m training`.

Only `training.__main__` imports this package.
"""
