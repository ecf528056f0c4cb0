"""The parts of the model: adapter, partial LoRA, int8, decode step, batch invariance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model.audio.features import encode
from model.inference.kv_cache import Decoder, KeyValueCache
from model.nn.adapter import ConvAdapter
from model.nn.int8 import Int8Linear, join, quantize_int8, quantize_rows
from model.nn.speech_llm import SPEECH_ID
from model.nn.transcribe import _repeated
from tests.support.tiny import tiny_model

SIZES = {
    "vocab_size": 200,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}


def language_models() -> list:
    torch.manual_seed(1)
    models = [
        LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=8)),
        LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True)),
        Qwen2ForCausalLM(Qwen2Config(**SIZES)),
        # The lean loop would get these wrong; they must take their own forward.
        LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")),
        MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)),
        LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=24, rope_parameters=DYNAMIC)),
    ]
    for model in models:
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            elif "bias" in name:
                torch.nn.init.normal_(parameter)
    return [model.eval() for model in models]


@pytest.mark.parametrize("index", range(5))
def test_decode_steps_equal_generate(index: int) -> None:
    model = language_models()[index]
    prompt = torch.randint(0, 200, (1, 17))
    expected = model.generate(prompt, max_new_tokens=40, do_sample=False)[0, 17:].tolist()
    cache, decoder = KeyValueCache(3), Decoder(model)
    with torch.inference_mode():
        logits = model(prompt, past_key_values=cache, use_cache=True).logits[0, -1]
    assert (decoder.lean is not None) == (index < 3)
    tokens = [int(logits.argmax())]
    while len(tokens) < 40:
        tokens.append(int(decoder.step(tokens[-1], cache).argmax()))
    assert tokens == expected


def test_a_rotation_that_depends_on_the_length_is_not_stepped_by_the_lean_loop() -> None:
    assert Decoder(language_models()[5]).lean is None


def test_a_cropped_cache_continues_as_a_fresh_one_and_grows_past_its_capacity() -> None:
    model = language_models()[2]
    decoder, tokens = Decoder(model), torch.randint(0, 200, (1, 600))
    with torch.inference_mode():
        long, short = KeyValueCache(3), KeyValueCache(3)
        model(tokens, past_key_values=long, use_cache=True)
        long.keep(20)
        model(tokens[:, :20], past_key_values=short, use_cache=True)
    for token in range(30):
        assert torch.allclose(decoder.step(token, long), decoder.step(token, short), atol=1e-4)


@given(st.integers(1, 7), st.integers(2, 40), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_an_int8_row_does_not_depend_on_its_neighbours(rows: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = Int8Linear.of(torch.nn.Linear(size, 24))
    hidden = torch.randn(rows, size) * torch.logspace(-3, 3, rows)[:, None]
    together = layer(hidden)
    for index in range(rows):
        assert torch.equal(together[index], layer(hidden[index]))


@given(st.integers(1, 64), st.integers(0, 2**31), st.floats(1e-6, 1e6))
@settings(max_examples=40, deadline=None)
def test_int8_stays_within_half_a_step(size: int, seed: int, level: float) -> None:
    torch.manual_seed(seed)
    values = torch.randn(3, size) * level
    quantised, scale = quantize_rows(values)
    assert ((quantised * scale - values).abs() <= scale * 0.5001).all()


def test_int8_leaves_a_row_of_zeros_alone() -> None:
    layer = Int8Linear.of(torch.nn.Linear(8, 4, bias=False))
    assert torch.equal(layer(torch.zeros(2, 8)), torch.zeros(2, 4))


def test_joined_layers_share_their_weights() -> None:
    layers = [torch.nn.Linear(16, n) for n in (4, 12, 8)]
    hidden = torch.randn(2, 16)
    expected = torch.cat([layer(hidden) for layer in layers], dim=-1)
    joined = join(layers)
    assert torch.allclose(joined(hidden), expected, atol=1e-6)
    assert torch.allclose(torch.cat([layer(hidden) for layer in layers], dim=-1), expected, atol=1e-6)
    assert layers[1].weight.untyped_storage().data_ptr() == joined.weight.untyped_storage().data_ptr()


def test_int8_costs_little_and_decodes_like_its_own_prefill() -> None:
    model = language_models()[0]
    tokens = torch.randint(0, 200, (1, 30))
    with torch.inference_mode():
        exact = model(tokens).logits
        quantize_int8(model)
        rounded = model(tokens).logits
        assert (rounded - exact).abs().mean() < 0.05 * exact.std()
        cache, decoder = KeyValueCache(3), Decoder(model)
        model(tokens[:, :1], past_key_values=cache, use_cache=True)
    for index in range(1, 30):
        assert torch.allclose(decoder.step(int(tokens[0, index]), cache), rounded[0, index], atol=2e-3)


def test_the_encoder_equals_the_stock_one_at_thirty_seconds() -> None:
    model = tiny_model()
    encoder: WhisperEncoder = model.encoder
    features = torch.randn(1, 80, 3000)
    with torch.inference_mode():
        stock = encoder(features).last_hidden_state
        assert torch.allclose(encode(encoder, features)[-1], stock, atol=1e-6)
        assert encode(encoder, features[:, :, :700])[-1].shape == (1, 350, 32)


@given(st.lists(st.integers(1, 61), min_size=2, max_size=4), st.integers(1, 4), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_adapter_rows_do_not_see_padding(lengths: list[int], layers: int, seed: int) -> None:
    torch.manual_seed(seed)
    adapter = ConvAdapter(12, 20, 6, [5] * layers)
    encoded = torch.randn(len(lengths), max(lengths), 12) * 3
    with torch.inference_mode():
        frames, mask = adapter(encoded, torch.tensor(lengths))
        for row, length in enumerate(lengths):
            alone, _ = adapter(encoded[row : row + 1, :length], torch.tensor([length]))
            assert int(mask[row].sum()) == alone.shape[1] == int(adapter.frames(torch.tensor(length)))
            assert torch.allclose(frames[row, : alone.shape[1]], alone[0], atol=1e-5)


def speech_batch(model, lengths: list[int], texts: list[tuple[int, int]]) -> tuple:
    """Left-padded prompts: text, speech, text; returns ids, mask, features, encoder lengths."""
    features = torch.randn(len(lengths), 80, 200)
    frames = model.adapter.frames(torch.tensor(lengths))
    rows = [
        torch.cat([torch.arange(a) + 3, torch.full((int(n),), SPEECH_ID), torch.arange(b) + 50])
        for (a, b), n in zip(texts, frames, strict=True)
    ]
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.long), row]) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    return ids, mask, features


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 12), st.integers(1, 12)), min_size=2, max_size=4),
    st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_a_row_is_the_same_alone_and_in_any_padded_batch(rows: list[tuple[int, int, int]], seed: int) -> None:
    model = tiny_model(seed % 3)
    lengths, texts = [row[0] for row in rows], [row[1:] for row in rows]
    ids, mask, features = speech_batch(model, lengths, texts)
    with torch.inference_mode():
        heard = model.hear(features, torch.tensor(lengths))
        speech = torch.cat([frames[kept] for frames, kept in zip(heard.frames, heard.mask, strict=True)])
        together = model(ids, mask, speech).logits
        emotions = model.emotion_head(heard.emotion_frames, heard.emotion_mask)
        for row, length in enumerate(lengths):
            alone = model.hear(features[row : row + 1], torch.tensor([length]))
            kept = mask[row].bool()
            logits = model(ids[row : row + 1, kept], None, alone.frames[0]).logits
            assert torch.allclose(together[row, kept], logits[0], atol=1e-4)
            emotion = model.emotion_head(alone.emotion_frames, alone.emotion_mask)
            assert torch.allclose(emotions[row], emotion[0], atol=1e-4)
        assert together.isfinite().all()


def test_lora_acts_on_speech_positions_only() -> None:
    model = tiny_model(lora_scope="audio")
    plain = tiny_model(lora_scope="audio")
    for name, parameter in plain.named_parameters():
        if "lora_b" in name:
            parameter.data.zero_()
    ids = torch.tensor([[5, 6, 7, SPEECH_ID, SPEECH_ID, 8]])
    speech = torch.randn(2, 48)
    with torch.inference_mode():
        ours, base = model(ids, None, speech).logits[0], plain(ids, None, speech).logits[0]
        assert torch.equal(ours[:3], base[:3])
        assert (ours[3:] - base[3:]).abs().max() > 1e-2
        text = torch.tensor([[5, 6, 7, 8]])
        assert torch.equal(model(text).logits, plain(text).logits)


def test_a_checkpoint_survives_saving(tmp_path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.config.to_dict()["lora_rank"] == 4
    for (name, one), (other_name, other) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("ids", "repeated"),
    [
        ([], 0),
        ([1, 2, 3], 0),
        ([7] * 8, 0),
        ([7] * 12, 11),
        ([5, *[1, 2, 3, 4] * 3], 8),
        ([5, *[1, 2, 3, 4] * 2], 0),
        ([*range(9)] * 3, 18),
    ],
)
def test_a_transcript_that_runs_in_circles_is_cut(ids: list[int], repeated: int) -> None:
    assert _repeated(ids) == repeated
