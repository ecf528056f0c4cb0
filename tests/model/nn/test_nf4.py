"""4-bit layers: which they are, what they compute, and that a saved folder holds them as they are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from assistant.events import Spoken, Typed
from model.audio.files import read_audio
from model.checkpoints import loader
from model.checkpoints.loader import RESOURCES, Checkpoint
from model.checkpoints.quantize import quantize
from model.commands.bench import likelihood
from model.commands.quantize import main as quantize_command
from model.errors import BadInput, WeightsMissing
from model.inference.engine import Engine
from model.inference.kv_cache import Decoder, KeyValueCache
from model.nn.int8 import quantize_int8
from model.nn.nf4 import MODES, nf4_bytes, quantize_nf4
from tests.model.inference.test_engine import recording
from tests.support.tiny import tiny_checkpoint

FILES = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
    "generation_config.json",
}  # fmt: skip


def load(folder: Path, mode: str = "auto") -> Checkpoint:
    return loader.load(str(folder), device="cpu", quantize=mode)


@torch.inference_mode()
def outputs(loaded: Checkpoint) -> list[torch.Tensor]:
    """Adapter frames of an utterance, and logits behind a prompt with them in it."""
    torch.manual_seed(1)
    frames = loaded.model.hear(torch.randn(1, 80, 3000), torch.tensor([600])).frames
    ids = torch.cat([torch.arange(40, 60), torch.full((frames.shape[1],), -1), torch.arange(60, 70)])[None]
    return [frames, loaded.model(ids, speech=frames[0]).logits]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_only_the_linear_layers_that_the_mode_names_have_four_bits(folder: Path, mode: str) -> None:
    model = load(folder, mode).model
    four = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    wide = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    layers = len(model.language_model.model.layers)
    assert {name for name in four if name.startswith("language_model.model.layers.")} >= {
        f"language_model.model.layers.{layer}.self_attn.q_proj.base" for layer in range(layers)
    }
    assert sum(name.startswith("language_model") for name in four) == 7 * layers
    assert sum(name.startswith("encoder") for name in four) == (12 if mode == "nf4-all" else 0)
    assert {"adapter.fc1", "adapter.fc2", "language_model.lm_head"} <= wide
    assert not any("adapter" in name or "emotion" in name for name in four)
    kept = [p for name, p in model.named_parameters() if "lora_" in name or "emotion" in name or "adapter" in name]
    assert {p.dtype for p in kept} == {torch.float32}


LEVELS = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1.0),
    ]
)
"""NF4's, from the paper's appendix E."""


@settings(max_examples=40, deadline=None)
@given(outputs=st.integers(1, 70), inputs=st.integers(1, 200), bias=st.booleans())
@example(outputs=48, inputs=96, bias=False)  # its blocks cross the ends of rows
@example(outputs=64, inputs=128, bias=True)
@example(outputs=5, inputs=63, bias=True)
def test_a_layer_multiplies_by_the_levels_of_the_paper(outputs: int, inputs: int, bias: bool) -> None:
    """The scale of a block of 64 weights is an offset plus an 8-bit code times a scale of 256 of them."""
    torch.manual_seed(outputs * 1000 + inputs)
    tree = _Tree(nn.Linear(inputs, outputs, bias))
    original, offsets = tree.language_model.weight.detach().clone(), tree.language_model.bias
    quantize_nf4(tree, "nf4", torch.float32)
    layer: Any = tree.language_model
    state, packed = layer.weight.quant_state, layer.weight.data.flatten()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()[: original.numel()]
    scales = state.state2.code[state.absmax.long()] * state.state2.absmax.repeat_interleave(256)[: len(state.absmax)]
    scales = (scales + state.offset).repeat_interleave(64)[: original.numel()]
    weight = (LEVELS[codes] * scales).view(original.shape)
    hidden = torch.randn(2, 3, inputs)
    with torch.inference_mode():
        assert torch.allclose(layer(hidden), nn.functional.linear(hidden, weight, offsets), atol=1e-5)
    largest = nn.functional.pad(original.flatten().abs(), (0, -original.numel() % 64)).view(-1, 64).amax(1)
    nearest = (original.flatten() / largest.repeat_interleave(64)[: original.numel()])[:, None].sub(LEVELS).abs()
    assert (nearest.argmin(1) == codes).float().mean() > 0.98  # the rest lies between two levels


class _Tree(nn.Module):
    """A layer where a language model's would be."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.language_model: nn.Module = layer
        self.config = SimpleNamespace()


@pytest.mark.parametrize("mode", MODES)
def test_a_saved_folder_loads_bit_for_bit_without_quantising(
    folder: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folder, mode)
    before = outputs(first)  # used once: saving must not depend on that
    first.save(tmp_path / "small")

    def never(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("something was quantised")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", never)
    again = load(tmp_path / "small")
    assert again.quantize == mode
    assert equal(outputs(again), before)
    assert {path.name for path in (tmp_path / "small").iterdir()} >= FILES
    stored = load_file(tmp_path / "small" / "model.safetensors")
    layers = {name: module for name, module in again.model.named_modules() if isinstance(module, Linear4bit)}
    assert all(torch.equal(stored[f"{name}.weight"], layer.weight.data) for name, layer in layers.items())
    assert all(stored[f"{name}.weight"].dtype == torch.uint8 for name in layers)
    config = json.loads((tmp_path / "small" / "config.json").read_text("utf-8"))
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == (
        tmp_path / "small" / "model.safetensors"
    ).read_bytes()
    wide, small = ((tmp_path / which / "model.safetensors").stat().st_size for which in ("tiny", "small"))
    assert small < wide


@pytest.mark.parametrize("mode", MODES)
def test_loading_and_quantising_in_place_agree(folder: Path, mode: str) -> None:
    loaded = load(folder, "none")
    quantize_nf4(loaded.model, mode, torch.float32)
    assert equal(outputs(loaded), outputs(load(folder, mode)))


@pytest.mark.parametrize(
    ("stored", "asked"), [("nf4", "none"), ("nf4", "int8"), ("nf4", "nf4-all"), ("nf4-all", "nf4")]
)
def test_a_quantised_folder_stays_as_it_is(folder: Path, tmp_path: Path, stored: str, asked: str) -> None:
    load(folder, stored).save(tmp_path / "small")
    with pytest.raises(BadInput, match=f"stored in {stored}: leave out --quantize"):
        load(tmp_path / "small", asked)
    assert load(tmp_path / "small", stored).quantize == stored


def test_int8_is_not_stored(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nf4"):
        load(folder, "int8").save(tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_the_lean_loop_over_four_bits_equals_generate(folder: Path) -> None:
    model = load(folder, "nf4").model.language_model
    ids = torch.arange(100, 112)[None]
    greedy = {"do_sample": False, "min_new_tokens": 24, "max_new_tokens": 24, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy)[0, 12:].tolist()
    decoder, cache = Decoder(model), KeyValueCache(model.config.num_hidden_layers)
    assert decoder.lean is not None
    with torch.inference_mode():
        logits = model(ids, past_key_values=cache, use_cache=True).logits[0, -1]
    tokens = list[int]()
    for _ in expected:
        tokens.append(int(logits.argmax()))
        logits = decoder.step(tokens[-1], cache)
    assert tokens == expected


def test_int8_leaves_four_bits_alone(folder: Path) -> None:
    loaded = load(folder, "nf4-all")
    layers = [module for module in loaded.model.modules() if isinstance(module, Linear4bit)]
    quantize_int8(loaded.model)
    assert [module for module in loaded.model.modules() if isinstance(module, Linear4bit)] == layers


def test_a_reply_comes_out_of_four_bits(folder: Path) -> None:
    engine = Engine(load(folder, "nf4-all"))
    engine.checkpoint.generation.eos_token_id = None
    for message in (recording(3), Typed("hello there")):
        assert "".join(engine.reply([], message))


def _tensor(suffix: str, change) -> object:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if name.endswith(suffix))
        changed = change(weights.pop(name))
        save_file(
            weights | ({} if changed is None else {name: changed}), folder / "model.safetensors", {"format": "pt"}
        )

    return damage


def _setting(**changed: object) -> object:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config["quantization_config"] |= changed
        (folder / "config.json").write_text(json.dumps(config), "utf-8")

    return damage


def _longer(state: torch.Tensor) -> torch.Tensor:
    """The layer's stated shape, beyond the weights that are there."""
    values = json.loads(bytes(state.tolist()))
    values["shape"] = [1 << 20, values["shape"][1]]
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "damage",
    [
        _tensor("weight.absmax", lambda value: value[:-1].clone()),
        _tensor("weight.absmax", lambda _: None),
        _tensor("weight.nested_absmax", lambda value: value * float("nan")),
        _tensor("weight.nested_absmax", lambda value: value[:0].clone()),
        _tensor("weight.quant_map", lambda value: value[:4].clone()),
        _tensor("weight.quant_state.bitsandbytes__nf4", _longer),
        _tensor("weight.quant_state.bitsandbytes__nf4", lambda _: torch.zeros(3, dtype=torch.uint8)),
        _setting(bnb_4bit_quant_type="fp4"),
        _setting(load_in_4bit=False, load_in_8bit=True),
        _setting(llm_int8_skip_modules=["(a+)+$"]),
        _setting(quant_method="gptq", load_in_4bit=False),
        lambda folder: (folder / "config.json").write_text(
            (folder / "config.json").read_text("utf-8").replace('"quantization_config"', '"forgotten"'), "utf-8"
        ),
    ],
)
def test_damaged_four_bit_folders_are_named(folder: Path, tmp_path: Path, damage) -> None:
    load(folder, "nf4").save(tmp_path / "small")
    damage(tmp_path / "small")
    with pytest.raises(WeightsMissing) as raised:
        load(tmp_path / "small")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_the_command_writes_a_folder_that_computes_the_same(
    folder: Path, tmp_path: Path, mode: str, stored: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = tiny_checkpoint()
    loaded.model.to(stored)
    loaded.save(tmp_path / "narrow")
    assert (
        quantize_command([str(tmp_path / "narrow"), str(tmp_path / "out"), "--quantize", mode, "--device", "cpu"]) == 0
    )
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= FILES
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["language_model.lm_head.weight"].dtype == stored
    assert equal(outputs(load(tmp_path / "out")), outputs(load(tmp_path / "narrow", mode)))


def test_the_command_refuses_what_it_cannot_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize_command([str(folder), str(folder)]) == 2
    assert quantize_command([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 3
    load(folder, "nf4").save(tmp_path / "small")
    assert quantize_command([str(tmp_path / "small"), str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert ["already exists" in lines[0], "config.json" in lines[1], "stored in nf4" in lines[-1]] == [True] * 3
    assert not (tmp_path / "out").exists()


def test_four_bits_weigh_what_the_paper_says() -> None:
    assert nf4_bytes(1 << 24) * 8 / (1 << 24) == pytest.approx(4.127, abs=1e-3)


# ---- the mini model


@pytest.fixture(scope="module")
def mini() -> Checkpoint:
    return loader.load("mini", device="cpu", quantize="nf4-all")


@pytest.mark.real
def test_mini_in_four_bits_hears_and_answers(mini: Checkpoint) -> None:
    engine = Engine(mini)
    spoken = Spoken(read_audio(RESOURCES / "samples" / "who-sent-this.flac"))
    words = engine.transcript(spoken)
    assert words is not None
    assert "sent this" in words.text.lower()
    assert len("".join(engine.reply([], spoken)).split()) >= 3


@pytest.mark.real
def test_mini_in_four_bits_costs_little() -> None:
    small, exact = (loader.load("mini", device="cpu", quantize=mode) for mode in ("nf4", "none"))
    assert likelihood(small) / likelihood(exact) - 1 < 0.06


@pytest.mark.real
def test_mini_in_four_bits_is_saved_and_loaded(mini: Checkpoint, tmp_path: Path) -> None:
    mini.save(tmp_path / "mini")
    again = loader.load(str(tmp_path / "mini"), device="cpu")
    ids = torch.arange(1000, 1020)[None]
    with torch.inference_mode():
        expected, logits = (one.model.language_model(ids).logits for one in (mini, again))
    assert torch.equal(expected, logits)
    assert (tmp_path / "mini" / "model.safetensors").stat().st_size < 400e6


@pytest.mark.parametrize("name", ["norm.weight", "lm_head.weight", "adapter.fc1.weight", "lora_a"])
def test_weights_of_a_4_bit_folder_that_are_no_numbers_are_named(tmp_path: Path, name: str) -> None:
    tiny_checkpoint().save(tmp_path / "wide")
    quantize(tmp_path / "wide", tmp_path / "small", "nf4", "cpu")
    path = tmp_path / "small" / "model.safetensors"
    tensors = load_file(path)
    chosen = next(key for key in tensors if key.endswith(name))
    tensors[chosen].view(-1)[0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(WeightsMissing, match="NaN or infinite"):
        loader.read_model(tmp_path / "small", "cpu", "nf4", torch.float32)


def test_what_stays_wide_keeps_its_type_and_strangers_stay_behind(tmp_path: Path) -> None:
    tiny_checkpoint().save(tmp_path / "wide")
    path = tmp_path / "wide" / "model.safetensors"
    mixed = {key: one.bfloat16() if "language_model" in key else one for key, one in load_file(path).items()}
    save_file(mixed, path, {"format": "pt"})
    settings = json.loads((tmp_path / "wide" / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "wide" / "README.txt").symlink_to(tmp_path / "secret")
    quantize(tmp_path / "wide", tmp_path / "small", "nf4", "cpu")
    assert not (tmp_path / "small" / "README.txt").exists()
    small = load_file(tmp_path / "small" / "model.safetensors")
    for key in ("adapter.fc1.weight", "encoder.conv1.weight", "emotion_head.weight"):
        assert torch.equal(small[key], mixed[key])
    assert small["language_model.model.norm.weight"].dtype == torch.bfloat16
    assert list(tmp_path.glob("*.part")) == []
