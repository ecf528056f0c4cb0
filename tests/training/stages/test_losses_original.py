"""The recipe's losses, gradients and steps against the original's."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from model.audio.features import encode
from model.checkpoints.convert import convert, examine
from model.nn.speech_llm import SpeechLanguageModel
from tests.training.support.original import GOLDENS, NUMBERS, close, recording, rows_of, under_original_names
from training.data.batches import TrainingRow, collate
from training.runs.config import TrainOptions
from training.stages.losses import RecipeLosses
from training.stages.student import Recipe
from training.stages.train import plan_steps, training_arguments
from training.stages.trainer import RecipeTrainer, Reporter, to_device

VALUES = [(variant, key, value) for variant in "abcd" for key, value in NUMBERS[variant]["values"].items()]
GRADIENTS = [(variant, key) for variant in "abcd" for key in NUMBERS[variant] if key.startswith("grad_")]
STEPS = [(variant, key) for variant in "abcd" for key in NUMBERS[variant] if key.startswith("steps_")]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Loads a checkpoint by its letter, in fp32; adapter, LoRA and emotion head are trainable, as in the recipe."""
    root = tmp_path_factory.mktemp("converted")

    def load(variant: str) -> SpeechLanguageModel:
        if not (root / variant).exists():
            convert(examine(GOLDENS / "checkpoints" / variant), root / variant)
        model = SpeechLanguageModel.from_pretrained(root / variant, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(("adapter", "emotion_head")) or ".lora_" in name
        return model

    return load


@pytest.fixture(scope="module")
def heard(original):
    """A checkpoint, loaded once, and the rows of its batches with the encoder's states over the whole window."""

    @cache
    def load(variant: str) -> tuple[SpeechLanguageModel, dict[str, list[TrainingRow]]]:
        model = original(variant)
        batches = NUMBERS[variant]["batches"]
        names = {line["audio"] for lines in batches.values() for line in lines}
        with torch.no_grad():
            states = {name: encode(model.encoder, recording(name)[0][None])[-1][0] for name in names}
        return model, {
            batch: [
                replace(row, features=None, encoded=states[line["audio"]])
                for row, line in zip(rows_of(variant, batch), lines, strict=True)
            ]
            for batch, lines in batches.items()
        }

    return load


@pytest.mark.parametrize(("variant", "key", "value"), VALUES, ids=[f"{v}-{k}" for v, k, _ in VALUES])
@torch.no_grad()
def test_every_loss_of_the_original(variant: str, key: str, value: float | str, heard) -> None:
    mode, name, losses = key.split("/")
    losses = losses.split(",")
    model, batches = heard(variant)
    batch = collate(batches[name])
    # One row alone has no padding: there our layout is the original's.
    for legacy in [True, False] if name == "one" else [True]:
        recipe = RecipeLosses(model, losses, legacy_batching=legacy)
        result = recipe.train(mode == "train")(batch)
        assert list(result) == ["loss", *losses]
        if isinstance(value, float):
            assert close(result["loss"], value, 1e-4)
            continue
        # Where the original gives up, because in evaluation it makes as many frames as it hears and compares them with
        # the transcript's tokens, we hear once more with the transcript's count, as training does.
        assert "mismatched shape" in value
        assert close(result["input_kl"], recipe.train()(batch)["input_kl"], 1e-6)
        for loss in set(losses) - {"input_kl"}:
            assert close(result[loss], NUMBERS[variant]["values"][f"eval/{name}/{loss}"], 1e-4)
        assert close(result["loss"], sum(result[loss] for loss in losses), 1e-6)


@pytest.mark.parametrize(("variant", "key"), GRADIENTS)
def test_every_gradient_of_the_original(variant: str, key: str, original) -> None:
    golden = NUMBERS[variant][key]
    model = original(variant)
    recipe = RecipeLosses(model, golden["loss_names"].split(","), legacy_batching=True).train(golden["mode"] == "train")
    loss = recipe(collate(rows_of(variant, golden["batch"])))["loss"]
    loss.backward()
    assert close(loss, golden["loss"], 1e-4)
    gradients = under_original_names(model, gradients=True)
    assert gradients.keys() == golden["grad_norms"].keys()
    assert under_original_names(model, gradients=False).keys() - gradients == set(golden["trainable_without_grad"])
    for name, norm in golden["grad_norms"].items():
        assert close(gradients[name].norm(), norm, 1e-3), name
    prefix = key.removeprefix("grad_") + "."
    path = GOLDENS / "numeric" / variant / "grads.safetensors"  # some gradients complete, of all variants but c
    complete = load_file(path) if path.exists() else {}
    assert complete or variant == "c"
    for name, gradient in complete.items():
        ours = gradients[name.removeprefix(prefix)]
        assert (ours - gradient).norm() <= 1e-3 * gradient.norm(), name


class OriginalTrainer(RecipeTrainer):
    """Ours, with the original runs' weight decay: of every weight. transformers spares biases and norms."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]


class Rows(list[TrainingRow]):
    """One batch, taken whole by every step."""

    def __init__(self, rows: list[TrainingRow], steps: int) -> None:
        super().__init__(rows)
        self.order = [*range(len(rows))] * steps


class Recorder(TrainerCallback):
    """Keeps what the Trainer logs."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **_) -> None:
        self.lines.append(dict(logs))


@pytest.mark.parametrize(("variant", "key"), STEPS)
def test_five_steps_of_the_original(variant: str, key: str, original, heard, tmp_path, monkeypatch) -> None:
    golden = NUMBERS[variant][key]
    settings, count = golden["optimizer"], len(golden["grad_norms_before_clip"])
    model = original(variant)
    for layer in model.language_model.model.layers:
        if model.config.lora_rank:
            # One A for q, k and v, as in the original: AdamW treats three copies otherwise than their sum.
            attention = layer.self_attn
            attention.k_proj.lora_a = attention.v_proj.lora_a = attention.q_proj.lora_a
    recipe = Recipe(model, golden["loss_names"].split(","), legacy_batching=True)
    recipe.train(golden["mode"] == "train")
    monkeypatch.setattr(recipe, "train", lambda mode=True: recipe)  # some were made without dropout
    rows = Rows(heard(variant)[1][golden["batch"]], count)
    options = TrainOptions(
        data=tmp_path,
        model="",
        run=tmp_path,
        learning_rate=settings["lr"],
        warmup_steps=0,
        max_steps=count,
        batch_size=len(rows),
        rows_at_once=len(rows),
        weight_decay=settings["weight_decay"],
        clip=settings["clip"],
        precision="fp32",
    )
    steps = plan_steps(options, len(rows), 1)
    arguments = training_arguments(options, steps)
    assert [arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon] == [*settings["betas"], settings["eps"]]
    arguments.lr_scheduler_type, arguments.save_strategy = "constant", "no"
    trainer = OriginalTrainer(
        recipe, arguments, (rows, Rows([], 0)), rows.order, options, Reporter(None, options, steps, 0)
    )
    trainer.add_callback(recorder := Recorder())
    trainer.train()
    lines = [line for line in recorder.lines if "loss" in line]
    losses = [line["loss"] for line in lines] + [recipe(to_device(collate(rows), arguments.device))["loss"].item()]
    assert losses == pytest.approx(golden["losses"], rel=1e-4)
    assert [line["grad_norm"] for line in lines] == pytest.approx(golden["grad_norms_before_clip"], rel=1e-3)
    final = {name: float(value.norm()) for name, value in under_original_names(model, gradients=False).items()}
    assert final == pytest.approx(golden["final_param_norms"], rel=1e-4)
