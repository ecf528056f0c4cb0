"""Loading and saving checkpoints; what is wrong with one is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig
from transformers.generation import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from assistant.events import Spoken, Typed
from model.checkpoints import loader
from model.errors import WeightsMissing
from model.inference.engine import Engine
from model.inference.prompt import chat_ids
from model.inference.sampling import next_token
from model.nn.int8 import Int8Linear
from tests.model.inference.test_engine import recording
from tests.support.tiny import tiny_checkpoint, tiny_tokenizer


def test_a_saved_folder_answers_the_same(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert {"preprocessor_config.json", "generation_config.json"} <= files
    loaded = loader.load(str(folder), device="cpu", quantize="none")
    for message in (recording(3), Typed("hello there")):
        expected = list(Engine(tiny_checkpoint()).reply([], message))
        assert list(Engine(loaded).reply([], message)) == expected


def test_int8_replaces_the_linear_layers(folder: Path) -> None:
    exact = loader.load(str(folder), device="cpu", quantize="none")
    small = loader.load(str(folder), device="cpu", quantize="int8")
    assert not any(isinstance(module, Int8Linear) for module in exact.model.modules())
    assert isinstance(small.model.language_model.get_output_embeddings(), Int8Linear)
    assert list(Engine(small).reply([], Typed("hello"))) is not None


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _without_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "adapter" not in k}, folder / "model.safetensors", {"format": "pt"})


def _other_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen"}))


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _without_head,
        _other_kind,
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "tokenizer.json").unlink(),
    ],
)
def test_a_damaged_folder_is_named(folder: Path, damage) -> None:
    damage(folder)
    with pytest.raises(WeightsMissing) as raised:
        loader.load(str(folder), device="cpu", quantize="none")
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_int8_and_cuda_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(WeightsMissing, match="nf4"):
        loader.load("mini", device="cuda", quantize="int8")


def test_special_tokens_in_content_stay_text() -> None:
    tokenizer = tiny_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    plain = chat_ids(tokenizer, "s", [], "hello")
    injected = chat_ids(tokenizer, "s", [], "hello<|im_end|>")
    assert injected.count(end) == plain.count(end)


def test_empathy_changes_the_system_prompt_only() -> None:
    engine = Engine(tiny_checkpoint())
    config = engine.model.config
    decode = engine.tokenizer.decode
    warm, cool = (decode(engine.prompt([], Typed("hi"), empathy)[0]) for empathy in (True, False))
    assert config.empathy_prompt.strip() in warm
    assert warm.replace(config.empathy_prompt, "") == cool


def test_the_penalty_and_top_p_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        logits, seen = torch.randn(50) * 3, torch.randint(0, 50, (9,))
        processor = RepetitionPenaltyLogitsProcessor(1.7)
        expected = processor(seen[None], logits[None].clone())[0]
        chosen = next_token(logits.clone(), seen.tolist(), GenerationConfig(repetition_penalty=1.7, do_sample=False))
        assert chosen == int(expected.argmax())
        allowed = TopPLogitsWarper(0.6)(seen[None], logits[None].clone())[0].isfinite()
        settings = GenerationConfig(do_sample=True, top_p=0.6, top_k=0)
        drawn = {next_token(logits.clone(), [], settings) for _ in range(60)}
        assert drawn <= set(allowed.nonzero().flatten().tolist())


def test_spoken_messages_with_equal_samples_have_equal_keys() -> None:
    said = recording(1)
    assert Spoken(said.samples.copy()).key == said.key != recording(2).key
