"""The desktop window (PySide6). It follows the conversation's events and runs commands in child processes. No torch."""
