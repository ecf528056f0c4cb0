"""`python -m assistant.bench [--json]`: latency from the last word to the first sound, stage by stage.

A scripted microphone asks recorded questions in real time; endpointing, model process, synthesizer and
player are the real ones. After each turn the same parts answer the question serially: wait for the endpoint, the
reply, the whole synthesis, then play.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from assistant.audio.file_devices import FileSound
from assistant.backend.model_process import ModelProcess
from assistant.backend.protocol import ModelChoice, Ready
from assistant.errors import AssistantError
from assistant.events import SAMPLE_RATE, Event, Exchange, Failed, ModelStatus, Samples, Turn, TurnEnded, UtteranceEnded
from assistant.messages import Ask, ModelDone, ModelFailed, ModelText
from assistant.speech.sentences import sentences
from assistant.speech.synthesizer import Pyttsx3Synthesizer, Synthesizer, VoiceSettings, mood_of
from assistant.talk import Talk, TalkSettings

SAMPLES = Path(__file__).parents[2] / "resources" / "samples"
STAGES = ("endpointing", "encode", "prefill", "first_sentence", "synthesis", "wait", "output")
"""From the last word to the speculative end, the reading, the first text, the first sentence, its speech, the final
end where that comes later, and the first sound."""
_HEAD_START_MS, _MARGIN_MS = 400.0, 100.0  # from the speculative to the final end; allowed for sound output
_VOICED = 0.03
_TURN_SECONDS, _LOAD_SECONDS = 180.0, 600.0


def question(path: Path) -> Samples:
    """A recording from just before its first word to the end of its last."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE:
        raise AssistantError(f"{path} has {rate} samples a second: convert it to {SAMPLE_RATE}.")
    voiced = np.flatnonzero(np.abs(samples) > _VOICED * np.abs(samples).max())
    return np.asarray(samples[max(0, voiced[0] - SAMPLE_RATE // 20) : voiced[-1]], np.float32)


class Watcher:
    """Waits for events of a model or a conversation; a failure ends the measurement."""

    def __init__(self) -> None:
        self._notified: queue.SimpleQueue[tuple[float, Any]] = queue.SimpleQueue()

    def __call__(self, event: Event | Ready | Any) -> None:
        self._notified.put((time.monotonic(), event))

    def until(self, kind: type, seconds: float = _TURN_SECONDS) -> tuple[float, Any]:
        """The next event of that kind, and when it came by the monotonic clock.

        Raises:
            AssistantError: the model failed, or nothing came in time.
        """
        while True:
            try:
                at, event = self._notified.get(timeout=seconds)
            except queue.Empty:
                raise AssistantError("The measurement stands still: run `doctor` to see what is missing.") from None
            if isinstance(event, kind):
                return at, event
            if isinstance(event, Failed | ModelFailed) or (isinstance(event, ModelStatus) and event.status == "failed"):
                raise AssistantError(event.text if isinstance(event, ModelStatus) else event.message)


def live(
    choice: ModelChoice, voice: Synthesizer, questions: Sequence[Samples], about: dict[str, Any]
) -> Iterator[tuple[Turn, float]]:
    """Ask each question aloud, after the reply to the one before.

    Yields:
        Each turn, and the time of the user's last word by the turn's marks.
    """
    watcher = Watcher()
    talk = Talk(TalkSettings(model=choice), voice, watcher, sound=partial(FileSound, spoken=Path(os.devnull)))
    assert isinstance(talk.sound, FileSound)
    with contextlib.closing(talk):
        talk.start()
        about.update(watcher.until(Ready, _LOAD_SECONDS)[1].about)
        for number, samples in enumerate(questions, 1):
            _progress(f"turn {number} of {len(questions)}")
            last = talk.sound.speak(samples) + len(samples) / SAMPLE_RATE
            ended_at, _ = watcher.until(UtteranceEnded)
            _, ended = watcher.until(TurnEnded)
            # The marks run by the conversation's clock, the microphone by its own: they meet at the final end.
            yield ended.turn, talk.sound.began + last - ended_at + ended.turn.marks["ended"]


class Serial:
    """The same parts one after the other, on a model of its own, so that it shares no cache."""

    def __init__(self, choice: ModelChoice, voice: Synthesizer) -> None:
        self._voice = voice
        self._watcher = Watcher()
        self._model = ModelProcess(choice, self._watcher)
        self._history: list[Exchange] = []
        self.close = self._model.close

    def wait(self) -> None:
        """Until the model is loaded."""
        self._watcher.until(Ready, _LOAD_SECONDS)

    def answer(self, turn: Turn) -> float:
        """Milliseconds from the final end of the turn's message to the first sound."""
        began = time.monotonic()
        self._model.ask(Ask(turn.number, tuple(self._history), turn.message, True))
        for sentence in sentences(_reply(self._watcher)):
            self._voice.speak(sentence, VoiceSettings(), mood_of(turn.reading))
        self._history.append(Exchange(turn.message, turn.heard))
        return (time.monotonic() - began) * 1e3


def _reply(watcher: Watcher) -> str:
    text = ""
    while True:
        _, event = watcher.until(ModelText | ModelDone)  # type: ignore[arg-type]
        if isinstance(event, ModelDone):
            return text
        text += event.text


def waterfall(marks: Mapping[str, float], last_word: float) -> dict[str, float]:
    """Milliseconds of each of `STAGES`; they add up to the time from the last word to the first sound."""
    read = marks.get("read", marks["asked"])
    steps = [
        last_word, marks["asked"], read, marks["first_text"], marks["first_sentence"], marks["first_speech"],
        max(marks["first_speech"], marks["ended"]), marks["first_sound"],
    ]  # fmt: skip
    return {stage: (b - a) * 1e3 for stage, a, b in zip(STAGES, steps, steps[1:], strict=False)}


def figures(measured: Sequence[tuple[Turn, float, float]]) -> dict[str, float]:
    """The figures of a run: of turns, the times of their last words, and their serial milliseconds.

    `over_bound_worst_ms` is the most by which a turn's first sound came later after the final end than
    max(0, P - 400) + 100 ms, P being its time from asking to the first speech: below zero, none did.
    """
    turns = [(turn, last) for turn, last, _ in measured]
    rows = [waterfall(turn.marks, last) for turn, last in turns]
    delays = [sum(row.values()) for row in rows]
    after = [(turn.marks["first_sound"] - turn.marks["ended"]) * 1e3 for turn, _ in turns]
    speech = [(turn.marks["first_speech"] - turn.marks["asked"]) * 1e3 for turn, _ in turns]
    over = [a - max(0.0, p - _HEAD_START_MS) - _MARGIN_MS for a, p in zip(after, speech, strict=True)]
    one_by_one = [(turn.marks["ended"] - last) * 1e3 + ms for turn, last, ms in measured]
    found: dict[str, float] = {"turns": len(turns)}
    for name, values in (
        ("delay", delays),
        *((stage, [row[stage] for row in rows]) for stage in STAGES),
        ("after_endpoint", after),
        ("first_speech", speech),
        ("serial_delay", one_by_one),
    ):
        found[f"{name}_p50_ms"] = statistics.median(values)
        found[f"{name}_p95_ms"] = float(np.percentile(values, 95))
    found["serial_ratio_p50"] = found["serial_delay_p50_ms"] / found["delay_p50_ms"]
    found["over_bound_worst_ms"] = max(over)
    found["turns_within_bound"] = sum(ms <= 0 for ms in over)
    return found


def _progress(text: str) -> None:
    sys.stderr.write(f"\r{text:<40}")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 3 where the model or the voice is missing."""
    parser = argparse.ArgumentParser(prog="python -m assistant.bench", description=__doc__)
    parser.add_argument("--model", default="mini", help="mini, mini-0.5b, mini-speech, or a checkpoint folder")
    parser.add_argument("--turns", type=int, default=12, help="questions to ask, in a conversation")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args(arguments)
    choice, about = ModelChoice(options.model), dict[str, Any]()
    files = sorted(SAMPLES.glob("*.flac"))
    try:
        questions = [question(files[number % len(files)]) for number in range(options.turns)]
        with Pyttsx3Synthesizer() as voice, contextlib.closing(Serial(choice, voice)) as serial:
            serial.wait()
            rows = [(turn, last, serial.answer(turn)) for turn, last in live(choice, voice, questions, about)]
    except AssistantError as error:
        print(error, file=sys.stderr)
        return 3
    finally:
        sys.stderr.write("\n")
    found = figures(rows)
    if options.json:
        print(json.dumps({key: round(value, 2) for key, value in found.items()} | {
            "model": about["name"], "device": about["device"], "quantize": about["quantize"],
        }))  # fmt: skip
        return 0
    print(
        f"{about['name']} on {about['device']} ({about['quantize']}), {found['turns']} turns, milliseconds (p50, p95)"
    )
    for name in ("delay", *STAGES, "after_endpoint", "first_speech", "serial_delay"):
        indent = "  " if name in STAGES else ""
        print(f"{indent + name.replace('_', ' '):18}{found[f'{name}_p50_ms']:8.0f}{found[f'{name}_p95_ms']:8.0f}")
    print(f"{found['serial_ratio_p50']:.2f} times shorter than serially")
    within, worst = found["turns_within_bound"], found["over_bound_worst_ms"]
    print(f"{within} turns within max(0, P - 400) + 100 ms, worst {worst:+.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
