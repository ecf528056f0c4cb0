"""Finding a model: a folder, or a name of weights.toml, which is downloaded with a progress report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from model.errors import WeightsMissing
from model.weights import fetch
from model.weights.packages import load_manifest
from training.runs.run_folder import Bar, Run


def model_folder(source: str, progress: Callable[[fetch.Progress], None] | None = None) -> Path:
    """Resolve the name of a model.

    Args:
        source: a folder, or a name of weights.toml, which is downloaded if necessary.
        progress: called with the progress of the download.

    Returns:
        The folder.

    Raises:
        WeightsMissing: it is neither, or could not be downloaded.
    """
    if Path(source).is_dir():
        return Path(source)
    known = load_manifest()
    if source not in known:
        raise WeightsMissing(f"{source} is neither a folder nor one of {', '.join(known)}: check the name.")
    return fetch.ensure(source, progress=progress)


@contextmanager
def fetching(run: Run) -> Iterator[Callable[[fetch.Progress], None]]:
    """Report downloads in a run.

    Args:
        run: the run folder.

    Yields:
        A callback for the progress of downloads.
    """
    with ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def show(step: fetch.Progress) -> None:
            if step.what not in bars:
                stack.close()
                bars[step.what] = stack.enter_context(run.bar(step.what, step.total, unit="bytes"))
            bars[step.what].set(step.done)

        yield show
