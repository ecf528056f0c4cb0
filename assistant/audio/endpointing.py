"""Endpointing: finds utterances in the microphone's sound (start, speculative end, resumption, final end).

Time is counted in samples, so nothing here waits or sleeps. Blocks of 32 ms are judged one by one: webrtcvad is
the gate, Silero judges inside it. What is judged may differ from what is kept: while the assistant speaks the
echo-cancelled signal is judged, and the raw microphone is what the model will hear.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from assistant.errors import AssistantError
from assistant.events import SAMPLE_RATE, Samples, Utterance
from assistant.messages import SpeechConfirmed, SpeechEnded, SpeechOnset, SpeechPaused, SpeechRejected, SpeechResumed

BLOCK = 512
"""Samples of one decision, 32 ms: Silero's block."""

_BLOCK_SECONDS = BLOCK / SAMPLE_RATE
_CONTEXT = 64  # samples before the block that Silero sees as well
_SPEECH, _SILENCE = 0.5, 0.35  # at or above the first a block is speech, below the second it is not
_GATE_SECONDS = 0.3  # webrtcvad's gate stays open after its last yes
_FLOOR_MARGIN_DB = 4.0
_FLOOR_RISE_DB = 2.0  # a second: how fast the noise floor may follow a louder room

SpeechHappening = (
    SpeechOnset | SpeechConfirmed | SpeechPaused | SpeechResumed | SpeechEnded | SpeechRejected
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EndpointingSettings:
    """Durations in seconds.

    Attributes:
        patience: silence that ends an utterance (presets 0.4, 0.6, 1.0).
        speculative_end: silence that makes a speculative end.
        pre_roll: kept from before the first sound.
        suspect: voiced time after which playback pauses; `confirm` opens a turn. Over the assistant's voice it must
            also have gone on for `confirm_over_speech`, gaps included: the canceller removes part of the user's voice.
        tail: kept after the key is let go; `longest`: of an utterance, which is cut at a pause before it.
    """

    patience: float = 0.6
    speculative_end: float = 0.2
    pre_roll: float = 0.5
    suspect: float = 0.12
    confirm: float = 0.25
    confirm_over_speech: float = 0.4
    tail: float = 0.3
    longest: float = 30.0


PATIENCE = {"quick": 0.4, "normal": 0.6, "patient": 1.0}


class SpeechDetector(Protocol):
    """Voice activity detection, block by block."""

    def probability(self, block: Samples) -> float:
        """The probability that the next `BLOCK` samples hold speech."""

    def reset(self) -> None:
        """Reset the state."""


class SileroDetector:
    """webrtcvad (mode 2) as the gate, Silero (its ONNX model, run by onnxruntime) inside it.

    Raises:
        AssistantError: one of the two is not installed.
    """

    def __init__(self) -> None:
        try:
            import onnxruntime
            import webrtcvad

            model = _silero()
        except ImportError as error:
            raise AssistantError(f"{error.name} is missing: install Undertone's dependencies again.") from error
        self._gate = webrtcvad.Vad(2)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.reset()

    def reset(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)
        self._open_blocks = 0

    def probability(self, block: Samples) -> float:
        coded = (np.clip(block, -1, 1) * 32767).astype("<i2")
        voiced = sum(self._gate.is_speech(coded[at : at + 160].tobytes(), SAMPLE_RATE) for at in (0, 160, 320))
        if voiced >= 2:
            self._open_blocks = round(_GATE_SECONDS / _BLOCK_SECONDS)
        given = {
            "input": np.concatenate([self._context, block])[None],
            "state": self._state,
            "sr": np.array(SAMPLE_RATE, np.int64),
        }
        self._context = block[-_CONTEXT:]
        if not self._open_blocks:
            return 0.0
        self._open_blocks -= 1
        (probability,), self._state = self._run(given)
        return float(probability[0])

    def _run(self, given: dict[str, NDArray[Any]]) -> Any:
        return self._session.run(None, given)


def _silero() -> Path:
    """The model's file in the installed wheel, whose code, which needs torch, is not imported."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("silero_vad", name="silero-vad")
    return Path(found.submodule_search_locations[0]) / "data" / "silero_vad.onnx"


@dataclass(slots=True)
class _Open:
    """An utterance in progress: block numbers since listening began."""

    first: int  # of the pre-roll
    began: int
    last_voiced: int
    voiced: int = 0
    confirmed: bool = False
    paused: bool = False
    by_key: bool = False


class Endpointer:
    """Finds utterances in a stream of samples.

    Args:
        detector: tells speech from noise.
        settings: durations.
    """

    def __init__(self, detector: SpeechDetector, settings: EndpointingSettings | None = None) -> None:
        self.settings = settings or EndpointingSettings()
        self.hands_free = True
        self.over_speech = False
        """Whether the assistant is speaking: then speech must last longer to be confirmed."""
        self._detector = detector
        self._kept: deque[Samples] = deque()
        self._first_kept = 0  # the number of the oldest block kept
        self._blocks = 0
        self._rest = (np.zeros(0, np.float32), np.zeros(0, np.float32))
        self._open: _Open | None = None
        self._key_down = False
        self._release_at: int | None = None
        self._floor_db = -60.0

    @property
    def seconds(self) -> float:
        """Seconds of audio taken so far."""
        return self._blocks * _BLOCK_SECONDS

    def feed(self, raw: Samples, cleaned: Samples | None = None) -> Iterator[SpeechHappening]:
        """Take samples at 16 kHz; speech is detected in `cleaned`, equally long, if given. Yields inbox events."""
        raw = np.concatenate([self._rest[0], raw])
        cleaned = raw if cleaned is None else np.concatenate([self._rest[1], cleaned])
        whole = len(raw) // BLOCK * BLOCK
        self._rest = (raw[whole:], cleaned[whole:])
        for at in range(0, whole, BLOCK):
            yield from self._block(raw[at : at + BLOCK], cleaned[at : at + BLOCK])

    def press(self) -> Iterator[SpeechHappening]:
        """The talk key went down: the user speaks, whatever the detector says."""
        self._key_down, self._release_at = True, None
        if self._open is None or not self._open.confirmed:
            first = max(self._first_kept, self._blocks - self._count(self.settings.pre_roll))
            self._open = _Open(first, self._blocks, self._blocks, confirmed=True)
        self._open.by_key = True
        yield SpeechConfirmed(self._open.began * _BLOCK_SECONDS, by_key=True)

    def release(self) -> None:
        """The talk key went up: the utterance ends after the tail."""
        if self._key_down:
            self._key_down = False
            self._release_at = self._blocks + self._count(self.settings.tail)

    def drop(self) -> None:
        """Discard the utterance in progress."""
        self._open, self._release_at, self._key_down = None, None, False

    # ---- one block

    def _count(self, seconds: float) -> int:
        return round(seconds / _BLOCK_SECONDS)

    def _block(self, raw: Samples, cleaned: Samples) -> Iterator[SpeechHappening]:
        probability = self._detector.probability(cleaned)
        level = 10 * float(np.log10(np.mean(np.square(cleaned)) + 1e-12))
        loud = level > self._floor_db + _FLOOR_MARGIN_DB
        if probability < _SILENCE:
            # Down at once, up slowly: a fan that starts is part of the room after a few seconds.
            self._floor_db = min(max(level, -90.0), self._floor_db + _FLOOR_RISE_DB * _BLOCK_SECONDS)
        self._kept.append(raw)
        now = self._blocks
        self._blocks += 1
        voiced = loud and probability > (_SILENCE if self._open else _SPEECH)
        if self._open is not None and self._open.by_key:
            yield from self._key_block(self._open, now, voiced)
        elif self._open is not None:
            yield from self._free_block(self._open, now, voiced)
        elif voiced and self.hands_free:
            self._open = _Open(max(self._first_kept, now - self._count(self.settings.pre_roll)), now, now, voiced=1)
        self._forget()

    def _key_block(self, one: _Open, now: int, voiced: bool) -> Iterator[SpeechHappening]:
        if voiced:
            one.voiced += 1
            one.last_voiced = now
        released = self._release_at is not None and now >= self._release_at
        too_long = now - one.first + 1 >= self._count(self.settings.longest)
        if not released and not too_long:
            return
        if one.voiced < self._count(self.settings.confirm):
            self.drop()
            yield SpeechRejected()
        elif released:
            self.drop()
            yield SpeechEnded(self._utterance(one, now))
        else:
            yield from self._cut(one, now)

    def _free_block(self, one: _Open, now: int, voiced: bool) -> Iterator[SpeechHappening]:
        if voiced:
            one.voiced += 1
            one.last_voiced = now
            if one.paused:
                one.paused = False
                yield SpeechResumed()
            yield from self._detect(one)
        quiet = now - one.last_voiced
        if not one.confirmed:
            if quiet >= self._count(self.settings.speculative_end):
                self._open = None
                if one.voiced >= self._count(self.settings.suspect):
                    yield SpeechRejected()
            return
        if not one.paused and quiet >= self._count(self.settings.speculative_end):
            one.paused = True
            yield SpeechPaused(self._utterance(one, one.last_voiced + self._count(self.settings.speculative_end)))
        length = now - one.first + 1
        if quiet >= self._count(self.settings.patience) or (one.paused and self._long(length)):
            self._open = None
            yield SpeechEnded(self._utterance(one, one.last_voiced + self._count(self.settings.speculative_end)))
        elif length >= self._count(self.settings.longest):
            yield from self._cut(one, now)

    def _detect(self, one: _Open) -> Iterator[SpeechHappening]:
        if one.confirmed:
            return
        lasted = one.last_voiced + 1 - one.began
        long_enough = lasted >= self._count(self.settings.confirm_over_speech) or not self.over_speech
        if long_enough and one.voiced >= self._count(self.settings.confirm):
            one.confirmed = True
            yield SpeechConfirmed(one.began * _BLOCK_SECONDS)
        elif one.voiced == self._count(self.settings.suspect):
            yield SpeechOnset()

    def _long(self, blocks: int) -> bool:
        """Near the maximum length the next short pause ends the utterance."""
        return blocks >= self._count(self.settings.longest * 0.8)

    def _cut(self, one: _Open, now: int) -> Iterator[SpeechHappening]:
        """No pause came: cut at the quietest block of the last seconds; the rest begins a new utterance."""
        window = range(now - self._count(3.0), now - self._count(0.3))
        quietest = min(window, key=lambda at: float(np.mean(np.square(self._kept[at - self._first_kept]))))
        self._open = None
        yield SpeechEnded(self._utterance(one, quietest))
        self._open = _Open(quietest + 1, quietest + 1, now, voiced=now - quietest, confirmed=True, by_key=one.by_key)
        yield SpeechConfirmed((quietest + 1) * _BLOCK_SECONDS, by_key=one.by_key)

    def _utterance(self, one: _Open, last: int) -> Utterance:
        blocks = [self._kept[at - self._first_kept] for at in range(one.first, min(last + 1, self._blocks))]
        return Utterance(np.concatenate(blocks), one.first * _BLOCK_SECONDS, (last + 1) * _BLOCK_SECONDS)

    def _forget(self) -> None:
        oldest = self._open.first if self._open else self._blocks - self._count(self.settings.pre_roll)
        while self._first_kept < oldest:
            self._kept.popleft()
            self._first_kept += 1
