"""Converting the original's checkpoints: every value arrives, in every format."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, Qwen2ForCausalLM, WhisperFeatureExtractor

from model.checkpoints.blsp_emo import Original, canonical, interpret_config
from model.checkpoints.convert import convert, examine
from model.errors import WeightsMissing
from model.inference.prompt import encode_text
from model.nn.speech_llm import SpeechLanguageModel
from tests.model.support.conversions import (
    CHECKPOINTS,
    GOLDENS,
    State,
    converted,
    equal,
    expected,
    state_of,
    variant,
)


def strictly_loaded(folder: Path) -> SpeechLanguageModel:
    model, report = SpeechLanguageModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


@pytest.mark.parametrize("name", "abcd")
def test_every_value_arrives(tmp_path: Path, name: str) -> None:
    target = converted(CHECKPOINTS / name, tmp_path / "target")
    wanted = expected(state_of(CHECKPOINTS / name))
    assert equal(load_file(target / "model.safetensors"), wanted)
    model = strictly_loaded(target)
    assert equal({key: value.to(wanted[key].dtype) for key, value in model.state_dict().items()}, wanted)
    assert {path.name for path in target.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("preprocessor_config.json", "generation_config.json"),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("form", ["bin", "safetensors", "legacy"])
@pytest.mark.parametrize(
    ("name", "shards", "dtype"), [("a", 1, None), ("b", 5, torch.float16), ("d", 3, torch.bfloat16)]
)
def test_every_format(tmp_path: Path, form: str, name: str, shards: int, dtype: torch.dtype | None) -> None:
    def cast(state: State, _: dict[str, Any]) -> None:
        state |= {key: value.to(dtype or value.dtype) for key, value in state.items()}

    source = variant(CHECKPOINTS / name, tmp_path / "source", form, shards, cast)
    target = converted(source, tmp_path / "target")
    assert equal(
        _without_constants(load_file(target / "model.safetensors")), _without_constants(expected(state_of(source)))
    )


def _without_constants(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not re.search("centre|offset|temperature", name)}


@given(types=st.lists(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), min_size=87, max_size=87))
@settings(max_examples=5, deadline=None)
def test_types_may_be_mixed_and_files_small(tmp_path_factory: pytest.TempPathFactory, types: list[torch.dtype]) -> None:
    folder = tmp_path_factory.mktemp("mixed")

    def cast(state: State, _: dict[str, Any]) -> None:
        state |= {key: value.to(kind) for (key, value), kind in zip(state.items(), types, strict=True)}

    source = variant(CHECKPOINTS / "b", folder / "source", change=cast)
    target = converted(source, folder / "target", shard_bytes=random.Random(len(types)).randrange(50_000, 600_000))
    index = json.loads((target / "model.safetensors.index.json").read_text())
    state: State = {}
    for file in set(index["weight_map"].values()):
        part = load_file(target / file)
        assert {name for name, place in index["weight_map"].items() if place == file} == part.keys()
        state |= part
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    assert equal(state, expected(state_of(source)))
    strictly_loaded(target)


def test_settings_of_the_released_form(tmp_path: Path) -> None:
    target = converted(CHECKPOINTS / "b", tmp_path / "target")
    config = strictly_loaded(target).config
    text = config.text_config
    assert (text.model_type, text.num_key_value_heads, text.intermediate_size, text.head_dim) == ("qwen2", 4, 96, 16)
    assert text.long_prompts == {"trained_length": 512, "dynamic_ntk": True, "logn": True}
    assert text.rope_parameters["rope_theta"] == 10000
    assert (config.adapter_type, config.adapter_kernel_sizes, config.adapter_inner_size) == ("conv", [5, 5, 5], 48)
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_scope) == (16, 16, 0.05, "audio")
    assert (config.penalty_scope, config.path, config.window, config.emotion_source) == (
        "reply",
        "speech",
        "full",
        "adapter",
    )
    generation = GenerationConfig.from_pretrained(target)
    assert (generation.eos_token_id, generation.pad_token_id) == ([1282, 1281, 1280], 1280)
    assert (generation.do_sample, generation.top_p, generation.top_k) == (True, 0.8, 0)
    assert (generation.repetition_penalty, generation.max_new_tokens) == (1.1, 512)
    extractor = WhisperFeatureExtractor.from_pretrained(target)
    assert (extractor.feature_size, extractor.nb_max_frames, extractor.sampling_rate) == (80, 3000, 16_000)


def test_settings_of_a_cformer(tmp_path: Path) -> None:
    config = strictly_loaded(converted(CHECKPOINTS / "d", tmp_path / "target")).config
    assert (config.adapter_type, config.cformer_pre_layers, config.cformer_post_layers) == ("cformer", 1, 2)
    assert config.lora_rank == 0


@pytest.mark.parametrize("scope", ["audio", "text", "global"])
def test_lora_may_be_on_some_layers_only(tmp_path: Path, scope: str) -> None:
    def narrow(state: State, config: dict[str, Any]) -> None:
        config["lora_scope"] = scope
        config["lora_config"] |= {"target_modules": ["attn.c_proj", "w2"], "lora_alpha": 8}
        for name in [name for name in state if "lora" in name and not re.search(r"attn\.c_proj|w2", name)]:
            del state[name]

    source = variant(CHECKPOINTS / "b", tmp_path / "source", change=narrow)
    target = converted(source, tmp_path / "target")
    config = strictly_loaded(target).config
    assert (config.lora_targets, config.lora_scope, config.lora_alpha) == (["o_proj", "gate_proj"], scope, 8)
    assert equal(load_file(target / "model.safetensors"), expected(state_of(source)))


def test_without_an_emotion_head_there_is_no_reading(tmp_path: Path) -> None:
    source = variant(CHECKPOINTS / "a", tmp_path / "source", change=lambda state, _: state.pop("hidden2emotion.weight"))
    conversion = examine(source)
    assert conversion.summary()["emotion_head"] is False
    convert(conversion, tmp_path / "target")
    assert strictly_loaded(tmp_path / "target").emotion_head is None


def test_wrappers_and_buffers_of_other_versions_are_understood(tmp_path: Path) -> None:
    def old(state: State, _: dict[str, Any]) -> None:
        for name in [name for name in state if re.search(r"(c_attn|w1)\.(weight|bias)$", name)]:
            state[re.sub(r"\.(weight|bias)$", r".base_layer.\1", name)] = state.pop(name)
        state["qwen_model.model.transformer.rotary_emb.inv_freq"] = torch.ones(8)
        state["qwen_model.model.transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
        state["qwen_model.model.transformer.h.1.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)

    source = variant(CHECKPOINTS / "b", tmp_path / "source", change=old)
    conversion = examine(source)
    assert len(conversion.ignored) == 3
    convert(conversion, tmp_path / "target")
    assert equal(load_file(tmp_path / "target" / "model.safetensors"), expected(state_of(CHECKPOINTS / "b")))


def plain_qwen(folder: Path) -> Path:
    def strip(state: State, config: dict[str, Any]) -> None:
        kept = {name.removeprefix("qwen_model."): value for name, value in state.items() if "qwen_model" in name}
        inner = config["qwen_config"]
        state.clear()
        config.clear()
        state |= kept
        config |= inner | {"architectures": ["QWenLMHeadModel"], "auto_map": {"AutoConfig": "configuration_qwen.X"}}

    return variant(CHECKPOINTS / "a", folder, "safetensors", 2, strip)


def test_a_plain_qwen_becomes_a_qwen2(tmp_path: Path) -> None:
    source = plain_qwen(tmp_path / "source")
    target = converted(source, tmp_path / "target")
    wanted = expected({f"qwen_model.{name}": value for name, value in state_of(source).items()})
    wanted = {name.removeprefix("language_model."): value for name, value in wanted.items()}
    assert equal(load_file(target / "model.safetensors"), wanted)
    model, report = Qwen2ForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(report.values())
    assert model.config.long_prompts == {"trained_length": 512, "dynamic_ntk": True, "logn": True}
    assert "auto_map" not in json.loads((target / "config.json").read_text())
    both = [
        AutoTokenizer.from_pretrained(target),
        AutoTokenizer.from_pretrained(converted(CHECKPOINTS / "a", tmp_path / "a")),
    ]
    text = "It's naïve, e\u0301 <|im_end|> 中文\n\n 12 😀"
    assert len({tuple(encode_text(tokenizer, text)) for tokenizer in both}) == 1


def test_what_a_plain_qwen_lacks_is_named_as_it_would_be_there(tmp_path: Path) -> None:
    source = plain_qwen(tmp_path / "source")
    source = variant(source, tmp_path / "cut", change=lambda state, _: state.pop("transformer.h.1.ln_2.weight"))
    with pytest.raises(WeightsMissing, match=r"1 tensor missing \(transformer\.h\.1\.ln_2\.weight\)"):
        examine(source)


def assert_planned(original: Original, model: SpeechLanguageModel) -> None:
    """What the plan writes is exactly what the model of the planned config holds."""
    planned = original.forms(dict.fromkeys(original.moves, torch.float16))
    held = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: form.shape for name, form in planned.items()} == held


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_any_dimensions_fit_the_model(data: st.DataObject) -> None:
    config = json.loads((CHECKPOINTS / "b" / "config.json").read_text())
    small = st.integers(1, 3)
    heads, head = data.draw(small), 2 * data.draw(small)
    config["qwen_config"] |= {"num_attention_heads": heads, "kv_channels": head, "hidden_size": heads * head}
    config["qwen_config"] |= {"intermediate_size": 2 * data.draw(small), "num_hidden_layers": data.draw(small)}
    config["qwen_config"] |= {"vocab_size": data.draw(st.integers(1, 99)), "seq_length": data.draw(st.integers(1, 99))}
    config["whisper_config"] |= {"d_model": 8 * data.draw(small), "encoder_attention_heads": 4}
    config["whisper_config"] |= {"encoder_layers": data.draw(small), "encoder_ffn_dim": data.draw(small)}
    config["whisper_config"] |= {"num_mel_bins": data.draw(small), "max_source_positions": 50 * data.draw(small)}
    config["adapter_type"] = data.draw(st.sampled_from(["subsampler", "cformer"]))
    config["conv_kernel_sizes"] = ",".join(data.draw(st.lists(st.sampled_from("135"), min_size=1, max_size=4)))
    config |= {"num_pre_cif_layers": data.draw(st.integers(0, 2)), "adapter_inner_dim": data.draw(small)}
    modules = st.sampled_from(["c_attn", "c_proj", "attn.c_proj", "mlp.c_proj", "w1", "w2"])
    lora = {"r": data.draw(small), "lora_alpha": 3, "target_modules": data.draw(st.lists(modules, min_size=1))}
    config["lora_config"] = data.draw(st.sampled_from([{}, None, lora]))
    original = interpret_config(config, data.draw(st.sampled_from([[], ["hidden2emotion.weight"]])))
    with torch.device("meta"):
        model = SpeechLanguageModel(original.config)
    assert_planned(original, model)


def test_the_full_size_names_are_all_mapped() -> None:
    shapes = {name: tuple(shape) for name, shape in json.loads((GOLDENS / "fullsize_state_dict_b.json").read_text())}
    config = json.loads((CHECKPOINTS / "b" / "config.json").read_text())
    config["adapter_inner_dim"] = 512
    config["whisper_config"] |= {
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
    }
    config["qwen_config"] |= {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "kv_channels": 128,
    }
    config["qwen_config"] |= {"intermediate_size": 22016, "vocab_size": 151936, "seq_length": 8192}
    names = {canonical(name, plain=False): name for name in shapes}
    original = interpret_config(config, names)
    assert {names[name]: move.shape for name, move in original.moves.items()} == shapes
    with torch.device("meta"):
        model = SpeechLanguageModel(original.config)
    assert_planned(original, model)
