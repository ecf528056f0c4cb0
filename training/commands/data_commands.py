"""The command lines of `init`, `adapter`, `label`, `clean` and `prepare`, and reports of dropped rows."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import Any

from model.commands.options import quiet_libraries
from training.data.manifest import Dropped
from training.runs.config import AdapterOptions, CleanOptions, InitOptions, LabelOptions, Options, PrepareOptions

_COMMANDS: dict[str, tuple[type[Options], str]] = {
    "init": (InitOptions, "create an initial checkpoint from a Whisper and a language model"),
    "adapter": (AdapterOptions, "export a checkpoint's adapter and partial LoRA in 16 bits"),
    "label": (
        LabelOptions,
        "generate continuations with the language model itself (resumable; works with accelerate launch)",
    ),
    "clean": (CleanOptions, "remove refusals from labelled files"),
    "prepare": (PrepareOptions, "tokenise labelled files into a data set (resumable)"),
}
_SHOWN = 10  # messages per reason and file


def add_data_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Declare the commands.

    Args:
        commands: from `add_subparsers`.

    Returns:
        The parsers.
    """
    parsers = []
    for name, (options, what) in _COMMANDS.items():
        parser = commands.add_parser(name, help=what, description=options.__doc__, allow_abbrev=False)
        options.add_arguments(parser)
        parsers.append(parser)
    return parsers


def run_data_command(given: argparse.Namespace) -> dict[str, Any] | None:
    """Run the command if it is one of these. Dropped rows are reported on stderr.

    Args:
        given: parsed arguments.

    Returns:
        The summary; None for other commands.

    Raises:
        BadInput: as the command.
        WeightsMissing: as the command.
    """
    if given.command not in _COMMANDS:
        return None
    quiet_libraries()
    values = vars(given)
    counts: Counter[tuple[str, str]] = Counter()

    def notify(one: Dropped) -> None:
        counts[one.file, one.reason] += 1
        if counts[one.file, one.reason] <= _SHOWN:
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
        for (file, reason), count in counts.items():
            if count > _SHOWN:
                sys.stderr.write(f"{file}: {count - _SHOWN} more rows ({reason}); see dropped.jsonl\n")
