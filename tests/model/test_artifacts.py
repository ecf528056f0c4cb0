"""Converting: what comes out of CTranslate2 and GGUF files is the model that went in.

The files are written here from small random transformers models, so that the originals are at hand.
"""

from __future__ import annotations

import errno
import json
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.utils import logging as transformers_logging

from model import fetch, store
from model.artifacts import convert
from model.ct2 import read_ct2, whisper_tokenizer
from model.errors import WeightsMissing
from model.gguf_reader import QWEN2_WORDS, build_tokenizer, unpermute
from model.weight_files import write_tensors

Array = NDArray[Any]


def ignore(_: int) -> None:
    pass


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str]) -> Any:
    """Fails when a library prints a warning while a folder is loaded."""
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()
    captured = capfd.readouterr()
    assert captured.err == ""


# CTranslate2


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


def converted(form: str, raw: Path, name: str = "out") -> Path:
    out = raw.parent / name
    out.mkdir()
    convert(form, raw, out, ignore)
    return out


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


# GGUF

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


def test_a_file_that_cannot_grow_is_an_os_error(tmp_path: Path) -> None:
    """The library's own error names the cause in words only; a size limit stands in for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write_tensors(tmp_path / "model.safetensors", {"a": np.zeros(4 << 20, np.float16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG


# The real weights


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


@pytest.mark.real
def test_real_weights_convert_to_the_same_bytes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second home, out of verified downloads where a folder of them is shared, else fetched again."""
    first = fetch.ensure("smollm2-135m-instruct")
    assert store.damaged(first) == []
    monkeypatch.setenv("BLSP_HOME", str(tmp_path))
    second = fetch.ensure("smollm2-135m-instruct")
    assert second.parent.parent == tmp_path
    stamps = [json.loads((folder / store.STAMP).read_text("utf-8")) for folder in (first, second)]
    assert stamps[0] == stamps[1]
    assert stamps[0]["files"].keys() >= {"model.safetensors", "tokenizer.json", "config.json"}
