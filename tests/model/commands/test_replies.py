"""The measure of replies: what passes, and what the command prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from assistant.events import Exchange, Typed
from model.commands.replies import judge, main
from model.inference.engine import Engine

CASES = {
    "refusals": ["as an ai"],
    "condolences": ["your loss"],
    "fact": [{"ask": "What do bees make?", "expect": ["honey"]}],
    "memory": [{"first": "I am Ada.", "ask": "Who am I?", "expect": ["ada"]}],
    "feeling": [{"tone": "sad", "say": "I failed.", "never": ["well done"]}],
}


class Scripted:
    """Gives these replies in turn, and notes what it was asked."""

    model = SimpleNamespace(config=SimpleNamespace(tone_template="({tone}) {words}"))

    def __init__(self, *replies: str) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[int, str]] = []

    def reply(self, history: Sequence[Exchange], message: Typed) -> Iterator[str]:
        self.asked.append((len(history), message.text))
        yield from self.replies.pop(0)


@pytest.mark.parametrize(
    ("replies", "passes"),
    [
        (("Honey!", "Hello.", "You are Ada.", "That is hard."), [True, True, True]),
        (("Wax.", "Hello.", "I do not know.", "Well done!"), [False, False, False]),
        (("honey", "", "ADA", "I am sorry for your loss."), [True, True, False]),
        (("honey", "", "Ada", "As an AI I do not feel."), [True, True, False]),
        (("honey", "", "Ada", " "), [True, True, False]),
    ],
)
def test_a_case_passes_by_what_the_reply_holds(replies: tuple[str, ...], passes: list[bool]) -> None:
    engine = Scripted(*replies)
    judged = judge(cast("Engine", engine), CASES)
    assert [(kind, good) for kind, good, *_ in judged] == list(zip(("fact", "memory", "feeling"), passes, strict=True))
    assert engine.asked == [(0, "What do bees make?"), (0, "I am Ada."), (1, "Who am I?"), (0, "(sad) I failed.")]


def test_the_command_prints_figures_or_every_reply(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text("utf-8")) | {"max_new_tokens": 2}), "utf-8")
    assert main(["--model", str(folder), "--json"]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {name for name in figures if name.endswith("_share")} == {
        "fact_share", "memory_share", "feeling_share", "most_common_opening_share"
    }  # fmt: skip
    assert all(0 <= figures[name] <= 1 for name in figures if name.endswith("_share"))
    assert main(["--model", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "What is the capital of France?" in printed
    assert f"fact_share{figures['fact_share']:>22.2f}".split() in [line.split() for line in printed.splitlines()]


def test_a_missing_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path / "nowhere")]) == 3
    assert "nowhere" in capsys.readouterr().err
