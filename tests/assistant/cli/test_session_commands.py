"""`sessions` and `replay`: what they print, and how they end."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import soundfile

import main
from assistant.backend.protocol import ModelChoice
from assistant.cli.session_commands import add_replay, add_sessions, ask_again
from assistant.cli.session_commands import run as execute
from assistant.sessions import journal
from assistant.sessions.reader import read_session
from tests.assistant.sessions.test_reader import record


def run(root: Path, *words: str) -> list[str]:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    add_sessions(commands.add_parser("sessions"))
    add_replay(commands.add_parser("replay"))
    options = parser.parse_args(words)
    said: list[str] = []
    execute(options, root, said.append)
    return said


def test_list_show_export_import_delete(tmp_path: Path) -> None:
    root = tmp_path / "sessions"
    folder = record(root)
    (row,) = map(json.loads, run(root, "sessions", "list", "--json"))
    assert (row["name"], row["turns"], row["first_words"]) == (folder.name, 3, "words 1")
    (shown,) = map(json.loads, run(root, "sessions", "show", folder.name[:12], "--json"))
    assert [turn["words"] for turn in shown["turns"]] == ["words 1", "typed words", "words 3"]
    assert "sad, 35%" in run(root, "sessions", "show", folder.name)[0]
    (line,) = run(root, "sessions", "export", folder.name, "--output", str(tmp_path), "--json")
    archive = json.loads(line)["file"]
    assert run(root, "sessions", "delete", folder.name) == [folder.name]
    assert run(root, "sessions", "list") == ["No session is recorded yet: talk with --record."]
    (line,) = run(root, "sessions", "import", archive, "--json")
    again = read_session(root / json.loads(line)["session"])
    assert [one.turn.heard for one in again.turns] == ["All of", "All of", "All of"]


def test_replay_writes_what_would_be_played(tmp_path: Path) -> None:
    folder = record(tmp_path / "sessions")
    run(tmp_path / "sessions", "replay", folder.name, "--output", str(tmp_path / "out.wav"))
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
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    record(tmp_path / "sessions")
    record(tmp_path / "sessions")  # both names begin with the century
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path))
    assert main.main(words) == 2
    said, error = capsys.readouterr()
    assert said == ""
    assert error.count("\n") == 1
    assert ":" in error


def test_what_a_killed_run_left_is_repaired_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record(tmp_path)
    journal.Journal(folder / "0004-user.journal").append(np.full(800, 7, np.int16))
    (line,) = run(tmp_path, "sessions", "list", "--json")
    assert json.loads(line)["turns"] == 4
    assert folder.name in capsys.readouterr().err


def test_another_model_is_heard_turn_by_turn(tmp_path: Path) -> None:
    """Each answer comes as it is made, not when all are; and whoever has heard enough lets the model go."""
    (tmp_path / "replies.txt").write_text("One.\nTwo.\nThree.", "utf-8")
    session = read_session(record(tmp_path / "sessions"))
    answers = ask_again(session, ModelChoice(str(tmp_path / "replies.txt")), "tests.support.talk_server")
    first = next(answers)
    assert first["reply"] == "One."
    (child,) = multiprocessing.active_children()
    assert child.is_alive()
    answers.close()
    assert not multiprocessing.active_children()
    answers = ask_again(session, ModelChoice(str(tmp_path / "replies.txt")), "tests.support.talk_server")
    assert [row["reply"] for row in answers] == ["One.", "Two.", "Three."]
