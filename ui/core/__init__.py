"""What all pages share: the app object, the event bridge, jobs, theme and translations.

It knows no widget and no page.
"""
