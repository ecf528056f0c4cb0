"""What of a conversation goes to disk: which session, under which number, from which moment on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from assistant.events import AudioChunk, Event, Failed, Samples, Spoken, Transcribed, Turn, TurnEnded, UtteranceEnded
from assistant.sessions.reader import read_session, sessions
from assistant.sessions.writer import Scribe, Tape
from assistant.speech.playback import ReplyVoice
from tests.support.fakes import RATE, PlainLine


def said(number: int) -> Spoken:
    return Spoken(np.full(1600, number / 100, np.float32))


def turn(number: int) -> list[Event]:
    return [UtteranceEnded(number, said(number)), TurnEnded(Turn(number, said(number), "words", None, "Yes.", "Yes."))]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def scribe(told: list[str]) -> Scribe:
    return Scribe(lambda failed: told.append(failed.message), lambda: {"model": "mini"}, None)


def note(scribe: Scribe, *events: Event) -> None:
    voice = ReplyVoice(None, None, lambda _: None, threaded=False)
    for event in events:
        scribe.note(event, voice)


def test_every_session_counts_its_own_turns(tmp_path: Path, scribe: Scribe, told: list[str]) -> None:
    note(scribe, *turn(1), *turn(2))
    scribe.record(tmp_path, 30)
    note(scribe, Transcribed(2, "late"), Failed(2, "late, too"))  # of a turn that is not recorded
    note(scribe, *turn(3), *turn(4))
    scribe.begin_anew(4)
    note(scribe, Transcribed(4, "late, of the session before"))
    scribe.sound(5, np.zeros(160, np.float32))
    note(scribe, *turn(5))
    scribe.correct(Turn(5, said(5)), "sad", consent=False)
    scribe.correct(Turn(4, said(4)), "angry", consent=False)
    scribe.close()
    read = sorted((read_session(folder) for folder in sessions(tmp_path)), key=lambda one: -len(one.turns))
    assert [[one.turn.number for one in session.turns] for session in read] == [[1, 2], [1]]
    assert [one.corrected for session in read for one in session.turns] == [None, "angry", "sad"]
    samples = [one.turn.message.samples[0] for session in read for one in session.turns]
    assert samples == pytest.approx([0.03, 0.04, 0.05], abs=1e-4)
    assert {session.about["keep_days"] for session in read} == {30}
    assert told == []


def test_the_tape_reaches_back_to_a_cut() -> None:
    """An utterance without a pause is cut up to three seconds ago: what follows the cut is on disk from there on."""
    tape, taken = Tape(PlainLine()), list[Samples]()
    tape.record = lambda _turn, samples: taken.append(samples)
    for number in range(300):
        tape.take(AudioChunk(np.full(320, number, np.int16), RATE, number / 50), speaking=False)
    tape.begin(2, 3.5)
    assert len(taken[0]) == 3.5 * RATE
    assert taken[0][0] * 32768 == 300 - 3.5 * 50


def test_what_waits_to_be_written_is_written_before_the_end(tmp_path: Path, scribe: Scribe) -> None:
    scribe.record(tmp_path)
    for number in range(1, 21):
        note(scribe, *turn(number))
    scribe.close()
    (folder,) = sessions(tmp_path)
    assert len(read_session(folder).turns) == 20


def test_what_was_promised_holds_while_nothing_is_recorded(tmp_path: Path, scribe: Scribe, told: list[str]) -> None:
    scribe.record(tmp_path, 30)
    note(scribe, *turn(1))
    scribe.close()
    (folder,) = sessions(tmp_path)
    folder.rename(tmp_path / "2001-01-01_00-00-00-abcd")
    later = Scribe(lambda failed: told.append(failed.message), dict, None)
    later.look_after(tmp_path)
    note(later, *turn(1))
    later.close()
    assert sessions(tmp_path) == []
    assert told == ["1 session deleted: you chose to keep them for so long."]
