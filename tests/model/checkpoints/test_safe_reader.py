"""Reading folders that are as they should be, in every format; and bytes changed at random: read or refused."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoTokenizer, WhisperFeatureExtractor

from model.checkpoints import components, safe_reader
from model.errors import WeightsMissing
from model.nn.speech_llm import SpeechLanguageModel
from tests.support.tiny import tiny_checkpoint, tiny_tokenizer


def _tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    made = {f"layer.{at}.weight": (torch.randn(3, at + 1) * 4).to(kind) for at, kind in enumerate(kinds)}
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "turned": torch.randn(4, 6).T}


def _equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    same = found.keys() == expected.keys()
    return same and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items()
    )


def _read(folder: Path) -> dict[str, torch.Tensor]:
    listed = safe_reader.list_tensors(folder)
    read: dict[str, torch.Tensor] = {}
    for file in {info.file for info in listed.values()}:
        read |= safe_reader.read_shard(file)
    for name, info in listed.items():
        value = read[name]
        assert (info.shape, info.dtype, info.nbytes) == (tuple(value.shape), value.dtype, value.nbytes)
    return read


def _safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"format": "pt"})


def _bin(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path)


def _old_bin(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(OrderedDict(tensors), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [_safetensors, _bin, _old_bin])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_format_is_read(write, shards: int, tmp_path: Path) -> None:
    tensors = _tensors()
    name = "model.safetensors" if write is _safetensors else "pytorch_model.bin"
    if shards == 1:
        write(tensors, tmp_path / name)
    else:
        stem, _, suffix = name.partition(".")
        files = [f"{stem}-{at + 1:05}-of-{shards:05}.{suffix}" for at in range(shards)]
        places = {tensor: files[at % shards] for at, tensor in enumerate(tensors)}
        for file in files:
            write({tensor: tensors[tensor] for tensor, place in places.items() if place == file}, tmp_path / file)
        (tmp_path / f"{name}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    assert _equal(_read(tmp_path), tensors)


def test_what_training_saves_is_read(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    model[0].weight.requires_grad_(False)
    tied = torch.randn(8, 4)
    states = [model.state_dict(), dict(model.named_parameters()), {"embed.weight": tied, "lm_head.weight": tied}]
    for at, state in enumerate(states):
        for write in (_bin, _old_bin):
            path = tmp_path / f"{at}.bin"
            write(state, path)
            read = safe_reader.read_shard(path)
            assert _equal(read, {name: value.detach() for name, value in state.items()})
            assert not any(value.requires_grad for value in read.values())


def test_safetensors_come_before_pickles_and_one_file_before_shards(tmp_path: Path) -> None:
    _bin({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert safe_reader.list_tensors(tmp_path)["a"].file.name == "pytorch_model.bin"
    _safetensors({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert safe_reader.list_tensors(tmp_path)["a"].file.name == "model.safetensors"


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text('{"vocab_size": 7}')
    (snapshot / "config.json").symlink_to("../../blobs/1")
    assert safe_reader.read_config(snapshot) == {"vocab_size": 7}
    (tmp_path / "secret").write_text("{}")
    (snapshot / "other.json").symlink_to("../../../secret")
    with pytest.raises(WeightsMissing, match="link"):
        safe_reader.read_config(snapshot, "other.json")


def test_a_config_loses_the_dangerous_keys_at_every_depth_and_nothing_else(tmp_path: Path) -> None:
    dangerous = ("auto_map", "_attn_implementation", "_attn_implementation_internal", "attn_implementation")
    dangerous += ("custom_pipelines", "custom_generate", "trust_remote_code", "_name_or_path", "configuration_files")
    dangerous += ("transformers_weights", "_experts_implementation_internal", "kernel_config", "__class__")
    kept = {"hidden_size": 64, "ratio": 0.5, "model_max_length": 10**30, "list": [1, {"x": None}], "name": "päth"}
    bad = dict.fromkeys(dangerous, "payload/payload")
    whole = kept | bad | {"text_config": kept | bad | {"deep": [bad | kept]}}
    (tmp_path / "config.json").write_text(json.dumps(whole), "utf-8")
    assert safe_reader.read_config(tmp_path) == kept | {"text_config": kept | {"deep": [kept]}}


def test_how_the_weights_are_quantised_stays_in_the_config_alone(tmp_path: Path) -> None:
    four_bit = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(
        json.dumps({"quantization_config": four_bit, "text_config": {"quantization_config": four_bit}})
    )
    assert safe_reader.read_config(tmp_path) == {"quantization_config": four_bit, "text_config": {}}


def test_a_tokenizer_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    ours, theirs = components.tokenizer(tmp_path, 300), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the other <|im_end|> thing", "Wörter\n\n", ""):
        for split in (False, True):
            assert ours.encode(text, split_special_tokens=split) == theirs.encode(text, split_special_tokens=split)
    chat = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)
    assert (ours.eos_token_id, ours.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)


def test_a_config_and_its_parts_survive_the_round_trip(tmp_path: Path) -> None:
    saved = tiny_checkpoint(lora_scope="text", examples=[["a", "b"]], emotion_layers=[0, -1])
    saved.save(tmp_path)
    config = components.model_config(safe_reader.checked_folder(tmp_path), tmp_path)
    before, after = saved.model.config.to_dict(), config.to_dict()
    general = {"architectures", "transformers_version"}
    assert {key: value for key, value in after.items() if key not in general} == {
        key: value for key, value in before.items() if key not in general
    }
    components.check_fit(config, safe_reader.list_tensors(tmp_path), tmp_path)
    assert components.extractor(tmp_path, 80).to_dict() == WhisperFeatureExtractor().to_dict()
    assert components.generation(tmp_path, 4096).max_new_tokens == saved.generation.max_new_tokens


def test_embeddings_that_are_tied_need_not_be_stored_twice(tmp_path: Path) -> None:
    tiny = tiny_checkpoint().model.config
    tiny.text_config.tie_word_embeddings = True
    SpeechLanguageModel(tiny).save_pretrained(tmp_path)
    tensors = safe_reader.list_tensors(tmp_path)
    assert "language_model.lm_head.weight" not in tensors
    components.check_fit(tiny, tensors, tmp_path)


@pytest.mark.parametrize(
    ("pattern", "quick"),
    [
        (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", True),
        (r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", True),
        (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\d{3}(?=\d)|\.+", True),
        (r"(\w+\s?)+$", False),
        (r"(?:a|a)*", False),
        (r"\s*\s*\s*x", False),
        (r"a+a+b", False),
        (r"a+a+(?!b)", False),
        (r"a+b|a+(?:b|c)", True),
        (r"a?a?a?a?a", False),
        (r"x{9}{9}", False),
        (r"(a)\1", False),
        (r"[a", False),
        (r"a)", False),
        (r"(?<=a+)b", False),
    ],
)
def test_patterns_that_may_take_for_ever_are_told_from_others(pattern: str, quick: bool) -> None:
    assert components._quick(pattern) == quick


def test_quick_patterns_are_no_slower_than_quadratic(tmp_path: Path) -> None:
    """About the worst that gets through; a nested repetition would not end."""
    path = tmp_path / "tokenizer.json"
    tiny_tokenizer().save_pretrained(tmp_path)
    whole = json.loads(path.read_text("utf-8"))
    pattern = r"a?a?a?a+b|a*b+c?"
    whole["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(whole), "utf-8")
    assert components._quick(pattern)
    assert len(components.tokenizer(tmp_path, 300).encode("a" * 2000)) == 2000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_found_by_name(value: float, dtype: torch.dtype) -> None:
    large = torch.full((300,), 60_000.0).to(dtype)  # their sum would not be finite in 16 bit
    sound = {"a": large, "b": torch.zeros(0), "c": torch.ones(3, dtype=torch.int64)}
    components.refuse_nonfinite(sound.items(), Path("folder"))
    broken = large.clone()
    broken[17] = value
    with pytest.raises(WeightsMissing, match="in d"):
        components.refuse_nonfinite((sound | {"d": broken}).items(), Path("folder"))


_FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _refusal(read: Callable[[], object]) -> str | None:
    try:
        read()
    except WeightsMissing as error:
        return str(error)
    return None


def _changed(content: bytes, data: st.DataObject) -> bytes:
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    return bytes(changed)


@pytest.mark.parametrize("write", [_safetensors, _bin, _old_bin])
@_FUZZ
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(write, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / ("model.safetensors" if write is _safetensors else "pytorch_model.bin")
    write(_tensors(), path)
    path.write_bytes(_changed(path.read_bytes(), data))
    message = _refusal(lambda: _read(tmp_path))
    assert message is None or (message.isprintable() and path.name in message)


@cache
def _config() -> bytes:
    return tiny_checkpoint().model.config.to_json_string(use_diff=False).encode()


@_FUZZ
@given(data=st.data())
def test_changed_settings_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "config.json").write_bytes(_changed(_config(), data))
    message = _refusal(lambda: components.model_config(safe_reader.read_config(tmp_path), tmp_path))
    assert message is None or (message.isprintable() and "config.json" in message)


_NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.recursive(st.none() | st.booleans() | _NUMBERS | st.text(), st.lists, max_leaves=20))
def test_json_is_read_as_written(value: object, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"value": value}), "utf-8")
    assert safe_reader.read_json(path) == {"value": value}
