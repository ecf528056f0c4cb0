"""Emotion recognition from the batch tool's replies: figures, and the confusion matrix as text and as a picture.

A reply is free text ("The emotion tone of the speech provided is neutral."). It is read by a rule: the first of the
five names, in any of their forms, decides; without one, the first synonym; words right after a negation do not count
("not happy"). A reply with neither counts as wrong, in a separate column ("none").
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from assistant.events import EMOTIONS
from model.errors import BadInput

NONE = "none"
"""The column of replies that name no emotion."""

_NAMES = {
    "neutral": "neutral neutrality 中性",
    "happy": "happy happier happiness 高兴 快乐 开心",
    "angry": "angry angrier anger 生气 愤怒",
    "sad": "sad sadder sadness 悲伤 难过 伤心",
    "surprise": "surprise surprised surprising 惊讶 惊喜 吃惊",
}
_SYNONYMS = {
    "neutral": "calm calmness unemotional emotionless indifferent 平静",
    "happy": "joy joyful joyous cheerful excited excitement delighted delight glad pleased amused amusement 喜悦 愉快",
    "angry": "annoyed annoyance furious fury frustrated frustration irritated irritation mad rage outraged 恼火",
    "sad": "sorrow sorrowful unhappy unhappiness depressed depression melancholy grief gloomy upset 忧伤 悲哀",
    "surprise": "astonished astonishment amazed amazement shocked shock startled 震惊",
}
_ABBREVIATIONS = {"neu": "neutral", "hap": "happy", "ang": "angry", "sur": "surprise"}
"""Abbreviated labels of data sets (IEMOCAP's)."""

_NEGATION = re.compile(
    r"(?:\b(?:not|never|neither|nor|without|no longer)|n[’']t)\s+(?:\w+ly |very |so |at all )?$|[不没无]$"
)
_Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


def _finder(words: dict[str, str]) -> tuple[re.Pattern[str], dict[str, str]]:
    emotion_of = {word: emotion for emotion, forms in words.items() for word in forms.split()}
    latin = "|".join(word for word in emotion_of if word.isascii())
    return re.compile(rf"\b(?:{latin})\b|" + "|".join(w for w in emotion_of if not w.isascii())), emotion_of


_FINDERS = (_finder(_NAMES), _finder(_SYNONYMS))


def emotion_in(text: str) -> str | None:
    """The emotion that a text names, one of `EMOTIONS`, by the rule in the module's docstring; None: none."""
    text = text.lower()
    for pattern, emotion_of in _FINDERS:
        for found in pattern.finditer(text):
            if not _NEGATION.search(text, 0, found.start()):
                return emotion_of[found.group()]
    return None


def emotion_of_label(label: object) -> str | None:
    """Map a data set's label to an emotion.

    Args:
        label: for example "joy", "Anger" or "neu".

    Returns:
        One of `EMOTIONS`, or None if the label is none of them.
    """
    word = str(label).strip().lower()
    if word in _ABBREVIATIONS:
        return _ABBREVIATIONS[word]
    return next((emotion_of[word] for _, emotion_of in _FINDERS if word in emotion_of), None)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a proportion, by Wilson's score (1927).

    Args:
        hits: successes.
        total: trials, at least 1.

    Returns:
        Lower and upper limit.
    """
    share, square = hits / total, _Z**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = _Z / (1 + square / total) * sqrt(share * (1 - share) / total + square / (4 * total**2))
    # Rounding must not push an edge past the share, which it meets at 0 and 1.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


@dataclass(slots=True)
class Scores:
    """Results of a file of replies.

    Attributes:
        confusion: counts [5][6]: one row per reference in the order of `EMOTIONS`, one column per named emotion, the
            last for replies that name none.
        failed: numbers of the lines with an error; they count nowhere else.
        unknown: references that are none of the five emotions, with their line numbers; they do not count either.
    """

    confusion: list[list[int]] = field(default_factory=lambda: [[0] * (len(EMOTIONS) + 1) for _ in EMOTIONS])
    failed: list[int] = field(default_factory=list)
    unknown: dict[str, list[int]] = field(default_factory=dict)

    @property
    def counts(self) -> list[int]:
        """Number of references of each emotion [5]."""
        return [sum(row) for row in self.confusion]

    @property
    def hits(self) -> list[int]:
        """Number of correct replies of each emotion [5]."""
        return [row[at] for at, row in enumerate(self.confusion)]

    def figures(self) -> dict[str, Any]:
        """Accuracy and unweighted recall with 95 % intervals, and the confusion matrix.

        The interval of the accuracy is Wilson's. That of the unweighted recall combines the Wilson intervals of the
        emotions' recalls (Zou, Huang and Zhang 2009: the limits' distances add up as variances do); it is also valid
        where a recall is 0 or 1, where a bootstrap has no width. Emotions without a reference are left out.

        Returns:
            JSON values by name.
        """
        n, hits = sum(self.counts), sum(self.hits)
        present = [(hit, count) for hit, count in zip(self.hits, self.counts, strict=True) if count]
        recall = sum(hit / count for hit, count in present) / len(present)
        below, above = (
            sqrt(sum((hit / count - wilson(hit, count)[edge]) ** 2 for hit, count in present)) / len(present)
            for edge in (0, 1)
        )
        return {
            "n": n,
            "accuracy": hits / n,
            "interval_95": list(wilson(hits, n)),
            "unweighted_recall": recall,
            "unweighted_recall_interval_95": [max(0.0, recall - below), min(1.0, recall + above)],
            "emotions": {
                emotion: {"n": count, "recall": hit / count, "interval_95": list(wilson(hit, count))}
                for emotion, hit, count in zip(EMOTIONS, self.hits, self.counts, strict=True)
                if count
            },
            "confusion": self.confusion,
            "confusion_columns": [*EMOTIONS, NONE],
            "none": sum(row[-1] for row in self.confusion),
            "failed_lines": self.failed,
            "unknown_references": self.unknown,
        }


def score(path: Path) -> Scores:
    """Score the output of `generate`.

    Args:
        path: of the output.

    Returns:
        The scores.

    Raises:
        BadInput: the file is missing or something else, or no line has a reference to compare with.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): check the path.") from error
    scores = Scores()
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        response, reference, failed = _result(path, number, raw)
        emotion = emotion_of_label(reference)
        if failed:
            scores.failed.append(number)
        elif emotion is None:
            scores.unknown.setdefault(str(reference), []).append(number)
        else:
            named = emotion_in(response)
            column = len(EMOTIONS) if named is None else EMOTIONS.index(named)
            scores.confusion[EMOTIONS.index(emotion)][column] += 1
    if not sum(scores.counts):
        raise BadInput(f"{path}: no line's reference is an emotion ({', '.join(EMOTIONS)}): see --reference-field.")
    return scores


def _result(path: Path, number: int, raw: bytes) -> tuple[str, object, bool]:
    """Response, reference and whether it failed, of one line."""
    try:
        record = json.loads(raw.decode("utf-8"))
        response, reference = record["response"], record["reference"]
        if not isinstance(response, str):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput(
            f"{path}, line {number}: not a line that generate writes; repair it or run generate again."
        ) from error
    return response, reference, "error" in record


def as_text(scores: Scores) -> str:
    """The figures and the confusion matrix as aligned text.

    Args:
        scores: to print.

    Returns:
        Lines, each with a line end.
    """
    figures = scores.figures()
    columns = (*EMOTIONS, NONE)
    lines = [
        f"{figures['n']} replies, {figures['none']} of them name no emotion",
        f"accuracy           {_share(figures['accuracy'], figures['interval_95'])}",
        f"unweighted recall  {_share(figures['unweighted_recall'], figures['unweighted_recall_interval_95'])}",
        "",
        "rows: reference, columns: what the reply names",
        "          " + "".join(f"{name:>10}" for name in (*columns, "n")) + "  recall",
    ]
    for emotion, row, count in zip(EMOTIONS, scores.confusion, scores.counts, strict=True):
        own = figures["emotions"].get(emotion)
        recall = "-" if own is None else _share(own["recall"], own["interval_95"])
        lines.append(f"{emotion:<10}" + "".join(f"{value:>10}" for value in (*row, count)) + f"  {recall}")
    return "\n".join(lines) + "\n"


def _share(share: float, interval: Sequence[float]) -> str:
    low, high = (100 * edge for edge in interval)
    return f"{100 * share:5.1f} %  (95 %: {low:.1f} to {high:.1f})"


def problems(scores: Scores) -> list[str]:
    """Describe the lines that were left out, one line per reason.

    Args:
        scores: with `failed` and `unknown`.

    Returns:
        Lines without line ends.
    """
    reports = [
        f"{_numbers(lines)}: the reference {reference!r} is none of the five emotions; left out"
        for reference, lines in scores.unknown.items()
    ]
    if scores.failed:
        reports.append(f"{_numbers(scores.failed)}: not answered; left out")
    return reports


def _numbers(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:10]))
    more = f" and {len(lines) - 10} more" if len(lines) > 10 else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"


# ---- the picture

_LIGHT, _DARK = (247, 251, 255), (8, 48, 107)  # one hue, light to dark: readable without colour vision
_CELL_WIDTH, _CELL_HEIGHT, _LEFT, _TOP, _GAP = 92, 58, 150, 132, 14


def as_svg(scores: Scores, title: str = "Emotions: what the replies name", columns: str = "named in the reply") -> str:
    """The confusion matrix as an SVG picture: counts, and shares of each reference as shades of one hue.

    Args:
        scores: to draw.
        title: of the picture.
        columns: the heading of the columns.

    Returns:
        The SVG document.
    """
    figures = scores.figures()
    right = _left_of(len(EMOTIONS)) + _CELL_WIDTH
    bottom = _TOP + len(EMOTIONS) * _CELL_HEIGHT
    accuracy, recall = (
        f"{name} {100 * figures[key]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        for name, key, (low, high) in (
            ("accuracy", "accuracy", figures["interval_95"]),
            ("unweighted recall", "unweighted_recall", figures["unweighted_recall_interval_95"]),
        )
    )
    parts = [
        _words(24, 36, title, size=20, weight="bold"),
        _words(24, 60, f"n = {figures['n']}  ·  {accuracy}  ·  {recall}", colour="#444"),
        _words((_LEFT + right) / 2, _TOP - 36, columns, anchor="middle", colour="#444"),
        _words(24, _TOP - 12, "reference", colour="#444"),
    ]
    for at, name in enumerate((*EMOTIONS, NONE)):
        parts.append(_words(_left_of(at) + _CELL_WIDTH / 2, _TOP - 12, name, anchor="middle", weight="bold"))
    for row, (emotion, count) in enumerate(zip(EMOTIONS, scores.counts, strict=True)):
        middle = _TOP + (row + 0.5) * _CELL_HEIGHT
        parts += [
            _words(24, middle - 2, emotion, weight="bold"),
            _words(24, middle + 15, f"n = {count}", size=12, colour="#444"),
        ]
        parts += [_cell(row, at, value, count) for at, value in enumerate(scores.confusion[row])]
    parts += _legend(bottom + 22, right)
    summary = escape(f"Confusion of {figures['n']} recordings; {accuracy}; {recall}; 95 % intervals in brackets.")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{right + 24}" height="{bottom + 68}" '
        f'viewBox="0 0 {right + 24} {bottom + 68}" role="img" font-family="Helvetica, Arial, sans-serif">\n'
        f"<title>Confusion matrix</title>\n<desc>{summary}</desc>\n"
        f'<rect width="{right + 24}" height="{bottom + 68}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _left_of(column: int) -> int:
    return _LEFT + column * _CELL_WIDTH + (_GAP if column == len(EMOTIONS) else 0)


def _cell(row: int, column: int, value: int, count: int) -> str:
    share = value / count if count else 0.0
    x, y = _left_of(column), _TOP + row * _CELL_HEIGHT
    ink = "#ffffff" if share > 0.645 else "#000000"  # where both contrast equally
    edge = ' stroke="#111111" stroke-width="2.5"' if row == column else ' stroke="#c8d0d8"'
    box = f'<rect x="{x + 2}" y="{y + 2}" width="{_CELL_WIDTH - 4}" height="{_CELL_HEIGHT - 4}" rx="4"'
    middle = x + _CELL_WIDTH / 2
    numbers = _words(middle, y + 29, str(value), anchor="middle", size=17, colour=ink)
    if count:
        numbers += _words(middle, y + 46, f"{100 * share:.0f} %", anchor="middle", size=11, colour=ink)
    return f'{box} fill="{_shade(share)}"{edge}/>{numbers}'


def _shade(share: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(_LIGHT, _DARK, strict=True))


def _legend(y: float, right: float) -> list[str]:
    left = right - 220
    return [
        '<defs><linearGradient id="shades">'
        f'<stop offset="0" stop-color="{_shade(0)}"/><stop offset="1" stop-color="{_shade(1)}"/>'
        "</linearGradient></defs>",
        f'<rect x="{left}" y="{y}" width="220" height="12" fill="url(#shades)" stroke="#c8d0d8"/>',
        _words(24, y + 11, "outlined: the reply names the reference; in brackets: 95 %", size=12, colour="#444"),
        _words(left, y + 28, "0 %", size=11, colour="#444"),
        _words(left + 110, y + 28, "share of the reference", size=11, colour="#444", anchor="middle"),
        _words(right, y + 28, "100 %", size=11, colour="#444", anchor="end"),
    ]


def _words(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 14,
    colour: str = "#111111",
    anchor: str = "start",
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
