"""The card of a fitted emotion head: every figure in it was measured by the run that wrote it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from assistant.events import EMOTIONS
from model.files import write_atomically

_PARTS = {
    "test": "voices never trained on (Kokoro, espeak-ng)",
    "engine": "a synthesizer never trained on (flite)",
    "human": "human recordings, changed by the same rules",
}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _held_out(figures: dict[str, Any]) -> str:
    lines = ["| clips | n | accuracy (95 %) | unweighted recall | calibration error | coverage | error when sure |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, title in _PARTS.items():
        if name in figures:
            f = figures[name]
            low, high = (_percent(edge) for edge in f["interval_95"])
            cells = [f"{_percent(f['accuracy'])} ({low} to {high})"]
            cells += [_percent(f[k]) for k in ("unweighted_recall", "calibration_error", "coverage", "error_when_sure")]
            lines.append(f"| {title} | {f['n']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _curves(figures: dict[str, Any]) -> str:
    parts = [name for name in _PARTS if name in figures]
    lines = ["| coverage | " + " | ".join(f"error: {name} (threshold)" for name in parts) + " |"]
    lines.append("|---" * (len(parts) + 1) + "|")
    for points in list(zip(*(figures[name]["curve"] for name in parts), strict=True))[1::2]:
        cells = [f"{_percent(error)} ({threshold:.2f})" for threshold, _, error in points]
        lines.append(f"| {_percent(points[0][1])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _confusion(figures: dict[str, Any]) -> str:
    blocks = []
    for name, title in _PARTS.items():
        if name in figures:
            rows = zip(EMOTIONS, figures[name]["confusion"], strict=True)
            body = "\n".join(f"| {emotion} | " + " | ".join(map(str, row)) + " |" for emotion, row in rows)
            blocks.append(f"{title}:\n\n| spoken | {' | '.join(EMOTIONS)} |\n|{'---|' * 6}\n{body}")
    return "\n\n".join(blocks)


def _untouched(figures: dict[str, Any]) -> str:
    lines = [f"| recordings | n | {' | '.join(EMOTIONS)} | unsure |", "|" + "---|" * 8]
    titles = {"librivox_untouched": "LibriVox (a novel read aloud)", "allison_untouched": "Asterisk prompts"}
    for name, title in titles.items():
        if name in figures:
            f = figures[name]
            cells = [_percent(f[key]) for key in (*EMOTIONS, "unsure")]
            lines.append(f"| {title} | {f['n']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_card(path: Path, figures: dict[str, Any], scores: dict[str, float], rows: list[dict[str, Any]]) -> None:
    """Write CARD.md from the figures of `fit_head`, the cross-validation's scores and the corpus' manifest rows."""
    splits = ", ".join(f"{split} {n}" for split, n in sorted(Counter(row["split"] for row in rows).items()))
    trained = len({row["voice"] for row in rows if row["split"] == "train"})
    table = "\n".join(f"| {name} | {_percent(score)} |" for name, score in scores.items())
    write_atomically(
        path,
        f"""# The mini emotion head: a prosody estimate

**It was fitted on synthetic prosody alone. No person's emotional speech was used, because none with a usable
licence was at hand.** It tells how a voice sounds by pitch, tempo, loudness and timbre; it does not know what
anyone feels, and its accuracy on real emotional speech has not been measured. "Unsure" is a normal answer.

The logits of a logistic regression and of {figures["networks"]} networks of {figures["hidden_each"]} hidden units,
averaged, over the prosody features of `model/audio/prosody.py` and the mean of Whisper base's encoder frames (layers
{figures["layers"]}); 5 classes, chance 20 %. Fitted on {trained} synthetic voices by `python -m training fit-head`.
Clips: {splits}.
The rules, voices and licences stand in the card that `python -m training corpus` writes.
The layers were chosen by cross-validation of regressions within the training voices; temperature
({figures["temperature"]:.2f}) and threshold ({figures["threshold"]:.2f}) were set on voices apart from both.

## Held out

One clip an emotion and sentence. These clips follow the same rules of expression as the fitted ones, so the figures
say how well the rules are recognised in other voices, not how well people are understood; and the rules' sizes, the
list of features and the networks' form were settled with such figures in view. "Coverage" is the share of clips
whose confidence reaches the threshold.

{_held_out(figures)}

## Untouched human speech

People reading without acting, levelled and trimmed but otherwise as recorded: what the reading says of them.

{_untouched(figures)}

## Error by coverage

{_curves(figures)}

## Confusion

{_confusion(figures)}

## Cross-validation (logistic regression on training clips: mean of voices left out and engines left out)

| layers | accuracy |
|---|---|
{table}
""",
    )
