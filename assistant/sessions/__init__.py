"""Recorded conversations: written, read back after a crash, repaired, exported, corrected.

It knows nothing of devices, models or windows.
"""
