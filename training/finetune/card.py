"""card.md of a tuning run: what it learned from, and what has changed."""

from __future__ import annotations

from typing import Any

from assistant.events import EMOTIONS
from training.finetune.options import TuneOptions


def tuning_card(options: TuneOptions, summary: dict[str, Any]) -> str:
    """The card as Markdown. It names no recording and contains nothing of what was said."""
    return f"""# A tuned checkpoint

Tuned from `{summary["from"]}` ({options.what}) on {summary["learnt_from"]} recordings, in {summary["seconds"]:.0f} s.
{summary["why"]}

{_reading(summary)}

{_continuation(summary)}
"""


def _reading(summary: dict[str, Any]) -> str:
    read = summary.get("reading")
    if not read:
        return "No recording with an emotion was held out, so the readings were not evaluated."
    how = (
        f"Every recording was read by a head trained neither on it nor on its {summary['held_out_by']}'s "
        "other recordings."
        if summary["what"] == "head"
        else f"Recordings that were held out by {summary['held_out_by']}; the best step was chosen on them, so the "
        "figures after are slightly optimistic."
    )
    lines = [
        how,
        "",
        "| | accuracy (95 %) | unweighted recall | calibration error |",
        "|---|---|---|---|",
    ]
    for name in ("before", "after"):
        one = read[name]
        low, high = one["interval_95"]
        lines.append(
            f"| {name} | {one['accuracy']:.1%} ({low:.1%} to {high:.1%}) | {one['unweighted_recall']:.1%} | "
            f"{one['calibration_error']:.1%} |"
        )
    low, high = read["difference"]["interval_95"]
    lines += ["", f"Difference of the accuracies: {read['difference']['accuracy']:+.1%} ({low:+.1%} to {high:+.1%})."]
    lines += ["", "After, rows as spoken:", "", "| spoken | " + " | ".join(EMOTIONS) + " |", "|---" * 6 + "|"]
    table = read["after"]["confusion"]
    lines += [f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in zip(EMOTIONS, table, strict=True)]
    return "\n".join(lines)


def _continuation(summary: dict[str, Any]) -> str:
    loss = summary.get("continuation")
    if not loss:
        return "Continuation loss of neutral speech: not measured."
    return (
        f"Continuation loss of neutral speech ({loss['tokens']} tokens): {loss['before']:.3f} before, "
        f"{loss['after']:.3f} after ({loss['ratio'] - 1:+.1%})."
    )
