"""The card beside a head from people's speech: every figure in it was measured by the run that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assistant.events import EMOTIONS
from training.emotion.corpora import UNACTED, MeanFrames

_COLUMNS = (
    "unweighted_recall",
    "calibration_error",
    "sure",
    "wrong_when_sure",
    "pairs",
    "truth_in_pair",
    "truth_in_two",
)
_TITLES = (
    "| {} | n | recall | calibration error | sure | wrong when sure | two candidates | truth in them "
    "| truth in two likeliest |"
)


def percent(share: float | None) -> str:
    """A share as text."""
    return "-" if share is None else f"{100 * share:.1f} %"


def table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Figures of several sets of clips, one row each."""
    lines = [_TITLES.format(title), "|" + "---|" * (len(_COLUMNS) + 2)]
    for name, f in rows.items():
        lines.append(f"| {name} | {f['n']} | " + " | ".join(percent(f[key]) for key in _COLUMNS) + " |")
    return "\n".join(lines)


def calm_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What ordinary speech is read as."""
    lines = [f"| {title} | n | neutral | neutral or unsure | surely another emotion |", "|---|---|---|---|---|"]
    for name, f in rows.items():
        cells = (percent(f[key]) for key in ("neutral", "neutral_or_unsure", "sure_of_another"))
        lines.append(f"| {name} | {f['n']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def confusion_table(confusion: list[list[int]]) -> str:
    """Counts: spoken emotions in rows, read ones in columns."""
    body = "\n".join(
        f"| {emotion} | " + " | ".join(map(str, row)) + " |" for emotion, row in zip(EMOTIONS, confusion, strict=True)
    )
    return f"| spoken | {' | '.join(EMOTIONS)} |\n|{'---|' * 6}\n{body}"


def curve_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Error by coverage: the surest readings first."""
    lines = ["| covered | " + " | ".join(f"error: {name}" for name in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for points in zip(*(f["curve"] for f in rows.values()), strict=True):
        cells = [f"{percent(error)} (from {confidence:.2f})" for _, error, confidence in points]
        lines.append(f"| {percent(points[0][0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _corpora(frames: MeanFrames) -> str:
    lines = ["| corpus | clips | speakers | kind | licence |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(str(name) for name in frames.corpora):
        own = [c for c, draw in zip(frames.clips, frames.draws, strict=True) if c.corpus == name and not draw]
        kind = "acted" if own[0].acted else "ordinary speech, as neutral"
        speakers, licences = len({c.speaker for c in own}), ", ".join(sorted({c.licence for c in own}))
        lines.append(f"| {name} | {len(own)} | {speakers} | {kind} | {licences} |")
    return "\n".join(lines)


def write_people_card(path: Path, figures: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write CARD.md.

    Args:
        path: of the card.
        figures: of `fit_people_head`.
        about: its `display`, `recipe`, `frames` and `options`.
    """
    display, recipe, options = about["display"], about["recipe"], about["options"]
    unseen = figures.get("corpora", {})
    without = {name: f["without"] for name, f in unseen.items()}
    beside = {name: f["with_baseline"] for name, f in unseen.items()}
    speakers = {name: f for name, f in figures["speakers"].items() if name != UNACTED}
    speakers_beside = {name: f for name, f in figures["speakers_baseline"].items() if name != UNACTED}
    calm = {f"a head that did not know {name}": f["unacted"] for name, f in without.items() if f["unacted"]}
    if UNACTED in figures["speakers"]:
        calm["a head that did not know these speakers"] = figures["speakers"][UNACTED]
    parts = [
        f'# The emotion head "{options.name}"',
        f"**Licence of the weights: {options.licence}**, because of what they were fitted on (below).",
        "It says how a voice sounds, learnt mostly from actors. It does not know what anyone feels, and it is not for "
        'judging others. One label is shown where it is sure, two where two are likely, else "unsure".',
        "A logistic regression over the mean of Whisper base's frames with a voice "
        f"(layers {', '.join(map(str, recipe.layers))} side by side) and the prosody of `model/audio/prosody.py`; each "
        f"clip was heard as it is and in {len(options.draws) - 1} renditions through random voices, rooms, "
        "microphones, noise and codecs. Recall is the mean over "
        "five emotions, of which chance gets 20 % (four and 25 % in EMO-DB).",
        f"Temperature {display.temperature:.2f}; sure from {display.threshold:.2f}, of neutral from "
        f"{max(display.threshold, display.neutral_threshold):.2f}; two candidates from {display.pair_threshold:.2f} "
        f"together. A speaker's own normal voice takes {recipe.baseline:.0%} of the ordinary one's place.",
        "## Fitted on",
        _corpora(about["frames"]),
    ]
    if unseen:
        parts += [
            "## A corpus it never heard",
            "Each corpus in turn was left out whole; temperature and thresholds came from the others alone. The "
            "layers, penalty and weights were settled with these corpora in view.",
            table("without a baseline", without),
            "With the mean of two neutral clips of the speaker as baseline, the other neutral ones scored:",
            table("with a baseline", beside),
        ]
    parts += [
        "## Speakers it never heard",
        f"{options.folds} folds without shared speakers; one temperature and one set of thresholds for all.",
        table("without a baseline", speakers),
        table("with a baseline", speakers_beside),
    ]
    if calm:
        parts += [
            "## Ordinary people",
            "Speech that nobody acted, of people in no training:",
            calm_table("read by", calm),
        ]
    parts += ["## Error by coverage", curve_table(without or speakers), "## Confusion"]
    for name, f in {**{f"{k}, a corpus left out": v for k, v in without.items()}, **speakers}.items():
        parts += [f"{name}:", confusion_table(f["confusion"])]
    path.write_text("\n\n".join(parts) + "\n")
