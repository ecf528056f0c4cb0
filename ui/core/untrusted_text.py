"""Texts that others wrote (the model, a file, a folder's name), made fit to be shown as they stand, in a moment."""

from __future__ import annotations

from html import escape
from unicodedata import bidirectional

LONGEST = 2500
"""Characters of one text that a label lays out; a megabyte of unbroken text would freeze the window."""
PARAGRAPH = 1000
"""Characters."""
_MIXED = 250  # where words run to the left: layout takes time with the square of the changes of direction
_LEFTWARD = {"R", "AL", "RLE", "RLO", "RLI"}
_LINE = 300


def valid_unicode(text: str) -> str:
    """Without halves of characters, which Qt cannot take."""
    return text.encode("utf-16", "replace").decode("utf-16")


def paragraphs(text: str) -> str:
    """The text with breaks where a paragraph would be too long."""
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
    """The beginning of a text, for a row of a list or a table."""
    return " ".join(valid_unicode(text[:_LINE]).split())


def brief(text: str) -> str:
    """The beginning of a text, for a message of a few lines."""
    return paragraphs(text[: 2 * _LINE])


def tooltip(text: str) -> str:
    """For a tool tip, which would take a text that looks like markup for markup, and fetch its pictures."""
    return f"<p style='white-space: pre-wrap'>{escape(brief(text))}</p>" if text else ""
