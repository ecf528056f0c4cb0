"""Batched replies: the original's ids in its own batches, and ours, where no row depends on its neighbours."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, GPTNeoXConfig

from model.audio.files import read_audio
from model.checkpoints.loader import Checkpoint
from model.inference.batch import Prompt, generate, hear
from model.nn.long_prompts import LongPrompts
from model.nn.speech_llm import SPEECH_ID
from tests.support.converted import GOLDENS, VARIANTS, converted, golden
from tests.support.tiny import tiny_checkpoint

END, START, PAD, NEWLINE = 1282, 1281, 1280, 198


def cases(variant: str) -> dict[str, dict]:
    """The stored greedy generations; beams are another search, and a tie may fall either way."""
    stored = golden(f"numeric/{variant}/generate")
    return {name: case for name, case in stored.items() if case.get("tie_risk") is False}


def prompts(checkpoint: Checkpoint, case: dict, *, legacy: bool) -> list[Prompt]:
    def real(side: str) -> list[list[int]]:
        pairs = zip(case[f"{side}_ids"], case[f"{side}_mask"], strict=True)
        return [[id_ for id_, kept in zip(*row, strict=True) if kept] for row in pairs]

    names = case["audio"] or []
    recordings = [read_audio(GOLDENS / "audio" / f"{name}.wav") for name in names]
    speech = hear(checkpoint, recordings, legacy_batching=legacy) or [None] * len(case["prefix_ids"])
    return [Prompt(*row) for row in zip(real("prefix"), real("suffix"), speech, strict=True)]


def greedy(case: dict) -> GenerationConfig:
    own = case["settings"]
    return GenerationConfig(
        max_new_tokens=own["max_new_tokens"],
        min_new_tokens=1,
        repetition_penalty=own["repetition_penalty"],
        eos_token_id=[END, START, PAD],
        pad_token_id=PAD,
    )


def as_returned(replies: list[list[int]], length: int) -> list[list[int]]:
    """Replies as the original returned them: behind the bookkeeping newline, padded."""
    return [([NEWLINE, *reply] + [PAD] * length)[:length] for reply in replies]


@contextmanager
def lora_scope(checkpoint: Checkpoint, name: str):
    config = checkpoint.model.config
    own = config.lora_scope
    config.lora_scope = name.split("_")[2] if name.startswith("scope_override") else own
    yield
    config.lora_scope = own


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_original_s_ids(variant: str) -> None:
    checkpoint, compared = converted(variant), 0
    for name, case in cases(variant).items():
        expected = case["returned_ids"]
        legacy = len(expected) > 1
        with lora_scope(checkpoint, name):
            rows = prompts(checkpoint, case, legacy=legacy)
            ours = generate(checkpoint.model, checkpoint.tokenizer, rows, greedy(case), legacy_batching=legacy)
        assert as_returned(ours, len(expected[0])) == expected, name
        compared += 1
    assert compared >= 9


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_batch_equals_the_original_s_single_rows(variant: str) -> None:
    checkpoint, stored = converted(variant), cases(variant)
    batch = stored["batch3"]
    ours = generate(checkpoint.model, checkpoint.tokenizer, prompts(checkpoint, batch, legacy=False), greedy(batch))
    single = [stored[name]["returned_ids"][0] for name in ("single_s", "single_m", "single_l")]
    assert [as_returned([reply], len(alone))[0] for reply, alone in zip(ours, single, strict=True)] == single
    assert [alone[:25] for alone in single] != [row[:25] for row in batch["returned_ids"]], "the case can fail"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_long_prompt_keeps_its_rules_beside_short_ones(legacy: bool) -> None:
    checkpoint, stored = converted("b"), cases("b")
    settings_ = greedy(stored["long1"])
    rows = [row for name in ("long1", "text1") for row in prompts(checkpoint, stored[name], legacy=False)]
    rules = checkpoint.model.long_prompts
    assert isinstance(rules, LongPrompts)
    rules.active = False  # as an engine leaves it that will never have a long prompt
    together = generate(checkpoint.model, checkpoint.tokenizer, rows, settings_, legacy_batching=legacy)
    if not legacy:
        assert together == [generate(checkpoint.model, checkpoint.tokenizer, [row], settings_)[0] for row in rows]
    assert as_returned(together[:1], 13) == stored["long1"]["returned_ids"]


def plain(**changes: object) -> GenerationConfig:
    return GenerationConfig(**({"max_new_tokens": 8, "eos_token_id": 265, "pad_token_id": 265} | changes))


def row(seed: int, before: int, frames: int, after: int, width: int = 48) -> Prompt:
    """A random prompt; each row has its own seed."""
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 260, (before + after,), generator=source).tolist()
    speech = torch.randn(frames, width, generator=source) if frames else None
    return Prompt(ids[:before], ids[before:], speech, seed)


def alone(checkpoint: Checkpoint, rows: list[Prompt], settings_: GenerationConfig) -> list[list[int]]:
    return [generate(checkpoint.model, checkpoint.tokenizer, [one], settings_)[0] for one in rows]


@pytest.mark.parametrize("scope", ["audio", "text", "global"])
def test_no_row_depends_on_its_neighbours(scope: str) -> None:
    checkpoint = tiny_checkpoint(1, lora_scope=scope)

    @settings(max_examples=6, deadline=None)
    @given(
        shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20), st.integers(1, 5)), min_size=2, max_size=4),
        seed=st.integers(0, 1000),
        sample=st.booleans(),
        penalty=st.sampled_from([1.0, 1.3]),
    )
    def check(shapes: list[tuple[int, int, int]], seed: int, sample: bool, penalty: float) -> None:
        rows = [row(seed + at, *shape) for at, shape in enumerate(shapes)]
        own = plain(do_sample=sample, repetition_penalty=penalty, **({"temperature": 0.7} if sample else {}))
        together = generate(checkpoint.model, checkpoint.tokenizer, rows, own)
        assert together == alone(checkpoint, rows, own)

    check()


def test_other_language_models_batch_too() -> None:
    other = GPTNeoXConfig(
        vocab_size=300, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    checkpoint = tiny_checkpoint(text_config=other, lora_targets=["query_key_value", "dense"])
    rows = [row(1, 5, 9, 2), row(2, 30, 0, 2), row(3, 11, 4, 2)]
    together = generate(checkpoint.model, checkpoint.tokenizer, rows, plain())
    assert together == alone(checkpoint, rows, plain())
    assert len({tuple(reply) for reply in together}) == 3


def test_the_original_s_layout_moves_what_follows_a_short_recording() -> None:
    checkpoint = tiny_checkpoint()
    rows = [row(1, 5, 9, 2), row(2, 40, 3, 2)]
    ours = generate(checkpoint.model, checkpoint.tokenizer, rows, plain())
    legacy = generate(checkpoint.model, checkpoint.tokenizer, rows, plain(), legacy_batching=True)
    assert ours[0] == legacy[0], "padding before a row moves all of it, and rotary positions are relative"
    assert ours[1] != legacy[1], "padding within it does not"


@pytest.mark.parametrize("legacy", [False, True])
def test_padding_stays_finite(legacy: bool) -> None:
    """A padded slot that attends to nothing must not become NaN: it would spread over its row."""
    checkpoint = tiny_checkpoint()
    ids = torch.tensor([[265] * 9 + [7], [5] * 4 + [SPEECH_ID] * 5 + [7]])
    mask = torch.tensor([[0] * 9 + [1], [1] * 10])
    with torch.inference_mode():
        output = checkpoint.model(ids, mask, torch.randn(5, 48), legacy_batching=legacy, output_hidden_states=True)
    assert all(bool(hidden.isfinite().all()) for hidden in (*output.hidden_states, output.logits))


def test_the_first_end_ends_a_reply_and_the_others_go_on() -> None:
    checkpoint = tiny_checkpoint()
    rows = [row(seed, 6 + seed, 0, 2) for seed in range(4)]
    free = generate(checkpoint.model, checkpoint.tokenizer, rows, plain(eos_token_id=299, pad_token_id=299))
    assert all(len(reply) == 8 for reply in free)
    end = free[0][3]
    stopped = generate(checkpoint.model, checkpoint.tokenizer, rows, plain(eos_token_id=[end, 299], pad_token_id=299))
    expected = [reply[: reply.index(end) + 1] if end in reply else reply for reply in free]
    assert stopped == expected
    assert len(stopped[0]) < 8


class Fixed(torch.nn.Module):
    """An output layer that prefers the given tokens, in any state."""

    def __init__(self, **scores: float) -> None:
        super().__init__()
        self.weight = torch.zeros(300)
        for token, score in scores.items():
            self.weight[int(token[1:])] = score

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(*hidden.shape[:2], -1).clone()


def scripted(**scores: float) -> Checkpoint:
    checkpoint = tiny_checkpoint()
    checkpoint.model.language_model.lm_head = Fixed(**scores)
    return checkpoint


@pytest.mark.parametrize(("least", "length"), [(0, 1), (1, 1), (2, 2), (6, 6)])
def test_the_shortest_reply_counts_its_end(least: int, length: int) -> None:
    """As in the original an end of turn may come at once where one token is wanted."""
    checkpoint = scripted(t8=3.0, t7=2.0)
    own = plain(min_new_tokens=least, eos_token_id=[8, 299], pad_token_id=299)
    reply = generate(checkpoint.model, checkpoint.tokenizer, [row(1, 3, 0, 1)], own)
    assert reply == [[7] * (length - 1) + [8]]


def test_padding_is_no_first_token() -> None:
    checkpoint = scripted(t8=3.0, t7=2.0)
    own = plain(min_new_tokens=1, eos_token_id=[8], pad_token_id=8)
    assert generate(checkpoint.model, checkpoint.tokenizer, [row(1, 3, 0, 1)], own) == [[7, 8]]


@pytest.mark.parametrize(("scope", "expected"), [("prompt", [9, 7, 7]), ("reply", [7, 5, 9])])
def test_a_penalty_sees_the_prompt_or_the_reply_alone(scope: str, expected: list[int]) -> None:
    checkpoint = scripted(t7=2.0, t5=1.5, t9=1.2)
    checkpoint.model.config.penalty_scope = scope
    newline = checkpoint.tokenizer.encode("\n")[0]
    checkpoint.model.language_model.lm_head.weight[newline] = 3.0 if scope == "reply" else 0.0
    own = plain(repetition_penalty=4.0, max_new_tokens=3)
    assert generate(checkpoint.model, checkpoint.tokenizer, [Prompt([7, 3], [5])], own) == [expected]


def test_a_sample_depends_on_its_seed_alone() -> None:
    checkpoint = tiny_checkpoint()
    own = plain(do_sample=True, temperature=1.5, top_p=0.95, top_k=50)
    seeds = [Prompt([3, 4], [5], None, seed) for seed in range(12)]
    torch.manual_seed(1)
    first = generate(checkpoint.model, checkpoint.tokenizer, seeds, own)
    before = torch.get_rng_state()
    assert generate(checkpoint.model, checkpoint.tokenizer, seeds[::-1], own)[::-1] == first
    assert torch.equal(before, torch.get_rng_state()), "the caller's chances are its own"
    assert len({tuple(reply) for reply in first}) > 6
    cold = plain(do_sample=True, temperature=1e-4, top_p=1.0)
    best = generate(checkpoint.model, checkpoint.tokenizer, seeds[:1], plain())[0]
    assert generate(checkpoint.model, checkpoint.tokenizer, seeds, cold) == [best] * 12


def test_recordings_are_heard_by_themselves_and_long_ones_whole() -> None:
    checkpoint = converted("a")
    speech = read_audio(GOLDENS / "audio" / "speech_11s.wav")
    short = read_audio(GOLDENS / "audio" / "speech_1p2s.wav")
    long = torch.from_numpy(speech).repeat(4).numpy()
    together = hear(checkpoint, [short, long])
    assert torch.equal(together[0], hear(checkpoint, [short])[0])
    assert len(together[1]) > len(long) / 16_000 / 0.16 - 2
    legacy = hear(checkpoint, [short, long], legacy_batching=True)
    assert len(legacy[1]) == 188, "the original hears 30 s"
    assert (legacy[0][-1] - together[0][-1]).abs().max() > 1e-3, "and what lies behind a row's end"


def test_nothing_to_answer() -> None:
    checkpoint = tiny_checkpoint()
    assert generate(checkpoint.model, checkpoint.tokenizer, [], plain()) == []
    assert hear(checkpoint, [], legacy_batching=True) == []
