"""Utterances out of sound: durations counted in blocks, with a judge that follows loudness."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.audio.endpointing import BLOCK, PATIENCE, Endpointer, EndpointingSettings, SileroDetector
from assistant.events import SAMPLE_RATE
from assistant.messages import SpeechConfirmed, SpeechEnded, SpeechOnset, SpeechPaused, SpeechRejected, SpeechResumed
from model.audio.files import read_audio
from model.checkpoints.loader import RESOURCES
from tests.support.fakes import LoudnessDetector

BLOCK_SECONDS = BLOCK / SAMPLE_RATE


def script(*parts: tuple[float, float]) -> np.ndarray:
    """Loudness and seconds, one after the other; every sample tells its position in the last digits."""
    return np.concatenate([np.full(round(seconds * SAMPLE_RATE), level, np.float32) for level, seconds in parts])


def inbox_events(endpointer: Endpointer, samples: np.ndarray, chunk: int = 320) -> list:
    return [happened for at in range(0, len(samples), chunk) for happened in endpointer.feed(samples[at : at + chunk])]


def kinds(happened: Iterable[object]) -> list[type]:
    return [type(one) for one in happened]


def test_an_utterance_keeps_its_head_and_its_tail() -> None:
    happened = inbox_events(Endpointer(LoudnessDetector()), script((0, 1.0), (0.3, 1.0), (0, 1.0)))
    assert kinds(happened) == [SpeechOnset, SpeechConfirmed, SpeechPaused, SpeechEnded]
    soft, hard = happened[2].utterance, happened[3].utterance
    assert np.array_equal(soft.samples, hard.samples)
    assert abs(hard.started - 0.5) < 2 * BLOCK_SECONDS
    assert abs(hard.ended - 2.2) < 2 * BLOCK_SECONDS
    assert abs(happened[1].at - 1.0) < 2 * BLOCK_SECONDS


@pytest.mark.parametrize("patience", PATIENCE.values())
def test_patience_decides_what_is_one_utterance(patience: float) -> None:
    for pause, together in ((patience - 0.1, True), (patience + 0.1, False)):
        endpointer = Endpointer(LoudnessDetector(), EndpointingSettings(patience=patience))
        happened = inbox_events(endpointer, script((0.3, 1.0), (0, pause), (0.3, 1.0), (0, 2.0)))
        assert kinds(happened).count(SpeechEnded) == (1 if together else 2)
        assert kinds(happened).count(SpeechResumed) == (1 if together else 0)


def test_what_is_too_short_is_dropped_and_a_click_is_not_even_mentioned() -> None:
    assert kinds(inbox_events(Endpointer(LoudnessDetector()), script((0, 0.5), (0.3, 0.2), (0, 1.0)))) == [
        SpeechOnset,
        SpeechRejected,
    ]
    assert inbox_events(Endpointer(LoudnessDetector()), script((0, 0.5), (0.3, 0.03), (0, 1.0))) == []


def test_over_the_assistants_voice_it_takes_longer_to_be_believed() -> None:
    endpointer = Endpointer(LoudnessDetector())
    endpointer.over_speech = True
    assert SpeechConfirmed not in kinds(inbox_events(endpointer, script((0.3, 0.35), (0, 0.5))))
    assert SpeechConfirmed in kinds(inbox_events(endpointer, script((0.3, 0.45), (0, 0.5))))


def test_the_judged_signal_decides_and_the_raw_one_is_kept() -> None:
    endpointer = Endpointer(LoudnessDetector())
    raw, cleaned = script((0.2, 3.0)), script((0, 1.0), (0.3, 1.0), (0, 1.0))
    happened = [
        h for at in range(0, len(raw), 320) for h in endpointer.feed(raw[at : at + 320], cleaned[at : at + 320])
    ]
    (ended,) = [one for one in happened if isinstance(one, SpeechEnded)]
    assert np.all(ended.utterance.samples == np.float32(0.2))


def test_a_steady_noise_becomes_the_room() -> None:
    """A judge that takes every sound for speech is held back by the noise floor once the room is known."""
    endpointer = Endpointer(LoudnessDetector())
    endpointer._floor_db = -8.0
    assert inbox_events(endpointer, script((0.3, 5.0))) == []


def test_near_the_ceiling_a_short_pause_ends_it() -> None:
    happened = inbox_events(Endpointer(LoudnessDetector()), script((0.3, 26.0), (0, 0.25), (0.3, 2.0), (0, 1.0)))
    lengths = [len(one.utterance.samples) / SAMPLE_RATE for one in happened if isinstance(one, SpeechEnded)]
    assert len(lengths) == 2
    assert lengths[0] < 26.5


def test_without_any_pause_nothing_is_lost_at_the_cut() -> None:
    speech = script((0.3, 50.0), (0, 1.0))
    speech[: 50 * SAMPLE_RATE] *= np.linspace(0.9, 1.0, 50 * SAMPLE_RATE, dtype=np.float32)
    happened = inbox_events(Endpointer(LoudnessDetector()), speech)
    parts = [one.utterance for one in happened if isinstance(one, SpeechEnded)]
    assert [len(part.samples) <= 30 * SAMPLE_RATE for part in parts] == [True, True]
    together = np.concatenate([part.samples for part in parts])
    assert np.array_equal(together, speech[: len(together)])
    assert len(together) >= 50 * SAMPLE_RATE


def test_the_key_opens_and_closes_whatever_the_judge_says() -> None:
    endpointer = Endpointer(LoudnessDetector())
    endpointer.hands_free = False
    assert inbox_events(endpointer, script((0.3, 1.0), (0, 1.0))) == []
    (confirmed,) = endpointer.press()
    assert confirmed.by_key
    assert inbox_events(endpointer, script((0.3, 0.5), (0, 1.5), (0.3, 0.5))) == []
    endpointer.release()
    (ended,) = inbox_events(endpointer, script((0.3, 1.0)))
    seconds = len(ended.utterance.samples) / SAMPLE_RATE
    assert 2.5 + 0.3 <= seconds <= 2.5 + 0.3 + 0.5 + 3 * BLOCK_SECONDS
    list(endpointer.press())
    more = inbox_events(endpointer, script((0.3, 40.0)))  # the key is held for long: cut, and nothing is lost
    assert [type(one) for one in more] == [SpeechEnded, SpeechConfirmed]
    assert more[1].by_key
    endpointer.release()
    (rest,) = inbox_events(endpointer, script((0.3, 1.0)))
    assert more[0].utterance.ended == pytest.approx(rest.utterance.started)
    assert len(more[0].utterance.samples) + len(rest.utterance.samples) >= 40 * SAMPLE_RATE
    list(endpointer.press())
    endpointer.drop()
    assert inbox_events(endpointer, script((0, 1.0))) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.3]), st.floats(0.05, 2.0)), max_size=12), st.integers(1, 4000))
def test_any_sound_in_any_chunks_keeps_the_order(parts: list[tuple[float, float]], chunk: int) -> None:
    samples = script((0.0, 0.1), *parts, (0.0, 2.0))
    happened = inbox_events(Endpointer(LoudnessDetector()), samples, chunk)
    assert kinds(happened) == kinds(inbox_events(Endpointer(LoudnessDetector()), samples, 512))
    open_ = False
    for one in happened:
        if isinstance(one, SpeechConfirmed):
            assert not open_
            open_ = True
        elif isinstance(one, SpeechEnded):
            assert open_
            open_ = False
        elif isinstance(one, SpeechPaused | SpeechResumed):
            assert open_
    assert not open_


def test_human_speech_is_found_whole_and_silence_is_not() -> None:
    """The shipped recordings in a quiet room: each one is an utterance, none is cut in two by the normal patience."""
    source = np.random.default_rng(0)
    files = sorted((RESOURCES / "samples").glob("*.flac"))
    parts, spans, at = [], [], 0.0
    for file in files:
        samples = read_audio(file)
        parts += [np.zeros(int(1.5 * SAMPLE_RATE), np.float32), samples]
        spans.append((at + 1.5, at + 1.5 + len(samples) / SAMPLE_RATE))
        at = spans[-1][1]
    room = np.concatenate([*parts, np.zeros(2 * SAMPLE_RATE, np.float32)])
    room += source.normal(0, 1e-3, len(room)).astype(np.float32)
    found = [one.utterance for one in inbox_events(Endpointer(SileroDetector()), room) if isinstance(one, SpeechEnded)]
    assert len(found) == len(files)
    for utterance, (start, end) in zip(found, spans, strict=True):
        assert start - 0.6 <= utterance.started <= start + 0.4
        assert end - 0.7 <= utterance.ended <= end + 0.4
