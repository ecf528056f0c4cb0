"""What the user says an utterance really sounded like: in the session, and with consent in corrections.jsonl."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from assistant.errors import AssistantError
from assistant.events import Turn, Typed
from assistant.sessions.corrections import corrections, keep
from assistant.sessions.maintenance import delete
from assistant.sessions.reader import correct, read_session
from tests.assistant.sessions.test_reader import READING, record, said


def test_a_past_session_is_corrected_and_the_correction_is_taken_back(tmp_path: Path) -> None:
    folder, path = record(tmp_path / "sessions"), tmp_path / "corrections.jsonl"
    correct(folder, 3, "angry", consent=True, corrections=path)
    assert read_session(folder).turns[2].corrected == "angry"
    (line,) = map(json.loads, path.read_text("utf-8").splitlines())
    assert line == {
        "audio": f"sessions/{folder.name}/audio/0003-user.flac",
        "text": "words 3",
        "emotion": "angry",
        "read_as": "sad",
        "session": folder.name,
        "turn": 3,
        "consent": True,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (one,) = corrections(path)
    samples, _ = soundfile.read(one.audio, dtype="float32")
    assert np.array_equal(samples, said(3).samples)
    correct(folder, 3, "happy", consent=True, corrections=path)
    assert [one.emotion for one in corrections(path)] == ["happy"]
    correct(folder, 3, "happy", consent=False, corrections=path)
    assert corrections(path) == []
    assert read_session(folder).turns[2].corrected == "happy"
    correct(folder, 3, None, corrections=path)
    assert read_session(folder).turns[2].corrected is None
    assert read_session(folder).damaged == 0


def test_without_a_session_the_utterance_is_kept_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "corrections.jsonl"
    turn = Turn(7, said(7), "the words", READING)
    keep(path, turn, "happy", "unrecorded-1")
    (one,) = corrections(path)
    assert Path(one.audio) == tmp_path / "corrections" / "unrecorded-1-0007.flac"
    samples, rate = soundfile.read(one.audio, dtype="float32")
    assert (rate, np.array_equal(samples, said(7).samples)) == (16_000, True)
    assert stat.S_IMODE(Path(one.audio).stat().st_mode) == 0o600
    keep(path, turn, None, "unrecorded-1")
    assert corrections(path) == []
    assert not Path(one.audio).exists()


def test_what_goes_with_its_session_is_a_correction_no_more(tmp_path: Path) -> None:
    folder, path = record(tmp_path), tmp_path / "corrections.jsonl"
    correct(folder, 1, "angry", consent=True, corrections=path)
    delete(folder)
    assert corrections(path) == []


def test_lines_that_are_none_are_left_out_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "corrections.jsonl"
    keep(path, Turn(1, said(1), "words", READING), "sad", "a")
    line = json.loads(path.read_text())
    strange = [b"{", b"[1]", b"\xff\xfe", *(json.dumps(line | change).encode() for change in (
        {"emotion": "bored"}, {"consent": False}, {"audio": 3}, {"turn": "x"}, {"more": 1})
    )]  # fmt: skip
    path.write_bytes(b"\n".join([path.read_bytes().strip(), *strange]))
    assert [asdict(one)["emotion"] for one in corrections(path)] == ["sad"]
    keep(path, Turn(2, said(2), "words", READING), "happy", "a")
    assert [one.turn for one in corrections(path)] == [1, 2]
    assert b"bored" in path.read_bytes()


def test_what_cannot_be_corrected_is_said(tmp_path: Path) -> None:
    folder = record(tmp_path)
    with pytest.raises(AssistantError, match="no recording of turn 2"):
        correct(folder, 2, "happy")  # it was typed
    with pytest.raises(AssistantError, match="no emotion"):
        correct(folder, 1, "bored")
    with pytest.raises(AssistantError, match="holds no session"):
        correct(tmp_path / "none", 1, "happy")
    assert read_session(folder).turns[1].turn.message == Typed("typed words")
    before = (folder / "events.jsonl").stat().st_size
    (tmp_path / "file").write_text("")
    with pytest.raises(AssistantError, match="cannot be kept"):
        correct(folder, 1, "happy", consent=True, corrections=tmp_path / "file" / "corrections.jsonl")
    assert (folder / "events.jsonl").stat().st_size > before
