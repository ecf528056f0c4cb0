"""The tuning: samples as the engine's prompts, a run that stops and goes on as if it had not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from assistant.events import Exchange, Typed
from model.errors import BadInput
from model.inference.engine import Engine
from model.inference.prompt import with_tone
from tests.support.tiny import TEXT, tiny_checkpoint, tiny_tokenizer
from training.replies.fit import FACTORS, Fit, Prompts, Recipe, batches, fit, losses
from training.replies.network import ReplyNetwork
from training.replies.records import Record, Turn
from training.runs.run_folder import Run, read_progress, request_stop

SETTINGS = {"system_prompt": "Be.", "empathy_prompt": " Kind.", "tone_template": "{words} ({tone})"}
END = 265
DIALOGUE = Record(
    "memory-0001", "memory", (Turn(("sad",), "it rains", "All day."), Turn((), "still?", "Still."))
)  # fmt: skip
RECORDS = [
    *(Record(f"facts-{n}", "facts", (Turn(("sad", "neutral"), f"number {n}", f"It is {n}."),)) for n in range(40)),
    DIALOGUE,
]
RECIPE = Recipe("tiny", rank=2, epochs=2, learning_rate=0.01, warm_up=2, batch_tokens=400, negatives=10)


def prompts() -> Prompts:
    return Prompts(tiny_tokenizer(), SETTINGS, END)


def test_a_sample_is_what_the_engine_would_see() -> None:
    checkpoint = tiny_checkpoint(path="transcript", tone_detail="candidates", **SETTINGS)
    engine = Engine(checkpoint)
    own, sample = prompts(), prompts().sample(DIALOGUE)
    ids = [*own.prefix(), *sample.ids]
    first = with_tone(checkpoint.model.config, "it rains", ("sad",))
    history = [Exchange(Typed(first), "All day.")]
    seen, _ = engine.prompt(history, Typed("still?"), True)
    assert ids[: len(seen)] == seen
    answers = [own.tokenizer.decode(sample.ids[start:stop]) for start, stop in sample.spans]
    assert answers == ["All day.<|im_end|>", "Still.<|im_end|>"]


def network() -> ReplyNetwork:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ReplyNetwork(LlamaForCausalLM(LlamaConfig(**TEXT, **sizes, num_key_value_heads=2)), RECIPE.rank)


def state(folder: Path, recipe: Recipe = RECIPE) -> Fit:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    return Fit(Run(folder), recipe, network(), prompts(), RECORDS)


def test_batches_hold_every_sample_once_within_their_tokens() -> None:
    samples = [prompts().sample(record) for record in RECORDS]
    found = batches(samples, RECIPE, 0)
    assert sorted(sample.ids for batch in found for sample in batch) == sorted(sample.ids for sample in samples)
    assert all(len(batch) * max(len(one.ids) for one in batch) <= RECIPE.batch_tokens for batch in found)
    assert found != batches(samples, RECIPE, 1)


def test_losses_count_the_replies_alone() -> None:
    samples = [prompts().sample(record) for record in RECORDS[-2:]]
    found = losses(network(), torch.tensor(prompts().prefix()), samples)
    assert [len(one) for one in found] == [sum(stop - start for start, stop in sample.spans) for sample in samples]


def test_a_run_learns_and_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = state(tmp_path / "whole")
    figures = fit(whole, {"name": "x"})
    assert figures["step"] == figures["of"] == len(whole.plan)
    assert whole.history[-1]["all"] < whole.history[0]["all"]
    halves = state(tmp_path / "halves")
    for _ in range(3):
        halves.train_step()
    halves.save()
    request_stop(halves.run.folder)
    fit(state(tmp_path / "halves"), {"name": "x"})  # stops after one step, as asked
    (halves.run.folder / "stop").unlink()
    rest = state(tmp_path / "halves")
    assert rest.step == 4
    fit(rest, {"name": "x"})
    for one, other in zip(whole.network.parameters(), rest.network.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert load_file(tmp_path / "whole" / FACTORS).keys() == whole.network.factors().keys()
    assert "by_kind" in [row for row in read_progress(tmp_path / "whole") if row["validation"] is not None][-1]


def test_a_termination_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = state(tmp_path / "run")
    step = running.train_step
    monkeypatch.setattr(running, "train_step", lambda: (os.kill(os.getpid(), signal.SIGTERM), step())[1])
    assert fit(running, {})["step"] == 1
    assert state(tmp_path / "run").step == 1


def test_another_run_may_be_begun_with(tmp_path: Path) -> None:
    first = state(tmp_path / "first")
    first.train_step()
    first.save()
    second = state(tmp_path / "second", Recipe("tiny", rank=2, start=str(tmp_path / "first")))
    assert second.step == 0
    for one, other in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(BadInput, match="name a run"):
        state(tmp_path / "third", Recipe("tiny", rank=2, start=str(tmp_path / "nowhere")))
