"""The line: any rate and channels to 16 kHz, and the assistant's own voice taken out, in simulated rooms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.audio.echo import FRAME, Duplex, MicrophoneProcessor, Reference
from assistant.audio.endpointing import Endpointer, SileroDetector
from assistant.events import AudioChunk, Samples
from assistant.messages import SpeechConfirmed
from assistant.speech.synthesizer import Pyttsx3Synthesizer
from tests import SAMPLES
from tests.support.rooms import RATE, Room, RoomStage

ROOMS = [Room(echo_db, delay_ms) for echo_db in (-6, -18) for delay_ms in (20, 80, 200)]
REPLY = (
    "That sounds hard, and I am sorry that it happened to you today. Would you like to tell me more about it? "
    "Sometimes it helps to take a walk, to drink a glass of water, or to call a friend. "
    "The train leaves at half past seven, so there is time. No, not at all! The kettle is still on the stove."
)
QUESTIONS = ("go-forward", "novel-1", "novel-3", "something-is-terribly-wrong", "weasels", "who-sent-this")


@pytest.fixture(scope="module")
def voice() -> Iterator[Pyttsx3Synthesizer]:
    with Pyttsx3Synthesizer() as synthesizer:
        yield synthesizer


def question(name: str, decibels: float) -> Samples:
    """A recording from its first sound on, its first second at this level."""
    samples, _ = soundfile.read(SAMPLES / f"{name}.flac", dtype="float32")
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    power = np.square(frames).mean(1)
    samples = samples[int(np.argmax(power > power.max() * 10**-2.5)) * FRAME :]
    return (samples * 10 ** (decibels / 20) / np.sqrt(np.mean(np.square(samples[:RATE])))).astype(np.float32)


# ---- rates and channels


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000]),
    channels=st.sampled_from([None, 1, 2]),
    sizes=st.lists(st.integers(1, 4000), min_size=3, max_size=20),
)
def test_any_rate_any_channels_any_chunks_become_one_stream(rate: int, channels: int | None, sizes: list[int]) -> None:
    length = sum(sizes)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(length) / rate)
    whole = (tone * 32767).astype(np.int16)
    chunks = np.split(whole, np.cumsum(sizes)[:-1])
    line, reference = MicrophoneProcessor(Reference(), Duplex.OPEN), []
    for chunk in chunks:
        given_samples = chunk if channels is None else np.repeat(chunk[:, None], channels, 1)
        raw, cleaned = line.take(AudioChunk(given_samples, rate, 0.0), speaking=False)
        assert len(raw) == len(cleaned)
        assert len(raw) % FRAME == 0
        reference.append(raw)
    got = np.concatenate(reference)
    expected = soxr.resample(whole.astype(np.float32) / 32768, rate, RATE) if rate != RATE else whole / 32768
    assert len(expected) - len(got) < 0.13 * RATE  # what the filter and the last frame hold back
    assert np.abs(got - expected[: len(got)]).max(initial=0.0) < 2e-3


def test_the_reference_stays_beside_the_chunk_however_late_it_is_taken() -> None:
    reference = Reference()
    for number in range(5):
        reference.played(np.full(4, number, np.float32), RATE)
        reference.recorded(number / 10)
    assert [block[0] for block, _ in reference.until(0.1)] == [0, 1]
    assert [block[0] for block, _ in reference.until(0.4)] == [2, 3, 4]
    assert not list(reference.until(0.5))


# ---- echo


@pytest.mark.real
def test_it_does_not_interrupt_itself(voice: Pyttsx3Synthesizer, figure: Callable[[str], None]) -> None:
    """Ten minutes of its own voice in six rooms; and the same without cancellation, for the figure."""
    minutes = {Duplex.CANCEL: 100 / 60, Duplex.OPEN: 10 / 60}
    found = {}
    for duplex, each in minutes.items():
        stages = [RoomStage(room, voice, REPLY, duplex) for room in ROOMS]
        for stage in stages:
            stage.run(each * 60)
        spoken = sum(stage.spoken_seconds for stage in stages) / 60
        false, holds = sum(len(stage.started) for stage in stages), sum(stage.speaker.holds for stage in stages)
        echoes = [stage.line.echo for stage in stages]
        found[duplex] = (spoken, false, holds, echoes)
        figure(f"{duplex.value}: {false} false barge-ins, {holds} pauses in {spoken:.1f} min of own voice")
    spoken, false, holds, echoes = found[Duplex.CANCEL]
    assert spoken > 9.5
    assert false <= 1
    assert holds <= 10
    assert all(echo is not None and echo.after < -40 for echo in echoes)
    levels = [round(echo.before) for echo in echoes if echo is not None]
    assert all(abs(level - room.echo_db) <= 4 for level, room in zip(levels, ROOMS, strict=True))
    assert found[Duplex.OPEN][1] >= 1
    assert found[Duplex.OPEN][2] >= 10


def alone(samples: Samples) -> float:
    """How long the ears need for this voice in a quiet room."""
    endpointer = Endpointer(SileroDetector())
    endpointer.over_speech = True
    noise = 1e-3 * np.random.default_rng(0).standard_normal(RATE + len(samples)).astype(np.float32)
    noise[RATE:] += samples
    for at in range(0, len(noise), 320):
        if any(isinstance(happened, SpeechConfirmed) for happened in endpointer.feed(noise[at : at + 320])):
            return (at + 320) / RATE - 1
    raise AssertionError("it was not heard at all")


@pytest.mark.real
def test_the_user_interrupts_soon(voice: Pyttsx3Synthesizer, figure: Callable[[str], None]) -> None:
    """The confirmation alone takes 400 ms of voice. While both speak the canceller takes some of the user away."""
    delays, added = [], []
    for room in (Room(-6, 80), Room(-18, 20), Room(-6, 200)):
        stage = RoomStage(room, voice, REPLY)
        for name in QUESTIONS:
            said = question(name, -20.0)
            stage.run(4.0)
            before, began = len(stage.started), stage.clock.now
            stage.run(2.0, said)
            assert len(stage.started) > before, f"{name} was not heard in {room}"
            delays.append(stage.started[before] - began)
            added.append(delays[-1] - alone(said))
            stage.run(1.0, np.zeros(1, np.float32))
    figure(
        f"barge-ins after {np.median(delays):.2f} s (median), {max(delays):.2f} s (worst of {len(delays)}), "
        f"of which the echo costs {np.median(added):.2f} s (median), {max(added):.2f} s (worst)"
    )
    assert np.median(delays) <= 0.5
    assert np.mean(np.array(delays) <= 0.62) >= 0.85
    assert max(delays) <= 1.1


@pytest.mark.real
def test_with_headphones_the_user_is_heard_from_the_first_reply_on(voice: Pyttsx3Synthesizer) -> None:
    """Nothing comes back: the canceller, which knows no room yet, is not to take the user for echo."""
    stage = RoomStage(Room(-200, 20), voice, REPLY)
    delays = []
    for name in QUESTIONS[:3]:
        stage.run(1.5)
        before, began = len(stage.started), stage.clock.now
        stage.run(2.0, question(name, -26.0))
        assert len(stage.started) > before, f"{name} was not heard"
        delays.append(stage.started[before] - began)
        stage.run(1.0, np.zeros(1, np.float32))
    assert max(delays) <= 0.6


@pytest.mark.real
@pytest.mark.parametrize("decibels", [-20.0, -32.0])
def test_a_user_who_speaks_from_the_first_words_on_is_heard(voice: Pyttsx3Synthesizer, decibels: float) -> None:
    """With headphones, over the first words of the first reply, and without a pause in which the room is learned."""
    parts = []
    for name in QUESTIONS:
        frames = question(name, decibels)
        frames = frames[: len(frames) // FRAME * FRAME].reshape(-1, FRAME)
        power = np.square(frames).mean(1)
        parts.append(frames[power > power.max() * 1e-3].ravel())
    stage = RoomStage(Room(-200, 20), voice, REPLY)
    stage.run(0.5)  # of it 0.3 s of the reply
    began = stage.clock.now
    stage.run(5.0, np.concatenate(parts))
    assert stage.started
    assert stage.started[0] - began <= 0.6


@pytest.mark.real
def test_first_words_do_not_interrupt_themselves(voice: Pyttsx3Synthesizer) -> None:
    """Before anything is learned of the room: the beginnings of many first replies, faint echoes included."""
    sentences = [f"{part.strip()}." for part in REPLY.replace("?", ".").replace("!", ".").split(".") if part.strip()]
    for echo_db in (-6, -18, -30):
        for delay_ms in (20, 80, 200, 350):
            for sentence in sentences:
                stage = RoomStage(Room(echo_db, delay_ms), voice, sentence)
                stage.run(2.0)
                assert not stage.started, f"{sentence!r} at {echo_db} dB after {delay_ms} ms"


def test_half_duplex_is_deaf_while_it_speaks_and_a_moment_longer() -> None:
    line = MicrophoneProcessor(Reference(), Duplex.HALF)
    loud = AudioChunk(np.full(320, 8000, np.int16), RATE, 0.0)
    raw, cleaned = line.take(loud, speaking=True)
    assert raw.all()
    assert not cleaned.any()
    after = [line.take(loud, speaking=False)[1].any() for _ in range(30)]
    assert after.index(True) == 25  # half a second
    assert after[25:] == [True] * 5


def test_the_canceller_connects_to_nothing() -> None:
    before = psutil.Process().net_connections("inet")
    MicrophoneProcessor(Reference()).take(AudioChunk(np.zeros(16_000, np.int16), RATE, 0.0), speaking=True)
    assert psutil.Process().net_connections("inet") == before


def test_without_a_played_voice_there_is_no_score() -> None:
    line = MicrophoneProcessor(Reference())
    line.take(AudioChunk(np.full(16_000, 8000, np.int16), RATE, 0.0), speaking=True)
    assert line.echo is None


def test_the_model_hears_the_microphone_as_it_is() -> None:
    reference = Reference()
    line = MicrophoneProcessor(reference)
    noise = np.random.default_rng(0).integers(-5000, 5000, (100, 320)).astype(np.int16)
    kept = []
    for number, block in enumerate(noise):
        reference.played(block.astype(np.float32) / 32768, RATE)
        reference.recorded(number * 0.02)
        kept.append(line.take(AudioChunk(block, RATE, number * 0.02), speaking=True))
    assert np.array_equal(np.concatenate([raw for raw, _ in kept]), noise.ravel().astype(np.float32) / 32768)
    cleaned = np.concatenate([cleaned for _, cleaned in kept[50:]])
    assert np.mean(np.square(cleaned)) < 1e-2 * np.mean(np.square(noise[50:] / 32768))
