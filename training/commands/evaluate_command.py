"""The command line of `evaluate`: loading, and the table and the picture of before and after."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from model.errors import BadInput
from model.files import write_atomically
from training.data.eval_cases import read_cases
from training.data.feature_cache import FeatureCache
from training.evaluation.evaluate import Subject, compare, examine
from training.metrics.predictions import Scores, as_svg

_SHOWN = {
    "accuracy": ("emotion: accuracy", 1.0),
    "unweighted_recall": ("emotion: unweighted recall", 1.0),
    "calibration_error": ("emotion: calibration error", 1.0),
    "loss_speech": ("continuation: loss given speech", 0.0),
    "loss_text": ("continuation: loss given text", 0.0),
    "loss_nothing": ("continuation: loss given neither", 0.0),
    "divergence_share": ("continuation: divergence, relative to no speech", 1.0),
    "spelt_word_error": ("CTC adapter: word error", 1.0),
    "repeat_word_error": ("repeated words: word error", 1.0),
    "reply_agreement": ("replies: agreement with the reply to the text", 1.0),
}
"""Figures of the table and the picture: their names, and the value at a bar's full width (0: the largest)."""


def evaluate_command(given: argparse.Namespace) -> dict[str, Any]:
    """Run `evaluate`. The table and some replies go to stderr, the picture to --picture.

    Returns:
        The figures.

    Raises:
        BadInput: there is nothing to evaluate, or the picture cannot be written.
        WeightsMissing: there is no such checkpoint.
    """
    subject = Subject.load(given.checkpoint)
    caches = [FeatureCache.open(folder) for folder in given.features]
    chat = subject.writer.chat
    cases, dropped = read_cases(given.data, chat, split=given.split, limit=given.limit, caches=caches)
    if given.compare:
        other = Subject.load(given.transcripts_of) if given.transcripts_of else None
        return compare(subject, cases, other) | {"dropped": dropped}
    figures, replies = examine(subject, cases, given.replies)
    columns = {"after" if given.before else "now": figures}
    if given.before:
        first, before_replies = examine(Subject.load(given.before), cases, given.replies, "before")
        columns = {"before": first, **columns}
        for row, old in zip(replies, before_replies, strict=False):
            row["reply_before"] = old["reply"]
        figures = figures | {"before": first}
    sys.stderr.write(as_table(columns))
    sys.stderr.writelines(f"\n{_reply(row)}" for row in replies[:5])
    if given.picture is not None:
        figures = figures | {"pictures": _draw(given.picture, columns)}
    return figures | {"dropped": dropped, "replies": replies}


def _draw(path: Path, columns: dict[str, dict[str, Any]]) -> list[str]:
    """Write the bars, and a confusion matrix for each checkpoint that reads emotions; returns their paths."""
    pictures = {path: as_picture(columns)}
    for name, figures in columns.items():
        if "confusion" in figures:
            matrix = as_svg(Scores(figures["confusion"]), f"Emotions read, {name}", "read from the voice")
            pictures[path.with_suffix(f".{name}{path.suffix}")] = matrix
    for place, picture in pictures.items():
        try:
            write_atomically(place, picture)
        except OSError as error:
            raise BadInput(f"{place} cannot be written ({error.strerror}): choose another path.") from error
    return [str(place) for place in pictures]


def _reply(row: dict[str, str]) -> str:
    return "".join(f"{name:>14}: {json.dumps(text, ensure_ascii=False)}\n" for name, text in row.items())


def as_table(columns: dict[str, dict[str, Any]]) -> str:
    """The figures as aligned text, one column per checkpoint."""
    lines = [" " * 54 + "".join(f"{name:>12}" for name in columns)]
    for key, (title, _) in _SHOWN.items():
        values = [figures.get(key) for figures in columns.values()]
        if any(value is not None for value in values):
            cells = "".join(f"{'-' if value is None else f'{value:.3f}':>12}" for value in values)
            lines.append(f"{title:<54}{cells}")
    return "\n".join(lines) + "\n"


_ROW, _LEFT, _WIDE = 54, 400, 360


def as_picture(columns: dict[str, dict[str, Any]]) -> str:
    """The figures as bars in an SVG picture: before light, after dark."""
    parts = [_text(24, 36, f"Training: {' and '.join(columns)}", 20)]
    top = 64
    for key, (title, full) in _SHOWN.items():
        known = {name: figures[key] for name, figures in columns.items() if figures.get(key) is not None}
        if not known:
            continue
        whole = full or max(
            figures.get(other, 0) for figures in columns.values() for other in _SHOWN if "loss_" in other
        )
        parts.append(_text(24, top + 24, title))
        for place, (name, value) in enumerate(known.items()):
            shade = "#9ecae1" if place < len(known) - 1 else "#08306b"
            width, y = _WIDE * min(1.0, value / max(whole, 1e-9)), top + 4 + 20 * place
            parts.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="16" fill="{shade}"/>')
            parts.append(_text(_LEFT + width + 8, y + 13, f"{value:.3f} {name}", 12))
        top += _ROW
    wide = _LEFT + _WIDE + 140
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{top + 16}" viewBox="0 0 {wide} {top + 16}" '
        f'role="img" font-family="Helvetica, Arial, sans-serif">\n<title>Before and after training</title>\n'
        f'<rect width="{wide}" height="{top + 16}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, size: int = 14) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="#111111">{escape(words)}</text>'
