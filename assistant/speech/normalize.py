"""Text normalization by rules: what is spoken, traceable word by word to the source.

Also the rules that hold in every language: markup, links, inline code, emoji.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import groupby
from typing import NamedTuple

HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters, for use inside a regular expression's class."""

Rule = tuple[str, Callable[[re.Match[str]], str | None]]
"""A pattern and the spoken form of its match; None leaves the match as it is."""


class Mark(NamedTuple):
    """spoken[start:end] comes from text[text_start:text_end]; `verbatim`: character for character."""

    start: int
    end: int
    text_start: int
    text_end: int
    verbatim: bool


_STOPS = ".!?…。！？"
_PAUSES = ",;:，；：、"
_PIECES = re.compile(
    rf"(?P<space>\s+)|(?P<mark>[{_STOPS}{_PAUSES}])|[^\s{_STOPS}{_PAUSES}]+(?:[.,:][^\s{_STOPS}{_PAUSES}]+)*"
)
_KEPT = frozenset(_STOPS + _PAUSES + "'-’·")


_JOINERS = frozenset("\u00ad\u200c\u200d\u2060")  # occur within words


@lru_cache(4096)
def _class_of(character: str) -> str:
    """keep, gap (becomes a space) or drop."""
    if character in _KEPT:
        return "keep"
    # Variation selectors and the keycap are marks by category, and parts of emoji; so is the letter "ℹ".
    if character in _JOINERS or character in "\u20e3ℹ" or "\ufe00" <= character <= "\ufe0f":
        return "drop"
    return "keep" if unicodedata.category(character)[0] in "LMN" and character < "\U000e0000" else "gap"


@cache
def _plain_digits() -> dict[int, str]:
    """Map styled letters and digits (full-width, mathematical, circled) to ASCII, one to one."""
    spans = ((0x2460, 0x24EA), (0xFF10, 0xFF5A), (0x1D400, 0x1D7FF))
    pairs = ((code, unicodedata.normalize("NFKC", chr(code))) for a, b in spans for code in range(a, b + 1))
    return {code: plain for code, plain in pairs if len(plain) == 1 and plain.isalnum()}


class _Spoken:
    """The spoken text being built: single spaces, no doubled or leading punctuation."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._gap = False
        self.marks: list[Mark] = []

    def _append(self, part: str) -> None:
        self._parts.append(part)
        self._length += len(part)

    def add(self, fragment: str, start: int, end: int, verbatim: bool) -> None:
        """Append `fragment`, the spoken form of text[start:end]."""
        offset = 0
        for kind, group in groupby(fragment, _class_of):
            run = "".join(group)
            if kind == "gap":
                self._gap = True
            elif kind == "keep":
                for piece in _PIECES.finditer(run):
                    at = start + offset + piece.start()
                    self._piece(piece, (at, at + len(piece[0])) if verbatim else (start, end), verbatim)
            offset += len(run)

    def _piece(self, piece: re.Match[str], source: tuple[int, int], verbatim: bool) -> None:
        if piece.lastgroup == "space":
            self._gap = True
        elif piece.lastgroup == "mark":
            self._punctuate(piece[0])
        else:
            if self._gap and self._parts and self._parts[-1] not in "，；：、。！？":
                self._append(" ")
            self._gap = False
            word = piece[0].replace("’", "'")
            self.marks.append(Mark(self._length, self._length + len(word), *source, verbatim))
            self._append(word)

    def _punctuate(self, mark: str) -> None:
        if not self._parts or self._parts[-1] in _STOPS:
            return
        if self._parts[-1] in _PAUSES:
            if mark in _PAUSES:
                return
            self._length -= len(self._parts.pop())
        self._append(mark)
        self._gap = True

    def finish(self, stop: str) -> str:
        """The text, closed by `stop` unless it has an end of its own; empty if nothing is left to say."""
        if not any(character.isalnum() for part in self._parts for character in part):
            return ""
        self._punctuate(stop)
        return "".join(self._parts)


class Reader:
    """Normalizes text by rules; earlier rules win. Text that no rule matches is spoken as it is, without symbols."""

    def __init__(self, rules: Sequence[Rule], stop: str = ".") -> None:
        self._rules = [(re.compile(pattern), say) for pattern, say in rules]
        # One alternation finds the next rule; its groups get the rule's number, to be unique in it.
        numbered = (
            f"(?P<rule{i}>" + re.sub(r"\(\?P([<=])", rf"(?P\g<1>rule{i}_", pattern) + ")"
            for i, (pattern, _) in enumerate(rules)
        )
        self._any = re.compile("|".join(numbered))
        self._stop = stop

    def read(self, source: str) -> tuple[str, tuple[Mark, ...]]:
        """The spoken form of `source`, and the origin of its words."""
        text = source.translate(_plain_digits())
        spoken = _Spoken()
        at = search = 0
        while found := self._any.search(text, search):
            applied = self._apply(text, found)
            search = max(found.start() + 1, at)
            if applied is not None:
                words, end = applied
                spoken.add(text[at : found.start()], at, found.start(), True)
                spoken.add(words, found.start(), end, False)
                at, search = end, max(end, search)
        spoken.add(text[at:], at, len(text), True)
        said = spoken.finish(self._stop)
        return said, tuple(spoken.marks) if said else ()

    def _apply(self, text: str, found: re.Match[str]) -> tuple[str, int] | None:
        """The spoken form by the first rule that applies where `found` begins, and where its match ends."""
        first = int(str(found.lastgroup).removeprefix("rule"))
        for pattern, say in self._rules[first:]:
            match = pattern.match(text, found.start())
            words = say(match) if match else None
            if match and words is not None:
                return words, match.end()
        return None


def silent(match: re.Match[str]) -> str:
    """Say nothing."""
    return ""


def words(said: str) -> Callable[[re.Match[str]], str]:
    """Always say `said`."""
    return lambda match: said


def _code(word: str) -> Callable[[re.Match[str]], str]:
    """A single plain word in code marks is a name and is spoken; other code is only announced."""

    def say(match: re.Match[str]) -> str:
        inside = match["inside"].strip()
        return inside if re.fullmatch(r"[^\W\d_]+", inside) else word

    return say


def _entity(match: re.Match[str]) -> str | None:
    plain = html.unescape(match[0])
    return None if plain == match[0] else {"&": " and ", "\xa0": " "}.get(plain, plain)


URL = r"(?i:https?://|ftp://|www\.|mailto:)[!-~]*[\w/]|\b(?:[\w-]{1,60}\.){1,4}[a-zA-Z]{2,6}/[!-~]*[\w/]"


def markup(link: str, code: str, formula: str) -> list[Rule]:
    """The rules for markup; the spoken forms of a link, of inline code and of a formula."""
    return [
        (r"(?<!`)(?P<ticks>`++)(?P<inside>[^\n]{1,300}?)(?<!`)(?P=ticks)(?!`)", _code(code)),
        (r"\\\([^\n]{1,300}?\\\)|\\\[[^\n]{1,300}?\\\]|\$\$[^\n]{1,300}?\$\$", words(formula)),
        (r"<!--[^>\n]{0,300}>|</?[A-Za-z][^<>\n]{0,300}>", silent),
        (r"\]\([^()\n]{0,500}\)|\[\^?\d{1,3}\]|\[[ xX]\](?=\s)|!?\[", silent),
        (URL, words(link)),
        (r"(?i:(?<![a-z])www\.)", silent),
        (r"&#?\w{1,10};", _entity),
        (r"(?<!\S)(?:[:;][-^']?[()DPpOo3*|\\/]|<3+|[xX]D|\^_+\^|¯\\_\(ツ\)_/¯)(?!\S)", silent),
        (r"^\s*(?:(?:>\s?)+(?:#{1,6}\s+|[-*+•]\s+)?|#{1,6}\s+|[-*+•]\s+|\|\s*)", silent),
        (r"\n\s*(?:>\s?)*", words(" ")),
        (r"\|\s*$", silent),
        (r"\s*\|\s*(?=\S)", words(", ")),
        (r"(?<=\w)_{1,3}(?=\w)", words(" ")),
        (r"[*~]{1,3}(?=\w)|(?<=[\w.,!?])[*~]{1,3}|_+", silent),
        (r"\.{2,}|…+", words("…")),
        (r"\s+[-–]+\s+|\s*[—―]+\s*|\s+\((?=\w)|(?<=\w)\)(?=\s+\w)|(?<=\w)\((?=\w)", words(", ")),
    ]


PLAIN = Reader(markup(link="", code="", formula=""))
"""Any other language: markup is removed; numbers are left to the synthesizer, which knows the language."""
