"""The whole conversation: through a real sound stack, on a scripted and on the real model, and in a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import soundfile
import soxr
from rich.console import Console

from assistant.audio.audio_check import CheckResult, Step
from assistant.audio.echo import Duplex
from assistant.audio.endpointing import PATIENCE
from assistant.audio.file_devices import FileSound
from assistant.backend.protocol import ModelChoice, Ready
from assistant.cli.terminal import Keyboard, Screen, Stopper, as_line
from assistant.events import (
    Event,
    Failed,
    ModelStatus,
    Outcome,
    PlaybackStarted,
    Samples,
    SpeechStarted,
    Spoken,
    Transcribed,
    Turn,
    TurnEnded,
    TurnUndone,
    UtteranceEnded,
)
from assistant.messages import BargeIn, TurnSettings
from assistant.sessions.corrections import corrections
from assistant.sessions.maintenance import recover
from assistant.sessions.reader import read_session, sessions
from assistant.speech.synthesizer import Pyttsx3Synthesizer, VoiceSettings
from assistant.talk import Talk, TalkSettings
from model.commands.convert import main as convert
from tests import ROOT
from tests.support.fakes import HANG_SECONDS, eventually
from tests.support.second_backend import make_checkpoint

if TYPE_CHECKING:
    from tests.support.sound_stack import SoundStack

pytest_plugins = ("tests.support.sound_stack",)
SAMPLES = ROOT / "resources" / "samples"
RATE = 16_000
LONG = "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve."


class Scene:
    """A conversation and what came of it; `until` waits for the sound stack's and the model's time."""

    def __init__(self, settings: TalkSettings, voice: Pyttsx3Synthesizer | None, **files: Any) -> None:
        self.events: list[Event | Ready] = []
        self._came = threading.Condition()
        self.talk = Talk(settings, voice, self._listen, sound=partial(FileSound, **files) if files else None)
        self.talk.start()

    def _listen(self, event: Event | Ready) -> None:
        with self._came:
            self.events.append(event)
            self._came.notify_all()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def until(self, kind: type, count: int = 1, seconds: float = HANG_SECONDS) -> Any:
        with self._came:
            assert self._came.wait_for(lambda: len(self.of(kind)) >= count, seconds), f"no {kind.__name__}"
            return self.of(kind)[count - 1]

    def until_fits(self, fits: Callable[[Event | Ready], bool]) -> None:
        with self._came:
            assert self._came.wait_for(lambda: any(map(fits, self.events)), HANG_SECONDS)

    @property
    def messages(self) -> list[str]:
        return [failed.message for failed in self.of(Failed)]


@pytest.fixture(scope="module")
def voice() -> Iterator[Pyttsx3Synthesizer]:
    with Pyttsx3Synthesizer() as synthesizer:
        yield synthesizer


@pytest.fixture
def scene(voice: Pyttsx3Synthesizer) -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(settings: TalkSettings, **files: Any) -> Scene:
        made.append(Scene(settings, voice, **files))
        return made[-1]

    yield make
    for one in made:
        one.talk.close()


def scripted(folder: Path, *replies: str, **settings: Any) -> TalkSettings:
    (folder / "replies.txt").write_text("\n".join(replies), "utf-8")
    return TalkSettings(ModelChoice(str(folder / "replies.txt")), server="tests.support.talk_server", **settings)


def recording(name: str, seconds: float | None = None) -> Samples:
    samples, _ = soundfile.read(SAMPLES / f"{name}.flac", dtype="float32")
    voiced = np.flatnonzero(np.abs(samples) > 0.05)
    return samples[max(0, voiced[0] - 800) :][: None if seconds is None else int(seconds * RATE)]


def said_of(audio: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(audio)))) if len(audio) else 0.0


# ---- through the real stack


def dialogue(stack: SoundStack, play: Scene) -> list[Turn]:
    """Ten turns with a barge-in, a cough, a pause in mid-sentence and the loss of the devices, recorded."""
    talk = play.talk
    play.until(Ready)
    stack.until(lambda: talk.sound.microphone.works and talk.sound.speaker.works)
    question = recording("go-forward", 1.0)
    cough = recording("novel-3", 0.25) * np.hanning(4000).astype(np.float32)
    pause = np.zeros(int(0.35 * RATE), np.float32)

    def ask(*parts: Samples) -> None:
        stack.say(np.concatenate(parts))

    def listen(seconds: float) -> None:
        """Let so much sound come out of the speaker, silence included."""
        with stack.hearing() as heard:
            stack.until(lambda: len(heard.samples) >= seconds * SOUND_RATE)

    def lost() -> list[str]:
        return [message for message in play.messages if "cannot be used" in message]

    def sounding(number: int) -> None:
        play.until_fits(lambda event: event == PlaybackStarted(number))

    ask(question)
    play.until(TurnEnded, 1)
    ask(question, pause, question)  # the user thinks in mid-sentence
    play.until(TurnEnded, 2)
    ask(question)
    sounding(3)
    listen(1.0)
    ask(question)  # interrupts
    play.until(TurnEnded, 4)
    with stack.hearing() as heard:
        ask(question)
        sounding(5)
        listen(0.5)
        ask(cough)
        play.until(TurnEnded, 5)
        listen(0.3)  # the stack's own latency
        sound = heard.samples
    ask(question)
    sounding(6)
    listen(0.5)
    stack.kill()
    stack.until(lambda: len(lost()) == 2)  # the microphone and the speaker
    stack.start()
    play.until(TurnEnded, 6)
    stack.until(lambda: talk.sound.microphone.works)
    for number in (7, 8, 9, 10):
        ask(question)
        play.until(TurnEnded, number)
    turns = [ended.turn for ended in play.of(TurnEnded)]
    outcomes = [turn.outcome for turn in turns]
    assert outcomes == [Outcome.INTERRUPTED if number == 3 else Outcome.ANSWERED for number in range(1, 11)]
    interrupted = turns[2]
    assert interrupted.reply.startswith(interrupted.heard)
    assert 0 < len(interrupted.heard) < len(interrupted.reply)
    assert all(turn.heard == turn.reply for turn in turns if turn is not interrupted)
    assert len(turns[1].message.samples) > 2.3 * RATE  # one utterance, pause and all
    assert len(play.of(UtteranceEnded)) == 10
    assert len(lost()) == 2  # once each
    talk.close()
    session = read_session(talk.folder)
    assert session.damaged == 0
    assert [recorded.turn.heard for recorded in session.turns] == [turn.heard for turn in turns]
    kept = [(recorded.user_audio is not None, recorded.reply_audio is not None) for recorded in session.turns]
    assert kept == [(True, True)] * 10
    said, rate = soundfile.read(session.turns[4].reply_audio)
    paused = seconds_of_sound(sound, SOUND_RATE) - seconds_of_sound(said, rate)
    assert paused > 0.15  # the cough held the reply up, and it went on to its end
    return turns


SOUND_RATE = 48_000  # of the stack's monitor


def seconds_of_sound(samples: Samples, rate: int) -> float:
    """From the first sound to the last."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return float(loud[-1] - loud[0]) / rate


@pytest.mark.real
def test_a_dialogue_of_ten_turns(sound_stack: SoundStack, scene: Callable[..., Scene], tmp_path: Path) -> None:
    replies = ["Yes.", "I see.", LONG, "Sorry.", LONG, LONG, "Sure.", "Of course.", "Good.", "Goodbye."]
    turns = dialogue(sound_stack, scene(scripted(tmp_path, *replies, sessions=tmp_path / "sessions")))
    assert [turn.reply for turn in turns] == replies
    assert 1 <= len(turns[2].heard.split()) < 11


@pytest.mark.real
def test_the_same_dialogue_on_a_converted_checkpoint_in_nf4(
    sound_stack: SoundStack, scene: Callable[..., Scene], tmp_path: Path
) -> None:
    """A tiny one of the original's kind, untrained: what it says is no language, but it hears and speaks."""
    folder = tmp_path / "converted"
    assert convert([str(ROOT / "tests" / "goldens" / "checkpoints" / "d"), str(folder)]) == 0
    settings = folder / "generation_config.json"
    # Its replies are drawn by lot: without an end token none is too short to be coughed at or interrupted.
    limits = {"max_new_tokens": 16, "eos_token_id": 2**22}
    settings.write_text(json.dumps(json.loads(settings.read_text("utf-8")) | limits), "utf-8")
    play = scene(TalkSettings(ModelChoice(str(folder), "cpu", "nf4"), sessions=tmp_path / "sessions"))
    turns = dialogue(sound_stack, play)
    assert play.of(Ready)[0].about["quantize"] == "nf4"
    assert all(turn.reading is not None and turn.reply for turn in turns)
    assert len({turn.reply for turn in turns}) > 1


@pytest.mark.real
def test_a_human_question_is_answered_aloud(
    sound_stack: SoundStack, scene: Callable[..., Scene], tmp_path: Path
) -> None:
    """Microphone, ears, mini, voice, speaker, session: everything is real but the air."""
    play = scene(TalkSettings(sessions=tmp_path))
    play.until(Ready)
    with sound_stack.hearing() as heard:
        sound_stack.say(recording("who-sent-this"))
        play.until(PlaybackStarted)
        before = len(heard.samples)
        sound_stack.until(lambda: len(heard.samples) >= before + 1.5 * SOUND_RATE)
        assert said_of(heard.samples[before:]) > 0.01
        play.talk.loop.stop()
        turn = play.until(TurnEnded).turn
    assert "message" in turn.transcript
    assert turn.reading is not None
    assert turn.reply.startswith(turn.heard)
    assert turn.heard
    play.talk.close()
    (recorded,) = read_session(play.talk.folder).turns
    assert recorded.turn.outcome is Outcome.STOPPED
    assert recorded.turn.transcript == turn.transcript
    assert np.array_equal(recorded.turn.reading.probabilities, turn.reading.probabilities)
    assert np.abs(recorded.turn.message.samples - turn.message.samples).max() < 1e-4
    samples, rate = soundfile.read(recorded.reply_audio)
    assert 0.5 < len(samples) / rate < 6


# ---- files in the devices' place


def test_a_recording_is_answered_into_a_file_and_recorded(scene: Callable[..., Scene], tmp_path: Path) -> None:
    settings = scripted(tmp_path, "All right then.", sessions=tmp_path / "sessions")
    play = scene(settings, heard=[SAMPLES / "go-forward.flac"], spoken=tmp_path / "reply.wav")
    turn = play.until(TurnEnded).turn
    assert (turn.outcome, turn.heard) == (Outcome.ANSWERED, "All right then.")
    play.talk.close()
    samples, rate = soundfile.read(tmp_path / "reply.wav")
    started = turn.marks["first_sound"]
    assert np.abs(samples).max() > 0.1
    assert started < len(samples) / rate
    (recorded,) = read_session(play.talk.folder).turns
    kept, kept_rate = soundfile.read(recorded.reply_audio)
    assert kept_rate == rate
    begin = int(np.flatnonzero(np.abs(samples) > 1e-3)[0] - np.flatnonzero(np.abs(kept) > 1e-3)[0])
    assert np.abs(samples[begin : begin + len(kept)] - kept).max() < 1e-3  # what was kept is what was heard


def on_disk(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_is_being_said_is_on_disk_before_it_ends(scene: Callable[..., Scene], tmp_path: Path) -> None:
    long = tmp_path / "long.wav"
    said = np.concatenate([recording("novel-1"), recording("novel-4")])
    soundfile.write(long, said, RATE)
    play = scene(scripted(tmp_path, "Yes.", sessions=tmp_path / "sessions"), heard=[long])
    play.until(SpeechStarted)
    folder = play.talk.folder
    eventually(lambda: on_disk(folder) > 3 * RATE)  # 1.5 s of 16 bits a sample
    # As if the process were killed now: what is there is read by another one.
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder, copy], check=True)
    assert recover(copy) == 1
    (recovered,) = read_session(copy).turns
    samples = recovered.turn.message.samples
    assert len(samples) > RATE
    lag = int(np.correlate(said[: 3 * RATE], samples[RATE // 2 : RATE], "valid").argmax()) - RATE // 2
    whole = said[max(0, lag) : lag + len(samples)]
    assert np.abs(whole - samples[max(0, -lag) :][: len(whole)]).max() < 1e-3


def test_without_sound_one_types_and_reads(
    scene: Callable[..., Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sounddevice.py").write_text('raise OSError("PortAudio library not found")')
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    play = scene(scripted(tmp_path, "I read you."))
    play.until(Failed)
    play.talk.type("Hello?")
    turn = play.until(TurnEnded).turn
    assert (turn.outcome, turn.heard) == (Outcome.ANSWERED, "I read you.")
    assert play.messages == ["PortAudio is missing: install libportaudio2 to talk; typing works without."]


def test_what_is_recorded_can_be_chosen_while_it_runs(scene: Callable[..., Scene], tmp_path: Path) -> None:
    """Off, on in the middle, a new conversation, off: two sessions, and the turns that were undone are in none."""
    root = tmp_path / "sessions"
    play = scene(scripted(tmp_path, "One.", "Two.", "Three."), spoken=tmp_path / "out.wav")
    talk = play.talk

    def ask(words: str, count: int) -> None:
        talk.type(words)
        play.until(TurnEnded, count)

    ask("a", 1)
    talk.record(root)
    ask("b", 2)
    talk.again("c")
    play.until(TurnEnded, 3)
    assert [undone.turn for undone in play.of(TurnUndone)] == [2]
    ask("d", 4)
    talk.undo()
    play.until(TurnUndone, 2)
    talk.new()
    ask("e", 5)
    talk.record(None)
    ask("f", 6)
    talk.close()
    found = sorted(
        [(one.turn.number, one.turn.message.text, one.turn.reply) for one in read_session(folder).turns]
        for folder in sessions(root)
    )
    # The one's first turn, "b", was undone; the other's first is its number 1.
    assert found == [[(1, "e", "One.")], [(2, "c", "Two.")]]
    assert talk.folder is None


def test_the_model_is_released_and_another_one_answers(scene: Callable[..., Scene], tmp_path: Path) -> None:
    play = scene(scripted(tmp_path, "Old."), spoken=tmp_path / "out.wav")
    play.until(Ready)
    other = tmp_path / "other.txt"
    other.write_text("New.", "utf-8")
    play.talk.release_model()
    play.until_fits(lambda event: isinstance(event, ModelStatus) and event.status == "stopped")
    play.talk.type("a")
    assert play.until(TurnEnded, 1).turn.outcome is Outcome.FAILED
    assert play.messages == ["No model is loaded: choose one in the settings."]
    play.talk.replace_model(ModelChoice(str(other)))
    play.until(Ready, 2)
    play.talk.set_synthesizer(None)
    play.talk.type("b")
    turn = play.until(TurnEnded, 2).turn
    assert (turn.heard, turn.outcome) == ("New.", Outcome.ANSWERED)
    assert not play.of(PlaybackStarted)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_reading_is_corrected_and_the_correction_taken_back(
    scene: Callable[..., Scene], tmp_path: Path, recorded: bool
) -> None:
    path, root = tmp_path / "corrections.jsonl", tmp_path / "sessions" if recorded else None
    play = scene(scripted(tmp_path, "Yes.", sessions=root, corrections=path), heard=[SAMPLES / "go-forward.flac"])
    turn = play.until(TurnEnded).turn
    play.talk.correct(1, "angry", consent=True)
    play.talk.correct(9, "angry", consent=True)  # there is none
    eventually(lambda: len(corrections(path)) == 1)
    (one,) = corrections(path)
    samples, _ = soundfile.read(one.audio, dtype="float32")
    assert np.abs(samples - turn.message.samples).max() < 1e-4
    assert (one.emotion, one.read_as, one.turn, one.text) == ("angry", None, 1, turn.transcript)
    if recorded:
        assert read_session(play.talk.folder).turns[0].corrected == "angry"
        assert one.session == play.talk.folder.name
    play.talk.correct(1, None, consent=True)
    eventually(lambda: corrections(path) == [])
    play.talk.close()
    if recorded:
        assert read_session(play.talk.folder).turns[0].corrected is None


def test_a_clip_is_heard_and_makes_way_for_a_turn(scene: Callable[..., Scene], tmp_path: Path) -> None:
    play = scene(scripted(tmp_path, "Yes."), spoken=tmp_path / "out.wav")
    clip = recording("novel-1")
    play.talk.clips.play(clip, RATE)
    eventually(lambda: play.talk.clips.position > 1.0)
    play.talk.type("a")
    play.until(PlaybackStarted)
    assert not play.talk.clips.playing
    assert 1.0 <= play.talk.clips.position < 10.0
    play.until(TurnEnded)
    play.talk.close()
    heard, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    begin = int(np.flatnonzero(np.abs(heard) > 1e-3)[0])
    expected = soxr.resample(clip[:RATE], RATE, rate)
    first = int(np.flatnonzero(np.abs(expected) > 1e-3)[0])
    part = heard[begin : begin + len(expected) - first]
    assert np.corrcoef(part, expected[first:])[0, 1] > 0.99


def test_microphone_and_speaker_are_checked_and_nothing_said_becomes_a_turn(
    scene: Callable[..., Scene], tmp_path: Path
) -> None:
    emitted: list[CheckResult] = []
    chunks: list[Samples] = []
    long = tmp_path / "long.wav"
    soundfile.write(long, np.concatenate([recording("novel-1"), recording("novel-4")]), RATE)
    play = scene(scripted(tmp_path, "Yes."), heard=[long])
    play.talk.audio_check(emitted.append, seconds=1.0, echo=False)
    play.talk.listen_in(chunks.append)
    eventually(lambda: bool(emitted) and emitted[-1].step is Step.DONE)
    assert len(emitted[-1].recording) >= RATE
    assert sum(map(len, chunks)) > RATE
    assert not play.of(SpeechStarted)
    play.until(SpeechStarted)  # afterwards the ears are open again
    play.talk.audio_check(emitted.append, seconds=30.0, echo=False)
    eventually(lambda: emitted[-1].step is Step.SPEAK)
    play.talk.stop()
    eventually(lambda: emitted[-1].step is Step.DONE)
    assert emitted[-1].recording is None


def test_settings_change_from_any_thread(scene: Callable[..., Scene], tmp_path: Path) -> None:
    play = scene(scripted(tmp_path, LONG, hands_free=False), spoken=tmp_path / "out.wav")
    talk = play.talk
    talk.set_patience("patient")
    talk.set_duplex(Duplex.OPEN)
    talk.set_voice(VoiceSettings(rate=1.5))
    talk.configure(TurnSettings(barge_in=BargeIn.OFF))
    talk.choose_devices(None, None)
    talk.set_hands_free(True)
    talk.set_muted(True)
    eventually(lambda: talk.loop.muted and talk.processor.duplex is Duplex.OPEN)
    assert talk.loop.endpointer.settings.patience == PATIENCE["patient"]
    assert talk.loop.endpointer.hands_free
    assert talk.loop.conversation.settings.barge_in is BargeIn.OFF
    talk.set_muted(False)
    talk.press()
    play.until(SpeechStarted)
    talk.release()
    talk.set_duplex(Duplex.CANCEL)
    eventually(lambda: talk.processor.duplex is Duplex.CANCEL)
    talk.type("a")
    play.until(PlaybackStarted)
    talk.stop()
    assert play.until(TurnEnded).turn.outcome is Outcome.STOPPED
    with pytest.raises(KeyError):
        talk.set_patience("endless")


def test_the_talk_key_is_up_after_a_stop() -> None:
    done: list[str] = []
    endpointer = SimpleNamespace(press=lambda: done.append("press"), release=lambda: done.append("release"))
    keyboard = Keyboard(
        cast("Talk", SimpleNamespace(loop=endpointer)), Screen(Console()), Stopper(lambda: done.append("stop"))
    )
    for key in (" ", "\x03", " ", " "):
        assert keyboard.key(key)
    assert done == ["press", "stop", "press", "release"]


def test_events_are_plain_json() -> None:
    line = json.loads(as_line(Transcribed(3, "grüß dich", "de")))
    assert line == {"type": "transcribed", "turn": 3, "text": "grüß dich", "language": "de"}
    ended = json.loads(as_line(UtteranceEnded(1, Spoken(np.zeros(8000, np.float32)))))
    assert ended == {"type": "utterance_ended", "turn": 1, "message": {"seconds": 0.5}}


# ---- another model behind the same seam


def test_a_model_that_is_neither_whisper_nor_llama_holds_a_conversation(
    tmp_path: Path, scene: Callable[..., Scene]
) -> None:
    checkpoint = make_checkpoint(tmp_path / "gru")
    settings = TalkSettings(ModelChoice(str(checkpoint)), server="tests.support.second_backend")
    play = scene(settings, heard=[SAMPLES / "go-forward.flac"], spoken=tmp_path / "reply.wav")
    assert play.until(Ready).about["name"] == "tiny GRU"
    spoken = play.until(TurnEnded).turn
    play.talk.type("And now?")
    typed = play.until(TurnEnded, 2).turn
    assert [turn.outcome for turn in (spoken, typed)] == [Outcome.ANSWERED] * 2
    assert spoken.reading is not None
    np.testing.assert_allclose(
        np.exp(spoken.reading.contributions.sum(0) + spoken.reading.offset)
        / np.exp(spoken.reading.contributions.sum(0) + spoken.reading.offset).sum(),
        spoken.reading.probabilities,
        rtol=1e-4,
    )
    assert spoken.reply.endswith("indeed.")
    assert spoken.reply != typed.reply  # the history goes with every ask


def test_a_second_model_that_cannot_be_loaded_says_why(tmp_path: Path, scene: Callable[..., Scene]) -> None:
    checkpoint = make_checkpoint(tmp_path / "gru")
    (checkpoint / "model.safetensors").unlink()
    settings = TalkSettings(ModelChoice(str(checkpoint)), server="tests.support.second_backend")
    play = scene(settings, spoken=tmp_path / "reply.wav")
    play.until_fits(lambda event: isinstance(event, ModelStatus) and event.status == "failed")
    assert "make the checkpoint again" in play.of(ModelStatus)[-1].text
