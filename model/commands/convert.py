"""`python -m model.convert SOURCE TARGET`: convert an original BLSP-Emo or Qwen-1 checkpoint to this project's format.

SOURCE is a folder, or owner/name on the Hugging Face Hub with --revision. An interrupted conversion can be resumed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.filesize import decimal

from model.checkpoints.convert import convert, disk_need, examine, staging_of
from model.commands.options import downloads, quiet_libraries
from model.errors import BadInput, ModelError, WeightsMissing
from model.weights import fetch


def find_source(source: str, revision: str | None, progress: Callable[[fetch.Progress], None], dry_run: bool) -> Path:
    """Resolve SOURCE to a folder; a repository of the hub is downloaded first, but not with `dry_run`.

    Raises:
        BadInput: there is no such folder, or the revision is missing or superfluous.
        WeightsMissing: the download failed, or a dry run would need it.
    """
    if Path(source).is_dir():
        if revision:
            raise BadInput(f"{source} is a folder and has no revision: leave out --revision.")
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise BadInput(f"{source} is not a folder: give the original's folder, or owner/name on the hub.")
    if revision is None:
        raise BadInput(f"{source} is not a folder here; for the hub add --revision and the commit's 40 digits.")

    def refuse(**_: Any) -> NoReturn:
        raise WeightsMissing(f"{source} is not downloaded, and --dry-run does not download: run without it.")

    return fetch.fetch_hub(
        source, revision, progress=progress, allow_pickles=True, snapshot=refuse if dry_run else None
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint.

    Args:
        arguments: the command line; by default sys.argv.

    Returns:
        The exit code: 0 done, 2 bad input, 3 unusable source or disk, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m model.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new folder")
    parser.add_argument("--revision", metavar="HEX", help="the hub's commit, 40 hexadecimal digits")
    parser.add_argument("--dry-run", action="store_true", help="report what would be done, write nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    quiet_libraries()
    started = time.perf_counter()
    try:
        with downloads(passing=True) as progress:
            staging_of(options.target)
            conversion = examine(find_source(options.source, options.revision, progress, options.dry_run))
            needed, free = disk_need(conversion, options.target)
            if not options.dry_run:
                convert(conversion, options.target, progress)
    except (ModelError, OSError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 3
    except KeyboardInterrupt:
        print("Stopped: run the same command again to resume.", file=sys.stderr)
        return 130
    fits = needed <= free
    if options.dry_run and not fits:
        print(f"{options.target} needs {decimal(needed)}, {decimal(free)} are free: make room.", file=sys.stderr)
    report = conversion.summary() | {"target": str(options.target), "disk_bytes": needed, "disk_free_bytes": free}
    report |= {"dry_run": options.dry_run, "seconds": round(time.perf_counter() - started, 2)}
    if options.json:
        print(json.dumps(report))
    else:
        for key, value in report.items():
            print(f"{key.replace('_', ' '):16} {_readable(key, value)}")
    return 0 if fits or not options.dry_run else 3


def _readable(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(key, item)}" for name, item in value.items())
    if key.endswith(("_bytes", "_files")):
        return decimal(value)
    return (", ".join(value) or "nothing") if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
