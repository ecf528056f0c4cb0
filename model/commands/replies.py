"""`python -m model.replies [--model M] [--prompts FILE.tsv] [--json]`: how good a checkpoint's replies are.

It answers the held-out cases of resources/reply_cases and counts what passes. With --prompts it answers one's own:
a line `tone TAB said` each ("sad", "sad/neutral", or "-" for none), one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from assistant.events import EMOTIONS
from model.checkpoints import loader
from model.commands.options import quiet_libraries
from model.commands.reply_cases import EngineAnswerer, figures, judge, labels, read_cases
from model.errors import BadInput, ModelError, WeightsMissing
from model.inference.engine import Engine


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """The (tone, said) of each line that is not blank.

    Raises:
        BadInput: the file cannot be read, or a line is none.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as UTF-8 text: check the path.") from error
    found = []
    for number, line in enumerate(lines, 1):
        tone, tab, said = line.partition("\t")
        if not line.strip():
            continue
        if not tab or not said.strip() or not set(labels(tone)) <= set(EMOTIONS):
            raise BadInput(f"{path}:{number}: write a tone ({', '.join(EMOTIONS)}, or -), a tab, and what is said.")
        found.append((tone.strip(), said.strip()))
    return found


def answers(engine: Engine, prompts: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """An object for each prompt, each in a conversation of its own."""
    answerer = EngineAnswerer(engine)
    for tone, said in prompts:
        yield {"tone": "/".join(labels(tone)) or None, "said": said, "reply": answerer.exchange(said, tone, ()).heard}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every reply with its verdict, then the figures; with --json only the figures.

    Args:
        arguments: the command line; by default sys.argv.

    Returns:
        The exit code: 0 done, 2 bad input, 3 something is missing or damaged.
    """
    parser = argparse.ArgumentParser(prog="python -m model.replies", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--prompts", type=Path, help="answer these instead: `tone TAB said` a line")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        prompts = read_prompts(options.prompts) if options.prompts is not None else None
        engine = Engine(loader.load(options.model))
    except ModelError as error:
        print(error, file=sys.stderr)
        return 3 if isinstance(error, WeightsMissing) else 2
    if prompts is not None:
        for row in answers(engine, prompts):
            print(json.dumps(row, ensure_ascii=False), flush=True)
        return 0
    verdicts = judge(EngineAnswerer(engine), read_cases())
    found: dict[str, Any] = {"model": options.model} | figures(verdicts)
    if options.json:
        print(json.dumps(found))
        return 0
    for one in verdicts:
        reply = one.reply.replace("\n", "\n             ")
        print(f"{'+' if one.passed else '-'} {one.kind:10} {one.said}\n             {reply}")
    for name, value in found.items():
        print(f"{name:28} {f'{value:.3f}' if isinstance(value, float) else value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
