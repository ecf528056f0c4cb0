"""Whisper out of CTranslate2 files: the model that comes out is the one that went in."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from model.errors import WeightsMissing
from model.weights import fetch
from model.weights.ct2 import read_ct2, whisper_tokenizer
from tests.model.support.artifacts import converted

Array = NDArray[Any]


def write_ct2(path: Path, variables: dict[str, Array], aliases: dict[str, str], version: int = 6) -> None:
    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data += string(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        data += struct.pack("<BI", codes[str(array.dtype)], array.nbytes) + array.tobytes()
    data += struct.pack("<I", len(aliases)) + b"".join(string(a) + string(b) for a, b in aliases.items())
    path.write_bytes(data)


def as_ct2(model: WhisperForConditionalGeneration) -> dict[str, Array]:
    """The variables that CTranslate2 keeps of a Whisper model, projections fused."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    state |= {name.replace(".weight", ".bias"): np.zeros(len(array), np.float16)
              for name, array in state.items() if name.endswith("k_proj.weight")}  # fmt: skip
    out: dict[str, Array] = {}

    def linear(target: str, *sources: str, kinds: tuple[str, str] = ("weight", "bias")) -> None:
        for kind, stored in zip(("weight", "bias"), kinds, strict=True):
            out[f"{target}/{stored}"] = np.concatenate([state[f"model.{source}.{kind}"] for source in sources])

    for side, count in (("encoder", model.config.encoder_layers), ("decoder", model.config.decoder_layers)):
        out[f"{side}/num_heads"] = np.array(model.config.encoder_attention_heads, np.int16)
        out[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        norms = {f"{side}/layer_norm": f"{side}.layer_norm"}
        for index in range(count):
            here, there = f"{side}/layer_{index}", f"{side}.layers.{index}"
            attentions = {"self_attention": "self_attn"} | ({"attention": "encoder_attn"} if side == "decoder" else {})
            for theirs, ours in attentions.items():
                query, key, value = (f"{there}.{ours}.{letter}_proj" for letter in "qkv")
                fused = [(query, key, value)] if ours == "self_attn" else [(query,), (key, value)]
                for number, sources in enumerate([*fused, (f"{there}.{ours}.out_proj",)]):
                    linear(f"{here}/{theirs}/linear_{number}", *sources)
                norms[f"{here}/{theirs}/layer_norm"] = f"{there}.{ours}_layer_norm"
            linear(f"{here}/ffn/linear_0", f"{there}.fc1")
            linear(f"{here}/ffn/linear_1", f"{there}.fc2")
            norms[f"{here}/ffn/layer_norm"] = f"{there}.final_layer_norm"
        for target, source in norms.items():
            linear(target, source, kinds=("gamma", "beta"))
    for name in ("conv1", "conv2"):
        linear(f"encoder/{name}", f"encoder.{name}")
    out["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    out["decoder/scale_embeddings"] = np.array(0, np.int8)
    return out


def whisper_tokenizer_file(older: bool) -> dict[str, Any]:
    silence = "nocaptions" if older else "nospeech"
    tasks = ["transcribe", "translate", "startoflm", "startofprev", silence, "notimestamps"]
    names = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", *(f"<|{task}|>" for task in tasks)]
    vocabulary = {"abcdefghijklmnopqrt"[index]: index for index in range(19)} | {"ab": 19, "Ġ": 20, "Ġt": 21}
    added = [(22 + index, text, True) for index, text in enumerate(names)]
    if not older:
        added += [(32 + step, f"<|{step * 0.02:.2f}|>", False) for step in range(1501)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": text, **flags, "normalized": not special, "special": special}
            for index, text, special in added
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": vocabulary | ({"<|endoftext|>": 22} if older else {}),
            "merges": ["a b"] if older else [["Ġ", "t"], ["a", "b"]],
        },
    }


@pytest.fixture(scope="module")
def whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=80, vocab_size=1533, max_source_positions=50,
        max_target_positions=20, pad_token_id=22, bos_token_id=22, eos_token_id=22, decoder_start_token_id=23,
        begin_suppress_tokens=[1, 22],
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).half().eval()


@pytest.fixture
def ct2_folder(tmp_path: Path, whisper: WhisperForConditionalGeneration) -> Path:
    raw = tmp_path / "raw"
    raw.mkdir()
    alias = {"decoder/projection/weight": "decoder/embeddings/weight"}
    write_ct2(raw / "model.bin", as_ct2(whisper), alias)
    (raw / "tokenizer.json").write_text(json.dumps(whisper_tokenizer_file(older=True)), "utf-8")
    settings = {"alignment_heads": [[0, 1]], "lang_ids": [24, 25], "suppress_ids": [3], "suppress_ids_begin": [1, 22]}
    (raw / "config.json").write_text(json.dumps(settings), "utf-8")
    return raw


@pytest.mark.usefixtures("quiet")
def test_a_whisper_folder_holds_the_model_that_went_in(
    ct2_folder: Path, whisper: WhisperForConditionalGeneration
) -> None:
    out = converted("whisper-ctranslate2", ct2_folder)
    loaded = WhisperForConditionalGeneration.from_pretrained(out)
    state, original = loaded.state_dict(), whisper.state_dict()
    assert state.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(state[name], tensor), name
    assert loaded.dtype == torch.float16
    assert loaded.proj_out.weight is loaded.model.decoder.embed_tokens.weight
    theirs, ours = whisper.config.to_dict(), loaded.config.to_dict()
    named = {"architectures", "dtype", "_name_or_path", "transformers_version", "num_hidden_layers"}
    assert {key for key in theirs if theirs[key] != ours[key]} <= named
    extractor = WhisperFeatureExtractor.from_pretrained(out)
    default = WhisperFeatureExtractor(feature_size=80)
    theirs, ours = default.to_dict(), extractor.to_dict()
    assert {key for key in theirs if theirs[key] != ours[key]} <= {"processor_class"}
    np.testing.assert_array_equal(
        extractor(np.ones(800), sampling_rate=16000).input_features,
        default(np.ones(800), sampling_rate=16000).input_features,
    )
    generation = GenerationConfig.from_pretrained(out)
    assert generation.lang_to_id == {"<|en|>": 24, "<|de|>": 25}
    assert generation.task_to_id == {"transcribe": 26, "translate": 27}
    assert (generation.no_timestamps_token_id, generation.prev_sot_token_id) == (31, 29)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode([32 + 106, 19, 21], decode_with_timestamps=True) == "<|2.12|>ab t"
    assert tokenizer("<|en|>", add_special_tokens=False).input_ids == [24]


def test_an_english_only_model_offers_no_languages(ct2_folder: Path) -> None:
    settings = json.loads((ct2_folder / "config.json").read_text("utf-8"))
    (ct2_folder / "config.json").write_text(json.dumps(settings | {"lang_ids": [25]}), "utf-8")
    generation = GenerationConfig.from_pretrained(converted("whisper-ctranslate2", ct2_folder))
    assert generation.is_multilingual is False
    assert not hasattr(generation, "lang_to_id")


def test_the_same_file_gives_the_same_bytes(ct2_folder: Path) -> None:
    first, second = (converted("whisper-ctranslate2", ct2_folder, name) for name in ("one", "two"))
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_all_forms_of_a_whisper_tokenizer_become_one() -> None:
    old, _ = whisper_tokenizer(whisper_tokenizer_file(older=True))
    new, special = whisper_tokenizer(whisper_tokenizer_file(older=False))
    assert old.to_str() == new.to_str()
    assert new.token_to_id("<|30.00|>") == special["<|notimestamps|>"] + 1501
    assert old.encode(" t").tokens == ["Ġt"]
    assert "<|nospeech|>" in special


@given(cut=st.integers(0, 2000))
@settings(max_examples=40, deadline=None)
def test_a_cut_file_is_named_as_such(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.bin"
    write_ct2(path, {"a/weight": np.arange(500, dtype=np.int16), "b": np.array(1, np.int8)}, {"c": "b"})
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(WeightsMissing):
        read_ct2(path)


def test_another_version_is_named_as_such(tmp_path: Path) -> None:
    write_ct2(tmp_path / "model.bin", {}, {}, version=5)
    with pytest.raises(WeightsMissing, match="version 5"):
        read_ct2(tmp_path / "model.bin")


def test_a_key_bias_is_refused(ct2_folder: Path, whisper: WhisperForConditionalGeneration) -> None:
    variables = as_ct2(whisper)
    variables["encoder/layer_1/self_attention/linear_0/bias"] = np.ones(96, np.float16)
    write_ct2(ct2_folder / "model.bin", variables, {})
    with pytest.raises(WeightsMissing, match="bias on its keys"):
        converted("whisper-ctranslate2", ct2_folder)


@pytest.mark.real
@pytest.mark.usefixtures("quiet")
def test_real_whisper_loads_and_encodes() -> None:
    folder = fetch.ensure("whisper-base")
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    noise = np.random.default_rng(0).normal(size=32000).astype(np.float32) * 0.1
    features = extractor(noise, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        states = model.model.encoder(features).last_hidden_state
    assert states.shape == (1, 1500, 512)
    assert torch.isfinite(states).all()
    assert states.std() > 0.1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == 51865
    assert tokenizer.decode(tokenizer(" Good morning.", add_special_tokens=False).input_ids) == " Good morning."
