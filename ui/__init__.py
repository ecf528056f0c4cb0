"""The windows (PySide6). Fed by events; no torch."""
