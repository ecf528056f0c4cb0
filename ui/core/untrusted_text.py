"""Makes text from others (the model, a file, a folder's name) safe and fast to display."""

from __future__ import annotations

from html import escape
from unicodedata import bidirectional

LONGEST = 2500
"""Characters of a text that a label lays out; a megabyte of unbroken text would freeze the window."""
PARAGRAPH = 1000
"""Characters of a paragraph, at most."""
_MIXED = 250  # for right-to-left text: layout time grows with the square of direction changes
_LEFTWARD = {"R", "AL", "RLE", "RLO", "RLI"}
_LINE = 300


def valid_unicode(text: str) -> str:
    """Replace lone surrogates, which Qt cannot handle."""
    return text.encode("utf-16", "replace").decode("utf-16")


def paragraphs(text: str) -> str:
    """Break paragraphs that are too long."""
    parts = []
    for paragraph in valid_unicode(text).split("\n"):
        left = paragraph
        most = _MIXED if any(bidirectional(one) in _LEFTWARD for one in left) else PARAGRAPH
        while len(left) > most:
            end = left.rfind(" ", most // 2, most) + 1 or most
            parts.append(left[:end])
            left = left[end:]
        parts.append(left)
    return "\n".join(parts)


def one_line(text: str) -> str:
    """Return the beginning of a text for a row of a list or a table."""
    return " ".join(valid_unicode(text[:_LINE]).split())


def brief(text: str) -> str:
    """Return the beginning of a text for a message of a few lines."""
    return paragraphs(text[: 2 * _LINE])


def tooltip(text: str) -> str:
    """Escape a text for a tooltip, which would otherwise render markup and load its images."""
    return f"<p style='white-space: pre-wrap'>{escape(brief(text))}</p>" if text else ""
