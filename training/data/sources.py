"""Where a model comes from: a folder, or a name of weights.toml, which is downloaded with a progress report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from model.errors import WeightsMissing
from model.weights import fetch
from model.weights.packages import load_manifest
from training.runs.run_folder import Bar, Run


def model_folder(source: str, progress: Callable[[fetch.Progress], None] | None = None) -> Path:
    """The folder that `source` means: its path, or a name of weights.toml, which is fetched.

    Raises:
        WeightsMissing: it is neither, or could not be fetched.
    """
    if Path(source).is_dir():
        return Path(source)
    known = load_manifest()
    if source not in known:
        raise WeightsMissing(f"{source} is neither a folder nor one of {', '.join(known)}: check the name.")
    return fetch.ensure(source, progress=progress)


@contextmanager
def fetching(run: Run) -> Iterator[Callable[[fetch.Progress], None]]:
    """What shows and reports how the fetching of weights goes."""
    with ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def show(step: fetch.Progress) -> None:
            if step.what not in bars:
                stack.close()
                bars[step.what] = stack.enter_context(run.bar(step.what, step.total, unit="bytes"))
            bars[step.what].set(step.done)

        yield show
