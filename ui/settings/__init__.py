"""The Settings page and its sections.

It knows no other page.
"""
