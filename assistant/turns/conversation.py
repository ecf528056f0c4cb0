"""The conversation's turns as a pure state machine: no clock, no thread, no input or output.

`handle` takes an inbox event and its time, and returns commands and events, in order. Every request to the model
and the player carries the number of its ask; an answer with an older number is stale and dropped by one comparison.
A speculative reply starts at the speculative end of speech; nothing of it is emitted, played or remembered before
the final end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from assistant import messages as s
from assistant.events import (
    EmotionRead,
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
    Typed,
    UtteranceEnded,
)
from assistant.turns.history import History, LiveTurn, joined, same


class Conversation:
    """One conversation. The owner calls `handle` and executes what it returns, in order.

    Attributes:
        state: see `State`.
    """

    def __init__(self, settings: s.TurnSettings | None = None) -> None:
        self.settings = settings or s.TurnSettings()
        self.state = State.IDLE
        self.user_speaking = False
        self._past = History()
        self._live: LiveTurn | None = None
        self._asks = 0
        self._numbers = 0
        self._ignoring = False  # speech that may not interrupt
        self._carried: Message | None = None  # of a superseded turn: joined with the next message
        self._held_since: float | None = None  # playback is paused for possible speech
        self._moved = 0.0  # when the live turn last progressed
        self._now = 0.0

    # ---- the only entry point

    def handle(self, happened: s.InboxEvent, now: float) -> list[s.Command | Event]:
        """Commands and events that follow from `happened` at `now` seconds."""
        self._now = now
        before = (self.state, self.user_speaking)
        outcome = list(_HANDLERS[type(happened)](self, happened))
        if (self.state, self.user_speaking) != before:
            outcome.append(StateChanged(self.state, self.user_speaking))
        return outcome

    @property
    def turns(self) -> list[Turn]:
        """The turns that are over, oldest first."""
        return self._past.turns

    @property
    def history(self) -> tuple[Exchange, ...]:
        """The history for the model. Turns without a heard reply are left out or carried over."""
        past = (turn for turn in self.turns if turn.outcome is not Outcome.SUPERSEDED and turn.heard.strip())
        return tuple(Exchange(turn.message, turn.heard) for turn in past)

    @property
    def number(self) -> int:
        """The number of the last turn that has certainly begun; 0 before the first."""
        return self._numbers

    # ---- the user speaks

    def _onset(self, _: s.SpeechOnset) -> Iterator[s.Command | Event]:
        live = self._live
        if live and live.sounding and self.settings.barge_in is s.BargeIn.VOICE and self._held_since is None:
            self._held_since = self._now
            yield s.PausePlayback(live.ask)

    def _confirmed(self, speech: s.SpeechConfirmed) -> Iterator[s.Command | Event]:
        live = self._live
        allowed = {s.BargeIn.VOICE: True, s.BargeIn.KEY: speech.by_key, s.BargeIn.OFF: False}[self.settings.barge_in]
        if live and live.sounding and not allowed:
            self._ignoring = True
            return
        self._ignoring = False
        if self.user_speaking:  # and takes the key as well
            return
        if live:
            yield from self._break_off()
        self.user_speaking = True
        self.state = State.LISTENING
        yield SpeechStarted(self._numbers + 1, speech.at)

    def _break_off(self) -> Iterator[s.Command | Event]:
        """The user keeps speaking: end the live turn with the outcome it reached."""
        live = self._live
        assert live is not None, "callers look first"
        if not live.certain:
            yield from self._discard()
        elif live.heard.strip():
            yield from self._close(Outcome.INTERRUPTED)
        else:
            self._carried = live.message
            yield from self._close(Outcome.SUPERSEDED)

    def _paused(self, speech: s.SpeechPaused) -> Iterator[s.Command | Event]:
        if self._ignoring or not self.user_speaking:
            return
        yield from self._discard()
        yield self._begin(self._whole(Spoken(speech.utterance.samples)))

    def _resumed(self, _: s.SpeechResumed) -> Iterator[s.Command | Event]:
        yield from self._discard()

    def _ended(self, speech: s.SpeechEnded) -> Iterator[s.Command | Event]:
        if self._ignoring or not self.user_speaking:
            self._ignoring = False
            return
        self.user_speaking = False
        message = self._whole(Spoken(speech.utterance.samples))
        if self._live is None or not same(self._live.message, message):
            yield from self._discard()
            yield self._begin(message)
        yield from self._commit()

    def _dropped(self, _: s.SpeechRejected) -> Iterator[s.Command | Event]:
        self._ignoring = False
        yield from self._continue()
        if not self.user_speaking:
            return
        self.user_speaking = False
        yield from self._discard()
        self.state = State.IDLE
        if self._carried is not None:
            # A false interruption: the turn that was set aside for it is answered after all.
            yield self._begin(self._whole(None))
            yield from self._commit()

    # ---- asking

    def _whole(self, message: Message | None) -> Message:
        """The message, joined with what a superseded turn carried over."""
        if message is None:
            assert self._carried is not None, "one of the two is there"
            return self._carried
        return message if self._carried is None else joined(self._carried, message)

    def _begin(self, message: Message) -> s.Ask:
        self._asks += 1
        self._live = LiveTurn(self._asks, self._numbers + 1, message)
        self._live.marks["asked"] = self._moved = self._now
        return s.Ask(self._asks, self.history, message, self.settings.empathy)

    def _commit(self) -> Iterator[s.Command | Event]:
        """The end is final: emit the events held back so far, and start playback."""
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
            yield s.StartPlayback(live.ask)
            if live.done:
                yield from self._prepare(live)

    def _discard(self) -> Iterator[s.Command | Event]:
        """Discard a speculative turn without a trace."""
        live = self._live
        if live is not None and not live.certain:
            self._live = None
            yield s.CancelAsk(live.ask)
            yield s.StopPlayback(live.ask)

    def _notify(self, event: Event) -> Iterator[Event]:
        assert self._live is not None, "callers look first"
        if self._live.certain:
            yield event
        else:
            self._live.held.append(event)

    # ---- the model answers

    def _current(self, ask: int) -> LiveTurn | None:
        return self._live if self._live is not None and self._live.ask == ask else None

    def _read(self, answer: s.ModelReading) -> Iterator[s.Command | Event]:
        if live := self._current(answer.ask):
            live.reading = answer.reading
            live.marks["read"] = self._moved = self._now
            yield from self._notify(EmotionRead(live.number, answer.reading))

    def _words(self, answer: s.ModelTranscript) -> Iterator[s.Command | Event]:
        if live := self._current(answer.ask):
            live.transcript = answer.text
            yield from self._notify(Transcribed(live.number, answer.text, answer.language))
        elif turn := self._past.revise(answer.ask, transcript=answer.text):
            yield Transcribed(turn.number, answer.text, answer.language)

    def _text(self, answer: s.ModelText) -> Iterator[s.Command | Event]:
        if live := self._current(answer.ask):
            live.marks.setdefault("first_text", self._now)
            self._moved = self._now
            live.reply += answer.text
            yield s.Speak(live.ask, answer.text, live.reading)
            yield from self._notify(ReplyText(live.number, answer.text))

    def _done(self, answer: s.ModelDone) -> Iterator[s.Command | Event]:
        if live := self._current(answer.ask):
            live.done = True
            live.figures = answer.figures
            live.marks["reply_finished"] = self._moved = self._now
            yield s.SpeakEnd(live.ask)
            yield from self._notify(ReplyFinished(live.number, live.reply.strip()))
            if live.certain:
                yield from self._prepare(live)

    def _prepare(self, live: LiveTurn) -> Iterator[s.Command]:
        """Have the model prefill its own reply while it is being spoken."""
        if live.reply.strip():
            past = (*self.history, Exchange(live.message, live.reply.strip()))
            yield s.Prepare(past, self.settings.empathy)

    def _broke(self, answer: s.ModelFailed) -> Iterator[s.Command | Event]:
        if live := self._current(answer.ask):
            if live.certain:
                yield from self._fail(answer.message)
            else:
                live.broke = answer.message

    def _fail(self, message: str) -> Iterator[s.Command | Event]:
        assert self._live is not None, "callers look first"
        yield Failed(self._live.number, message)
        yield from self._close(Outcome.FAILED)

    # ---- playback

    def _reached(self, voice: s.PlayerReached) -> Iterator[s.Command | Event]:
        if live := self._current(voice.ask):
            live.marks.setdefault(voice.stage, self._now)
        yield from ()

    def _started(self, voice: s.PlayerStarted) -> Iterator[s.Command | Event]:
        if (live := self._current(voice.ask)) and live.certain:
            live.sounding = True
            live.marks["first_sound"] = self._moved = self._now
            self.state = State.SPEAKING
            yield PlaybackStarted(live.number)

    def _progressed(self, voice: s.PlayerProgressed) -> Iterator[s.Command | Event]:
        if (live := self._current(voice.ask)) and live.certain:
            live.heard = voice.heard
            self._moved = self._now
            yield PlaybackProgressed(live.number, voice.heard)

    def _silent(self, voice: s.PlayerEnded) -> Iterator[s.Command | Event]:
        if self._past.closing(voice.ask):
            yield from self._past.settle(voice.ask, voice.heard)
        elif (live := self._current(voice.ask)) and live.certain and live.done:
            live.heard = voice.heard
            live.marks["finished"] = self._now
            turn = self._append(Outcome.ANSWERED, closing=False)
            yield PlaybackFinished(turn.number, turn.heard)
            yield TurnEnded(turn)

    def _close(self, outcome: Outcome) -> Iterator[s.Command | Event]:
        """End the live turn early. What was heard is final once the player confirms it."""
        live = self._live
        assert live is not None, "callers look first"
        turn = self._append(outcome, closing=live.sounding)
        yield s.CancelAsk(live.ask)
        yield s.StopPlayback(live.ask)
        if not live.sounding:
            yield TurnEnded(turn)

    def _append(self, outcome: Outcome, *, closing: bool) -> Turn:
        live = self._live
        assert live is not None, "callers look first"
        live.marks["finished"] = self._now
        self._live, self._held_since = None, None
        self.state = State.IDLE
        turn = live.turn(outcome)
        self._past.add(live.ask, turn, closing=closing)
        return turn

    def _continue(self) -> Iterator[s.Command | Event]:
        if self._held_since is not None and self._live is not None:
            self._held_since = None
            self._moved = self._now
            yield s.ResumePlayback(self._live.ask)

    # ---- the user's commands

    def _typed(self, typed: s.MessageTyped) -> Iterator[s.Command | Event]:
        if not typed.text.strip():
            return
        if self.user_speaking:
            self.user_speaking = False
            yield s.DiscardUtterance()
        if self._live:
            yield from self._break_off()
        yield self._begin(self._whole(Typed(typed.text.strip())))
        yield from self._commit()

    def _stop(self, _: s.StopRequested) -> Iterator[s.Command | Event]:
        self._carried = None
        if self.user_speaking:
            self.user_speaking = False
            yield s.DiscardUtterance()
        yield from self._discard()
        if self._live:
            yield from self._close(Outcome.STOPPED)
        self.state = State.IDLE

    def _undo(self, _: s.UndoRequested) -> Iterator[s.Command | Event]:
        if self._live and self._live.certain:
            yield from self._stop(s.StopRequested())
        yield from self._past.undo()

    def _again(self, again: s.RegenerateRequested) -> Iterator[s.Command | Event]:
        yield from self._stop(s.StopRequested())
        if not self.turns:
            return
        last = self.turns[-1]
        yield from self._past.undo()
        yield self._begin(Typed(again.text.strip()) if again.text and again.text.strip() else last.message)
        yield from self._commit()

    def _new(self, _: s.NewConversationRequested) -> Iterator[s.Command | Event]:
        yield from self._stop(s.StopRequested())
        self.turns.clear()

    def _changed(self, changed: s.SettingsChanged) -> Iterator[s.Command | Event]:
        self.settings = changed.settings
        yield from ()

    # ---- time

    def _tick(self, _: s.Tick) -> Iterator[s.Command | Event]:
        if self._held_since is not None and self._now - self._held_since > self.settings.pause_seconds:
            yield from self._continue()
        live = self._live
        if live is None or not live.certain or self._held_since is not None:
            return
        waited = self._now - self._moved
        if live.sounding and waited > self.settings.stall_seconds:
            yield from self._fail("The speaker stopped: choose another one, or read the reply.")
        elif not live.sounding and waited > self.settings.reply_seconds:
            yield from self._fail("The model took too long: ask again, or choose a smaller model.")


_HANDLERS: dict[type, Callable[[Conversation, Any], Iterator[s.Command | Event]]] = {
    s.SpeechOnset: Conversation._onset,
    s.SpeechConfirmed: Conversation._confirmed,
    s.SpeechPaused: Conversation._paused,
    s.SpeechResumed: Conversation._resumed,
    s.SpeechEnded: Conversation._ended,
    s.SpeechRejected: Conversation._dropped,
    s.ModelReading: Conversation._read,
    s.ModelTranscript: Conversation._words,
    s.ModelText: Conversation._text,
    s.ModelDone: Conversation._done,
    s.ModelFailed: Conversation._broke,
    s.PlayerReached: Conversation._reached,
    s.PlayerStarted: Conversation._started,
    s.PlayerProgressed: Conversation._progressed,
    s.PlayerEnded: Conversation._silent,
    s.MessageTyped: Conversation._typed,
    s.StopRequested: Conversation._stop,
    s.UndoRequested: Conversation._undo,
    s.RegenerateRequested: Conversation._again,
    s.NewConversationRequested: Conversation._new,
    s.SettingsChanged: Conversation._changed,
    s.Tick: Conversation._tick,
}
