"""Messages of the conversation: inbox events go in, commands come out.

`ask` is the number under which the model and the voice were asked; an answer under an older number is stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from assistant.events import EmotionReading, Exchange, Message, Utterance


class BargeIn(StrEnum):
    """What may interrupt a reply: the user's voice, a key alone, or nothing but the stop command."""

    VOICE = "voice"
    KEY = "key"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """Ceilings in seconds, and who may interrupt.

    Attributes:
        reply_seconds: a reply must show its first text within it.
        stall_seconds: a reply that plays must progress within it.
        pause_seconds: how long playback stays paused for possible speech that is not confirmed yet.
    """

    barge_in: BargeIn = BargeIn.VOICE
    empathy: bool = True
    reply_seconds: float = 120.0
    stall_seconds: float = 20.0
    pause_seconds: float = 1.5


# ---- inbox events: from endpointing ...


@dataclass(frozen=True, slots=True)
class SpeechOnset:
    """Possible speech, too short yet to be sure."""


@dataclass(frozen=True, slots=True)
class SpeechConfirmed:
    """The user is speaking, by voice or by holding the key; `at` is where it began."""

    at: float
    by_key: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class SpeechPaused:
    """The speculative end: a short silence. A speculative reply may start; the user may still go on."""

    utterance: Utterance


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """The user went on after the speculative end."""


@dataclass(frozen=True, slots=True, eq=False)
class SpeechEnded:
    """The final end. Without a resumption the utterance equals that of the speculative end, sample for sample."""

    utterance: Utterance


@dataclass(frozen=True, slots=True)
class SpeechRejected:
    """A false start: a cough, a click, a breath."""


# ---- ... from the model and the player, each with the number of its ask ...


@dataclass(frozen=True, slots=True, eq=False)
class ModelReading:
    """The emotion was read."""

    ask: int
    reading: EmotionReading | None


@dataclass(frozen=True, slots=True)
class ModelTranscript:
    """The transcript was written. It may come after the turn is over."""

    ask: int
    text: str
    language: str = "en"


@dataclass(frozen=True, slots=True)
class ModelText:
    """A piece of the reply."""

    ask: int
    text: str


@dataclass(frozen=True, slots=True)
class ModelDone:
    """The reply is complete; `figures` are the model's own: milliseconds and counts of its stages."""

    ask: int
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """The model could not answer; the message says what to do."""

    ask: int
    message: str


@dataclass(frozen=True, slots=True)
class PlayerReached:
    """Progress of speech synthesis: the "first_sentence" is complete, its "first_speech" is synthesized."""

    ask: int
    stage: str


@dataclass(frozen=True, slots=True)
class PlayerStarted:
    """The reply's first sample plays."""

    ask: int


@dataclass(frozen=True, slots=True)
class PlayerProgressed:
    """What was heard so far, up to the last whole word."""

    ask: int
    heard: str


@dataclass(frozen=True, slots=True)
class PlayerEnded:
    """Playback ended, or was stopped; `heard` is final."""

    ask: int
    heard: str


# ---- ... and from keys, buttons and the keyboard


@dataclass(frozen=True, slots=True)
class MessageTyped:
    """The user typed a message."""

    text: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Stop listening, thinking and speaking."""


@dataclass(frozen=True, slots=True)
class UndoRequested:
    """Forget the last turn."""


@dataclass(frozen=True, slots=True)
class RegenerateRequested:
    """Answer the last message once more; with `text`, that text instead of the message."""

    text: str | None = None


@dataclass(frozen=True, slots=True)
class NewConversationRequested:
    """Begin a new conversation."""


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """The settings changed."""

    settings: TurnSettings


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


InboxEvent = (
    SpeechOnset | SpeechConfirmed | SpeechPaused | SpeechResumed | SpeechEnded | SpeechRejected
    | ModelReading | ModelTranscript | ModelText | ModelDone | ModelFailed
    | PlayerReached | PlayerStarted | PlayerProgressed | PlayerEnded
    | MessageTyped | StopRequested | UndoRequested | RegenerateRequested | NewConversationRequested
    | SettingsChanged | Tick
)  # fmt: skip


# ---- commands


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """Have the model hear and answer `message`."""

    ask: int
    history: tuple[Exchange, ...]
    message: Message
    empathy: bool


@dataclass(frozen=True, slots=True, eq=False)
class Prepare:
    """Have the model prefill the history before the next message."""

    history: tuple[Exchange, ...]
    empathy: bool


@dataclass(frozen=True, slots=True)
class CancelAsk:
    """Cancel an ask."""

    ask: int


@dataclass(frozen=True, slots=True, eq=False)
class Speak:
    """Synthesize this text, after the earlier text of this ask. It plays after `StartPlayback`."""

    ask: int
    text: str
    reading: EmotionReading | None


@dataclass(frozen=True, slots=True)
class SpeakEnd:
    """The text is complete; `PlayerEnded` follows when all of it has played."""

    ask: int


@dataclass(frozen=True, slots=True)
class StartPlayback:
    """Play what is synthesized, now and as it comes."""

    ask: int


@dataclass(frozen=True, slots=True)
class PausePlayback:
    """Pause playback."""

    ask: int


@dataclass(frozen=True, slots=True)
class ResumePlayback:
    """Resume playback."""

    ask: int


@dataclass(frozen=True, slots=True)
class StopPlayback:
    """Stop at once and drop the rest; `PlayerEnded` says what was heard, unless `StartPlayback` never came."""

    ask: int


@dataclass(frozen=True, slots=True)
class DiscardUtterance:
    """Discard the utterance in progress."""


Command = (
    Ask
    | Prepare
    | CancelAsk
    | Speak
    | SpeakEnd
    | StartPlayback
    | PausePlayback
    | ResumePlayback
    | StopPlayback
    | DiscardUtterance
)
