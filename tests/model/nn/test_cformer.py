"""The CFormer adapter: what integrate-and-fire promises, and that rows do not see each other."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperConfig

from model.nn.cformer import CFormerAdapter, fire
from tests.support.tiny import tiny_model


def adapter(seed: int = 0) -> CFormerAdapter:
    torch.manual_seed(seed)
    config = WhisperConfig(d_model=32, encoder_attention_heads=4, encoder_ffn_dim=48, attn_implementation="sdpa")
    built = CFormerAdapter(config, text_size=24, vocabulary=50, pre_layers=1, post_layers=2).eval()
    torch.nn.init.normal_(built.pre_layers[0].fc2.weight, std=0.5)
    return built


@given(st.lists(st.floats(0.01, 3.0), min_size=1, max_size=30))
def test_every_token_gets_weight_one_and_no_frame_is_lost(given_weights: list[float]) -> None:
    weights = torch.tensor([given_weights], dtype=torch.float64)
    count = max(1, round(float(weights.sum())))
    weights = weights * count / weights.sum()
    shares = fire(weights, torch.eye(weights.shape[1], dtype=torch.float64)[None], count)
    assert torch.allclose(shares.sum(2), torch.ones(1, count, dtype=torch.float64))
    assert torch.allclose(shares.sum(1), weights)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 5))
def test_rows_do_not_see_each_other(lengths: list[int], seed: int) -> None:
    built = adapter()
    encoded = torch.randn(len(lengths), max(lengths) + 3, 32, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        frames, mask = built(encoded, torch.tensor(lengths))
        for row, length in enumerate(lengths):
            alone, valid = built(encoded[row : row + 1, :length], torch.tensor([length]))
            assert int(mask[row].sum()) == int(valid.sum()) == alone.shape[1]
            assert torch.allclose(frames[row, : alone.shape[1]], alone[0], atol=1e-5)


def test_counts_may_be_given_and_are_met() -> None:
    built, encoded = adapter(), torch.randn(2, 40, 32)
    with torch.inference_mode():
        made = built.integrate(encoded, torch.tensor([40, 25]), torch.tensor([7, 3]))
    assert made.mask.sum(1).tolist() == [7, 3]
    assert torch.allclose(made.weights.sum(1), torch.tensor([7.0, 3.0]))
    assert made.frames.shape == (2, 7, 24)
    assert made.hidden.shape == (2, 7, 32)


def test_a_reading_of_tokens_spans_the_utterance() -> None:
    from assistant.events import Spoken
    from model.inference.engine import Engine
    from tests.model.inference.test_engine import recording
    from tests.support.tiny import tiny_checkpoint

    checkpoint = tiny_checkpoint(adapter_type="cformer", cformer_pre_layers=1, cformer_post_layers=1)
    said: Spoken = recording(2)
    reading = Engine(checkpoint).hear(said).reading
    assert reading is not None
    seconds = reading.frame_seconds * len(reading.contributions)
    assert abs(seconds - len(said.samples) / 16_000) < 1e-6


def test_it_is_part_of_a_model() -> None:
    model = tiny_model(adapter_type="cformer", cformer_pre_layers=1, cformer_post_layers=1, cformer_heads=4)
    assert isinstance(model.adapter, CFormerAdapter)
    assert model.adapter.token_head.weight.shape == (300, 32)


def test_tokens_are_counted_in_float32_whatever_the_weights_are() -> None:
    built = adapter().bfloat16()
    encoded = torch.randn(4, 1400, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
    with torch.inference_mode():
        made = built.integrate(encoded, torch.tensor([1400, 900, 333, 7]))
    assert made.weights.dtype == torch.float32
    assert made.frames.dtype == torch.bfloat16
    counts = made.mask.sum(1)
    assert int(counts.max()) > 256, "beyond what bfloat16 counts exactly"
    assert torch.equal(counts, made.mass.round().clamp(min=1).long())
    assert torch.allclose(made.weights.sum(1), counts.float(), rtol=1e-5)
