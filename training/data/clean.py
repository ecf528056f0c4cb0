"""`python -m training clean`: remove continuations that refuse, or that mention being a model.

The original's three rules, and with --strict more phrases. Every <name>.jsonl of the input folder becomes
<name>_clean.jsonl in another folder, which is never read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.errors import BadInput
from model.files import write_atomically
from training.data.manifest import OnDropped, Report, Row, Rules, read_rows
from training.runs.config import CleanOptions
from training.runs.run_folder import open_run

_SUFFIX = "_clean"

RULES = {
    "refusal": re.compile(r"i'm sorry, but i", re.IGNORECASE),
    "language model": re.compile(r"as an ai language model", re.IGNORECASE),
    "not sure": re.compile(r"I'm not sure what you"),
}
"""The original's."""

STRICT = {
    "refusal": re.compile(
        r"\bi(?:'m| am) (?:so |very |really )?(?:sorry|afraid)\b[^.!?]{0,40}\b(?:i|but)\b"
        r"|\bi (?:cannot|can't|am unable to|am not able to|won't) (?:assist|help|answer|fulfill|provide|continue)\b"
        r"|\bi(?:'m| am) (?:unable|not able) to\b",
        re.IGNORECASE,
    ),
    "language model": re.compile(
        r"\b(?:large |ai )?language model\b|\b(?:as|i am|i'm) (?:just )?an? (?:ai|artificial intelligence)\b",
        re.IGNORECASE,
    ),
    "not sure": re.compile(r"\bi(?:'m| am) not sure (?:what|how|if) (?:you|to)\b", re.IGNORECASE),
}
"""Applied after the original's, with plain apostrophes."""


def reason_against(output: str, *, strict: bool = False, also: Sequence[str] = ()) -> str | None:
    """Why a continuation is dropped, or None.

    Args:
        output: the continuation.
        strict: also apply `STRICT`.
        also: phrases that it must not contain, in any case.
    """
    plain = output.replace("\u2019", "'").replace("\u2018", "'")
    for rules, text in ((RULES, output), (STRICT if strict else {}, plain)):
        for reason, pattern in rules.items():
            if pattern.search(text):
                return reason
    return next((f"phrase {phrase!r}" for phrase in also if phrase.lower() in output.lower()), None)


def clean(options: CleanOptions, notify: OnDropped | None = None) -> dict[str, Any]:
    """Clean all labelled files of a folder.

    Args:
        options: of the command.
        notify: called with every dropped line.

    Returns:
        Counts by file and reason.

    Raises:
        BadInput: there is nothing to clean, it is already clean, or the output would be among the inputs.
    """
    source = options.input_dir
    target = options.output_dir or source / "clean"
    if not source.is_dir():
        raise BadInput(f"--input-dir: {source} is no folder: choose the one with the labelled files.")
    if target.resolve() == source.resolve():
        raise BadInput(f"--output-dir: {target} has the inputs and would be read again: choose another folder.")
    files = sorted(path for path in source.glob("*.jsonl") if not path.stem.endswith(_SUFFIX))
    if not files:
        made = any(source.glob(f"*{_SUFFIX}.jsonl"))
        why = "is already clean" if made else "has no *.jsonl"
        raise BadInput(f"--input-dir: {source} {why}: choose the folder that `label` wrote.")
    ours = {f"{path.stem}{_SUFFIX}.jsonl" for path in files}
    foreign = sorted(path.name for path in target.glob("*.jsonl") if path.name not in ours) if target.exists() else []
    if foreign:
        raise BadInput(
            f"--output-dir: {target} has {foreign[0]}, which is not an output of this command: choose another folder."
        )
    report, kept = Report(notify), Counter[str]()
    with open_run(target / "clean.run", options.plain(), changeable=CleanOptions.model_fields) as run:
        rules = Rules(needs_audio=False, emotions="any", required=("output",))
        with run.bar("clean", sum(path.stat().st_size for path in files), unit="bytes") as bar:
            for path in files:
                lines: list[str] = []
                for row in _rows(path, rules, report):
                    reason = reason_against(str(row.data["output"]), strict=options.strict, also=options.also)
                    if reason is None:
                        lines.append(json.dumps(row.data, ensure_ascii=False) + "\n")
                    else:
                        report.drop(path, row.line, reason, f"the continuation was dropped ({reason})")
                write_atomically(target / f"{path.stem}{_SUFFIX}.jsonl", "".join(lines))
                kept[path.name] = len(lines)
                bar.advance(path.stat().st_size)
        report.write(run.folder)
    if not kept.total():
        raise BadInput(f"--input-dir: no line of {source} is left{report.first()}.")
    return {"clean": str(target), "kept": dict(kept), "dropped": report.counts()}


def _rows(path: Path, rules: Rules, report: Report) -> Sequence[Row]:
    try:
        return list(read_rows([path], rules, report))
    except BadInput:
        return []  # the report has the reason; other files are still cleaned
