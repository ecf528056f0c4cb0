"""Converting the original's checkpoints: every value arrives, in every format, whatever interrupts it."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, Qwen2ForCausalLM, WhisperFeatureExtractor

from model import convert as module
from model import fetch, tensor_writer
from model.convert import convert, examine, main
from model.errors import BadInput, WeightsMissing
from model.original import Original, canonical, understand
from model.prompt import encode_text
from model.speech_llm import SpeechLanguageModel
from model.tensor_writer import Form, TensorWriter, lay_out
from model.untrusted import list_tensors, read_shard

GOLDENS = Path(__file__).parents[1] / "goldens"
CHECKPOINTS = GOLDENS / "checkpoints"
State = dict[str, Tensor]
Change = Callable[[State, dict[str, Any]], object]


def state_of(folder: Path) -> State:
    return {
        name: tensor
        for file in sorted({i.file for i in list_tensors(folder).values()})
        for name, tensor in read_shard(file).items()
    }


def variant(source: Path, folder: Path, form: str = "bin", shards: int = 1, change: Change | None = None) -> Path:
    """Write the checkpoint `source` anew: another format, other shards, other contents."""
    state, config = dict(state_of(source)), json.loads((source / "config.json").read_text())
    if change:
        change(state, config)
    folder.mkdir(exist_ok=True)
    for name in ("generation_config.json", "qwen.tiktoken"):
        shutil.copy(source / name, folder)
    (folder / "config.json").write_text(json.dumps(config))
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    weight_map = {}
    for number in range(shards):
        part = {name: tensor.clone() for name, tensor in list(state.items())[number::shards]}
        file = f"{stem}-{number + 1:05}-of-{shards:05}.{suffix}" if shards > 1 else f"{stem}.{suffix}"
        if form == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file, _use_new_zipfile_serialization=form == "bin")
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


RENAMES = {
    r"whisper_model\.": "encoder.",
    r"adapter\.subsampler\.conv_layers": "adapter.convolutions",
    r"adapter\.speech_ln": "adapter.norm",
    r"adapter\.(pre|post)_cif_layers": r"adapter.\1_layers",
    r"adapter\.cif_proj": "adapter.projection",
    r"adapter\.token_embed_proj": "adapter.token_projection",
    r"adapter\.lm_head": "adapter.token_head",
    r"hidden2emotion": "emotion_head",
    r"(qwen_model\.)(?:model\.)?": "language_model.",
    r"\.transformer\.wte": ".model.embed_tokens",
    r"\.transformer\.ln_f": ".model.norm",
    r"\.transformer\.h\.": ".model.layers.",
    r"\.ln_1": ".input_layernorm",
    r"\.ln_2": ".post_attention_layernorm",
    r"\.attn\.c_proj": ".self_attn.o_proj",
    r"\.mlp\.c_proj": ".mlp.down_proj",
    r"\.w1": ".up_proj",
    r"\.w2": ".gate_proj",
}


def expected(state: State) -> State:
    """What the converted checkpoint must hold, from the facts about the original's names."""
    found: State = {}
    for old, tensor in state.items():
        linear, _, leaf = old.rpartition(".lora_") if ".lora_" in old else old.rpartition(".")
        has_lora = f"{linear}.lora_A.default.weight" in state
        if ".lora_" in old:
            leaf = "lora_" + leaf[0].lower()
        elif has_lora:
            leaf = f"base.{leaf}"
        new = linear
        for pattern, replacement in RENAMES.items():
            new = re.sub(pattern, replacement, new)
        if new.endswith(".attn.c_attn"):
            new = new.removesuffix(".attn.c_attn")
            rows = [tensor] * 3 if leaf == "lora_a" else tensor.chunk(3)
            found |= {f"{new}.self_attn.{part}_proj.{leaf}": row for part, row in zip("qkv", rows, strict=True)}
        else:
            found[f"{new}.{leaf}"] = tensor
    if "emotion_head.weight" in found:
        width = found["emotion_head.weight"].shape[1]
        found |= {"emotion_head.centre": torch.zeros(width), "emotion_head.offset": torch.zeros(5)}
        found["emotion_head.temperature"] = torch.ones(())
    return found


def equal(actual: State, wanted: State) -> bool:
    return actual.keys() == wanted.keys() and all(
        actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor) for name, tensor in wanted.items()
    )


def converted(source: Path, target: Path, **options: Any) -> Path:
    convert(examine(source, **options), target)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_without_an_emotion_head_there_is_no_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = variant(CHECKPOINTS / "a", tmp_path / "source", change=lambda state, _: state.pop("hidden2emotion.weight"))
    assert main([str(source), str(tmp_path / "target"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["emotion_head"] is False
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
    original = understand(config, data.draw(st.sampled_from([[], ["hidden2emotion.weight"]])))
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
    original = understand(config, names)
    assert {names[name]: move.shape for name, move in original.moves.items()} == shapes
    with torch.device("meta"):
        model = SpeechLanguageModel(original.config)
    assert_planned(original, model)


# What stops a conversion.


def interrupted_after(count: int) -> Callable[[fetch.Progress], None]:
    calls = iter(range(count))

    def step(_: fetch.Progress) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return step


@given(
    form=st.sampled_from(["bin", "safetensors", "legacy"]),
    steps=st.lists(st.integers(0, 87), min_size=1, max_size=3),
    commit=st.integers(50_000, 500_000),
)
@settings(max_examples=5, deadline=None)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, form: str, steps: list[int], commit: int
) -> None:
    folder = tmp_path_factory.mktemp("again")
    source = variant(CHECKPOINTS / "b", folder / "source", form, 4)
    straight = contents(converted(source, folder / "straight", shard_bytes=400_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_writer, "COMMIT_BYTES", commit)
        for step in steps:
            with pytest.raises(KeyboardInterrupt):
                convert(examine(source, shard_bytes=400_000), folder / "target", interrupted_after(step))
            assert not (folder / "target").exists()
        assert contents(converted(source, folder / "target", shard_bytes=400_000)) == straight
    assert not (folder / "target.part").exists()


def test_what_is_done_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = variant(CHECKPOINTS / "b", tmp_path / "source", "bin", 4)
    read: list[str] = []
    monkeypatch.setattr(module, "read_shard", lambda file: read.append(file.name) or read_shard(file))
    with pytest.raises(KeyboardInterrupt):
        convert(examine(source), tmp_path / "target", interrupted_after(50))
    assert len(read) == 3
    convert(examine(source), tmp_path / "target")
    assert [name[14:19] for name in read] == ["00001", "00002", "00003", "00003", "00004"]


def test_a_source_that_changed_is_begun_afresh(tmp_path: Path) -> None:
    source = variant(CHECKPOINTS / "b", tmp_path / "source", "bin", 4)
    with pytest.raises(KeyboardInterrupt):
        convert(examine(source), tmp_path / "target", interrupted_after(60))
    variant(CHECKPOINTS / "b", source, "bin", 4, lambda state, _: state["whisper_model.conv1.bias"].fill_(7))
    target = converted(source, tmp_path / "target")
    assert equal(load_file(target / "model.safetensors"), expected(state_of(source)))


def test_a_torn_journal_is_begun_afresh(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(examine(CHECKPOINTS / "b"), tmp_path / "target", interrupted_after(60))
    journal = tmp_path / "target.part" / tensor_writer.JOURNAL
    journal.write_bytes(journal.read_bytes()[:100])
    target = converted(CHECKPOINTS / "b", tmp_path / "target")
    assert equal(load_file(target / "model.safetensors"), expected(state_of(CHECKPOINTS / "b")))


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(WeightsMissing, match=r"0\.1 GB and only 0\.0 GB are free .* make room"):
        convert(examine(CHECKPOINTS / "a"), tmp_path / "target")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_a_run_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = [0]
    write = tensor_writer._write

    def failing(file: Any, content: Any) -> None:
        written[0] += 1
        if written[0] > 70:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(tensor_writer, "_write", failing)
        with pytest.raises(WeightsMissing, match=r"disk is full.*free .* and start again") as caught:
            convert(examine(CHECKPOINTS / "b"), tmp_path / "target")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "target").exists()
    target = converted(CHECKPOINTS / "b", tmp_path / "target")
    assert equal(load_file(target / "model.safetensors"), expected(state_of(CHECKPOINTS / "b")))


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files above 1 MB, as a quota or an old file system does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_files")
def test_a_system_that_refuses_to_write_is_explained(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"File too large.*choose another TARGET"):
        convert(examine(CHECKPOINTS / "a"), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    (tmp_path / "other.part").mkdir()
    (tmp_path / "other.part" / "letter.txt").write_text("dear")
    (tmp_path / "empty").mkdir()
    conversion = examine(CHECKPOINTS / "a")
    for name in ("full", "file", "other"):
        with pytest.raises(BadInput, match=r"remove it or choose another TARGET\.$"):
            convert(conversion, tmp_path / name)
    assert (tmp_path / "other.part" / "letter.txt").read_text() == "dear"
    convert(conversion, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_two_conversions_at_once_are_one_too_many(tmp_path: Path) -> None:
    conversion = examine(CHECKPOINTS / "a")
    refused: list[str] = []

    def second(_: fetch.Progress) -> None:
        if not refused:
            with pytest.raises(BadInput, match="another conversion") as caught:
                convert(conversion, tmp_path / "target")
            refused.append(str(caught.value))

    convert(conversion, tmp_path / "target", second)
    assert len(refused) == 1
    assert equal(load_file(tmp_path / "target" / "model.safetensors"), expected(state_of(CHECKPOINTS / "a")))


# What is wrong with a source.


def test_unusable_tensors_are_named_in_one_line(tmp_path: Path) -> None:
    def spoil(state: State, _: dict[str, Any]) -> None:
        state["qwen_model.model.transformer.h.0.attn.k_norm.weight"] = torch.ones(3)
        state["evil\nname"] = torch.ones(3)
        del state["whisper_model.conv1.bias"], state["qwen_model.model.transformer.h.1.mlp.w1.lora_A.default.weight"]
        state["adapter.fc1.weight"] = torch.ones(64, 48)
        state["adapter.fc2.weight"] = torch.ones(64, 48, dtype=torch.float64)
        state["qwen_model.lm_head.weight"] = state["qwen_model.model.lm_head.weight"]

    source = variant(CHECKPOINTS / "b", tmp_path / "source", change=spoil)
    with pytest.raises(WeightsMissing) as caught:
        examine(source)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "2 tensors missing (whisper_model.conv1.bias, qwen_model.model.transformer.h.1.mlp.w1.lora_A.default.weight)",
        "2 tensors unknown (qwen_model.model.transformer.h.0.attn.k_norm.weight, 'evil\\nname')",
        "adapter.fc1.weight is [64, 48], not [48, 64]",
        "adapter.fc2.weight is torch.float64",
        "1 tensor in there twice (qwen_model.lm_head.weight)",
    ):
        assert part in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_weights_that_are_not_finite_are_named_and_nothing_remains(tmp_path: Path, form: str, value: float) -> None:
    def spoil(state: State, _: dict[str, Any]) -> None:
        for name in (
            "whisper_model.conv1.weight",
            "qwen_model.transformer.h.1.attn.c_attn.weight",
            "adapter.fc1.weight",
        ):
            state[name] = state[name].clone().index_fill_(0, torch.tensor([state[name].shape[0] - 1]), value)

    source = variant(CHECKPOINTS / "a", tmp_path / "source", form, 3, spoil)
    with pytest.raises(KeyboardInterrupt):
        convert(examine(source), tmp_path / "target", interrupted_after(60))
    with pytest.raises(WeightsMissing, match="3 tensors not finite") as caught:
        convert(examine(source), tmp_path / "target")
    message = str(caught.value)
    assert all(name in message for name in ("conv1.weight", "c_attn.weight", "adapter.fc1.weight"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


UNSOUND = {
    "num_emotions": lambda config: config.update(num_emotions=7),
    "adapter_type": lambda config: config.update(adapter_type="perceiver"),
    "conv_kernel_sizes": lambda config: config.update(conv_kernel_sizes="5,-5"),
    "lora_scope": lambda config: config.update(lora_scope="everywhere"),
    "lora_config.target_modules": lambda config: config["lora_config"].update(target_modules=["lm_head"]),
    "lora_config.use_dora": lambda config: config["lora_config"].update(use_dora=True),
    "lora_config.modules_to_save": lambda config: config["lora_config"].update(modules_to_save=["wte"]),
    "kv_channels": lambda config: config["qwen_config"].update(kv_channels=8),
    "hidden_size": lambda config: config["qwen_config"].update(hidden_size="64"),
    "use_logn_attn": lambda config: config["qwen_config"].update(use_logn_attn="yes"),
    "rotary_pct": lambda config: config["qwen_config"].update(rotary_pct=0.5),
    "no_bias": lambda config: config["qwen_config"].update(no_bias=False),
    "intermediate_size": lambda config: config["qwen_config"].update(intermediate_size=191),
    "layer_norm_epsilon": lambda config: config["qwen_config"].update(layer_norm_epsilon=-1),
    "encoder_layers": lambda config: config["whisper_config"].update(encoder_layers=None),
    "max_source_positions": lambda config: config["whisper_config"].update(max_source_positions=1510),
    "activation_function": lambda config: config["whisper_config"].update(activation_function="os.system"),
    "qwen_config": lambda config: config.pop("qwen_config"),
    "whisper_config": lambda config: config.update(whisper_config="openai/whisper-large-v2"),
    "vocab_size": lambda config: config["qwen_config"].pop("vocab_size"),
}


@pytest.mark.parametrize("key", UNSOUND)
def test_a_setting_that_cannot_be_is_named(tmp_path: Path, key: str) -> None:
    source = variant(CHECKPOINTS / "b", tmp_path / "source", change=lambda _, config: UNSOUND[key](config))
    with pytest.raises(WeightsMissing, match=re.escape(key)) as caught:
        examine(source)
    assert "\n" not in str(caught.value)


def test_declared_sizes_take_no_memory(tmp_path: Path) -> None:
    def boast(_: State, config: dict[str, Any]) -> None:
        config["qwen_config"] |= {"vocab_size": 4_000_000, "hidden_size": 65_536, "kv_channels": 16_384}
        config["qwen_config"] |= {"intermediate_size": 1_000_000, "num_hidden_layers": 100}

    source = variant(CHECKPOINTS / "a", tmp_path / "source", change=boast)
    before = peak_bytes()
    with pytest.raises(WeightsMissing, match=r"missing.*of another shape"):
        examine(source)
    assert peak_bytes() - before < 64 * 2**20


def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path) -> None:
    def shrink(state: State, config: dict[str, Any]) -> None:
        config["qwen_config"]["vocab_size"] = 1400
        for name in ("qwen_model.transformer.wte.weight", "qwen_model.lm_head.weight"):
            state[name] = state[name][:1400]

    source = variant(CHECKPOINTS / "a", tmp_path / "source", change=shrink)
    with pytest.raises(WeightsMissing, match="1,280 tokens beside 208 special ones, more than the 1,400"):
        examine(source)


# The command.


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CHECKPOINTS / "b"), str(tmp_path / "target"), "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["adapter"], report["lora_rank"], report["lora_scope"]) == (
        "blsp_emo",
        "conv",
        16,
        "audio",
    )
    assert (report["source_tensors"], report["target_tensors"], report["ignored"]) == (87, 106, [])
    assert len(report["source_files"]) == 4
    assert report["target_bytes"] < report["disk_bytes"] < report["disk_free_bytes"]
    assert report["emotion_head"] is report["dry_run"] is True
    assert main([str(CHECKPOINTS / "b"), str(tmp_path / "target"), "--dry-run"]) == 0
    assert "1.7 MB" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    target, source = str(tmp_path / "target"), str(CHECKPOINTS / "a")
    wrong = [
        ([source, str(tmp_path)], 0),
        ([source, str(tmp_path)], 2),
        ([str(tmp_path / "nowhere"), target], 2),
        ([source, target, "--revision", "0" * 40], 2),
        (["owner/name", target], 2),
        (["owner/name", target, "--revision", "main"], 2),
        ([str(GOLDENS), target], 3),
    ]
    for arguments, code in wrong:
        assert main([*arguments, "--json"]) == code
        output = capsys.readouterr()
        assert (output.out.count("\n"), output.err.count("\n")) == ((1, 0) if code == 0 else (0, 1))
    monkeypatch.setattr(module, "convert", lambda *_: interrupted_after(0)(fetch.Progress("", 0, 0)))
    assert main([source, target]) == 130
    assert "goes on from here" in capsys.readouterr().err


def test_a_hub_id_is_fetched_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [path.name for path in (CHECKPOINTS / "b").iterdir()]
    asked: list[dict[str, Any]] = []

    def snapshot(*, dry_run: bool = False, **request: Any) -> list[SimpleNamespace] | None:
        asked.append(request)
        if dry_run:
            return [SimpleNamespace(filename=name, file_size=1) for name in files]
        shutil.copytree(CHECKPOINTS / "b", request["local_dir"])
        return None

    monkeypatch.setenv("BLSP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    arguments = ["owner/name", str(tmp_path / "target"), "--revision", "ab" * 20]
    assert main([*arguments, "--dry-run"]) == 3
    assert "was not downloaded yet" in capsys.readouterr().err
    assert not asked
    assert main(arguments) == 0
    assert (asked[0]["repo_id"], asked[0]["revision"]) == ("owner/name", "ab" * 20)
    assert "*.bin" in asked[0]["allow_patterns"]
    assert equal(load_file(tmp_path / "target" / "model.safetensors"), expected(state_of(CHECKPOINTS / "b")))
    assert main([*arguments[:1], str(tmp_path / "again"), *arguments[2:], "--dry-run", "--json"]) == 0


# The writer alone.


@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=12),
    shard_bytes=st.integers(1, 2000),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_written_tensors_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], shard_bytes: int, seed: int
) -> None:
    rng = random.Random(seed)
    state = {}
    for number, shape in enumerate(shapes):
        tensor = torch.randn(shape).to(rng.choice([torch.float32, torch.float16, torch.bfloat16]))
        state[f"tensor {number}"] = tensor.transpose(0, -1) if shape and rng.random() < 0.5 else tensor
    layout = lay_out({name: Form(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}, shard_bytes)
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_writer, "_BLOCK_BYTES", 64)
        writer = TensorWriter(folder, layout, "print")
        for name in rng.sample(list(state), len(state)):
            assert writer.write(name, state[name])
        writer.close()
    (folder / tensor_writer.JOURNAL).unlink()
    found: State = {}
    for path in folder.iterdir():
        found |= load_file(path)
    assert equal(found, state)


# A checkpoint of more than a gigabyte.


def peak_bytes() -> int:
    """Most memory that this process ever had in RAM, file pages included; VmHWM begins anew with exec."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


MEASURED = """
    import json, re, sys
    from pathlib import Path
    from model import convert
    from tests.model.test_convert import peak_bytes
    imports = peak_bytes()
    code = convert.main(sys.argv[1:])
    print(json.dumps({"code": code, "imports": imports, "peak": peak_bytes()}), file=sys.stderr)
"""
KILLED = """
    import os, signal, sys
    from pathlib import Path
    from model.convert import convert, examine
    def step(progress):
        if progress.done > float(sys.argv[3]) * progress.total:
            os.kill(os.getpid(), signal.SIGKILL)
    convert(examine(Path(sys.argv[1])), Path(sys.argv[2]), step)
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)


def large_checkpoint(folder: Path) -> int:
    """Eight shards in the original's format, random, made shard by shard; returns the largest one's size."""
    config = json.loads((CHECKPOINTS / "b" / "config.json").read_text())
    config["qwen_config"] |= {"hidden_size": 512, "num_attention_heads": 4, "kv_channels": 128, "num_hidden_layers": 22}
    config["qwen_config"] |= {"intermediate_size": 22016, "vocab_size": 151936}
    names = {canonical(name, plain=False) for name in state_of(CHECKPOINTS / "b")}
    moves = understand(config, names).moves
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(fetch.ensure("qwen-tiktoken") / "qwen.tiktoken", folder)
    shards: list[list[str]] = [[]]
    total = sum(torch.Size(move.shape).numel() for move in moves.values())
    filled = 0
    for name, move in moves.items():
        if filled > total * len(shards) / 8:
            shards.append([])
        shards[-1].append(name)
        filled += torch.Size(move.shape).numel()
    assert len(shards) == 8
    weight_map = {}
    random_values = torch.Generator().manual_seed(0)
    for number, shard in enumerate(shards, 1):
        state = {}
        for name in shard:
            released = name.replace("qwen_model.", "qwen_model.model.")
            state[released] = torch.empty(moves[name].shape, dtype=torch.float16).uniform_(generator=random_values)
        file = f"pytorch_model-{number:05}-of-00008.bin"
        torch.save(state, folder / file)
        weight_map |= dict.fromkeys(state, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sizes = [path.stat().st_size for path in folder.glob("*.bin")]
    assert sum(sizes) >= 1e9
    return max(sizes)


@pytest.mark.real
def test_a_gigabyte_in_little_memory_and_after_a_kill(tmp_path: Path) -> None:
    largest = large_checkpoint(tmp_path / "source")
    killed = run(KILLED, tmp_path / "source", tmp_path / "killed", 0.6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed").exists()
    for target in ("straight", "killed"):
        done = run(MEASURED, tmp_path / "source", tmp_path / target, "--json")
        figures = json.loads(done.stderr.splitlines()[-1])
        assert figures["code"] == 0, done.stderr
        assert figures["peak"] - figures["imports"] <= largest + 300 * 2**20
    pairs = [(path, tmp_path / "killed" / path.name) for path in sorted((tmp_path / "straight").iterdir())]
    assert len(pairs) == len(list((tmp_path / "killed").iterdir()))
    for straight, resumed in pairs:
        assert subprocess.run(["cmp", straight, resumed]).returncode == 0
