"""Sound through a real stack (a private PulseAudio), and the devices' failures, real and scripted."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from assistant.audio import devices as sound
from assistant.audio import streams
from assistant.audio.devices import SoundSystem, SoundUnavailable, devices
from assistant.audio.echo import Duplex, MicrophoneProcessor, Reference
from assistant.audio.endpointing import Endpointer
from assistant.audio.file_devices import FileSound
from assistant.audio.streams import RATE, SoundMicrophone, SoundSpeaker
from assistant.errors import AssistantError
from assistant.events import AudioChunk, Failed, Outcome, Samples, TurnEnded
from assistant.speech.playback import ReplyPlayer
from assistant.turns.loop import ConversationLoop
from tests import SAMPLES
from tests.support.fakes import Clock, LoudnessDetector, ScriptedModel, ToneSynthesizer, eventually

if TYPE_CHECKING:
    from tests.support.sound_stack import SoundStack

pytest_plugins = ("tests.support.sound_stack",)
HEARD_RATE = 48_000  # of the stack


class Watched:
    """A sound system, what it delivered and what it reported."""

    def __init__(self, **names: str | None) -> None:
        self.chunks: list[AudioChunk] = []
        self.messages: list[str] = []
        self.system = SoundSystem(self.chunks.append, self._report, **names)  # type: ignore[arg-type]
        self.speaker = self.system.speaker

    def _report(self, failed: Failed) -> None:
        self.messages.append(failed.message)

    def works(self) -> bool:
        return self.system.microphone.works and self.speaker.works


@pytest.fixture
def watched() -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(**names: str | None) -> Watched:
        made.append(Watched(**names))
        made[-1].system.start()
        return made[-1]

    yield make
    for one in made:
        one.system.close()


@pytest.fixture
def running(sound_stack: SoundStack, watched: Callable[..., Watched]) -> Watched:
    one = watched()
    sound_stack.until(one.works)
    return one


def staircase(seconds: float) -> Samples:
    """A sound that is never silent and that tells where one is in it."""
    return np.linspace(0.2, 0.8, int(seconds * RATE), dtype=np.float32)


def loud(samples: Samples) -> Samples:
    return samples[np.abs(samples) > 0.1]


# ---- through the real stack


@pytest.mark.real
def test_what_is_said_arrives_complete(sound_stack: SoundStack, running: Watched) -> None:
    said, _ = soundfile.read(SAMPLES / "go-forward.flac", dtype="float32")
    sound_stack.say(said)
    enough = len(running.chunks) + 25
    sound_stack.until(lambda: len(running.chunks) > enough)
    line = MicrophoneProcessor(Reference(), Duplex.OPEN)
    heard = np.concatenate([line.take(chunk, speaking=False)[0] for chunk in list(running.chunks)])
    size = 1 << (len(heard) + len(said)).bit_length()
    match = np.fft.irfft(np.fft.rfft(heard, size) * np.fft.rfft(said, size).conj(), size)
    lag = int(match[: len(heard) - len(said)].argmax())
    assert np.corrcoef(heard[lag : lag + len(said)], said)[0, 1] > 0.99
    starts = np.array([chunk.start for chunk in running.chunks])
    assert np.allclose(np.diff(starts), [len(chunk.samples) / chunk.rate for chunk in running.chunks[:-1]])


@pytest.mark.real
def test_a_reply_is_heard_to_its_last_sample(sound_stack: SoundStack, running: Watched) -> None:
    with sound_stack.hearing() as heard:
        running.speaker.write(staircase(0.5))
        running.speaker.write(staircase(0.5))
        sound_stack.until(lambda: running.speaker.played() == RATE)
        sound_stack.until(lambda: len(loud(heard.samples)) >= HEARD_RATE - 20)
        assert len(loud(heard.samples)) == pytest.approx(HEARD_RATE, abs=20)  # resampling rings at the edges


@pytest.mark.real
def test_a_stop_is_silent_at_once_and_knows_what_was_heard(sound_stack: SoundStack, running: Watched) -> None:
    wrong = []
    with sound_stack.hearing() as heard:
        for _ in range(3):
            before = len(loud(heard.samples))
            running.speaker.write(staircase(3.0))
            sound_stack.until(lambda: running.speaker.played() > 0.4 * RATE)
            played = running.speaker.abort()
            assert running.speaker.played() == 0
            sound_stack.until(lambda: not heard.samples[-HEARD_RATE // 2 :].any())
            wrong.append(played / RATE - (len(loud(heard.samples)) - before) / HEARD_RATE)
    assert max(map(abs, wrong)) < 0.15  # seconds of sound, of 3 that were written; 0.03 on a machine that is not busy


@pytest.mark.real
def test_a_pause_loses_and_repeats_nothing(sound_stack: SoundStack, running: Watched) -> None:
    with sound_stack.hearing() as heard:
        running.speaker.write(staircase(3.0))
        sound_stack.until(lambda: running.speaker.played() > 0.2 * RATE)
        running.speaker.pause()
        sound_stack.until(lambda: not heard.samples[-HEARD_RATE // 2 :].any())
        paused = running.speaker.played()
        assert 0.2 * RATE < paused < 3 * RATE
        running.speaker.resume()
        sound_stack.until(lambda: running.speaker.played() == 3 * RATE)
        sound_stack.until(lambda: len(loud(heard.samples)) >= 3 * HEARD_RATE - 20)
        came = loud(heard.samples)
    assert len(came) == pytest.approx(3 * HEARD_RATE, abs=20)
    # Where it is in the sound: resampling rings at the edges of the pause, and 2e-3 are 480 samples of 144,000.
    whole = np.linspace(0.2, 0.8, 3 * HEARD_RATE)[:-20]
    astray = np.abs(came[: len(whole)] - whole[: len(came)])
    assert np.mean(astray > 2e-3) < 0.01
    assert np.median(astray) < 2e-4


@pytest.mark.real
def test_a_frozen_microphone_is_reported_once_and_comes_back(sound_stack: SoundStack, running: Watched) -> None:
    sound_stack.control("suspend-source", "mic", "1")
    sound_stack.until(lambda: bool(running.messages))
    assert not running.system.microphone.works
    sound_stack.control("suspend-source", "mic", "0")
    sound_stack.until(running.works)
    sound_stack.until(lambda: len(running.messages) > 1)
    assert "microphone" in running.messages[0]
    assert running.messages[1:] == ["The microphone is back."]


@pytest.mark.real
def test_a_reply_outlives_the_loss_of_its_device(sound_stack: SoundStack, running: Watched) -> None:
    running.speaker.write(staircase(2.0))
    sound_stack.until(lambda: running.speaker.played() > 0.5 * RATE)
    sound_stack.kill()
    sound_stack.until(lambda: len(running.messages) == 2)
    assert not running.works()
    lost_at = running.speaker.played()
    sound_stack.start()
    with sound_stack.hearing() as heard:
        sound_stack.until(running.works)
        sound_stack.until(lambda: running.speaker.played() == 2 * RATE)
        rest = loud(heard.samples)
    assert abs(len(rest) / HEARD_RATE - (2 - lost_at / RATE)) < 0.2  # what is on its way when a device is lost
    sound_stack.until(lambda: len(running.messages) == 4)
    assert sorted(running.messages[2:]) == ["The microphone is back.", "The speaker is back."]


@pytest.mark.real
def test_devices_are_named_and_chosen_by_name(sound_stack: SoundStack, watched: Callable[..., Watched]) -> None:
    one = watched(microphone="headset", speaker="headset")  # the first to start PortAudio in this environment
    sound_stack.until(one.works)
    there = devices()
    assert {"pulse", "default", "headset"} <= {device.name for device in there.speakers}
    assert [device.name for device in there.microphones if device.default] == ["default"]
    one.system.choose(None, "no such thing")
    sound_stack.until(lambda: not one.works())
    sound_stack.until(one.works)
    assert one.messages == ["There is no speaker called no such thing: the system's default is used."]


@pytest.mark.real
def test_without_any_device_it_says_so_and_waits(
    sound_stack: SoundStack, watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = sound_stack.environment["PULSE_SERVER"]
    monkeypatch.setenv("PULSE_SERVER", f"unix:{tmp_path}/nothing")
    one = watched()
    sound_stack.until(lambda: len(one.messages) == 2)
    assert all("typing works meanwhile" in message for message in one.messages)
    assert one.speaker.away
    monkeypatch.setenv("PULSE_SERVER", address)  # plugged in
    sound_stack.until(one.works)
    assert not one.speaker.away


# ---- files in the devices' place


def test_files_are_heard_and_written_faster_than_time(tmp_path: Path) -> None:
    question = np.concatenate([np.full(RATE, 9000), np.zeros(2 * RATE)]).astype(np.int16)
    soundfile.write(tmp_path / "question.wav", np.stack([question, question], 1), RATE)
    events: list[Any] = []
    files = FileSound(lambda chunk: assistant.put(chunk), heard=[tmp_path / "question.wav"], spoken=tmp_path / "r.wav")
    line = MicrophoneProcessor(Reference(), Duplex.OPEN)
    assistant = ConversationLoop(Endpointer(LoudnessDetector()), line, events.append, clock=files.clock)
    clock = Clock()
    model = ScriptedModel(["Yes indeed."], clock, assistant.put)
    assistant.attach(model, ReplyPlayer(ToneSynthesizer(), files.speaker, assistant.put, threaded=False))
    while not files.input_ended(0.5):
        files.step()
        clock.now = files.clock()
        model.run()
        assistant.empty()
        assistant.tick()
        assistant.empty()
    files.close()
    (ended,) = [event for event in events if isinstance(event, TurnEnded)]
    assert (ended.turn.outcome, ended.turn.heard) == (Outcome.ANSWERED, "Yes indeed.")
    written, rate = soundfile.read(tmp_path / "r.wav")
    assert np.count_nonzero(np.abs(written) > 0.1) == pytest.approx(0.6 * rate, abs=30)
    assert np.flatnonzero(np.abs(written) > 0.1)[0] / rate == pytest.approx(ended.turn.marks["first_sound"], abs=0.05)


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(AssistantError, match="cannot be read as sound"):
        FileSound(print, heard=[tmp_path / "a.wav"])
    for name, rate in (("b.wav", 8000), ("c.wav", 16_000)):
        soundfile.write(tmp_path / name, np.zeros(100), rate)
    with pytest.raises(AssistantError, match="differ in rate"):
        FileSound(print, heard=[tmp_path / "b.wav", tmp_path / "c.wav"])
    files = FileSound(print, spoken=tmp_path / "none" / "r.wav")
    with pytest.raises(AssistantError, match="cannot be written"):
        files.close()


# ---- scripted: what the real stack cannot do on demand


def test_without_portaudio_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text('raise OSError("PortAudio library not found")')
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    one = Watched()
    with pytest.raises(SoundUnavailable, match="libportaudio2"):
        one.system.start()
    assert one.speaker.away
    one.system.close()
    with pytest.raises(SoundUnavailable, match="libportaudio2"):
        devices()


class Refusal(Exception):
    """PortAudio's error: a text and a number."""


class ScriptedPortAudio:
    """One device each way. `refuse` gets a rate and returns an error or None; streams are driven by the test."""

    PortAudioError = Refusal
    default = SimpleNamespace(device=[0, 0])
    _initialized = 1

    def __init__(self, refuse: Callable[[int], Refusal | None], rate: int = 44_100) -> None:
        self.refuse, self.rate = refuse, rate
        self.streams: list[Any] = []

    def query_devices(self, index: int | None = None, kind: str | None = None) -> Any:
        one = {"name": "only", "max_input_channels": 1, "max_output_channels": 1, "default_samplerate": self.rate}
        return one if kind else [one]

    def _stream(self, **options: Any) -> Any:
        if (refusal := self.refuse(options["samplerate"])) is not None:
            raise refusal
        self.streams.append(SimpleNamespace(**options, active=True, **dict.fromkeys(("start", "abort", "close"), int)))
        return self.streams[-1]

    InputStream = OutputStream = _stream

    def _exit_handler(self) -> None: ...

    def _initialize(self) -> None: ...

    def _terminate(self) -> None: ...

    def play(self, frames: int, delay: float = 0.0) -> Samples:
        """Let the newest stream ask for samples, which will be heard after `delay`."""
        out = np.zeros((frames, 1), np.float32)
        self.streams[-1].callback(out, frames, SimpleNamespace(outputBufferDacTime=delay, currentTime=0.0), None)
        return out[:, 0]


def speaker() -> SoundSpeaker:
    return SoundSpeaker(Reference(), lambda: None)


def test_a_refused_rate_is_replaced_by_another() -> None:
    audio = ScriptedPortAudio(lambda rate: None if rate == 32_000 else Refusal("Invalid sample rate", -9997))
    one = speaker()
    one.open(audio, None)
    assert (one.device_rate, one.trouble) == (32_000, "")
    one.write(np.full(RATE, 0.5, np.float32))
    assert np.count_nonzero(audio.play(40_000)) == pytest.approx(32_000, abs=4)


def test_a_busy_device_is_reported_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, watched: Callable[..., Watched]
) -> None:
    tries: list[int] = []

    def busy(rate: int) -> Refusal | None:
        tries.append(rate)
        return Refusal("Device unavailable", -9985) if len(tries) <= 2 else None

    audio = ScriptedPortAudio(busy)
    monkeypatch.setitem(sys.modules, "sounddevice", audio)
    one = watched()
    eventually(lambda: len(audio.streams) == 2)
    assert tries == [44_100] * 4  # no other rate was tried on a device that is busy
    assert ["Device unavailable" in message for message in one.messages] == [True, True]


def test_a_device_that_hangs_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, watched: Callable[..., Watched]
) -> None:
    """As one does whose sound server was stopped: the call that closes it does not return."""
    audio, goes_on = ScriptedPortAudio(lambda _: None), threading.Event()
    monkeypatch.setitem(sys.modules, "sounddevice", audio)
    monkeypatch.setattr(sound, "_CLOSE_SECONDS", 0.2)
    one = watched()
    eventually(lambda: len(audio.streams) == 2 and one.system.microphone._stream is not None)
    audio.streams[1].close = goes_on.wait
    one.system.close()  # does not return where it waits for the device
    with sound._CALLS, pytest.raises(SoundUnavailable, match="does not answer"):
        devices()
    goes_on.set()


def test_a_device_lost_in_the_moment_of_a_stop_is_opened_again(
    monkeypatch: pytest.MonkeyPatch, watched: Callable[..., Watched]
) -> None:
    audio = ScriptedPortAudio(lambda _: None)
    monkeypatch.setitem(sys.modules, "sounddevice", audio)
    monkeypatch.setattr(sound, "_RETRY_SECONDS", (0.0,))
    one = watched()
    eventually(lambda: len(audio.streams) == 2 and one.system.microphone._stream is not None)

    def gone() -> None:
        audio.streams[0].active = False
        raise Refusal("Device unavailable", -9985)

    audio.streams[0].start = gone
    one.speaker.write(np.ones(RATE, np.float32))
    audio.streams[0].callback(np.zeros((480, 1)), 480, SimpleNamespace(outputBufferDacTime=9.0, currentTime=0.0), None)
    one.speaker.abort()
    eventually(lambda: len(audio.streams) == 4)


def test_a_reply_goes_on_at_another_devices_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(streams, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one = speaker()
    first = ScriptedPortAudio(lambda _: None, 48_000)
    one.open(first, None)
    one.write(staircase(1.0))
    first.play(24_000)
    now[0] += 0.5
    first.play(4_800)  # given, and not heard any more
    assert one.played() == RATE // 2
    one.close()
    assert one.played() == RATE // 2
    second = ScriptedPortAudio(lambda _: None, 16_000)
    one.open(second, None)
    rest = second.play(10_000)
    assert np.count_nonzero(rest) == pytest.approx(8_000, abs=4)
    assert rest[0] == pytest.approx(0.5, abs=0.01)
    now[0] += 0.25
    assert one.played() == pytest.approx(0.75 * RATE, abs=4)
    now[0] += 1.0
    assert one.played() == RATE


def test_what_is_written_after_a_stop_is_not_swallowed_by_it() -> None:
    audio, one = ScriptedPortAudio(lambda _: None, RATE), speaker()
    one.open(audio, None)
    one.write(np.full(1000, 0.5, np.float32))
    audio.play(500, delay=1.0)
    assert one.abort() == 0
    one.write(np.full(1000, 0.7, np.float32))
    audio.play(300, delay=1.0)  # the device asks before the watch has made it forget
    one.flush()
    assert np.array_equal(audio.play(1200), [*[np.float32(0.7)] * 1000, *[0] * 200])


def test_the_reference_gets_what_is_played_beside_what_is_recorded() -> None:
    reference = Reference()
    audio, chunks = ScriptedPortAudio(lambda _: None, RATE), list[AudioChunk]()
    one, microphone = SoundSpeaker(reference, lambda: None), SoundMicrophone(reference, chunks.append)
    one.open(audio, None)
    one.write(np.full(100, 0.5, np.float32))
    audio.play(480)
    microphone.open(audio, None)
    audio.streams[-1].callback(np.zeros((480, 1), np.int16), 480, None, None)
    ((block, rate),) = reference.until(chunks[0].start)
    assert rate == RATE
    assert np.count_nonzero(block) == 100
