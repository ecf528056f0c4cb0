"""Language models out of GGUF files: the model that comes out is the one that went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from model.errors import WeightsMissing
from model.weights import fetch
from model.weights.gguf_reader import QWEN2_WORDS, build_tokenizer, unpermute
from tests.model.support.artifacts import converted

LETTERS = [chr(33 + index) for index in range(94)] + ["Ġ", "Ċ"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def vocabulary(first: bool) -> tuple[list[str], list[int], list[str]]:
    """Tokens, token types and merges: the specials lead (SmolLM2), or follow with a padded id (Qwen)."""
    merges = ["t h", "th e", "Ġ the", "1 2", "i t"]
    texts = LETTERS + [merge.replace(" ", "") for merge in merges]
    if first:
        return SPECIALS + texts, [3] * 3 + [1] * len(texts), merges
    return [*texts, *SPECIALS, "[PAD]"], [1] * len(texts) + [3] * 3 + [5], merges


def write_gguf(path: Path, model: PreTrainedModel, pre: str, output: bool = False) -> None:
    """Write a llama or qwen2 model as llama.cpp's converter does: rows of llama's q and k interleaved."""
    config = model.config
    architecture = config.model_type
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokens, types, merges = vocabulary(first=pre == "smollm")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    ids = {text: tokens.index(text) for text in SPECIALS}
    writer.add_bos_token_id(ids["<|im_start|>"])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_chat_template(CHAT)
    modules = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if output:
        writer.add_tensor("output.weight", model.state_dict()["lm_head.weight"].float().numpy())
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = tensor.float().numpy()
        if name in whole:
            # With the tied matrix written twice, this copy is coarse: all zeros, to be told from the other.
            coarse = output and "embed_tokens" in name
            writer.add_tensor(whole[name], array * (not coarse))
            continue
        _, _, block, module_kind = name.split(".", 3)
        module, kind = module_kind.rsplit(".", 1)
        if architecture == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if "q_proj" in module else config.num_key_value_heads
            halves = array.reshape(heads, 2, -1, array.shape[1])
            array = np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(array.shape)
        raw = None
        if module == "mlp.up_proj":
            array, raw = quantize(array, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0
        writer.add_tensor(f"blk.{block}.{modules[module]}.{kind}", array, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny(kind: str) -> PreTrainedModel:
    torch.manual_seed(1)
    common: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "rms_norm_eps": 1e-5,
        "vocab_size": len(vocabulary(kind == "llama")[0]), "initializer_range": 0.3,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**common)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**common))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.half().float().eval()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("kind", "pre", "output"), [("llama", "smollm", False), ("qwen2", "qwen2", True)])
def test_a_causal_lm_folder_answers_like_the_model_that_went_in(
    tmp_path: Path, kind: str, pre: str, output: bool
) -> None:
    (tmp_path / "raw").mkdir()
    original = tiny(kind)
    write_gguf(tmp_path / "raw" / "model.gguf", original, pre, output)
    out = converted("causal-lm-gguf", tmp_path / "raw")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert type(loaded) is type(original)
    ids = torch.arange(24)[None] * 3
    with torch.no_grad():
        theirs, ours = original(ids).logits, loaded(ids).logits
    # up_proj went through 8 bits and back: everything else is exact.
    assert (theirs - ours).abs().max() < 0.03 * theirs.abs().max()
    exact = {name: tensor for name, tensor in original.state_dict().items() if "up_proj" not in name}
    for name, tensor in exact.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "it"}], tokenize=False) == "it"
    tokens = vocabulary(kind == "llama")[0]
    assert tokenizer("the<|im_end|>it").input_ids == [tokens.index(text) for text in ("the", "<|im_end|>", "it")]
    assert tokenizer.eos_token == "<|im_end|>"
    assert sorted(loaded.generation_config.eos_token_id) == sorted(map(tokens.index, SPECIALS[::2]))


@given(heads=st.integers(1, 4), half=st.integers(1, 4), position=st.floats(0, 100))
@settings(deadline=None)
def test_unpermuted_rows_turn_with_their_other_half(heads: int, half: int, position: float) -> None:
    """Turning neighbours in the file's order is turning row i with row i + h/2 in the restored order."""
    stored = np.random.default_rng(0).normal(size=(heads * 2 * half, 3))
    angles = position / 100.0 ** (np.arange(half) / half)
    cos, sin = np.cos(angles)[None, :, None], np.sin(angles)[None, :, None]
    pairs = stored.reshape(heads, half, 2, 3)
    even, odd = pairs[:, :, 0], pairs[:, :, 1]
    turned = np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=2).reshape(stored.shape)
    restored = unpermute(stored, heads).reshape(heads, 2, half, 3)
    low, high = restored[:, 0], restored[:, 1]
    expected = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=1).reshape(stored.shape)
    np.testing.assert_allclose(unpermute(turned, heads), expected, atol=1e-12)


def fields(pre: str) -> dict[str, Any]:
    tokens, types, merges = vocabulary(first=pre == "smollm")
    names = ("tokens", "token_type", "merges", "pre")
    return {f"tokenizer.ggml.{name}": value for name, value in zip(names, (tokens, types, merges, pre), strict=True)}


def test_smollm_keeps_digits_apart_and_qwen_splits_as_transformers_does() -> None:
    assert build_tokenizer(fields("smollm")).encode("12 the").tokens == ["1", "2", "Ġthe"]
    assert QWEN2_WORDS == PRETOKENIZE_REGEX


PIECES = st.sampled_from([*map(chr, range(33, 127)), " ", "\n", "the", " the", "12", *SPECIALS])
TEXTS = st.lists(PIECES, max_size=30).map("".join)


@given(text=TEXTS)
@settings(deadline=None)
def test_the_qwen_tokenizer_cuts_like_transformers_own(text: str) -> None:
    tokens, types, merges = vocabulary(first=False)
    ordinary = {token: index for index, token in enumerate(tokens) if types[index] == 1}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    reference = Qwen2Tokenizer(vocab=ordinary, merges=pairs, extra_special_tokens=SPECIALS[1:])
    assert build_tokenizer(fields("qwen2")).encode(text).ids == reference(text).input_ids


@pytest.mark.parametrize("pre", ["smollm", "qwen2"])
@given(text=TEXTS)
@settings(deadline=None)
def test_tokens_give_back_their_text(pre: str, text: str) -> None:
    tokenizer = build_tokenizer(fields(pre))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("change", [{"pre": "llama-bpe"}, {"architecture": "gemma"}])
def test_an_unknown_gguf_is_named_as_such(tmp_path: Path, change: dict[str, str]) -> None:
    (tmp_path / "raw").mkdir()
    model = tiny("llama")
    model.config.model_type = change.get("architecture", "llama")
    write_gguf(tmp_path / "raw" / "model.gguf", model, change.get("pre", "smollm"))
    with pytest.raises(WeightsMissing, match=next(iter(change.values()))):
        converted("causal-lm-gguf", tmp_path / "raw")


@pytest.mark.real
@pytest.mark.usefixtures("quiet")
def test_real_smollm2_knows_the_capital_of_france() -> None:
    folder = fetch.ensure("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        reply = model.generate(**prompt, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply, skip_special_tokens=True)
