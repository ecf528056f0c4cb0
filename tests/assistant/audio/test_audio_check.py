"""The check of microphone and speaker, in simulated rooms and virtual time; and clips in such rooms."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from assistant.audio.audio_check import AudioCheck, CheckResult, EchoStrength, Step
from assistant.audio.echo import Duplex
from tests.assistant.audio.test_echo import ROOMS, SAMPLES, question
from tests.support.fakes import ToneSynthesizer
from tests.support.rooms import RATE, Room, RoomStage

ALONE = Room(-200, 20)


def check(stage: RoomStage, user: np.ndarray | None = None, **what: object) -> list[CheckResult]:
    emitted: list[CheckResult] = []
    one = AudioCheck(stage.line, stage.clips, emitted.append, **what)
    stage.loop.deaf = True
    stage.tap = one.feed
    while not one.over:
        stage.run(0.1, np.zeros(1600, np.float32) if user is None or emitted[-1:] == [] else user)
    return emitted


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_an_echo_is_found_as_loud_as_it_is(room: Room) -> None:
    emitted = check(RoomStage(room, ToneSynthesizer(), "Yes."), seconds=0)
    assert list(dict.fromkeys(one.step for one in emitted)) == [Step.ROOM, Step.NOISE, Step.DONE]
    result = emitted[-1]
    assert result.echo is not None
    assert result.echo.before == pytest.approx(room.echo_db, abs=3)
    assert result.strength is EchoStrength.SOME


def test_headphones_have_none_and_an_open_line_has_all_of_it() -> None:
    assert check(RoomStage(ALONE, ToneSynthesizer(), "Yes."), seconds=0)[-1].strength is EchoStrength.NONE
    uncancelled = check(RoomStage(Room(-6, 80), ToneSynthesizer(), "Yes.", Duplex.OPEN), seconds=0)[-1]
    assert uncancelled.strength is EchoStrength.STRONG


def test_the_user_hears_what_the_microphone_heard() -> None:
    stage = RoomStage(ALONE, ToneSynthesizer(), "Yes.")
    said = (0.2 * np.sin(np.arange(1600))).astype(np.float32)
    emitted = check(stage, said, seconds=1.0, echo=False)
    assert list(dict.fromkeys(one.step for one in emitted)) == [Step.SPEAK, Step.LISTEN, Step.DONE]
    recording = emitted[-1].recording
    assert len(recording) == pytest.approx(RATE, abs=640)
    assert emitted[-1].level == pytest.approx(-17, abs=1)
    assert emitted[-1].echo is None
    assert stage.clips.duration == len(recording) / RATE
    assert stage.started == []


@pytest.mark.real
@pytest.mark.parametrize("room", [Room(-6, 80), Room(-18, 200)], ids=str)
def test_human_speech_played_back_opens_no_turn_and_the_user_breaks_in(room: Room) -> None:
    stage = RoomStage(room, ToneSynthesizer(), "Yes.")
    clip = np.concatenate([soundfile.read(SAMPLES / f"novel-{n}.flac", dtype="float32")[0] for n in range(1, 6)])
    stage.clips.play(clip, RATE)
    quiet = np.zeros(1, np.float32)
    stage.run(len(clip) / RATE - 3.0, quiet)
    assert stage.started == []
    began = stage.clock.now
    stage.run(2.5, question("go-forward", -20.0))
    assert len(stage.started) == 1
    assert stage.started[0] - began < 1.0
