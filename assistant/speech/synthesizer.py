"""Speech synthesis: sentences to samples with word positions, in a child process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from assistant.errors import SpeechUnavailable
from assistant.events import EMOTIONS, UNSURE, EmotionReading, Samples
from assistant.files import replacing
from assistant.speech.sentences import Sentence


@dataclass(frozen=True, slots=True)
class Word:
    """A word as it is spoken.

    Attributes:
        text_start: its first character in the sentence's source text (`Sentence.text`).
        text_end: past its last character there. All spoken words of "$3.50" are one Word.
        sample: its first sample.
    """

    text_start: int
    text_end: int
    sample: int


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """A spoken sentence.

    Attributes:
        samples: float32 mono in [-1, 1].
        rate: samples per second.
        words: in the order of speaking, with rising samples.
        sentence: what is spoken.
        exact: whether the synthesizer measured the words' times; else they are estimated from lengths.
    """

    samples: Samples
    rate: int
    words: tuple[Word, ...]
    sentence: Sentence
    exact: bool = True

    @property
    def seconds(self) -> float:
        """How long the speech lasts."""
        return len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class Mood:
    """The mood of a sentence: factors of the chosen rate, pitch, volume and intonation range."""

    rate: float = 1.0
    pitch: float = 1.0
    volume: float = 1.0
    liveliness: float = 1.0


# The voice answers a feeling, it does not mimic it: calmer for anger, softer and slower for sadness. The
# factors stay within a tenth for rate and pitch, so that no reading makes the voice sound like another one.
_MOODS = {
    "neutral": Mood(),
    "happy": Mood(rate=1.04, pitch=1.06, volume=1.0, liveliness=1.25),
    "angry": Mood(rate=0.93, pitch=0.95, volume=0.85, liveliness=0.85),
    "sad": Mood(rate=0.90, pitch=0.95, volume=0.85, liveliness=0.90),
    "surprise": Mood(rate=1.02, pitch=1.04, volume=1.0, liveliness=1.20),
}


def mood_of(reading: EmotionReading | None) -> Mood:
    """The mood to answer a reading with: the emotions' moods weighted by their probabilities.

    Without a reading, or with an unsure one, the voice stays as it is.
    """
    if reading is None or reading.label == UNSURE:
        return Mood()
    weights = [float(p) for p in reading.probabilities]
    moods = [_MOODS[emotion] for emotion in EMOTIONS]

    def mean(values: list[float]) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    return Mood(
        rate=mean([m.rate for m in moods]),
        pitch=mean([m.pitch for m in moods]),
        volume=mean([m.volume for m in moods]),
        liveliness=mean([m.liveliness for m in moods]),
    )


@dataclass(frozen=True, slots=True)
class VoiceSettings:
    """The user's voice settings.

    Attributes:
        name: a voice of `Synthesizer.voices`, used for its own language; None takes the language's default.
        rate: factor of the normal pace (espeak: 175 words a minute).
        pitch: factor of the voice's own pitch. The drivers of Windows and macOS ignore it.
        volume: 0 to 1.
        follow_mood: whether rate, pitch and volume follow the reading; False fixes them.
    """

    name: str | None = None
    rate: float = 1.0
    pitch: float = 1.0
    volume: float = 1.0
    follow_mood: bool = True


@dataclass(frozen=True, slots=True)
class Voice:
    """An available voice: its name, its title, and its language tag ("en-us", "zh")."""

    name: str
    title: str
    language: str


class Synthesizer(Protocol):
    """Turns sentences into speech. `speak` raises `SpeechUnavailable`."""

    def speak(self, sentence: Sentence, settings: VoiceSettings = VoiceSettings(), mood: Mood = Mood()) -> Speech: ...

    def voices(self) -> list[Voice]: ...

    def close(self) -> None: ...


class _Child:
    """The child process and its open request. Started when needed, restarted once when it fails."""

    def __init__(self, *arguments: str, timeout_seconds: float, fresh: bool = False) -> None:
        self._arguments = arguments
        self._timeout_seconds = timeout_seconds
        self._fresh = fresh
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[tuple[dict[str, Any], bytes] | None] = queue.Queue()
        self._lock = threading.Lock()
        self._closings = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def request(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The child's answer: its header and samples.

        Raises:
            SpeechUnavailable: the child reports an error, or fails or hangs twice.
        """
        with self._lock:
            closings = self._closings
            answer = self._attempt(request)
            if answer is None and closings == self._closings:
                answer = self._attempt(request)
            if self._fresh:
                self._stop()
        if answer is None:
            raise SpeechUnavailable(
                "the voice stopped working twice in a row: choose another voice in the settings, "
                "or run `doctor` to see what is missing"
            )
        if "error" in answer[0]:
            raise SpeechUnavailable(answer[0]["error"])
        return answer

    def _attempt(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes] | None:
        """The child's answer; None when it died or hung. A hung child is never asked again."""
        process = self._process or self._start()
        assert process.stdin is not None
        answer = None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer = self._answers.get(timeout=self._timeout_seconds)
        except (OSError, queue.Empty):
            pass
        finally:
            if answer is None:
                self._stop()
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "assistant.speech.synthesis_child", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._process, self._answers = process, queue.Queue()
        threading.Thread(target=_read_answers, args=(process, self._answers), daemon=True).start()
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # unflushed bytes are lost
            process.stdin.close()

    def close(self) -> None:
        self._closings += 1
        if (process := self._process) is not None:
            process.kill()  # end the current request now, not at its timeout
        with self._lock:
            self._stop()


def _read_answers(process: subprocess.Popen[bytes], answers: queue.Queue[tuple[dict[str, Any], bytes] | None]) -> None:
    """Put the child's answers into `answers`, and None when it ends."""
    assert process.stdout is not None
    with process.stdout as stdout:
        while line := stdout.readline():
            header = json.loads(line)
            samples = stdout.read(header["bytes"])
            if len(samples) < header["bytes"]:
                break
            answers.put((header, samples))
    answers.put(None)


class _ChildSynthesizer:
    """What the synthesizers share: the child, and making a `Speech` of its answer."""

    def __init__(self, child: _Child) -> None:
        self._child = child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child. A later call starts a new one."""
        self._child.close()

    @property
    def pid(self) -> int | None:
        """The process id of the running child."""
        return self._child.pid

    def voices(self) -> list[Voice]:
        """The available voices.

        Raises:
            SpeechUnavailable: the synthesizer is missing or broken.
        """
        header, _ = self._child.request({"op": "voices"})
        return [Voice(**voice) for voice in header["voices"]]

    def speak(self, sentence: Sentence, settings: VoiceSettings = VoiceSettings(), mood: Mood = Mood()) -> Speech:
        """Speak one sentence.

        Raises:
            SpeechUnavailable: the voice is unknown, or the synthesizer is missing, broken or hangs.
        """
        if not settings.follow_mood:
            mood = Mood()
        header, data = self._child.request(
            {
                "op": "speak",
                "text": sentence.spoken,
                "language": sentence.language,
                "voice": settings.name,
                "rate": settings.rate * mood.rate,
                "pitch": settings.pitch * mood.pitch,
                "liveliness": mood.liveliness,
            }
        )
        volume = min(max(settings.volume * mood.volume, 0.0), 1.0)
        samples = np.frombuffer(data, "<i2").astype(np.float32) * np.float32(volume / 32768)
        words = _words(sentence, header["words"])
        return Speech(samples, header["rate"], words, sentence, header["exact"])


def _words(sentence: Sentence, marks: Sequence[tuple[int, int, int]]) -> tuple[Word, ...]:
    """Word events in the spoken text as words of the source text, merged where they share a source."""
    words: list[Word] = []
    for start, end, sample in marks:
        text_start, text_end = sentence.source(start, end)
        if text_start >= text_end or (words and text_start < words[-1].text_end):
            continue
        # At high rates espeak's times can step back by a few milliseconds.
        sample = max(sample, words[-1].sample if words else 0)
        # espeak reports the first part of "well-known" alone.
        rest = _REST_OF_WORD.match(sentence.text, text_end)
        words.append(Word(text_start, rest.end() if rest else text_end, sample))
    return tuple(words)


_REST_OF_WORD = re.compile(r"(?:[-'’]\w+)+")


class Pyttsx3Synthesizer(_ChildSynthesizer):
    """The system's voices through pyttsx3: the default.

    On Linux one child stays and drives pyttsx3's espeak bindings directly (a sentence in milliseconds,
    exact word times). Elsewhere (`portable`) pyttsx3's public interface serves, with a fresh child for
    each sentence, because its engine loop keeps state between sentences; word times are estimated.
    """

    def __init__(self, portable: bool | None = None, timeout_seconds: float = 20.0) -> None:
        self.portable = sys.platform != "linux" if portable is None else portable
        kind = "portable" if self.portable else "espeak"
        super().__init__(_Child(kind, timeout_seconds=timeout_seconds, fresh=self.portable))


class KokoroSynthesizer(_ChildSynthesizer):
    """The neural voice (English; other languages by espeak).

    Args:
        folder: holds one .onnx model and voices/*.bin (float32, 510 x 1 x 256 each).
        threads: of the model; a core is best left to the language model and the sound.
        timeout_seconds: for one sentence, loading included.
    """

    def __init__(self, folder: Path, threads: int | None = None, timeout_seconds: float = 120.0) -> None:
        chosen = threads or max(1, (os.cpu_count() or 1) - 1)
        super().__init__(_Child("kokoro", str(folder), str(chosen), timeout_seconds=timeout_seconds))


def heard(reply: str, speeches: Sequence[Speech], played_seconds: float) -> str:
    """The beginning of the reply that was heard when `played_seconds` of the speeches had been played.

    It ends with the last word that was played to its end, exactly so where `Speech.exact`.
    """
    end = 0
    for speech in speeches:
        ends = [word.sample for word in speech.words[1:]] + [len(speech.samples)]
        for word, last in zip(speech.words, ends, strict=False):
            # Half a sample of tolerance, for the sums of seconds.
            if last > played_seconds * speech.rate + 0.5:
                return reply[:end]
            end = speech.sentence.start + word.text_end
        played_seconds -= speech.seconds
        end = speech.sentence.end
    return reply[:end]


SYNTHESIZERS: dict[str, Callable[[Callable[[str], Path]], Pyttsx3Synthesizer | KokoroSynthesizer]] = {
    "system": lambda _: Pyttsx3Synthesizer(),
    "kokoro": lambda folder_of: KokoroSynthesizer(folder_of("kokoro-82m")),
}
"""Synthesizers by the name of their engine in the settings; `folder_of` returns the folder of an engine's weights."""


def write_wav(path: Path, speeches: Sequence[Speech]) -> None:
    """Write the speeches one after the other into one 16-bit WAV at the highest of their rates.

    The file appears complete or not at all. Without speeches it is a valid, empty WAV.

    Raises:
        SpeechUnavailable: the file cannot be written.
    """
    import soundfile
    import soxr

    rate = max((speech.rate for speech in speeches), default=24_000)
    parts = [
        s.samples if s.rate == rate else soxr.resample(s.samples, s.rate, rate).astype(np.float32) for s in speeches
    ]
    samples = np.concatenate(parts or [np.zeros(0, np.float32)])
    try:
        with replacing(path, mode=None) as partial:
            soundfile.write(partial, np.clip(samples, -1, 1), rate, subtype="PCM_16", format="WAV")
    except (OSError, soundfile.LibsndfileError) as error:
        raise SpeechUnavailable(f"cannot write {path} ({error}): choose another file or folder") from error
