"""The Sessions page: list, search, player, transcript, comparison with another model.

It knows no other page.
"""
