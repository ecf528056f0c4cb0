"""The reply player: synthesizes sentences ahead of playback and plays them in order, without gaps.

One thread owns a `ReplyPlayer` (the conversation's); a second one, inside, waits for the synthesizer. What was
heard is known in samples, so an interrupted reply is remembered to the last whole word.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from assistant.errors import SpeechUnavailable
from assistant.events import SAMPLE_RATE, EmotionReading, Failed, Samples
from assistant.messages import (
    PausePlayback,
    PlayerEnded,
    PlayerProgressed,
    PlayerReached,
    PlayerStarted,
    ResumePlayback,
    Speak,
    SpeakEnd,
    StartPlayback,
    StopPlayback,
)
from assistant.speech.sentences import Sentence, sentences
from assistant.speech.synthesizer import Speech, Synthesizer, VoiceSettings, heard, mood_of

_CLOSE_SECONDS = 5.0


class Speaker(Protocol):
    """Plays mono samples at its own rate; positions count what was written since the last `abort`."""

    @property
    def rate(self) -> int: ...

    def write(self, samples: Samples) -> None:
        """Append samples to the queue."""

    def played(self) -> int:
        """Samples heard: those given to the device, less its latency."""

    def pause(self) -> None:
        """Pause at once."""

    def resume(self) -> None:
        """Resume."""

    def abort(self) -> int:
        """Stop at once and drop the rest; returns the number of samples heard."""


Report = Callable[[PlayerReached | PlayerStarted | PlayerProgressed | PlayerEnded | Failed], None]


@dataclass(slots=True, eq=False)
class _Reply:
    """A reply in progress. `cut` counts the sentences given to the synthesizer, `written` those played."""

    ask: int
    text: str = ""
    reading: EmotionReading | None = None
    complete: bool = False
    playing: bool = False
    started: bool = False
    cut: int = 0
    made: list[Speech] = field(default_factory=list)
    written: int = 0
    samples: int = 0
    reported: str = ""
    broke: bool = False


class ReplyPlayer:
    """Executes the playback commands.

    Args:
        synthesizer: makes a sentence into speech; None: replies are read.
        speaker: where it is played; None: replies are read, not heard, and end as soon as they are complete.
        report: receives the player's events on the owner's thread, from `pump`.
        wake: called from the inner thread when there is something for `pump` to do.
        threaded: False: sentences are made within `execute` and `pump`, for scripts in virtual time.
    """

    def __init__(
        self,
        synthesizer: Synthesizer | None,
        speaker: Speaker | None,
        report: Report,
        *,
        settings: VoiceSettings | None = None,
        wake: Callable[[], None] = lambda: None,
        threaded: bool = True,
    ) -> None:
        self.settings = settings or VoiceSettings()
        self.speaker = speaker
        self.synthesizer = synthesizer
        self.heard_audio: Samples = np.zeros(0, np.float32)
        """What was heard of the last reply that ended, at `heard_rate`."""
        self.heard_rate = SAMPLE_RATE
        self._report = report
        self._wake = wake
        self._reply: _Reply | None = None
        self._orders: queue.SimpleQueue[tuple[_Reply, Sentence] | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[tuple[_Reply, Speech | SpeechUnavailable]] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        if threaded:
            self._worker = threading.Thread(target=self._synthesize_all, daemon=True, name="synthesis")
            self._worker.start()

    def execute(
        self, command: Speak | SpeakEnd | StartPlayback | PausePlayback | ResumePlayback | StopPlayback
    ) -> None:
        """Execute a playback command. A command with an older ask than the last one does nothing."""
        reply = self._reply
        if isinstance(command, Speak) and (reply is None or reply.ask < command.ask):
            reply = self._reply = _Reply(command.ask, reading=command.reading)
        if isinstance(command, SpeakEnd | StartPlayback) and (reply is None or reply.ask < command.ask):
            reply = self._reply = _Reply(command.ask)
        if reply is None or reply.ask != command.ask:
            return
        if isinstance(command, Speak):
            reply.text += command.text
            self._cut(reply)
        elif isinstance(command, SpeakEnd):
            reply.complete = True
            self._cut(reply)
        elif isinstance(command, StartPlayback):
            reply.playing = True
        elif isinstance(command, StopPlayback):
            self._silence(reply)
        elif self.speaker is not None:
            self.speaker.pause() if isinstance(command, PausePlayback) else self.speaker.resume()
        self.pump()

    def pump(self) -> None:
        """Write what is ready to the speaker, and report what was heard since the last call."""
        while self._worker is None and not self._orders.empty():
            self._synthesize(self._orders.get())
        while not self._made.empty():
            reply, speech = self._made.get()
            if isinstance(speech, SpeechUnavailable):
                if not reply.broke and reply is self._reply:
                    self._report(Failed(None, str(speech)))
                reply.broke = True
            else:
                if not reply.made:
                    self._report(PlayerReached(reply.ask, "first_speech"))
                reply.made.append(speech)
        reply_now = self._reply
        if reply_now is not None and reply_now.playing:
            self._play(reply_now)

    def close(self) -> None:
        """End the synthesis thread; the synthesizer and the speaker belong to the caller."""
        self._reply = None  # drop the rest of it
        if self._worker is not None:
            self._orders.put(None)
            self._worker.join(_CLOSE_SECONDS)  # one that hangs ends with its synthesizer

    # ---- inside

    def _mute(self, reply: _Reply) -> bool:
        return self.speaker is None or self.synthesizer is None or reply.broke

    def _cut(self, reply: _Reply) -> None:
        if self._mute(reply):
            return
        ready = sentences(reply.text, final=reply.complete, eager=True)
        for sentence in ready[reply.cut :]:
            self._orders.put((reply, sentence))
        if ready and not reply.cut:
            self._report(PlayerReached(reply.ask, "first_sentence"))
        reply.cut = len(ready)

    def _synthesize_all(self) -> None:
        while (order := self._orders.get()) is not None:
            self._synthesize(order)
            self._wake()

    def _synthesize(self, order: tuple[_Reply, Sentence] | None) -> None:
        if order is None:
            return
        reply, sentence = order
        synthesizer = self.synthesizer
        if reply is not self._reply or reply.broke or synthesizer is None:
            return
        try:
            self._made.put((reply, synthesizer.speak(sentence, self.settings, mood_of(reply.reading))))
        except SpeechUnavailable as error:
            self._made.put((reply, error))

    def _play(self, reply: _Reply) -> None:
        speaker = self.speaker
        if speaker is None or self._mute(reply):
            if reply.complete:
                if speaker is not None and reply.started:
                    speaker.abort()
                self._end(reply, reply.text.strip(), np.zeros(0, np.float32))
            return
        for speech in reply.made[reply.written :]:
            samples = _at(speech, speaker.rate)
            speaker.write(samples)
            reply.samples += len(samples)
        reply.written = len(reply.made)
        played = speaker.played()
        if played > 0 and not reply.started:
            reply.started = True
            self._report(PlayerStarted(reply.ask))
        said = heard(reply.text, reply.made, played / speaker.rate)
        if said != reply.reported:
            reply.reported = said
            self._report(PlayerProgressed(reply.ask, said))
        if reply.complete and reply.written == reply.cut and played >= reply.samples:
            audio = self._audio(reply, reply.samples)
            speaker.abort()
            self._end(reply, reply.text.strip(), audio)

    def _silence(self, reply: _Reply) -> None:
        self._reply = None
        if not reply.playing:
            return
        played = self.speaker.abort() if self.speaker is not None else 0
        rate = self.speaker.rate if self.speaker is not None else 1
        self._end(reply, heard(reply.text, reply.made, played / rate), self._audio(reply, played))

    def _end(self, reply: _Reply, said: str, audio: Samples) -> None:
        self._reply = None
        self.heard_audio = audio
        self.heard_rate = self.speaker.rate if self.speaker is not None else SAMPLE_RATE
        self._report(PlayerEnded(reply.ask, said.strip()))

    def _audio(self, reply: _Reply, played: int) -> Samples:
        if self.speaker is None or not reply.written:
            return np.zeros(0, np.float32)
        return np.concatenate([_at(speech, self.speaker.rate) for speech in reply.made[: reply.written]])[:played]


def _at(speech: Speech, rate: int) -> Samples:
    import soxr

    if speech.rate == rate:
        return speech.samples
    resampled: Samples = soxr.resample(speech.samples, speech.rate, rate).astype(np.float32)
    return resampled
