"""Word errors between a reference text and a recognised text."""

from __future__ import annotations

import re

from num2words import num2words


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Word-level edit distance (Levenshtein 1966).

    Case, punctuation and hyphens are ignored, and numbers count as their English words: "10%" is "ten percent".

    Args:
        reference: what was said.
        hypothesis: what was recognised.

    Returns:
        The number of substitutions, deletions and insertions, and the number of words in `reference`; their quotient is
            the word error rate.
    """
    said, heard = _words(reference), _words(hypothesis)
    costs = list(range(len(heard) + 1))
    for row, word in enumerate(said, 1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(heard, 1):
            substituted = diagonal + (word != other)
            diagonal = costs[column]
            costs[column] = min(substituted, diagonal + 1, costs[column - 1] + 1)
    return costs[-1], len(said)


_SAME = {"mr": "mister", "mrs": "missus", "dr": "doctor", "okay": "ok"}


def _words(text: str) -> list[str]:
    text = text.lower().replace("’", "'").replace("%", " percent").replace("&", " and ").replace("_", " ")
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(\d{1,12}(?:\.\d{1,12})?)(st\b|nd\b|rd\b|th\b)?", _spoken, text)
    return [_SAME.get(word, word) for word in re.findall(r"\w+(?:'\w+)*", text)]


def _spoken(number: re.Match[str]) -> str:
    ordinal = number[2] and "." not in number[1]
    words: str = num2words(number[1], to="ordinal" if ordinal else "cardinal")
    return f" {words.replace(' and ', ' ')} "
