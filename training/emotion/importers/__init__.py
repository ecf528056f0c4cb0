"""Importers: public corpora of emotional speech to manifests, from the corpora's own names and tables.

They know no torch and read no audio.
"""
