"""`python -m model.replies [--model mini] [--json]`: a small test of a checkpoint's replies, on fixed cases.

Facts and memory are checked by a word that must appear, feelings by words that must not. It is meant for comparing
language models and prompts, not as a benchmark.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from assistant.events import Exchange, Typed
from model.checkpoints import loader
from model.checkpoints.loader import RESOURCES
from model.commands.options import quiet_libraries
from model.errors import ModelError
from model.inference.engine import Engine


def judge(engine: Engine, cases: dict[str, Any]) -> list[tuple[str, bool, str, str]]:
    """Answer every case; returns (kind, whether it passes, the message, the reply)."""

    def answer(said: str, history: Sequence[Exchange] = ()) -> str:
        return "".join(engine.reply(history, Typed(said))).strip()

    def holds(reply: str, words: Sequence[str]) -> bool:
        return any(word in reply.lower() for word in words)

    judged = []
    for case in cases["fact"]:
        reply = answer(case["ask"])
        judged.append(("fact", holds(reply, case["expect"]), case["ask"], reply))
    for case in cases["memory"]:
        history = [Exchange(Typed(case["first"]), answer(case["first"]))]
        reply = answer(case["ask"], history)
        judged.append(("memory", holds(reply, case["expect"]), case["ask"], reply))
    wrong = cases["refusals"] + cases["condolences"]
    for case in cases["feeling"]:
        said = engine.model.config.tone_template.format(tone=case["tone"], words=case["say"])
        reply = answer(said)
        judged.append(("feeling", bool(reply) and not holds(reply, wrong + case["never"]), said, reply))
    return judged


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every reply with its result, then the shares; with --json only the figures.

    Args:
        arguments: the command line; by default sys.argv.

    Returns:
        The exit code: 0 done, 3 something is missing or damaged.
    """
    parser = argparse.ArgumentParser(prog="python -m model.replies", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    cases = tomllib.loads((RESOURCES / "reply_cases.toml").read_text("utf-8"))
    try:
        judged = judge(Engine(loader.load(options.model)), cases)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 3
    passed = Counter(kind for kind, good, *_ in judged if good)
    total = Counter(kind for kind, *_ in judged)
    figures: dict[str, Any] = {"model": options.model}
    figures |= {f"{kind}_share": passed[kind] / total[kind] for kind in total}
    figures["mean_words"] = sum(len(reply.split()) for *_, reply in judged) / len(judged)
    heads = Counter(" ".join(reply.lower().split()[:4]) for *_, reply in judged)
    figures["most_common_opening_share"] = heads.most_common(1)[0][1] / len(judged)
    if options.json:
        print(json.dumps(figures))
        return 0
    for kind, good, said, reply in judged:
        print(f"{'+' if good else '-'} {kind:8} {said}\n             {reply}")
    for name, value in figures.items():
        print(f"{name:28} {value if isinstance(value, str) else f'{value:.2f}'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
