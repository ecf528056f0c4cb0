"""The command lines of `init`, `adapter`, `label`, `clean` and `prepare`, and what is told of dropped rows."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import Any

from model.commands.options import quiet_libraries
from training.data.manifest import Dropped
from training.runs.config import AdapterOptions, CleanOptions, InitOptions, LabelOptions, Options, PrepareOptions

_COMMANDS: dict[str, tuple[type[Options], str]] = {
    "init": (InitOptions, "a fresh checkpoint from a Whisper and a language model"),
    "adapter": (AdapterOptions, "a checkpoint's adapter and partial LoRA alone, in 16 bits"),
    "label": (
        LabelOptions,
        "continuations by the language model itself (resumable; accelerate launch shares the work)",
    ),
    "clean": (CleanOptions, "refusals out of labelled files"),
    "prepare": (PrepareOptions, "labelled files to a tokenised data set (resumable)"),
}
_SHOWN = 10  # messages of one kind and file


def add_data_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Declare the commands on the `add_subparsers` object; the parsers made."""
    parsers = []
    for name, (options, what) in _COMMANDS.items():
        parser = commands.add_parser(name, help=what, description=options.__doc__, allow_abbrev=False)
        options.add_arguments(parser)
        parsers.append(parser)
    return parsers


def run_data_command(given: argparse.Namespace) -> dict[str, Any] | None:
    """Run the command if it is one of these; its summary. What was dropped is told on stderr.

    Raises:
        BadInput, WeightsMissing: as the commands say.
    """
    if given.command not in _COMMANDS:
        return None
    quiet_libraries()
    values = vars(given)
    notified: Counter[tuple[str, str]] = Counter()

    def notify(one: Dropped) -> None:
        notified[one.file, one.reason] += 1
        if notified[one.file, one.reason] <= _SHOWN:
            sys.stderr.write(f"{one}\n")

    try:
        if given.command == "init":
            from training.stages.init import init

            return init(InitOptions.of(values))
        if given.command == "adapter":
            from training.stages.init import write_adapter

            return write_adapter(AdapterOptions.of(values))
        if given.command == "label":
            from training.data.label import label

            return label(LabelOptions.of(values), notify=notify)
        if given.command == "clean":
            from training.data.clean import clean

            return clean(CleanOptions.of(values), notify)
        from training.data.prepare import prepare

        return prepare(PrepareOptions.of(values), notify)
    finally:
        for (file, reason), count in notified.items():
            if count > _SHOWN:
                sys.stderr.write(f"{file}: {count - _SHOWN} more rows ({reason}); dropped.jsonl has all\n")
