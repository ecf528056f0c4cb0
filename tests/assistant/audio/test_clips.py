"""Recordings played back: their pitch and length at any speed, and what makes them stop."""

from __future__ import annotations

import numpy as np
import pytest

from assistant.audio.clips import stretched
from assistant.events import Failed, Samples, SpeechStarted
from assistant.messages import BargeIn, MessageTyped
from tests.support.fakes import RATE, Stage


def tone(seconds: float, hertz: float = 220.0, rate: int = RATE) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def pitch(samples: Samples, rate: int) -> tuple[float, float]:
    """The loudest frequency in hertz, and its share of the power."""
    spectrum = np.square(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))))
    frequencies = np.fft.rfftfreq(len(samples), 1 / rate)
    loudest = float(frequencies[spectrum.argmax()])
    return loudest, float(spectrum[np.abs(frequencies - loudest) < 8].sum() / spectrum.sum())


@pytest.mark.parametrize("speed", [0.5, 0.75, 1.25, 1.5, 2.0])
@pytest.mark.parametrize(("hertz", "rate"), [(110.0, 16_000), (440.0, 24_000), (1000.0, 24_000)])
def test_another_speed_keeps_the_pitch_and_the_loudness(speed: float, hertz: float, rate: int) -> None:
    samples = tone(2.0, hertz, rate)
    faster = stretched(samples, rate, speed)
    assert len(faster) == round(len(samples) / speed)
    middle = faster[rate // 8 : -rate // 8]
    loudest, share = pitch(middle, rate)
    assert loudest == pytest.approx(hertz, abs=2)
    assert share > 0.99
    assert np.sqrt(np.mean(np.square(middle))) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)


def test_its_own_speed_changes_no_sample_and_nothing_stays_nothing() -> None:
    samples = tone(0.5)
    assert stretched(samples, RATE, 1.0) is samples
    assert len(stretched(samples[:0], RATE, 2.0)) == 0
    assert len(stretched(samples[:7], RATE, 0.5)) == 14


def test_a_long_clip_is_heard_sample_for_sample() -> None:
    stage = Stage()
    clip = np.concatenate([tone(9.0), np.zeros(RATE // 2, np.float32), tone(8.0)])
    stage.clips.play(clip, RATE)
    stage.wait(1.0)
    assert stage.clips.playing
    assert stage.clips.duration == 17.5
    assert stage.clips.position == pytest.approx(1.0, abs=0.1)
    stage.wait(17.0)
    assert not stage.clips.playing
    assert stage.clips.position == 17.5
    assert np.array_equal(np.concatenate(stage.speaker.heard), clip)


def test_a_pause_a_seek_and_half_the_speed() -> None:
    stage = Stage()
    stage.clips.play(tone(10.0), RATE, at=2.0, speed=0.5)
    stage.wait(2.0)
    assert stage.clips.position == pytest.approx(3.0, abs=0.1)
    stage.clips.pause()
    stage.wait(1.0)
    assert not stage.clips.playing
    assert stage.clips.position == pytest.approx(3.0, abs=0.1)
    stage.clips.resume()
    stage.wait(1.0)
    assert stage.clips.position == pytest.approx(3.5, abs=0.1)
    stage.clips.seek(9.0)
    stage.wait(1.0)
    assert stage.clips.position == pytest.approx(9.5, abs=0.1)
    stage.clips.stop()
    stage.wait(0.1)
    assert stage.clips.position == pytest.approx(9.5, abs=0.1)
    assert not stage.clips.playing


def test_a_rate_of_its_own_is_resampled() -> None:
    stage = Stage()
    stage.clips.play(tone(1.0, 440.0, 24_000), 24_000)
    stage.wait(1.5)
    heard = np.concatenate(stage.speaker.heard)
    assert len(heard) == RATE
    assert pitch(heard, RATE)[0] == pytest.approx(440, abs=2)


def test_the_user_breaks_in_and_is_not_echoed_into_a_turn_sooner() -> None:
    """Over a clip the ears are as careful as over a reply: a cough is none, 400 ms of speech are a turn."""
    stage = Stage()
    stage.clips.play(tone(10.0), RATE)
    stage.wait(1.0)
    stage.say(0.3)
    stage.wait(1.0)
    assert stage.of(SpeechStarted) == []
    stage.say(0.6)
    stage.wait(1.0)
    assert len(stage.of(SpeechStarted)) == 1


def test_where_the_voice_may_not_interrupt_it_may_not_over_a_clip() -> None:
    stage = Stage(barge_in=BargeIn.KEY)
    stage.clips.play(tone(3.0), RATE)
    stage.wait(0.5)
    stage.say(1.0)
    stage.wait(2.5)
    assert stage.of(SpeechStarted) == []
    stage.say(1.0)
    assert len(stage.of(SpeechStarted)) == 1


def test_no_clip_begins_over_a_turn_and_none_without_a_speaker() -> None:
    stage = Stage("One two three four five.")
    stage.loop.put(MessageTyped("Go on."))
    stage.wait(0.5)
    stage.clips.play(tone(1.0), RATE)
    stage.wait(0.2)
    assert not stage.clips.playing
    stage.wait(3.0)
    stage.clips.speaker = None
    stage.clips.play(tone(1.0), RATE)
    stage.wait(0.2)
    assert not stage.clips.playing
    assert "speaker" in stage.of(Failed)[0].message
