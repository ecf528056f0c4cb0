"""Sources that cannot be converted: each is named in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints.convert import convert, examine
from model.checkpoints.memory import peak_bytes
from model.errors import WeightsMissing
from tests.model.support.conversions import CHECKPOINTS, State, interrupted_after, variant


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
        "1 tensor duplicated (qwen_model.lm_head.weight)",
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
    with pytest.raises(WeightsMissing, match="1,280 tokens and 208 special ones, more than the 1,400"):
        examine(source)
