"""Command lines of `python -m training`.

Nothing else in `training` knows this package.
"""
