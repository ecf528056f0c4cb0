"""`init`: the parts' weights as they were, new ones that leave the language model as it was, and no half checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, WhisperFeatureExtractor
from transformers import WhisperForConditionalGeneration as Whisper

from model.checkpoints.loader import read_model
from model.checkpoints.tensor_writer import TensorWriter
from model.errors import BadInput, WeightsMissing
from model.nn.ctc_adapter import CtcAdapter
from model.nn.long_prompts import LongPrompts
from tests.support.tiny import tiny_model, tiny_tokenizer
from training.data.chat import read_chat
from training.runs.config import AdapterOptions, InitOptions
from training.runs.run_folder import read_options, read_progress
from training.stages import init as module
from training.stages.init import init, write_adapter

SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "bos_token_id": None,
    "eos_token_id": None,
}


def save_language_model(folder: Path, kind: str = "llama", **config: object) -> Path:
    torch.manual_seed(1)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES | {"num_key_value_heads": 2} | config))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES | {"num_key_value_heads": 6} | config))
    model.generation_config.eos_token_id = 265
    model.half().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a tiny Whisper and a tiny language model, both in float16."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    speech = tiny_model().config.speech_config
    speech.decoder_attention_heads = 4
    Whisper(speech).half().save_pretrained(folder / "speech")
    WhisperFeatureExtractor().save_pretrained(folder / "speech")
    save_language_model(folder / "text")
    save_language_model(folder / "tied", tie_word_embeddings=True)
    return folder


def options(parts: Path, out: Path, **changes: object) -> InitOptions:
    given = {"out": out, "speech": str(parts / "speech"), "text": str(parts / "text"), "kernels": "5,3", "inner": 24}
    return InitOptions.of(given | {"lora_rank": 4} | changes)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def loaded(folder: Path):
    return read_model(folder, "cpu", "none", torch.float32).eval()


@pytest.mark.parametrize("text", ["text", "tied"])
def test_the_parts_are_what_they_were_to_the_bit(parts, tmp_path, text):
    summary = init(options(parts, tmp_path / "out", text=str(parts / text)))
    model = loaded(tmp_path / "out")
    ids = torch.tensor([[3, 17, 200, 5]])
    with torch.inference_mode():
        original = LlamaForCausalLM.from_pretrained(parts / text, dtype=torch.float32)
        assert torch.equal(model(ids).logits, original(ids).logits)
        features = torch.randn(1, 80, 3000)
        encoder = Whisper.from_pretrained(parts / "speech", dtype=torch.float32).model.encoder
        torch.testing.assert_close(model.encoder(features)[0], encoder(features)[0])
    weights = stored(tmp_path / "out")
    assert {v.dtype for n, v in weights.items() if "lora" not in n and n.startswith(("encoder", "language"))} == {
        torch.float16
    }
    assert summary["new_parameters"]["adapter"] == sum(p.numel() for p in model.adapter.parameters())
    assert summary["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert read_options(tmp_path / "out.run")["inner"] == 24
    last = read_progress(tmp_path / "out.run")[-1]
    assert last["stage"] == "init"
    assert last["step"] == last["of"]


def test_the_new_parts_leave_the_language_model_as_it_was_and_are_not_nothing(parts, tmp_path):
    init(options(parts, tmp_path / "out"))
    weights = stored(tmp_path / "out")
    assert not any(value.any() for name, value in weights.items() if name.endswith("lora_b"))
    assert all(value.abs().max() > 0 for name, value in weights.items() if name.endswith("lora_a"))
    assert 0.015 < weights["emotion_head.weight"].std() < 0.025
    assert weights["emotion_head.temperature"] == 1
    assert not weights["emotion_head.offset"].any()
    frames = loaded(tmp_path / "out").adapter(torch.randn(1, 40, 32), torch.tensor([40]))[0]
    assert frames.shape == (1, 10, 48)
    assert frames.std() > 0.5


def test_a_seed_says_what_the_new_parts_are(parts, tmp_path):
    before = torch.random.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        init(options(parts, tmp_path / name, seed=seed))
    assert torch.equal(torch.random.get_rng_state(), before)
    a, b, c = (stored(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["adapter.fc1.weight"], c["adapter.fc1.weight"])
    assert not torch.equal(a["emotion_head.weight"], c["emotion_head.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": "cformer", "cformer_pre_layers": 1, "cformer_post_layers": 2, "window": "trimmed"},
        {"lora_rank": 0, "emotion_source": "none"},
        {"emotion_source": "encoder", "lora_scope": "global"},
        {"path": "transcript", "kernels": "", "emotion_source": "encoder"},
    ],
)
def test_every_composition_loads(parts, tmp_path, changes):
    init(options(parts, tmp_path / "out", **changes))
    config = loaded(tmp_path / "out").config
    for name, value in changes.items():
        name = {"adapter": "adapter_type", "kernels": "adapter_kernel_sizes"}.get(name, name)
        assert getattr(config, name) == (value or [] if name == "adapter_kernel_sizes" else value)


def test_a_converted_qwen_keeps_its_rules_for_long_prompts(parts, tmp_path):
    qwen = save_language_model(tmp_path / "qwen", "qwen2")
    config = json.loads((qwen / "config.json").read_text())
    config["long_prompts"] = {"trained_length": 64, "dynamic_ntk": True, "logn": True}
    (qwen / "config.json").write_text(json.dumps(config))
    init(options(parts, tmp_path / "out", text=str(qwen)))
    model = loaded(tmp_path / "out")
    assert isinstance(model.long_prompts, LongPrompts)
    assert model.config.text_config.long_prompts == config["long_prompts"]


def test_a_large_model_is_written_in_shards(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "lay_out", lambda forms, whole=module.lay_out: whole(forms, 60_000))
    init(options(parts, tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    ids = torch.tensor([[3, 17, 200, 5]])
    original = LlamaForCausalLM.from_pretrained(parts / "text", dtype=torch.float32)
    assert torch.equal(loaded(tmp_path / "out")(ids).logits, original(ids).logits)


@pytest.mark.parametrize("tensors", [0, 1, 7, 30])
def test_a_kill_leaves_no_checkpoint_and_the_same_command_goes_on(parts, tmp_path, monkeypatch, tensors):
    init(options(parts, tmp_path / "whole"))
    write, left = TensorWriter.write, [tensors]

    def killed(self, name, values):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return write(self, name, values)

    monkeypatch.setattr(TensorWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        init(options(parts, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(TensorWriter, "write", write)
    init(options(parts, tmp_path / "out"))
    whole, resumed = stored(tmp_path / "whole"), stored(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "out.part").exists()


def test_an_adapter_may_be_brought_along(parts, tmp_path):
    init(options(parts, tmp_path / "first", seed=5))
    weights = stored(tmp_path / "first")
    adapter = {name.removeprefix("adapter."): v for name, v in weights.items() if name.startswith("adapter.")}
    save_file({name: value.half() for name, value in adapter.items()}, tmp_path / "adapter.safetensors")
    init(options(parts, tmp_path / "out", adapter_weights=tmp_path / "adapter.safetensors"))
    new = stored(tmp_path / "out")
    assert all(torch.equal(new[f"adapter.{name}"], value.half().float()) for name, value in adapter.items())
    save_file(
        {name: v for name, v in weights.items() if "lora" not in name and name in new and name[:3] in ("ada", "emo")},
        tmp_path / "both.safetensors",
    )
    init(options(parts, tmp_path / "both", adapter_weights=tmp_path / "both.safetensors"))
    assert torch.equal(stored(tmp_path / "both")["emotion_head.weight"], weights["emotion_head.weight"])


def test_lora_goes_with_its_adapter_into_a_file_and_out_of_it(parts, tmp_path):
    init(options(parts, tmp_path / "first", seed=5))
    weights = stored(tmp_path / "first")
    learnt = {name: torch.randn(value.shape) for name, value in weights.items() if name.endswith("lora_b")}
    save_file(weights | learnt, next((tmp_path / "first").glob("*.safetensors")), {"format": "pt"})
    first = {"checkpoint": tmp_path / "first", "out": tmp_path / "small"}
    said = write_adapter(AdapterOptions.of(first))
    kept = load_file(tmp_path / "small")
    assert {name.split(".")[0] for name in kept} == {"adapter", "language_model"}
    assert sum(".lora_" in name for name in kept) == 2 * len(learnt)
    assert said["parameters"] == sum(value.numel() for value in kept.values())
    init(options(parts, tmp_path / "out", adapter_weights=tmp_path / "small"))
    again = stored(tmp_path / "out")
    assert all(torch.equal(again[name], value.float()) for name, value in kept.items())
    assert all(torch.equal(again[name], value.half().float()) for name, value in learnt.items())
    with pytest.raises(BadInput, match=r"lora_., which the new checkpoint does not have: .*--lora-rank"):
        init(options(parts, tmp_path / "none", adapter_weights=tmp_path / "small", lora_rank=0))
    with pytest.raises(BadInput, match=r"lora_a of shape \[4, \d+\], not \[2, .*--lora-rank"):
        init(options(parts, tmp_path / "two", adapter_weights=tmp_path / "small", lora_rank=2))
    with pytest.raises(BadInput, match=r"LoRA of lora_alpha 16.0, not 64.0: give --lora-alpha"):
        init(options(parts, tmp_path / "strong", adapter_weights=tmp_path / "small", lora_alpha=64))
    with pytest.raises(BadInput, match=r"LoRA of lora_scope audio, not global: give --lora-scope"):
        init(options(parts, tmp_path / "all", adapter_weights=tmp_path / "small", lora_scope="global"))
    save_file({name: value for name, value in kept.items() if not name.endswith("q_proj.lora_b")}, tmp_path / "part")
    with pytest.raises(BadInput, match=r"lacks \d+ .*q_proj.lora_b"):
        init(options(parts, tmp_path / "half", adapter_weights=tmp_path / "part"))
    save_file(weights, next((tmp_path / "first").glob("*.safetensors")), {"format": "pt"})  # B is zero
    write_adapter(AdapterOptions.of(first))
    assert {name.split(".")[0] for name in load_file(tmp_path / "small")} == {"adapter"}


def spelling_weights(file: Path, layers: int = 0) -> dict[str, torch.Tensor]:
    """An adapter that `warm-start` could have written."""
    torch.manual_seed(3)
    adapter = CtcAdapter(32, 48, 24, [5, 3], 300, layers)
    weights = {f"adapter.{name}": value for name, value in adapter.state_dict().items()}
    save_file(weights, file)
    return weights


def test_an_adapter_that_spells_comes_from_a_warm_start_and_goes_into_a_file(parts, tmp_path):
    given = spelling_weights(tmp_path / "warm.safetensors", layers=2)
    spelling = {"adapter": "spelling", "emotion_source": "none", "adapter_weights": tmp_path / "warm.safetensors"}
    with pytest.raises(BadInput, match=r"layers.*, which the new checkpoint does not have: .*--layers"):
        init(options(parts, tmp_path / "out", **spelling))
    with pytest.raises(BadInput, match=r"lacks .*layers.2.*--layers"):
        init(options(parts, tmp_path / "out", **spelling, layers=3))
    init(options(parts, tmp_path / "out", **spelling, layers=2))
    adapter = loaded(tmp_path / "out").adapter
    assert isinstance(adapter, CtcAdapter)
    assert len(adapter.layers) == 2
    said = write_adapter(AdapterOptions.of({"checkpoint": tmp_path / "out", "out": tmp_path / "small.safetensors"}))
    kept = load_file(tmp_path / "small.safetensors")
    assert kept.keys() == given.keys()
    assert said["parameters"] == sum(value.numel() for value in given.values())
    narrow = {torch.float32: torch.float16}
    assert all(torch.equal(kept[name], value.to(narrow.get(value.dtype, value.dtype))) for name, value in given.items())
    with pytest.raises(BadInput, match="blank, which the new checkpoint does not have: give its --adapter"):
        init(options(parts, tmp_path / "conv", adapter_weights=tmp_path / "warm.safetensors"))


def test_weights_that_16_bits_cannot_hold_are_refused(parts, tmp_path):
    save_file(spelling_weights(tmp_path / "w") | {"adapter.fc1.weight": torch.full((24, 48), 1e6)}, tmp_path / "w")
    spelling = {"adapter": "spelling", "emotion_source": "none", "adapter_weights": tmp_path / "w"}
    init(options(parts, tmp_path / "out", **spelling))
    with pytest.raises(BadInput, match=r"adapter.fc1.weight that 16 bits"):
        write_adapter(AdapterOptions.of({"checkpoint": tmp_path / "out", "out": tmp_path / "small"}))
    save_file(
        spelling_weights(tmp_path / "w") | {"adapter.fc1.weight": torch.full((24, 48), torch.nan)}, tmp_path / "w"
    )
    with pytest.raises(BadInput, match=r"NaN or infinite weights \(in adapter.fc1.weight\)"):
        init(options(parts, tmp_path / "broken", **spelling))
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"fc1.weight": torch.zeros(24, 48)}, "lacks"),
        ({"adapter.fc1.weight": torch.zeros(24, 47)}, r"of shape \[24, 47\], not \[24, 48\]"),
        ({"something": torch.zeros(2)}, "has something"),
        (None, "not a safetensors file"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(parts, tmp_path, tensors, message):
    file = tmp_path / "adapter.safetensors"
    if tensors is None:
        file.write_text("nothing")
    else:
        save_file(tensors, file)
    with pytest.raises(BadInput, match=message):
        init(options(parts, tmp_path / "out", adapter_weights=file))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"speech": "whisper-huge"}, WeightsMissing, "neither a folder nor one of"),
        ({"speech": "text"}, WeightsMissing, "not a Whisper"),
        ({"text": "speech"}, WeightsMissing, "is a whisper model"),
        ({"cformer_heads": 5, "adapter": "cformer"}, BadInput, "--cformer-heads"),
    ],
)
def test_what_is_no_part_is_refused(parts, tmp_path, changes, error, message):
    given = {
        name: str(parts / value) if name != value and value in ("text", "speech") else value
        for name, value in changes.items()
    }
    with pytest.raises(error, match=message):
        init(options(parts, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernels": "4"}, "--kernels: at most 8 odd numbers"),
        ({"kernels": "five"}, "--kernels: .*integer"),
        ({"kernels": ""}, "--kernels: without one"),
        ({"lora_rank": -1}, "--lora-rank: .*greater"),
        ({"adapter": "linear"}, "--adapter: .*'spelling' or 'cformer'"),
        ({"adapter": "spelling", "emotion_source": "none"}, "--adapter-weights"),
        ({"layers": 2}, "--layers: only a CTC adapter"),
        ({"adapter": "spelling", "adapter_weights": "x"}, "--emotion-source encoder"),
    ],
)
def test_an_option_that_cannot_be_is_named(parts, tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        options(parts, tmp_path / "out", **changes)


def test_nothing_is_overwritten(parts, tmp_path):
    (tmp_path / "out").mkdir()
    init(options(parts, tmp_path / "out"))
    with pytest.raises(BadInput, match="already exists"):
        init(options(parts, tmp_path / "out"))


def test_damaged_weights_are_named(parts, tmp_path):
    folder = save_language_model(tmp_path / "lm")
    weights = stored(folder)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsMissing, match=r"NaN or infinite weights \(in model.norm.weight\)"):
        init(options(parts, tmp_path / "out", text=str(folder)))
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsMissing, match=r"model.norm.weight is missing"):
        init(options(parts, tmp_path / "other", text=str(folder)))


def test_the_system_message_is_the_checkpoints_own(parts, tmp_path):
    init(options(parts, tmp_path / "out"))
    assert read_chat(tmp_path / "out").system(use_emotion=False) == "You are a helpful assistant."
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"empathy_prompt": " Be kind."}))
    assert read_chat(tmp_path / "out").system(use_emotion=True) == "You are a helpful assistant. Be kind."
    assert "empathy" in read_chat(parts / "text").system(use_emotion=True)
