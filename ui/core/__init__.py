"""What all pages share: the app object, events from other threads, child processes, theme, translations.

It knows no page.
"""
