"""The Talk page, the emotion panel and the compact window.

It knows no other page.
"""
