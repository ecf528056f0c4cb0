"""The examples that a tuning run learns from: usable rows of its manifest, each with its recording."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from assistant.events import EMOTIONS
from model.errors import BadInput
from training.data.manifest import Dropped, Found, Report, Row, Rules, inspect, read_rows
from training.finetune.options import TuneOptions

SHORTEST_SECONDS, LONGEST_SECONDS = 0.3, 30.0


@dataclass(frozen=True, slots=True)
class Example:
    """A usable row of the manifest with its recording."""

    row: Row
    found: Found

    @property
    def audio(self) -> Path:
        """The recording's file."""
        assert self.found.clip is not None
        return self.found.clip.path

    @property
    def label(self) -> int:
        """The index of its emotion in `EMOTIONS`."""
        assert self.row.emotion is not None
        return EMOTIONS.index(self.row.emotion)

    @property
    def speaker(self) -> str:
        """The speaker, "" if unknown."""
        return str(self.row.data.get("speaker") or self.row.data.get("voice") or "")


def print_dropped(dropped: Dropped) -> None:
    """Report on stderr what is left out."""
    sys.stderr.write(f"{dropped}\n")


def read_examples(options: TuneOptions, report: Report) -> list[Example]:
    """Read the rows to learn from.

    Raises:
        BadInput: there are none, or of fewer than two emotions.
    """
    examples = []
    for row in read_rows([options.manifest], Rules(text="", emotions="required"), report):
        found = inspect(row, SHORTEST_SECONDS, LONGEST_SECONDS)
        if found.clip is None:
            report.drop(row.file, row.line, *(found.problem or ("no audio", "it names no recording")))
        else:
            examples.append(Example(row, found))
    if len({one.label for one in examples}) < 2:
        raise BadInput(f"{options.manifest} has usable recordings of fewer than two emotions{report.first()}.")
    return examples
