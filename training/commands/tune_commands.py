"""The command lines of `check`, `transcribe`, `tune` and `adopt`: fine-tuning on the user's own recordings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from model.errors import BadInput
from training.finetune.options import CheckOptions, TuneOptions

_NAMES = ("check", "transcribe", "tune", "adopt")


def add_tune_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Declare the commands.

    Args:
        commands: from `add_subparsers`.

    Returns:
        The parsers.
    """
    check = commands.add_parser(
        "check",
        help="check recordings: a manifest, a folder, or corrections",
        description=CheckOptions.__doc__,
        allow_abbrev=False,
    )
    CheckOptions.add_arguments(check)
    transcribe = commands.add_parser("transcribe", help="transcribe recordings with the recogniser of mini")
    transcribe.add_argument("files", nargs="+", type=Path)
    tune = commands.add_parser(
        "tune",
        help="fine-tune on your own recordings, and compare before and after (resumable; a file `stop` pauses)",
        description=TuneOptions.__doc__,
        allow_abbrev=False,
    )
    TuneOptions.add_arguments(tune)
    tune.add_argument("--plan", action="store_true", help="only estimate memory and time")
    adopt = commands.add_parser("adopt", help="use a run's checkpoint in the assistant, or go back (--undo)")
    adopt.add_argument("run", type=Path)
    adopt.add_argument("--undo", action="store_true", help="go back to the previous checkpoint")
    return [check, transcribe, tune, adopt]


def run_tune_command(given: argparse.Namespace) -> dict[str, Any] | None:
    """Run the command if it is one of these.

    Args:
        given: parsed arguments.

    Returns:
        The summary; None for other commands.

    Raises:
        BadInput: as the command.
        WeightsMissing: as the command.
    """
    if given.command not in _NAMES:
        return None
    if given.command == "check":
        from training.finetune.recordings import check_command

        return check_command(CheckOptions.of(vars(given)), as_json=given.json)
    if given.command == "adopt":
        return _adopt(given)
    from model.commands.options import quiet_libraries

    quiet_libraries()
    if given.command == "transcribe":
        return _transcribe(given.files, as_json=given.json)
    options = TuneOptions.of(vars(given))
    if given.plan:
        from training.finetune.plan import plan_tuning

        return plan_tuning(options)
    from training.finetune.tune import tune

    summary = tune(options)
    return summary if given.json else {k: v for k, v in summary.items() if k not in ("recordings", "reading")}


def _transcribe(files: list[Path], *, as_json: bool) -> dict[str, Any]:
    """Print one line per file as soon as it is transcribed; returns their number."""
    from model.audio.files import read_audio
    from model.checkpoints.loader import RECOGNISER
    from model.nn.transcribe import Transcriber
    from model.weights.fetch import ensure

    recogniser = Transcriber.load(ensure(RECOGNISER), int8=True)
    written = 0
    for file in files:
        try:
            texts = [recogniser.transcribe(*piece).text for piece in recogniser.encode(read_audio(file))]
        except BadInput as error:
            line: dict[str, Any] = {"audio": str(file), "text": "", "error": str(error)}
        else:
            line = {"audio": str(file), "text": " ".join(filter(None, texts)), "error": None}
            written += 1
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n" if as_json else f"{file}: {line['text']}\n")
        sys.stdout.flush()
    return {"transcribed": written}


def _adopt(given: argparse.Namespace) -> dict[str, Any]:
    from assistant.errors import AssistantError
    from assistant.finetune.run_watcher import TuningRun, adopt, roll_back
    from assistant.paths import user_folder
    from assistant.settings import load, save

    path = user_folder() / "settings.toml"
    settings, trouble = load(path)
    if trouble:
        raise BadInput(trouble)
    try:
        run = TuningRun.open(given.run)
        values = roll_back(run, settings) if given.undo else adopt(run, settings)
        save(path, settings.changed("model", **values))
    except (ValueError, AssistantError) as error:
        raise BadInput(str(error)) from error
    why = (run.summary or {}).get("why", "")
    return {"model": values["source"], "before": settings.model.source} | ({} if given.undo else {"judged": why})
