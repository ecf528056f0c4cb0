"""What of a conversation goes to disk: which session, under which number, from which moment on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from assistant.events import Event, Failed, Spoken, Transcribed, Turn, TurnEnded, UtteranceEnded
from assistant.sessions.reader import read_session, sessions
from assistant.sessions.writer import SessionWriter
from assistant.speech.playback import ReplyPlayer


def said(number: int) -> Spoken:
    return Spoken(np.full(1600, number / 100, np.float32))


def turn(number: int) -> list[Event]:
    return [UtteranceEnded(number, said(number)), TurnEnded(Turn(number, said(number), "words", None, "Yes.", "Yes."))]


@pytest.fixture
def emitted() -> list[str]:
    return []


@pytest.fixture
def writer(emitted: list[str]) -> SessionWriter:
    return SessionWriter(lambda failed: emitted.append(failed.message), lambda: {"model": "mini"}, None)


def note(writer: SessionWriter, *events: Event) -> None:
    voice = ReplyPlayer(None, None, lambda _: None, threaded=False)
    for event in events:
        writer.note(event, voice)


def test_every_session_counts_its_own_turns(tmp_path: Path, writer: SessionWriter, emitted: list[str]) -> None:
    note(writer, *turn(1), *turn(2))
    writer.record(tmp_path, 30)
    note(writer, Transcribed(2, "late"), Failed(2, "late, too"))  # of a turn that is not recorded
    note(writer, *turn(3), *turn(4))
    writer.begin_anew(4)
    note(writer, Transcribed(4, "late, of the session before"))
    writer.sound(5, np.zeros(160, np.float32))
    note(writer, *turn(5))
    writer.correct(Turn(5, said(5)), "sad", consent=False)
    writer.correct(Turn(4, said(4)), "angry", consent=False)
    writer.close()
    read = sorted((read_session(folder) for folder in sessions(tmp_path)), key=lambda one: -len(one.turns))
    assert [[one.turn.number for one in session.turns] for session in read] == [[1, 2], [1]]
    assert [one.corrected for session in read for one in session.turns] == [None, "angry", "sad"]
    samples = [one.turn.message.samples[0] for session in read for one in session.turns]
    assert samples == pytest.approx([0.03, 0.04, 0.05], abs=1e-4)
    assert {session.about["keep_days"] for session in read} == {30}
    assert emitted == []


def test_what_waits_to_be_written_is_written_before_the_end(tmp_path: Path, writer: SessionWriter) -> None:
    writer.record(tmp_path)
    for number in range(1, 21):
        note(writer, *turn(number))
    writer.close()
    (folder,) = sessions(tmp_path)
    assert len(read_session(folder).turns) == 20


def test_what_was_promised_holds_while_nothing_is_recorded(
    tmp_path: Path, writer: SessionWriter, emitted: list[str]
) -> None:
    writer.record(tmp_path, 30)
    note(writer, *turn(1))
    writer.close()
    (folder,) = sessions(tmp_path)
    folder.rename(tmp_path / "2001-01-01_00-00-00-abcd")
    later = SessionWriter(lambda failed: emitted.append(failed.message), dict, None)
    later.maintain(tmp_path)
    note(later, *turn(1))
    later.close()
    assert sessions(tmp_path) == []
    assert emitted == ["1 session deleted: you chose to keep them that long."]
