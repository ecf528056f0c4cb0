"""A tuning of replies is merged into the weights that it was learnt on, and into no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from model.checkpoints import reply_tuning, tuned
from model.errors import WeightsMissing
from model.nn.speech_llm import SpeechLanguageModel
from model.weights import fetch
from model.weights.store import STAMP
from tests.support.tiny import tiny_model

PRESET = {"speech": "whisper-x", "text": "text-x", "replies": "x"}
LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture
def language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LlamaForCausalLM:
    """A tiny language model, the stamps of the preset's parts, and a place for the tuning."""
    monkeypatch.setattr(fetch, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(reply_tuning, "_RESOURCES", tmp_path)
    for name in ("whisper-x", "text-x"):
        folder = tmp_path / "home" / "models" / name
        folder.mkdir(parents=True)
        (folder / STAMP).write_text(json.dumps({"files": {"model.safetensors": {"size": 1, "sha256": name}}}))
    (tmp_path / "x").mkdir()
    model: SpeechLanguageModel = tiny_model(lora_rank=0)
    return model.language_model


def write(folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], Any] = lambda *_: None) -> None:
    torch.manual_seed(1)
    factors = {f"{LAYER}.lora_a": torch.randn(2, 96).half(), f"{LAYER}.lora_b": torch.randn(48, 2).half()}
    about = {**tuned.part_sums(PRESET)["text"], "rank": "2"}
    change(factors, about)
    save_file(factors, folder / "x" / "replies.safetensors", about)


def test_the_additions_are_in_the_weights(tmp_path: Path, language_model: LlamaForCausalLM) -> None:
    write(tmp_path)
    layer = language_model.get_submodule(LAYER)
    before = {name: value.clone() for name, value in language_model.state_dict().items()}
    reply_tuning.merge(language_model, PRESET)
    torch.manual_seed(1)
    low, high = torch.randn(2, 96).half().float(), torch.randn(48, 2).half().float()
    torch.testing.assert_close(layer.weight, before[f"{LAYER}.weight"] + high @ low)
    others = [name for name in before if name != f"{LAYER}.weight"]
    assert all(torch.equal(before[name], language_model.state_dict()[name]) for name in others)


def test_the_prompt_comes_with_the_weights(tmp_path: Path, language_model: LlamaForCausalLM) -> None:
    write(tmp_path, lambda _, about: about.update(prompt=json.dumps({"system_prompt": "You are brief."})))
    assert reply_tuning.prompt(PRESET) == {"system_prompt": "You are brief."}
    (tmp_path / "x" / "replies.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsMissing, match="install this program again"):
        reply_tuning.prompt(PRESET)


def test_without_a_tuning_nothing_changes(language_model: LlamaForCausalLM) -> None:
    before = language_model.get_submodule(LAYER).weight.clone()
    reply_tuning.merge(language_model, {"text": "text-x"})
    assert torch.equal(language_model.get_submodule(LAYER).weight, before)
    assert reply_tuning.reply_file({"text": "text-x"}) is None
    assert reply_tuning.prompt({"text": "text-x"}) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, about: about.update(sha256="0"), "other weights"),
        (lambda _, about: about.update(name="text-y"), "other weights"),
        (lambda factors, _: factors.pop(f"{LAYER}.lora_a"), "another version"),
        (lambda factors, _: factors.update({f"{LAYER}.lora_a": torch.zeros(2, 95)}), "another version"),
        (lambda factors, _: factors.update({f"{LAYER}.lora_a": torch.zeros(3, 96)}), "another version"),
        (lambda factors, _: factors.update({"nowhere.lora_a": torch.zeros(2, 9), "nowhere.lora_b": torch.zeros(9, 2)}),
         "another version"),
        (lambda factors, _: factors.update({f"{LAYER}.lora_b": torch.full((48, 2), torch.nan)}), "NaN or infinite"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, language_model: LlamaForCausalLM, change, message: str) -> None:
    write(tmp_path, change)
    with pytest.raises(WeightsMissing, match=message) as raised:
        reply_tuning.merge(language_model, PRESET)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path, language_model: LlamaForCausalLM) -> None:
    with pytest.raises(WeightsMissing, match=r"replies\.safetensors is not there"):
        reply_tuning.merge(language_model, PRESET)
    (tmp_path / "x" / "replies.safetensors").write_bytes(b"nonsense")
    with pytest.raises(WeightsMissing):
        reply_tuning.merge(language_model, PRESET)
