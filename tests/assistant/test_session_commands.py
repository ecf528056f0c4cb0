"""`sessions` and `replay`: what they print, and how they end."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from assistant import journal
from assistant.session import read_session
from assistant.session_commands import add_commands, manage, replay
from tests.assistant.test_session import record


def run(root: Path, *words: str) -> tuple[int, list[str]]:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(dest="command"))
    options = parser.parse_args(words)
    said: list[str] = []
    code = (replay if options.command == "replay" else manage)(options, root, said.append)
    return code, said


def test_list_show_export_import_delete(tmp_path: Path) -> None:
    root = tmp_path / "sessions"
    folder = record(root)
    (row,) = map(json.loads, run(root, "sessions", "list", "--json")[1])
    assert (row["name"], row["turns"], row["first_words"]) == (folder.name, 3, "words 1")
    (shown,) = map(json.loads, run(root, "sessions", "show", folder.name[:12], "--json")[1])
    assert [turn["words"] for turn in shown["turns"]] == ["words 1", "typed words", "words 3"]
    assert "sad, 35%" in run(root, "sessions", "show", folder.name)[1][0]
    _, (line,) = run(root, "sessions", "export", folder.name, "--output", str(tmp_path), "--json")
    archive = json.loads(line)["file"]
    assert run(root, "sessions", "delete", folder.name)[0] == 0
    assert run(root, "sessions", "list")[1] == ["No session is recorded yet: talk with --record."]
    _, (line,) = run(root, "sessions", "import", archive, "--json")
    again = read_session(root / json.loads(line)["session"])
    assert [one.turn.heard for one in again.turns] == ["All of", "All of", "All of"]


def test_replay_writes_what_would_be_played(tmp_path: Path) -> None:
    folder = record(tmp_path / "sessions")
    code, _ = run(tmp_path / "sessions", "replay", folder.name, "--output", str(tmp_path / "out.wav"))
    assert code == 0
    assert soundfile.info(tmp_path / "out.wav").duration > 2


@pytest.mark.parametrize(
    "words",
    [
        ("replay", "no-such"),
        ("sessions", "show", "no-such"),
        ("sessions", "delete", "2"),
        ("sessions", "export", "/"),
        ("sessions", "import", "/no/such/file"),
        ("sessions", "import", __file__),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    record(tmp_path)
    record(tmp_path)  # both names begin with the century
    code, said = run(tmp_path, *words)
    assert (code, said) == (2, [])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ":" in error


def test_what_a_killed_run_left_is_repaired_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record(tmp_path)
    journal.Journal(folder / "0004-user.journal").append(np.full(800, 7, np.int16))
    _, (line,) = run(tmp_path, "sessions", "list", "--json")
    assert json.loads(line)["turns"] == 4
    assert folder.name in capsys.readouterr().err
