"""`python -m model.manager ACTION`: information about checkpoints and work on them, as JSON lines for a user interface.

Progress is reported as {"what", "done", "total"}; the last line is the result, whose "error" is a sentence with the
remedy, or null. No model is loaded, and no user's file is changed or deleted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from model.checkpoints import components, convert, quantize, tuned
from model.checkpoints.inventory import CONTEXT
from model.checkpoints.loader import inspect, preset_of, presets
from model.checkpoints.memory_plan import plan
from model.checkpoints.safe_reader import checked_folder, list_tensors, read_config, read_shard, shown
from model.commands.options import DEVICES, quiet_libraries
from model.config import SpeechLanguageConfig
from model.errors import BadInput, ModelError, WeightsMissing
from model.nn.nf4 import MODES, stored_mode
from model.weights import fetch, store
from model.weights.packages import load_manifest

Notify = Callable[[dict[str, Any]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one action.

    Args:
        arguments: the command line; by default sys.argv.

    Returns:
        The exit code: 0 done, 2 bad input, 3 something is missing or damaged, 130 interrupted.
    """
    options = _parser().parse_args(arguments)
    quiet_libraries()
    try:
        options.run(options, _notify)
    except ModelError as error:
        _notify({"error": str(error)})
        return 2 if isinstance(error, BadInput) else 3
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.manager", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    action = actions.add_parser("list", help="describe checkpoints: downloaded or not, and how they fit into memory")
    action.add_argument("sources", metavar="SOURCE", nargs="+")
    action.set_defaults(run=lambda options, notify: [notify(describe(source)) for source in options.sources])
    action = actions.add_parser("verify", help="verify every file of a checkpoint")
    action.add_argument("source", metavar="SOURCE")
    action.set_defaults(run=lambda options, notify: notify(verify(options.source, notify)))
    action = actions.add_parser("convert", help="as `python -m model.convert`, with progress")
    action.add_argument("source", metavar="SOURCE", type=Path)
    action.add_argument("target", metavar="TARGET", type=Path)
    action.set_defaults(run=_convert)
    action = actions.add_parser("quantize", help="as `python -m model.quantize`")
    action.add_argument("source", metavar="SOURCE", type=Path)
    action.add_argument("target", metavar="TARGET", type=Path)
    action.add_argument("--quantize", choices=MODES, default="nf4")
    action.add_argument("--device", choices=DEVICES, default="auto")
    action.set_defaults(run=_quantize)
    action = actions.add_parser("hub", help="download one revision of a repository: weights only, never code")
    action.add_argument("repository", metavar="OWNER/NAME")
    action.add_argument("revision", metavar="HEX", help="the commit, 40 hexadecimal digits")
    action.set_defaults(run=_hub)
    return parser


def _notify(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _progress(notify: Notify) -> Callable[[fetch.Progress], None]:
    """A progress callback that skips steps of less than a thousandth."""
    last = ("", -1.0)

    def show(step: fetch.Progress) -> None:
        nonlocal last
        now = (step.what, round(step.done / step.total, 3) if step.total else 0.0)
        if now != last:
            last = now
            notify(asdict(step))

    return show


def describe(source: str) -> dict[str, Any]:
    """Describe a preset or folder without loading it.

    Returns:
        `source`; `kind`: "preset", "checkpoint", "original" (to be converted) or "other" (unsupported); `state`:
            "ready", "absent" or "broken"; `bytes` on the disk; `download_bytes` still to download; `stored`: its 4-bit
            mode or None; `reads_emotion`; `plan`: as `plan --json` or None; `error`: a sentence or None.
    """
    known = presets().get(source)
    about: dict[str, Any] = {"source": source, "kind": "preset" if known else "checkpoint", "state": "ready"}
    about |= {"bytes": 0, "download_bytes": 0, "stored": None, "reads_emotion": False, "plan": None, "error": None}
    try:
        if known:
            missing = [part for part in (known["speech"], known["text"]) if not _fetched(part)]
            manifest = load_manifest()
            about["download_bytes"] = sum(p.size for part in missing for p in manifest[part].sources[0].packages)
            about["bytes"] = sum(_size(store.home() / "models" / known[part]) for part in ("speech", "text"))
            if missing:
                return about | {"state": "absent"}
        elif not Path(source).is_dir():
            return about | {
                "state": "absent",
                "error": f"{source} is not there: connect its disk, or remove it here.",
            }
        else:
            stated = read_config(Path(source))
            about |= {"kind": _kind(stated), "bytes": _size(Path(source)), "stored": stored_mode(stated)}
            _refuse_other(about["kind"], stated, source)
        found = inspect(source)
        about["reads_emotion"] = found.preset or any(one.part == "emotion_head" for one in found.weights)
        about["plan"] = plan(found).as_dict()
    except ModelError as error:
        return about | {"state": "broken", "error": str(error)}
    return about


def _kind(stated: dict[str, Any]) -> str:
    if "qwen_config" in stated:
        return "original"
    return "checkpoint" if stated.get("model_type") == SpeechLanguageConfig.model_type else "other"


def _refuse_other(kind: str, stated: dict[str, Any], folder: Path | str) -> None:
    if kind == "other":
        what = shown(stated.get("model_type") or "nameless")
        raise WeightsMissing(f"{folder} is a {what} model, which cannot encode speech: choose a BLSP-Emo checkpoint.")


def _fetched(part: str) -> bool:
    return store.complete(store.home() / "models" / part, [one.key for one in load_manifest()[part].sources])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def verify(source: str, notify: Notify) -> dict[str, Any]:
    """Read and verify all files of a preset or folder.

    Args:
        source: a preset or a checkpoint folder.
        notify: called with the progress in bytes.

    Returns:
        `source`; `checked`: what was verified; `sha256` of a folder's weight files.

    Raises:
        WeightsMissing: something is missing or damaged; the message names it.
    """
    known = preset_of(source)
    progress = _progress(notify)
    checked: list[str] = []
    hashes: dict[str, str] = {}
    if known:
        parts_of = (known["speech"], known["text"])
        checked += [_verify_fetched(part, store.home() / "models" / part, progress) for part in parts_of]
        if source not in presets():
            tuned.check(known)
            checked.append("the tuned head is intact, and was fitted on these parts")
    else:
        folder = Path(source)
        if not folder.is_dir():
            raise WeightsMissing(f"{source} is not available: connect its disk, or remove it from the list.")
        checked += _verify_settings(folder)
        files = sorted({info.file for info in list_tensors(folder).values()})
        total, done = sum(file.stat().st_size for file in files), 0
        for file in files:
            progress(fetch.Progress(f"Reading {file.name}", done, total))
            components.refuse_nonfinite(read_shard(file).items(), folder)
            hashes[file.name] = store.sha256(file)
            done += file.stat().st_size
        checked.append(f"all {decimal(total)} of weights are finite")
        if (folder / store.STAMP).is_file():
            checked.append(_verify_fetched(folder.name, folder, progress))
    return {"source": source, "checked": checked, "sha256": hashes, "error": None}


def _verify_settings(folder: Path) -> list[str]:
    """Verify the structure: configs, tokenizer, names and shapes of the weights."""
    stated = read_config(folder)
    if _kind(stated) == "original":
        conversion = convert.examine(folder)
        return [f"{len(conversion.tensors)} tensors have the original's names and shapes"]
    _refuse_other(_kind(stated), stated, folder)
    config, tensors = components.model_config(checked_folder(folder), folder), list_tensors(folder)
    components.check_fit(config, tensors, folder)
    components.tokenizer(folder, config.text_config.vocab_size)
    components.extractor(folder, config.speech_config.num_mel_bins)
    components.generation(folder, CONTEXT)
    return [f"{len(tensors)} tensors have the names and shapes that config.json requires", "the tokenizer works"]


def _verify_fetched(name: str, folder: Path, progress: Callable[[fetch.Progress], None]) -> str:
    if not (folder / store.STAMP).is_file():
        raise WeightsMissing(f"{name} is not downloaded yet: download it first.")
    progress(fetch.Progress(f"Comparing hashes of {name}", 0, 1))
    wrong = store.damaged(folder)
    progress(fetch.Progress(f"Comparing hashes of {name}", 1, 1))
    if wrong:
        raise WeightsMissing(f"{name} is damaged ({wrong[0]}): delete {folder} and download it again.")
    return f"{name}: intact, every file has the SHA-256 of its download"


def _convert(options: argparse.Namespace, notify: Notify) -> None:
    convert.staging_of(options.target)
    conversion = convert.examine(options.source)
    convert.convert(conversion, options.target, _progress(notify))
    notify({"folder": str(options.target), "error": None})


def _quantize(options: argparse.Namespace, notify: Notify) -> None:
    quantize.quantize(options.source, options.target, options.quantize, options.device)
    notify({"folder": str(options.target), "error": None})


def _hub(options: argparse.Namespace, notify: Notify) -> None:
    folder = fetch.fetch_hub(
        options.repository, options.revision, progress=_progress(notify), allow_pickles=True
    )  # the original's weights are pickles; they are read weights-only
    notify({"folder": str(folder), "error": None})


if __name__ == "__main__":
    sys.exit(main())
