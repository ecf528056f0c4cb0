"""Shared parts of command lines: the model's options, download progress, silencing libraries."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from model.weights.fetch import Progress

DEVICES = ("auto", "cpu", "cuda")

QUANTIZE = ("auto", "none", "int8", "nf4", "nf4-all")
"""int8 is for CPUs; nf4 has the language model in 4 bits, nf4-all the encoder too."""


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the model's options to a command line.

    Args:
        command: the parser to extend.
    """
    command.add_argument("--model", default="mini", help="mini, mini-0.5b, mini-speech, or a checkpoint folder")
    command.add_argument("--device", choices=DEVICES, default="auto")
    command.add_argument("--quantize", choices=QUANTIZE, default="auto")
    add_reading(command)
    command.add_argument(
        "--empathy",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask the model to answer the emotion as well as the words",
    )


def add_reading(command: argparse.ArgumentParser) -> None:
    """Add the choice of the emotion head to a command line.

    Args:
        command: the parser to extend.
    """
    command.add_argument(
        "--reading",
        help="people (default; weights under CC BY-NC-SA 4.0) or free (commercial use too), or a head's folder",
    )


@contextmanager
def downloads(*, passing: bool = False) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr for downloads, shown only when something is downloaded or written.

    Args:
        passing: remove the bar when it is done, and show none where stderr is not a terminal.

    Yields:
        A callback for progress.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # An empty bar would still print a line, so it starts with the first report.
    with ExitStack() as stack:
        bars = Bars(*columns, console=console, transient=passing, disable=passing and not console.is_terminal)
        tasks: dict[str, TaskID] = {}

        def show(step: Progress) -> None:
            if not tasks:
                stack.enter_context(bars)
            if step.what not in tasks:
                tasks[step.what] = bars.add_task(step.what, total=step.total)
            bars.update(tasks[step.what], completed=step.done, total=step.total)

        yield show


def quiet_libraries() -> None:
    """Keep transformers' progress bars and warnings out of a command's output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
