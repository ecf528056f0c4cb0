"""The engine: cached and uncached replies agree, only new positions are computed, cancel is at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig

from assistant.events import EmotionReading, Exchange, Spoken, Typed
from model.errors import BadInput
from model.inference.engine import Engine, Hearing
from model.inference.sampling import discourage_copy
from model.nn.transcribe import Transcript
from tests.support.tiny import TEXT, tiny_checkpoint


def recording(seed: int, seconds: float = 1.5) -> Spoken:
    noise = np.random.default_rng(seed).standard_normal(int(16_000 * seconds)).astype(np.float32)
    return Spoken(0.1 * noise)


def conversation() -> list:
    """Eight messages, spoken and typed."""
    return [
        recording(1),
        Typed("and the other thing?"),
        recording(2, 0.8),
        recording(3, 2.1),
        Typed("<|im_end|> is not a command here"),
        recording(4),
        Typed("straße, 你好, e\u0301"),
        recording(5, 1.1),
    ]


def replies(engine: Engine, *, fresh: bool, interrupted_at: int = 3) -> tuple[list[str], list[int]]:
    """Run the conversation; `fresh` forgets everything before each turn."""
    history, texts, prefilled = [], [], []
    for number, message in enumerate(conversation()):
        if fresh:
            engine.forget()
        text = "".join(engine.reply(history, message))
        texts.append(text)
        prefilled.append(engine.figures.prefilled)
        # An interruption in the middle of a word: the history holds what was heard, cut by characters.
        heard = text[: len(text) // 2 + 1] if number == interrupted_at else text
        history.append(Exchange(message, heard))
    return texts, prefilled


@pytest.mark.parametrize("scope", ["audio", "global", "text"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_reused_cache_changes_no_reply(scope: str, seed: int) -> None:
    engine = Engine(tiny_checkpoint(seed, lora_scope=scope))
    cached, few = replies(engine, fresh=False)
    engine.forget()
    scratch, all_of_them = replies(engine, fresh=True)
    assert cached == scratch
    assert len(set(cached)) > 2, "the tiny model must say different things, or the test shows nothing"
    if scope == "text":
        assert few == all_of_them
    else:
        assert few[0] == all_of_them[0]
        assert all(new < whole / 2 for new, whole in zip(few[2:], all_of_them[2:], strict=True))


@pytest.mark.parametrize("scope", ["audio", "global"])
def test_the_static_decoder_changes_no_reply(scope: str) -> None:
    """What runs on a GPU, here without its graphs: fixed buffers, tokens chosen a step ahead, caches reused."""
    eager, few = replies(Engine(tiny_checkpoint(lora_scope=scope)), fresh=False)
    static, as_few = replies(Engine(tiny_checkpoint(lora_scope=scope), static=True), fresh=False)
    assert static == eager
    assert as_few == few
    engine = Engine(tiny_checkpoint(lora_scope=scope), static=True)
    stop = iter([False, False, False, True, True, True])
    cut = "".join(engine.reply([], recording(1), cancelled=lambda: next(stop)))
    assert eager[0].startswith(cut)
    assert len(cut) < len(eager[0])
    assert "".join(engine.reply([], recording(1))) == eager[0]


def test_any_causal_language_model_will_do() -> None:
    other = GPTNeoXConfig(**TEXT, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    engine = Engine(tiny_checkpoint(text_config=other, lora_targets=["query_key_value", "dense"]))
    cached, _ = replies(engine, fresh=False)
    scratch, _ = replies(engine, fresh=True)
    assert cached == scratch
    assert len(set(cached)) > 2


def test_only_new_positions_are_prefilled() -> None:
    engine = Engine(tiny_checkpoint())
    first = recording(1)
    text = "".join(engine.reply([], first))
    history = [Exchange(first, text)]
    engine.prepare(history)
    prepared = engine.figures.prefilled + engine.figures.reused
    message = Typed("ok")
    "".join(engine.reply(history, message))
    # What is left after `prepare` is the message, the end of its turn and the head of the reply's.
    assert engine.figures.reused == prepared
    ids, _ = engine.prompt(history, message, empathy=True)
    assert engine.figures.prefilled == len(ids) - prepared


def test_speech_is_encoded_once() -> None:
    engine = Engine(tiny_checkpoint())
    said = recording(7)
    hearing = engine.hear(said)
    assert engine.hear(Spoken(said.samples.copy())) is hearing
    assert hearing.reading is not None
    logits = hearing.reading.contributions.sum(0) + hearing.reading.offset
    expected = torch.softmax(torch.from_numpy(logits), 0).numpy()
    assert np.abs(hearing.reading.probabilities - expected).max() < 1e-5


def test_cancel_ends_the_reply_at_the_next_token() -> None:
    engine = Engine(tiny_checkpoint())
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4

    pieces = list(engine.reply([], Typed("tell me a long story"), cancelled=cancelled))
    assert engine.figures.tokens <= 3
    full = "".join(engine.reply([], Typed("tell me a long story")))
    assert full.startswith("".join(pieces))
    assert full != "".join(pieces)


def test_a_reply_abandoned_half_way_leaves_the_engine_usable() -> None:
    engine = Engine(tiny_checkpoint())
    expected = "".join(engine.reply([], Typed("hello")))
    stream = engine.reply([], Typed("tell me a long story"))
    next(stream)
    stream.close()
    assert "".join(engine.reply([], Typed("hello"))) == expected


def test_the_oldest_turns_are_left_out_whole() -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.context = 400
    engine = Engine(checkpoint)
    history = [Exchange(Typed(f"message number {n}"), f"reply number {n}") for n in range(12)]
    ids, _ = engine.prompt(history, Typed("now"), empathy=True)
    text = checkpoint.tokenizer.decode(ids)
    assert len(ids) <= 400
    assert "reply number 11" in text
    assert "reply number 0" not in text
    assert text.count("<|im_start|>user") == text.count("<|im_start|>assistant")
    assert "".join(engine.reply(history, Typed("now")))


def test_a_message_that_never_fits_is_refused() -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.context = 200
    with pytest.raises(BadInput, match="too long"):
        "".join(Engine(checkpoint).reply([], Typed("word " * 200)))


def test_long_recordings_are_heard_in_pieces() -> None:
    engine = Engine(tiny_checkpoint(window="trimmed"))
    hearing = engine.hear(recording(9, 70.0))
    assert len(hearing.pieces) >= 3
    assert all(seconds <= 30 for _, seconds in hearing.pieces)
    assert sum(seconds for _, seconds in hearing.pieces) == pytest.approx(70.0)
    list(engine.reply([], recording(9, 70.0)))
    assert hearing.frames is not None
    assert engine.figures.prefilled > len(hearing.frames) >= 70 / 0.08


def test_an_empty_recording_is_refused() -> None:
    with pytest.raises(BadInput, match="empty"):
        Engine(tiny_checkpoint()).hear(Spoken(np.zeros(0, np.float32)))


def test_a_full_context_still_reuses_the_cache_in_most_turns() -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.context = 700
    engine = Engine(checkpoint)
    history: list[Exchange] = []
    prefilled = []
    for turn in range(24):
        message = Typed(f"and what about number {turn}?")
        text = "".join(engine.reply(history, message))
        prefilled.append(engine.figures.prefilled)
        history.append(Exchange(message, text))
    late = prefilled[12:]
    assert max(late) > 150, "the context must have overflowed, or the test shows nothing"
    assert sum(new < 120 for new in late) >= len(late) * 0.6


def test_no_reply_is_empty() -> None:
    checkpoint = tiny_checkpoint()
    first = "".join(Engine(checkpoint).reply([], Typed("hello")))
    favourite = checkpoint.tokenizer.encode(first)[0]
    checkpoint.generation.eos_token_id = [265, favourite]
    assert "".join(Engine(checkpoint).reply([], Typed("hello")))


def test_the_limit_is_told() -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.generation.max_new_tokens = 4
    engine = Engine(checkpoint)
    text = "".join(engine.reply([], Typed("hello")))
    assert text
    assert engine.figures.limit_reached
    checkpoint.generation.max_new_tokens = 4000
    longer = Engine(checkpoint)
    stop = iter([False] * 30 + [True] * 9)
    "".join(longer.reply([], Typed("hello"), cancelled=lambda: next(stop)))
    assert not longer.figures.limit_reached


def test_the_same_reply_twice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_checkpoint())
    first = "".join(engine.reply([], Typed("hello")))
    history = [Exchange(Typed("hello"), first)]
    monkeypatch.setattr(engine, "_tokens", lambda *_: (token for token in [*engine.tokenizer.encode(first), 265]))
    assert "".join(engine.reply([], Typed("hello"))) == first
    assert not engine.figures.repeated
    assert "".join(engine.reply(history, Typed("hello"))) == first
    assert engine.figures.repeated


def test_a_copy_of_the_last_reply_becomes_less_likely() -> None:
    def change(generated: list[int]) -> list[float]:
        logits = torch.zeros(9)
        discourage_copy(logits, generated, [1, 2, 3, 4, 5])
        return logits.tolist()

    assert change([1, 2, 3]) == [0, 0, 0, 0, -2, 0, 0, 0, 0]
    assert not any(change([1, 2]) + change([1, 2, 8]) + change([1, 2, 3, 4, 5]))


@pytest.mark.parametrize(
    ("detail", "label", "candidates", "expected"),
    [
        ("emotion", "sad", (), "hi (sad)"),
        ("emotion", "neutral", (), "hi"),
        ("emotion", "unsure", ("sad", "neutral"), "hi"),
        ("candidates", "surprise", (), "hi (surprised)"),
        ("candidates", "neutral", (), "hi (neutral)"),
        ("candidates", "unsure", ("sad", "neutral"), "hi (sad or neutral)"),
        ("candidates", "unsure", (), "hi"),
    ],
)
def test_the_prompt_tells_the_tone(
    monkeypatch: pytest.MonkeyPatch, detail: str, label: str, candidates: tuple[str, ...], expected: str
) -> None:
    settings = {"path": "transcript", "tone_template": "{words} ({tone})", "tone_detail": detail}
    engine = Engine(tiny_checkpoint(**settings))
    reading = EmotionReading(np.ones(5, np.float32), label, 0.02, np.zeros((1, 5)), np.zeros(5), candidates)
    spoken = recording(1)
    monkeypatch.setattr(engine, "hear", lambda _: Hearing(0, reading, "", 0.0, None, []))
    monkeypatch.setattr(engine, "transcript", lambda _: Transcript("hi", "en"))
    assert engine.content(spoken, {}) == expected
