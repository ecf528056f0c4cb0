"""`python -m model.replies`: prompts from a file, figures in JSON, errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.checkpoints import loader
from model.commands import replies
from model.errors import BadInput
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"path": "transcript", "tone_template": "{words} ({tone})", "tone_detail": "candidates"}
    monkeypatch.setattr(loader, "load", lambda _: tiny_checkpoint(**settings))


def test_prompts_are_answered_an_object_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.tsv"
    file.write_text("sad\tMy cup broke.\n\n-\tHello.\nsad/neutral\tIt rains.\nsurprised\tOh.\n")
    assert replies.main(["--prompts", str(file)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["tone"], row["said"]) for row in rows] == [
        ("sad", "My cup broke."), (None, "Hello."), ("sad/neutral", "It rains."), ("surprise", "Oh."),
    ]  # fmt: skip
    assert all(row["reply"] for row in rows)


@pytest.mark.parametrize("text", ["no tab", "gloomy\tHello.", "sad\t ", "sad/gloomy\tHello."])
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    file = tmp_path / "prompts.tsv"
    file.write_text(f"sad\tHello.\n{text}\n")
    assert replies.main(["--prompts", str(file)]) == 2
    assert f"{file}:2" in capsys.readouterr().err
    with pytest.raises(BadInput, match="check the path"):
        replies.read_prompts(tmp_path / "nowhere.tsv")


def test_figures_are_one_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"fact": [{"ask": "Two and two?", "expect": ["four"]}], "form": [{"say": "Hi."}]}
    monkeypatch.setattr(replies, "read_cases", lambda: cases)
    assert replies.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["fact_cases"], found["replies"]) == ("mini", 1, 2)
    assert replies.main([]) == 0
    assert "- fact" in capsys.readouterr().out
