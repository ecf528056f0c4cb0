"""The command `generate`: the batch tool with progress bars on stderr."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import Progress

from model.commands.generate import Job, Options
from model.commands.options import downloads, quiet_libraries


def run(options: Options) -> int:
    """Answer the lines; each failed line is reported on stderr with its reason.

    Args:
        options: of the batch tool.

    Returns:
        The exit code: 0 done, 2 a line failed.

    Raises:
        BadInput: the input or the output cannot be used.
        WeightsMissing: the checkpoint cannot be loaded.
    """
    with Job(options) as job:
        if job.done < len(job.lines):
            from model.commands.answer_lines import Answerer, load  # torch, which a finished job does not need

            quiet_libraries()
            with downloads() as progress:
                loaded = load(options, progress)
            with Progress(console=Console(stderr=True)) as bars:
                task = bars.add_task("lines", total=len(job.lines), completed=job.done)
                for results in job.write(Answerer(loaded, options)):
                    for number, result in enumerate(results, job.done - len(results) + 1):
                        if "error" in result:
                            sys.stderr.write(f"line {number}: {result['error']}\n")
                    bars.update(task, completed=job.done)
        failed = f"; {job.failed} of them failed" if job.failed else ""
        sys.stderr.write(f"{job.done} lines in {options.output_file}{failed}\n")
    return 2 if job.failed else 0
