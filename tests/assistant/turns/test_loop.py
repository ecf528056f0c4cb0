"""Whole dialogues in virtual time: ears, turns, voice and memory together, without a thread or a sleep."""

from __future__ import annotations

import threading

from assistant.events import (
    Outcome,
    PlaybackStarted,
    SpeechStarted,
    Spoken,
    State,
    Transcribed,
    TurnEnded,
    Typed,
    UtteranceEnded,
)
from assistant.messages import BargeIn, MessageTyped, Speak, SpeakEnd
from assistant.speech.playback import ReplyPlayer
from assistant.speech.sentences import Sentence
from assistant.speech.synthesizer import Mood, Speech, VoiceSettings
from tests.support.fakes import CALM, PLAIN, RATE, Clock, Stage, ToneSynthesizer, VirtualSpeaker, eventually

LONG = "One two three four five six seven eight nine ten."


def outcomes(stage: Stage) -> list[tuple[Outcome, str]]:
    return [(turn.outcome, turn.heard) for turn in stage.loop.conversation.turns]


def test_a_question_is_answered_aloud() -> None:
    stage = Stage("Yes indeed. It is so.")
    stage.say(1.0)
    stage.wait(4.0)
    assert outcomes(stage) == [(Outcome.ANSWERED, "Yes indeed. It is so.")]
    (turn,) = stage.of(TurnEnded)
    assert turn.turn.transcript == "words"
    assert turn.turn.figures == {"encode_ms": 1.0}
    assert sum(map(len, stage.speaker.heard)) == 5 * 0.3 * RATE
    # The reply was made during the endpointing wait: its first sound comes with the hard end.
    marks = turn.turn.marks
    assert marks["first_sound"] - marks["ended"] < 0.1
    assert stage.model.prepared == 1


def test_a_pause_in_mid_sentence_does_not_cut_the_user_off() -> None:
    stage = Stage("Yes.")
    stage.say(1.0)
    stage.wait(0.4)
    stage.say(1.0)
    stage.wait(3.0)
    assert len(stage.model.asks) == 2
    assert stage.model.asks[0].ask in stage.model.cancelled
    (ended,) = stage.of(UtteranceEnded)
    assert isinstance(ended.message, Spoken)
    assert 2.4 < len(ended.message.samples) / RATE < 3.2
    assert stage.synthesizer.spoken[-1] == "Yes."
    assert len(stage.of(PlaybackStarted)) == 1


def test_barge_in_is_remembered_to_the_word() -> None:
    stage = Stage(LONG, "Fine.")
    stage.say(1.0)
    stage.wait(2.0)
    assert stage.loop.conversation.state is State.SPEAKING
    stage.say(0.8)
    stage.wait(3.0)
    (first, heard), second = outcomes(stage)
    assert (first, second) == (Outcome.INTERRUPTED, (Outcome.ANSWERED, "Fine."))
    assert LONG.startswith(heard)
    assert heard.split()[-1] in LONG.split()
    samples = len(stage.speaker.heard[0])
    assert len(heard.split()) == samples // int(0.3 * RATE)
    assert stage.model.asks[-1].history[0].heard == heard


def test_a_cough_pauses_and_the_reply_goes_on_to_its_end() -> None:
    stage = Stage(LONG)
    stage.say(1.0)
    stage.wait(2.0)
    coughed = stage.clock.now
    stage.say(0.2)
    stage.wait(4.0)
    assert outcomes(stage) == [(Outcome.ANSWERED, LONG)]
    assert sum(map(len, stage.speaker.heard)) == 10 * 0.3 * RATE
    ((held, went_on),) = stage.speaker.held
    assert 0.1 < held - coughed < 0.2
    assert 0.2 < went_on - held < 0.4
    turn = stage.of(TurnEnded)[0].turn
    assert turn.marks["finished"] - turn.marks["first_sound"] > 10 * 0.3 + 0.2


def test_mute_keeps_the_microphone_out() -> None:
    stage = Stage()
    stage.loop.set_muted(True)
    stage.say(1.0)
    stage.wait(1.0)
    assert stage.model.asks == []
    stage.loop.set_muted(False)
    stage.say(1.0)
    stage.wait(2.0)
    assert len(outcomes(stage)) == 1


def test_push_to_talk_takes_what_is_said_while_the_key_is_down() -> None:
    stage = Stage(LONG, "Fine.", barge_in=BargeIn.KEY)
    stage.loop.set_hands_free(False)
    stage.say(0.5)
    assert stage.model.asks == []
    stage.wait(1.0)
    stage.loop.press()
    stage.say(0.6)
    stage.wait(1.2)  # longer than any patience
    stage.say(0.6)
    stage.loop.release()
    stage.wait(2.0)
    assert len(stage.model.asks) == 1
    assert stage.loop.conversation.state is State.SPEAKING
    stage.loop.press()
    stage.say(0.5)
    stage.loop.release()
    stage.wait(3.0)
    assert [outcome for outcome, _ in outcomes(stage)] == [Outcome.INTERRUPTED, Outcome.ANSWERED]


def test_the_key_interrupts_even_where_the_voice_has_begun_to() -> None:
    """By voice nothing may interrupt: what was said before the key went down belongs to the message all the same."""
    stage = Stage("One two three four five six seven eight nine.", "Yes.", barge_in=BargeIn.KEY)
    stage.say(1.0)
    stage.wait(2.0)
    stage.say(1.0)
    assert len(stage.of(SpeechStarted)) == 1
    stage.loop.press()
    stage.say(1.0)
    stage.loop.release()
    stage.wait(2.0)
    first, second = (ended.turn for ended in stage.of(TurnEnded))
    assert first.outcome is Outcome.INTERRUPTED
    assert len(second.message.samples) >= 2.2 * RATE


def test_a_key_held_in_silence_is_no_turn() -> None:
    stage = Stage()
    stage.loop.press()
    stage.wait(1.0)
    stage.loop.release()
    stage.wait(1.0)
    assert stage.model.asks == []
    assert stage.loop.conversation.state is State.IDLE


def test_typed_messages_are_answered_and_stopped() -> None:
    stage = Stage(LONG)
    stage.loop.put(MessageTyped("Count, please."))
    stage.wait(1.5)
    stage.loop.stop()
    stage.wait(0.5)
    ((outcome, heard),) = outcomes(stage)
    assert outcome is Outcome.STOPPED
    assert LONG.startswith(heard)
    assert stage.model.asks[0].message == Typed("Count, please.")


def test_a_long_speech_is_cut_before_thirty_seconds_and_nothing_is_lost() -> None:
    stage = Stage("Yes.")
    stage.say(40.0)
    stage.wait(4.0)
    messages = [event.message for event in stage.of(UtteranceEnded)]
    assert all(len(message.samples) <= 30.1 * RATE for message in messages[:1])
    assert sum(len(message.samples) for message in messages[-1:]) >= 39.9 * RATE
    assert stage.of(Transcribed)


def test_without_a_speaker_replies_are_read() -> None:
    stage = Stage("Yes indeed.")
    stage.voice.speaker = None
    stage.say(1.0)
    stage.wait(2.0)
    assert outcomes(stage) == [(Outcome.ANSWERED, "Yes indeed.")]


def test_at_the_end_what_is_left_of_a_reply_need_not_be_made_into_speech() -> None:
    """A neural voice takes seconds a sentence: the end waits for the one in the making and no other."""
    begun, resume = threading.Event(), threading.Event()

    class Slow(ToneSynthesizer):
        def speak(self, sentence: Sentence, settings: VoiceSettings = PLAIN, mood: Mood = CALM) -> Speech:
            begun.set()
            assert resume.wait()
            return super().speak(sentence, settings, mood)

    synthesizer = Slow()
    voice = ReplyPlayer(synthesizer, VirtualSpeaker(Clock()), lambda _: None)
    voice.execute(Speak(1, "One is here. Two is here. Three is here. Four is here.", None))
    voice.execute(SpeakEnd(1))
    assert begun.wait()
    closing = threading.Thread(target=voice.close)
    closing.start()
    eventually(lambda: voice._reply is None)
    resume.set()
    closing.join()
    assert synthesizer.spoken == ["One is here."]
