"""Options and runs of the batch tool, for its tests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints.loader import Checkpoint
from model.commands import answer_lines
from model.commands.answer_lines import Answerer
from model.commands.generate import Job, Options


def options(folder: Path, lines: list[Any] | bytes | None = None, *words: str, **changes: Any) -> Options:
    """Options as the command line makes them; `lines` become the input."""
    source = folder / "in.jsonl"
    if lines is not None:
        text = lines if isinstance(lines, bytes) else "".join(json.dumps(line) + "\n" for line in lines).encode()
        source.write_bytes(text)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    Options.add_arguments(parser)
    given_ = ["--input-file", str(source), "--output-file", str(folder / "out.jsonl"), *words]
    return Options.of(vars(parser.parse_args(given_)) | changes)


def run(loaded: Checkpoint, chosen: Options) -> list[dict]:
    """The output lines, read back from the file."""
    with Job(chosen) as job:
        for _ in job.write(Answerer(loaded, chosen)):
            pass
    return [json.loads(line) for line in chosen.output_file.read_bytes().split(b"\n")[:-1]]


def capture(monkeypatch: pytest.MonkeyPatch, replies: list[list[int]] | None = None) -> list[list[Any]]:
    """Replace generation: collects the prompts of each call, and returns the given replies in turn."""
    calls: list[list[Any]] = []
    waiting = iter(replies or [])

    def instead(_model: object, _tokenizer: object, prompts: list[Any], *_: object, **__: object) -> list[list[int]]:
        calls.append(prompts)
        return [next(waiting, [0]) for _ in prompts]

    monkeypatch.setattr(answer_lines, "generate", instead)
    return calls
