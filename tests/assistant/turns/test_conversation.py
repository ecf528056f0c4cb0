"""Turn taking, scripted: every scenario is a list of happenings, and time is a number."""

from __future__ import annotations

import random

import numpy as np
import pytest

from assistant import messages as s
from assistant.events import (
    EmotionRead,
    Exchange,
    Failed,
    Outcome,
    PlaybackFinished,
    ReplyText,
    SpeechStarted,
    Spoken,
    State,
    StateChanged,
    Transcribed,
    TurnEnded,
    TurnUndone,
    Typed,
    Utterance,
    UtteranceEnded,
)
from assistant.turns.conversation import Conversation


def said(seed: int, seconds: float = 1.0) -> Utterance:
    samples = np.random.default_rng(seed).standard_normal(int(16_000 * seconds)).astype(np.float32)
    return Utterance(samples, 0.0, seconds)


class Script:
    """A conversation with its clock, and everything that came out of it."""

    def __init__(self, **settings: object) -> None:
        self.talk = Conversation(s.TurnSettings(**settings))
        self.now = 0.0
        self.out: list[object] = []

    def __call__(self, *happened: s.InboxEvent, after: float = 0.1) -> list[object]:
        fresh: list[object] = []
        for one in happened:
            self.now += after
            fresh += self.talk.handle(one, self.now)
        self.out += fresh
        return fresh

    def ask(self) -> s.Ask:
        return [one for one in self.out if isinstance(one, s.Ask)][-1]

    def of(self, kind: type) -> list:
        return [one for one in self.out if isinstance(one, kind)]

    def say(self, seed: int) -> int:
        """A whole utterance; the number of its ask."""
        self(s.SpeechConfirmed(self.now), s.SpeechPaused(said(seed)), s.SpeechEnded(said(seed)))
        return self.ask().ask

    def answer(self, ask: int, text: str = "Good. Fine.") -> None:
        self(s.ModelReading(ask, None), s.ModelText(ask, text), s.PlayerStarted(ask), s.ModelDone(ask))
        self(s.PlayerProgressed(ask, text.split()[0]), s.PlayerEnded(ask, text))


def test_a_turn_from_speech_to_silence() -> None:
    script = Script()
    ask = script.say(1)
    assert script.talk.state is State.THINKING
    script.answer(ask)
    states = [(event.state, event.user_speaking) for event in script.of(StateChanged)]
    assert states == [
        (State.LISTENING, True),
        (State.THINKING, False),
        (State.SPEAKING, False),
        (State.IDLE, False),
    ]
    (turn,) = script.talk.turns
    assert (turn.number, turn.outcome, turn.reply, turn.heard) == (1, Outcome.ANSWERED, "Good. Fine.", "Good. Fine.")
    assert turn.marks["asked"] <= turn.marks["ended"] < turn.marks["first_text"] < turn.marks["first_sound"]
    assert [type(one) for one in script.of(SpeechStarted) + script.of(TurnEnded)] == [SpeechStarted, TurnEnded]
    script.say(2)
    assert script.ask().history == (Exchange(turn.message, "Good. Fine."),)


def test_the_reply_begins_at_the_soft_end_and_waits_for_the_hard_one() -> None:
    script = Script()
    script(s.SpeechConfirmed(0.0), s.SpeechPaused(said(1)))
    ask = script.ask().ask
    early = script(s.ModelReading(ask, None), s.ModelText(ask, "Yes."), s.ModelDone(ask))
    assert {type(one) for one in early} == {s.Speak, s.SpeakEnd}
    late = script(s.SpeechEnded(said(1)))
    assert [type(one) for one in late[:3]] == [UtteranceEnded, EmotionRead, ReplyText]
    assert s.StartPlayback(ask) in late
    assert len(script.of(s.Ask)) == 1


def test_speech_that_resumes_leaves_no_trace_of_the_early_reply() -> None:
    script = Script()
    script(s.SpeechConfirmed(0.0), s.SpeechPaused(said(1)))
    early = script.ask().ask
    assert script(s.SpeechResumed())[:2] == [s.CancelAsk(early), s.StopPlayback(early)]
    assert script(s.ModelText(early, "too early"), s.PlayerStarted(early), s.PlayerEnded(early, "too")) == []
    script(s.SpeechPaused(said(2)), s.SpeechEnded(said(2)))
    script.answer(script.ask().ask, "Right.")
    assert [turn.reply for turn in script.talk.turns] == ["Right."]


def test_barge_in_keeps_what_was_heard() -> None:
    script = Script()
    ask = script.say(1)
    script(s.ModelText(ask, "One two three four."), s.PlayerStarted(ask), s.PlayerProgressed(ask, "One two"))
    assert script(s.SpeechOnset()) == [s.PausePlayback(ask)]
    stopped = script(s.SpeechConfirmed(script.now))
    assert stopped[:2] == [s.CancelAsk(ask), s.StopPlayback(ask)]
    script(s.PlayerEnded(ask, "One two three"))
    turn = script.of(TurnEnded)[0].turn
    assert (turn.outcome, turn.heard) == (Outcome.INTERRUPTED, "One two three")
    script(s.SpeechPaused(said(2)), s.SpeechEnded(said(2)))
    assert script.ask().history[0].heard == "One two three"


def test_a_cough_pauses_and_resumes() -> None:
    script = Script()
    ask = script.say(1)
    script(s.ModelText(ask, "One two."), s.PlayerStarted(ask), s.SpeechOnset())
    assert script(s.SpeechRejected()) == [s.ResumePlayback(ask)]
    script(s.ModelDone(ask), s.PlayerEnded(ask, "One two."))
    assert script.talk.turns[0].outcome is Outcome.ANSWERED
    # A suspicion that nobody resolves ends by itself.
    again = script.say(2)
    script(s.ModelText(again, "Three."), s.PlayerStarted(again), s.SpeechOnset())
    assert script(s.Tick(), after=2.0) == [s.ResumePlayback(again)]


@pytest.mark.parametrize(
    ("mode", "by_key", "stops"), [("key", False, False), ("key", True, True), ("off", True, False)]
)
def test_who_may_interrupt(mode: str, by_key: bool, stops: bool) -> None:
    script = Script(barge_in=s.BargeIn(mode))
    ask = script.say(1)
    script(s.ModelText(ask, "One two."), s.PlayerStarted(ask), s.PlayerProgressed(ask, "One"), s.SpeechOnset())
    assert script.of(s.PausePlayback) == []
    script(s.SpeechConfirmed(script.now, by_key=by_key))
    assert bool(script.of(s.CancelAsk)) is stops
    script(s.SpeechPaused(said(2)), s.SpeechEnded(said(2)))
    assert len(script.of(s.Ask)) == (2 if stops else 1)


def test_more_speech_while_thinking_belongs_to_the_message() -> None:
    script = Script()
    first = script.say(1)
    second = script.say(2)
    assert script.talk.turns[0].outcome is Outcome.SUPERSEDED
    message = script.ask().message
    assert isinstance(message, Spoken)
    assert len(message.samples) == 16_000 * 2 + 4_800
    assert script.ask().history == ()
    script(s.ModelText(first, "stale"))
    script.answer(second)
    assert [turn.reply for turn in script.talk.turns] == ["", "Good. Fine."]


def test_noise_while_thinking_does_not_cost_the_answer() -> None:
    script = Script()
    script.say(1)
    script(s.SpeechConfirmed(script.now), s.SpeechRejected())
    assert script.talk.state is State.THINKING
    script.answer(script.ask().ask)
    assert script.talk.turns[-1].outcome is Outcome.ANSWERED
    assert np.array_equal(script.talk.turns[-1].message.samples, said(1).samples)


def test_typing_and_stopping() -> None:
    script = Script()
    script(s.MessageTyped("  "), s.StopRequested())
    assert script.out == []
    script(s.MessageTyped("Hello"), s.MessageTyped("there"))
    assert script.ask().message == Typed("Hello\nthere")
    ask = script.ask().ask
    script(s.ModelText(ask, "One two."), s.PlayerStarted(ask), s.PlayerProgressed(ask, "One"), s.StopRequested())
    script(s.PlayerEnded(ask, "One"))
    assert (script.talk.turns[-1].outcome, script.talk.turns[-1].heard) == (Outcome.STOPPED, "One")
    assert script.talk.state is State.IDLE
    script(s.SpeechConfirmed(script.now))
    assert s.DiscardUtterance() in script(s.StopRequested())


def test_a_broken_model_costs_one_turn() -> None:
    script = Script()
    script(s.SpeechConfirmed(0.0), s.SpeechPaused(said(1)))
    assert script(s.ModelFailed(script.ask().ask, "out of memory: choose a smaller model")) == []
    ended = script(s.SpeechEnded(said(1)))
    assert Failed(1, "out of memory: choose a smaller model") in ended
    assert script.talk.turns[0].outcome is Outcome.FAILED
    script.answer(script.say(2))
    assert script.talk.turns[1].outcome is Outcome.ANSWERED
    assert script.talk.history == (Exchange(script.talk.turns[1].message, "Good. Fine."),)


def test_every_wait_has_a_ceiling() -> None:
    script = Script(reply_seconds=10.0, stall_seconds=5.0)
    script.say(1)
    assert script(s.Tick(), after=9.0) == []
    assert any(isinstance(one, Failed) for one in script(s.Tick(), after=2.0))
    ask = script.say(2)
    script(s.ModelText(ask, "One two."), s.PlayerStarted(ask))
    assert any(isinstance(one, Failed) for one in script(s.Tick(), after=6.0))
    assert script.talk.state is State.IDLE


def test_undo_again_and_new() -> None:
    script = Script()
    script.answer(script.say(1))
    script.answer(script.say(2), "Second.")
    script(s.RegenerateRequested())
    assert [one.turn for one in script.of(TurnUndone)] == [2]
    assert script.ask().message is script.of(s.Ask)[1].message
    assert len(script.ask().history) == 1
    script.answer(script.ask().ask, "Better.")
    script(s.RegenerateRequested("in other words"))
    assert script.ask().message == Typed("in other words")
    script.answer(script.ask().ask)
    script(s.UndoRequested())
    assert [turn.heard for turn in script.talk.turns] == ["Good. Fine."]
    assert [one.turn for one in script.of(TurnUndone)] == [2, 3, 4]
    script(s.NewConversationRequested())
    assert script.talk.turns == []
    assert script.talk.number == 4


def test_a_turn_undone_while_it_sounds_is_told_once_it_has_ended() -> None:
    script = Script()
    ask = script.say(1)
    script(s.ModelText(ask, "One two."), s.PlayerStarted(ask), s.PlayerProgressed(ask, "One"))
    assert not [one for one in script(s.UndoRequested()) if isinstance(one, TurnUndone)]
    assert [type(one) for one in script(s.PlayerEnded(ask, "One"))][-2:] == [TurnEnded, TurnUndone]
    assert script.talk.turns == []


def test_the_transcript_may_come_after_the_turn() -> None:
    script = Script()
    ask = script.say(1)
    script.answer(ask)
    assert script(s.ModelTranscript(ask, "how are you")) == [Transcribed(1, "how are you", "en")]
    assert script.talk.turns[0].transcript == "how are you"


def test_no_discarded_output_reaches_speaker_history_or_disk() -> None:
    """1,000 random resumes: what was told, allowed to play or remembered belongs to the last ask alone."""
    random_source = random.Random(0)
    script, resumes = Script(), 0
    while resumes < 1000:
        script(s.SpeechConfirmed(script.now))
        discarded: set[int] = set()
        for _ in range(random_source.randrange(4)):
            script(s.SpeechPaused(said(random_source.randrange(10**9), 0.01)))
            ask = script.ask().ask
            stale = [s.ModelReading(ask, None), s.ModelText(ask, f"discarded {ask}"), s.ModelDone(ask)]
            emitted = script(*stale[: random_source.randrange(4)])
            assert all(isinstance(one, s.Speak | s.SpeakEnd) for one in emitted)
            script(s.SpeechResumed())
            discarded.add(ask)
            resumes += 1
            assert script(*stale, s.PlayerStarted(ask), s.PlayerProgressed(ask, "discarded")) == []
        before = len(script.out)
        ask = script.say(random_source.randrange(10**9))
        script.answer(ask, f"kept {ask}.")
        assert not [one for one in script.out[before:] if isinstance(one, ReplyText) and "discarded" in one.text]
        assert not discarded & {one.ask for one in script.out if isinstance(one, s.StartPlayback)}
        script.out = [script.out[-1]]
    assert all("discarded" not in turn.reply + turn.heard for turn in script.talk.turns)
    assert len({turn.number for turn in script.talk.turns}) == len(script.talk.turns)


def test_any_order_of_happenings_keeps_the_rules() -> None:
    """Random happenings: no exception, one TurnEnded a turn, and silence after every stop."""
    source = random.Random(1)
    kinds = [
        lambda ask: s.SpeechOnset(), lambda ask: s.SpeechConfirmed(0.0, by_key=source.random() < 0.3),
        lambda ask: s.SpeechPaused(said(source.randrange(5), 0.01)), lambda ask: s.SpeechResumed(),
        lambda ask: s.SpeechEnded(said(source.randrange(5), 0.01)), lambda ask: s.SpeechRejected(),
        lambda ask: s.ModelReading(ask, None), lambda ask: s.ModelTranscript(ask, "words"),
        lambda ask: s.ModelText(ask, "text. "),
        lambda ask: s.ModelDone(ask), lambda ask: s.ModelFailed(ask, "broke"), lambda ask: s.PlayerStarted(ask),
        lambda ask: s.PlayerProgressed(ask, "text."), lambda ask: s.PlayerEnded(ask, "text."),
        lambda ask: s.MessageTyped("typed"), lambda ask: s.StopRequested(), lambda ask: s.UndoRequested(),
        lambda ask: s.RegenerateRequested(), lambda ask: s.NewConversationRequested(), lambda ask: s.Tick(),
    ]  # fmt: skip
    for _ in range(300):
        script = Script(barge_in=source.choice(list(s.BargeIn)))
        for _ in range(60):
            asks = [one.ask for one in script.of(s.Ask)]
            ask = max(0, (asks[-1] if asks else 0) - source.choice([0, 0, 0, 1]))
            happened = source.choice(kinds)(ask)
            script(happened)
            if isinstance(happened, s.StopRequested):
                assert script.talk.state is State.IDLE
        ended = [event.turn.number for event in script.of(TurnEnded)]
        assert len(ended) == len(set(ended))
        assert not [one for one in script.of(PlaybackFinished) if one.turn not in ended]
