"""The conversation's turns as a pure state machine: no clock, no thread, no input or output.

`handle` takes what happened and when, and returns what is to be done and what is to be told, in order. Every
request to the model and the voice carries the number of its ask; what comes back under an older number is
stale and is dropped by that one comparison. A reply may be begun at the soft end of speech; nothing of it is
told, played or remembered before the hard end has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from assistant.events import (
    EmotionRead,
    EmotionReading,
    Event,
    Exchange,
    Failed,
    Message,
    Outcome,
    PlaybackFinished,
    PlaybackProgressed,
    PlaybackStarted,
    ReplyFinished,
    ReplyText,
    SpeechStarted,
    Spoken,
    State,
    StateChanged,
    Transcribed,
    Turn,
    TurnEnded,
    TurnUndone,
    Typed,
    Utterance,
    UtteranceEnded,
)
from assistant.signals import (
    AgainPressed,
    Ask,
    BargeIn,
    CancelAsk,
    Command,
    DropUtterance,
    GoOn,
    Happening,
    Hold,
    ModelBroke,
    ModelDone,
    ModelRead,
    ModelText,
    ModelWords,
    NewPressed,
    Play,
    Prepare,
    Say,
    SayEnds,
    SettingsChanged,
    Silence,
    SpeechConfirmed,
    SpeechDropped,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechSuspected,
    StopPressed,
    Tick,
    TurnSettings,
    TypedIn,
    UndoPressed,
    VoiceEnded,
    VoiceProgressed,
    VoiceReached,
    VoiceStarted,
)

_JOIN_SECONDS = 0.3  # of silence between two parts of a message that was taken up again
_RATE = 16_000
_REVISABLE = 16  # turns that may still learn their transcript or what was heard of them


@dataclass(slots=True, eq=False)
class _Live:
    """The turn in the making. `held` is what will be told once the turn is certain."""

    ask: int
    number: int
    message: Message
    certain: bool = False
    reading: EmotionReading | None = None
    transcript: str | None = None
    reply: str = ""
    heard: str = ""
    done: bool = False
    sounding: bool = False
    broke: str | None = None
    held: list[Event] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    def turn(self, outcome: Outcome) -> Turn:
        return Turn(
            number=self.number,
            message=self.message,
            transcript=self.transcript,
            reading=self.reading,
            reply=self.reply.strip(),
            heard=self.heard,
            outcome=outcome,
            marks=dict(self.marks),
            figures=self.figures,
        )


class Conversation:
    """One conversation. The owner feeds `handle` and carries out what it returns, in order.

    Attributes:
        state: see `State`.
        turns: the turns that are over, oldest first.
    """

    def __init__(self, settings: TurnSettings | None = None) -> None:
        self.settings = settings or TurnSettings()
        self.state = State.IDLE
        self.user_speaking = False
        self.turns: list[Turn] = []
        self._live: _Live | None = None
        self._asks = 0
        self._numbers = 0
        self._ignoring = False  # speech that may not interrupt is going on
        self._carried: Message | None = None  # of a superseded turn: belongs to the next message
        self._held_since: float | None = None  # playback is paused on a suspicion
        self._over: dict[int, Turn] = {}  # the last turns by their asks: words and hearing may still come
        self._closing: set[int] = set()  # silenced; the final word on what was heard is still to come
        self._undone: set[int] = set()  # of these, the ones that are to be told as undone after it
        self._moved = 0.0  # when the live turn last progressed
        self._now = 0.0

    # ---- the only way in

    def handle(self, happened: Happening, now: float) -> list[Command | Event]:
        """What to do and tell after `happened` at `now` seconds."""
        self._now = now
        before = (self.state, self.user_speaking)
        outcome = list(_HANDLERS[type(happened)](self, happened))
        if (self.state, self.user_speaking) != before:
            outcome.append(StateChanged(self.state, self.user_speaking))
        return outcome

    @property
    def history(self) -> tuple[Exchange, ...]:
        """What the model is to remember. Turns without a heard reply are left out, or carried over."""
        told = (turn for turn in self.turns if turn.outcome is not Outcome.SUPERSEDED and turn.heard.strip())
        return tuple(Exchange(turn.message, turn.heard) for turn in told)

    @property
    def number(self) -> int:
        """The number of the last turn that has begun for certain; 0 before the first."""
        return self._numbers

    # ---- the user speaks

    def _suspected(self, _: SpeechSuspected) -> Iterator[Command | Event]:
        live = self._live
        if live and live.sounding and self.settings.barge_in is BargeIn.VOICE and self._held_since is None:
            self._held_since = self._now
            yield Hold(live.ask)

    def _confirmed(self, speech: SpeechConfirmed) -> Iterator[Command | Event]:
        live = self._live
        allowed = {BargeIn.VOICE: True, BargeIn.KEY: speech.by_key, BargeIn.OFF: False}[self.settings.barge_in]
        if live and live.sounding and not allowed:
            self._ignoring = True
            return
        self._ignoring = False
        if live:
            yield from self._break_off()
        self.user_speaking = True
        self.state = State.LISTENING
        yield SpeechStarted(self._numbers + 1, speech.at)

    def _break_off(self) -> Iterator[Command | Event]:
        """The user goes on speaking: end the live turn by what became of it."""
        live = self._live
        assert live is not None, "callers look first"
        if not live.certain:
            yield from self._discard()
        elif live.heard.strip():
            yield from self._close(Outcome.INTERRUPTED)
        else:
            self._carried = live.message
            yield from self._close(Outcome.SUPERSEDED)

    def _paused(self, speech: SpeechPaused) -> Iterator[Command | Event]:
        if self._ignoring or not self.user_speaking:
            return
        yield from self._discard()
        yield self._begin(self._whole(_spoken(speech.utterance)))

    def _resumed(self, _: SpeechResumed) -> Iterator[Command | Event]:
        yield from self._discard()

    def _ended(self, speech: SpeechEnded) -> Iterator[Command | Event]:
        if self._ignoring or not self.user_speaking:
            self._ignoring = False
            return
        self.user_speaking = False
        message = self._whole(_spoken(speech.utterance))
        if self._live is None or not _same(self._live.message, message):
            yield from self._discard()
            yield self._begin(message)
        yield from self._make_certain()

    def _dropped(self, _: SpeechDropped) -> Iterator[Command | Event]:
        self._ignoring = False
        yield from self._go_on()
        if not self.user_speaking:
            return
        self.user_speaking = False
        yield from self._discard()
        self.state = State.IDLE
        if self._carried is not None:
            # The turn that made way for this noise gets its answer after all.
            yield self._begin(self._whole(None))
            yield from self._make_certain()

    # ---- asking

    def _whole(self, message: Message | None) -> Message:
        """The message with what a superseded turn carried over."""
        carried = self._carried
        if carried is None or message is None:
            whole = message or carried
            assert whole is not None, "one of the two is there"
            return whole
        if isinstance(carried, Spoken) and isinstance(message, Spoken):
            gap = np.zeros(int(_JOIN_SECONDS * _RATE), np.float32)
            return Spoken(np.concatenate([carried.samples, gap, message.samples]))
        if isinstance(carried, Typed) and isinstance(message, Typed):
            return Typed(f"{carried.text}\n{message.text}")
        return message

    def _begin(self, message: Message) -> Ask:
        self._asks += 1
        self._live = _Live(self._asks, self._numbers + 1, message)
        self._live.marks["asked"] = self._moved = self._now
        return Ask(self._asks, self.history, message, self.settings.empathy)

    def _make_certain(self) -> Iterator[Command | Event]:
        """The turn is the user's no more: tell what was held back, and let it be heard."""
        live = self._live
        assert live is not None, "a turn was begun"
        live.certain = True
        live.marks["ended"] = self._moved = self._now
        self._numbers = live.number
        self._carried = None
        self.state = State.THINKING
        yield UtteranceEnded(live.number, live.message)
        yield from live.held
        live.held.clear()
        if live.broke is not None:
            yield from self._fail(live.broke)
        else:
            yield Play(live.ask)
            if live.done:
                yield from self._prepare(live)

    def _discard(self) -> Iterator[Command | Event]:
        """Throw an uncertain turn away without a trace."""
        live = self._live
        if live is not None and not live.certain:
            self._live = None
            yield CancelAsk(live.ask)
            yield Silence(live.ask)

    def _tell(self, event: Event) -> Iterator[Event]:
        assert self._live is not None, "callers look first"
        if self._live.certain:
            yield event
        else:
            self._live.held.append(event)

    # ---- the model answers

    def _current(self, ask: int) -> _Live | None:
        return self._live if self._live is not None and self._live.ask == ask else None

    def _read(self, answer: ModelRead) -> Iterator[Command | Event]:
        if live := self._current(answer.ask):
            live.reading = answer.reading
            live.marks["read"] = self._moved = self._now
            yield from self._tell(EmotionRead(live.number, answer.reading))

    def _words(self, answer: ModelWords) -> Iterator[Command | Event]:
        if live := self._current(answer.ask):
            live.transcript = answer.text
            yield from self._tell(Transcribed(live.number, answer.text, answer.language))
        elif turn := self._over.get(answer.ask):
            self._revise(answer.ask, replace(turn, transcript=answer.text))
            yield Transcribed(turn.number, answer.text, answer.language)

    def _text(self, answer: ModelText) -> Iterator[Command | Event]:
        if live := self._current(answer.ask):
            live.marks.setdefault("first_text", self._now)
            self._moved = self._now
            live.reply += answer.text
            yield Say(live.ask, answer.text, live.reading)
            yield from self._tell(ReplyText(live.number, answer.text))

    def _done(self, answer: ModelDone) -> Iterator[Command | Event]:
        if live := self._current(answer.ask):
            live.done = True
            live.figures = answer.figures
            live.marks["reply_finished"] = self._moved = self._now
            yield SayEnds(live.ask)
            yield from self._tell(ReplyFinished(live.number, live.reply.strip()))
            if live.certain:
                yield from self._prepare(live)

    def _prepare(self, live: _Live) -> Iterator[Command]:
        """Let the model take in its own reply while it is being spoken."""
        if live.reply.strip():
            told = (*self.history, Exchange(live.message, live.reply.strip()))
            yield Prepare(told, self.settings.empathy)

    def _broke(self, answer: ModelBroke) -> Iterator[Command | Event]:
        if live := self._current(answer.ask):
            if live.certain:
                yield from self._fail(answer.message)
            else:
                live.broke = answer.message

    def _fail(self, message: str) -> Iterator[Command | Event]:
        assert self._live is not None, "callers look first"
        yield Failed(self._live.number, message)
        yield from self._close(Outcome.FAILED)

    # ---- the voice speaks

    def _reached(self, voice: VoiceReached) -> Iterator[Command | Event]:
        if live := self._current(voice.ask):
            live.marks.setdefault(voice.stage, self._now)
        yield from ()

    def _started(self, voice: VoiceStarted) -> Iterator[Command | Event]:
        if (live := self._current(voice.ask)) and live.certain:
            live.sounding = True
            live.marks["first_sound"] = self._moved = self._now
            self.state = State.SPEAKING
            yield PlaybackStarted(live.number)

    def _progressed(self, voice: VoiceProgressed) -> Iterator[Command | Event]:
        if (live := self._current(voice.ask)) and live.certain:
            live.heard = voice.heard
            self._moved = self._now
            yield PlaybackProgressed(live.number, voice.heard)

    def _silent(self, voice: VoiceEnded) -> Iterator[Command | Event]:
        if voice.ask in self._closing:
            yield from self._settle(voice.ask, voice.heard)
        elif (live := self._current(voice.ask)) and live.certain and live.done:
            live.heard = voice.heard
            live.marks["finished"] = self._now
            turn = self._append(Outcome.ANSWERED)
            yield PlaybackFinished(turn.number, turn.heard)
            yield TurnEnded(turn)

    def _close(self, outcome: Outcome) -> Iterator[Command | Event]:
        """End the live turn before its time. What was heard is final once the voice has confirmed it."""
        live = self._live
        assert live is not None, "callers look first"
        turn = self._append(outcome)
        yield CancelAsk(live.ask)
        yield Silence(live.ask)
        if live.sounding:
            self._closing.add(live.ask)
        else:
            yield TurnEnded(turn)

    def _append(self, outcome: Outcome) -> Turn:
        live = self._live
        assert live is not None, "callers look first"
        live.marks["finished"] = self._now
        self._live, self._held_since = None, None
        self.state = State.IDLE
        turn = live.turn(outcome)
        self.turns.append(turn)
        self._over[live.ask] = turn
        if len(self._over) > _REVISABLE:
            del self._over[min(self._over)]
        return turn

    def _revise(self, ask: int, final: Turn) -> None:
        """A turn that is over learned something more; after an undo it is not in the history any more."""
        before, self._over[ask] = self._over[ask], final
        self.turns = [final if turn is before else turn for turn in self.turns]

    def _settle(self, ask: int, heard: str) -> Iterator[Command | Event]:
        self._closing.discard(ask)
        final = replace(self._over[ask], heard=heard)
        self._revise(ask, final)
        yield PlaybackFinished(final.number, heard)
        yield TurnEnded(final)
        if ask in self._undone:
            self._undone.discard(ask)
            yield TurnUndone(final.number)

    def _go_on(self) -> Iterator[Command | Event]:
        if self._held_since is not None and self._live is not None:
            self._held_since = None
            self._moved = self._now
            yield GoOn(self._live.ask)

    # ---- the user's hands

    def _typed(self, typed: TypedIn) -> Iterator[Command | Event]:
        if not typed.text.strip():
            return
        if self.user_speaking:
            self.user_speaking = False
            yield DropUtterance()
        if self._live:
            yield from self._break_off()
        yield self._begin(self._whole(Typed(typed.text.strip())))
        yield from self._make_certain()

    def _stop(self, _: StopPressed) -> Iterator[Command | Event]:
        self._carried = None
        if self.user_speaking:
            self.user_speaking = False
            yield DropUtterance()
        yield from self._discard()
        if self._live:
            yield from self._close(Outcome.STOPPED)
        self.state = State.IDLE

    def _undo(self, _: UndoPressed) -> Iterator[Command | Event]:
        if self._live and self._live.certain:
            yield from self._stop(StopPressed())
        if self.turns:
            yield from self._forget(self.turns.pop())

    def _forget(self, turn: Turn) -> Iterator[Event]:
        """The turn was taken out of the history: told once it has ended."""
        closing = next((ask for ask in self._closing if self._over.get(ask) is turn), None)
        if closing is None:
            yield TurnUndone(turn.number)
        else:
            self._undone.add(closing)

    def _again(self, again: AgainPressed) -> Iterator[Command | Event]:
        yield from self._stop(StopPressed())
        if not self.turns:
            return
        last = self.turns.pop()
        yield from self._forget(last)
        yield self._begin(Typed(again.text.strip()) if again.text and again.text.strip() else last.message)
        yield from self._make_certain()

    def _new(self, _: NewPressed) -> Iterator[Command | Event]:
        yield from self._stop(StopPressed())
        self.turns.clear()

    def _changed(self, changed: SettingsChanged) -> Iterator[Command | Event]:
        self.settings = changed.settings
        yield from ()

    # ---- time

    def _tick(self, _: Tick) -> Iterator[Command | Event]:
        if self._held_since is not None and self._now - self._held_since > self.settings.pause_seconds:
            yield from self._go_on()
        live = self._live
        if live is None or not live.certain or self._held_since is not None:
            return
        waited = self._now - self._moved
        if live.sounding and waited > self.settings.stall_seconds:
            yield from self._fail("The speaker stopped: choose another one, or read the reply.")
        elif not live.sounding and waited > self.settings.reply_seconds:
            yield from self._fail("The model took too long: ask again, or choose a smaller model.")


def _spoken(utterance: Utterance) -> Spoken:
    return Spoken(utterance.samples)


def _same(one: Message, other: Message) -> bool:
    if isinstance(one, Spoken) and isinstance(other, Spoken):
        return one.key == other.key
    return one == other


_HANDLERS: dict[type, Callable[[Conversation, Any], Iterator[Command | Event]]] = {
    SpeechSuspected: Conversation._suspected,
    SpeechConfirmed: Conversation._confirmed,
    SpeechPaused: Conversation._paused,
    SpeechResumed: Conversation._resumed,
    SpeechEnded: Conversation._ended,
    SpeechDropped: Conversation._dropped,
    ModelRead: Conversation._read,
    ModelWords: Conversation._words,
    ModelText: Conversation._text,
    ModelDone: Conversation._done,
    ModelBroke: Conversation._broke,
    VoiceReached: Conversation._reached,
    VoiceStarted: Conversation._started,
    VoiceProgressed: Conversation._progressed,
    VoiceEnded: Conversation._silent,
    TypedIn: Conversation._typed,
    StopPressed: Conversation._stop,
    UndoPressed: Conversation._undo,
    AgainPressed: Conversation._again,
    NewPressed: Conversation._new,
    SettingsChanged: Conversation._changed,
    Tick: Conversation._tick,
}
