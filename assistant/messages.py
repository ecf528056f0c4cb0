"""What the conversation takes and what it returns: happenings in, commands out.

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
        pause_seconds: how long playback waits for a suspicion of speech to be confirmed.
    """

    barge_in: BargeIn = BargeIn.VOICE
    empathy: bool = True
    reply_seconds: float = 120.0
    stall_seconds: float = 20.0
    pause_seconds: float = 1.5


# ---- what happened: from the ears ...


@dataclass(frozen=True, slots=True)
class SpeechOnset:
    """It sounds as if the user began to speak; too short yet to be sure."""


@dataclass(frozen=True, slots=True)
class SpeechConfirmed:
    """The user is speaking, by voice or by holding the key; `at` is where it began."""

    at: float
    by_key: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class SpeechPaused:
    """The soft end: a short silence, after which the user may or may not go on."""

    utterance: Utterance


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """The user went on after the soft end."""


@dataclass(frozen=True, slots=True, eq=False)
class SpeechEnded:
    """The hard end. Without a resumption the utterance equals that of the soft end, sample for sample."""

    utterance: Utterance


@dataclass(frozen=True, slots=True)
class SpeechRejected:
    """What had begun was no speech: a cough, a click, a breath."""


# ---- ... from the model and the voice, each under the number of its ask ...


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
    """How far the voice is with the reply: "first_sentence" is cut, "first_speech" is made of it."""

    ask: int
    stage: str


@dataclass(frozen=True, slots=True)
class PlayerStarted:
    """The reply's first sample is being played."""

    ask: int


@dataclass(frozen=True, slots=True)
class PlayerProgressed:
    """What has been heard so far, to the last whole word."""

    ask: int
    heard: str


@dataclass(frozen=True, slots=True)
class PlayerEnded:
    """Everything was played, or the voice fell silent as it was told; `heard` is final."""

    ask: int
    heard: str


# ---- ... and from the user's hands


@dataclass(frozen=True, slots=True)
class MessageTyped:
    """The user typed a message."""

    text: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Stop whatever is going on."""


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
    """Other settings from now on."""

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


# ---- what is to be done


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """Let the model hear and answer `message`."""

    ask: int
    history: tuple[Exchange, ...]
    message: Message
    empathy: bool


@dataclass(frozen=True, slots=True, eq=False)
class Prepare:
    """Let the model take in the history ahead of the next message."""

    history: tuple[Exchange, ...]
    empathy: bool


@dataclass(frozen=True, slots=True)
class CancelAsk:
    """The model need not go on."""

    ask: int


@dataclass(frozen=True, slots=True, eq=False)
class Speak:
    """Make speech of this text, after what was said before under this ask; hold it until `StartPlayback`."""

    ask: int
    text: str
    reading: EmotionReading | None


@dataclass(frozen=True, slots=True)
class SpeakEnd:
    """There is no more text; `PlayerEnded` follows when all is played."""

    ask: int


@dataclass(frozen=True, slots=True)
class StartPlayback:
    """From now on what is ready may be heard."""

    ask: int


@dataclass(frozen=True, slots=True)
class PausePlayback:
    """Pause playback where it is."""

    ask: int


@dataclass(frozen=True, slots=True)
class ResumePlayback:
    """Go on with playback where it was paused."""

    ask: int


@dataclass(frozen=True, slots=True)
class StopPlayback:
    """Stop at once and drop the rest; `PlayerEnded` says what was heard, unless `StartPlayback` never came."""

    ask: int


@dataclass(frozen=True, slots=True)
class DiscardUtterance:
    """Throw away what the user is just saying."""


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
