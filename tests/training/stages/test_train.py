"""Training on a tiny checkpoint: the same losses whatever happens in between, and nothing lost when something does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints.loader import read_model
from model.errors import BadInput
from model.nn.ctc_adapter import CtcAdapter
from tests import ROOT
from tests.support.tiny import SPEECH, TEXT
from tests.training.support.tiny_run import CONFIGS, losses, make_checkpoint, make_data, near, options, weights
from training.runs.run_folder import read_progress, request_stop
from training.stages.train import train
from training.stages.trainer import Reporter

# ---- what a run leaves


def test_a_run_is_what_a_watcher_expects(folder, stage1):
    lines = read_progress(stage1)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert {line["stage"] for line in lines} == {"stage 1"}
    assert {line["of"] for line in lines} == {8}
    assert lines[0]["learning_rate"] == 0
    assert lines[2]["learning_rate"] == pytest.approx(1e-3)
    assert lines[-1]["validation"] < lines[4]["validation"]
    assert lines[-1]["samples_per_second"] > 0
    assert lines[-1]["eta_seconds"] == 0
    assert sorted(path.name for path in stage1.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    card = (stage1 / "card.md").read_text("utf-8")
    assert "8 of 8 steps" in card
    assert "response_kl" in card
    assert "18 rows" in card
    summary = json.loads((stage1 / "summary.json").read_text("utf-8"))
    assert summary["validation"] == lines[-1]["validation"]
    assert train(options(folder, "stage1")) == summary  # it is over


@pytest.mark.parametrize(
    ("run", "learnt"),
    [("stage1", ("adapter.",)), ("stage2", ("adapter.", "emotion_head.weight", ".lora_"))],
)
def test_only_what_a_stage_trains_has_changed(folder, request, run, learnt):
    before, after = weights(folder / "start"), weights(request.getfixturevalue(run) / "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    kept = weights(folder / run / "checkpoint-8")
    assert before.keys() == after.keys()
    assert kept.keys() == {name for name in before if any(part in name for part in learnt)}
    # What LoRA adds to speech positions in the last layer reaches an answer by its keys and values alone.
    idle = {name for name in kept if re.search(r"layers\.1\..*(?<![kv]_proj)\.lora_b", name)}
    assert changed == kept.keys() - idle
    model = read_model(folder / run / "model", "cpu", "none", torch.float32)
    for name, value in model.named_parameters():
        assert torch.equal(value, kept.get(name, before.get(name, value)))


def test_stage_two_reports_how_emotions_are_read(stage2):
    last = read_progress(stage2)[-1]
    assert last["validation"] == pytest.approx(last["validation_response_ce"] + last["validation_input_er"])
    assert 0 <= last["validation_accuracy"] <= 1
    assert 0 <= last["validation_unweighted_recall"] <= 1


def test_a_checkpoint_holds_little_besides_what_is_trained(stage1):
    trained = (stage1 / "checkpoint-8" / "model.safetensors").stat().st_size
    whole = sum(path.stat().st_size for path in (stage1 / "checkpoint-8").iterdir())
    assert whole < 3 * trained + 40_000  # Adam keeps two numbers a weight


# ---- the same losses


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"rows_at_once": 4}, 1e-5),
        ({"gradient_checkpointing": "on"}, 1e-6),
        ({"precision": "bf16"}, 0.02),
        ({"features": ("CACHE",)}, 1e-5),
    ],
    ids=["whole steps", "gradient checkpointing", "bfloat16", "cached features"],
)
def test_the_losses_of_a_run_are_the_same(folder, stage1, tmp_path, change, tolerance):
    if "features" in change:
        change = {"features": (str(tmp_path / "cache"),)}
    train(options(folder, "changed", **change, run=tmp_path / "run"))
    assert near(losses(stage1), losses(tmp_path / "run"), tolerance)
    assert (tmp_path / "cache").exists() == ("features" in change)


def test_cached_features_are_not_computed_again(folder, tmp_path):
    cached = options(folder, "", features=(str(tmp_path / "cache"),), run=tmp_path / "one", max_steps=1)
    train(cached)
    size = (tmp_path / "cache" / "states.bin").stat().st_size
    train(cached.model_copy(update={"run": tmp_path / "two"}))
    assert (tmp_path / "cache" / "states.bin").stat().st_size == size
    assert [line["stage"] for line in read_progress(tmp_path / "two")] == ["stage 1"] * 2


KILLER = """
import os, random, signal, sys
import torch
torch.set_num_threads(1)
from tests.training.support.tiny_run import options
from training.stages.train import train
from training.stages.trainer import Reporter
from pathlib import Path

folder, run = Path(sys.argv[1]), Path(sys.argv[2])
choose = random.Random(3)
usual = Reporter.on_step_begin
done = 0
for kill in range(20):
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        continue
    choose.seed(kill)
    left = [choose.randint(1, 5)]
    def step(self, *_, **__):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
    Reporter.on_step_begin = step if kill % 2 else usual
    Reporter.on_substep_end = usual if kill % 2 else step
    train(options(folder, "", stage=2, max_steps=40, validate_every=2, run=run))
    os._exit(1)
"""


@pytest.mark.real
def test_twenty_kills_at_random_change_no_loss(folder, tmp_path):
    """No weights of the world are needed for it either: twenty starts take half a minute."""
    whole = options(folder, "", stage=2, max_steps=40, validate_every=2, run=tmp_path / "whole")
    train(whole)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(folder), str(tmp_path / "killed")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "killed" / "model").exists()
    train(whole.model_copy(update={"run": tmp_path / "killed"}))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert weights(tmp_path / "killed" / "model").keys() == weights(tmp_path / "whole" / "model").keys()
    for name, value in weights(tmp_path / "whole" / "model").items():
        assert torch.equal(value, weights(tmp_path / "killed" / "model")[name]), name


def test_a_stop_file_pauses_and_the_run_goes_on(folder, stage1, tmp_path, monkeypatch):
    paused = options(folder, "", run=tmp_path / "run")
    seen = Reporter.on_log

    def stop_at_three(self, args, state, control, **rest):
        seen(self, args, state, control, **rest)
        if state.global_step == 2:
            request_stop(tmp_path / "run")

    monkeypatch.setattr(Reporter, "on_log", stop_at_three)
    assert train(paused) == {"stopped": True, "step": 3, "of": 8, "run": str(tmp_path / "run")}
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    train(paused)
    assert losses(tmp_path / "run") == losses(stage1)


@pytest.mark.real
def test_two_processes_give_the_losses_of_one(folder, stage1, tmp_path):
    """No weights of the world are needed for it, but two more interpreters: some 20 s."""
    given = ["--data", folder / "data", "--model", folder / "start", "--run", tmp_path / "run", "--batch-size", 4]
    given += ["--rows-at-once", 2, "--max-steps", 8, "--validate-every", 4, "--learning-rate", 1e-3]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / "processes.yaml"]
    command = list(map(str, [*launch, "-m", "training", "train", *given, "--warmup-steps", 2, "--json"]))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 8
    assert (tmp_path / "run" / "checkpoint-8" / "rng_state_1.pth").exists()
    assert near(losses(stage1), losses(tmp_path / "run"), 1e-6)
    validations = [[line["validation"] for line in read_progress(run)] for run in (stage1, tmp_path / "run")]
    assert validations[0][-1] == pytest.approx(validations[1][-1], rel=1e-6)


# ---- other ways to train


@pytest.mark.parametrize("stage", [1, 2])
def test_a_language_model_in_four_bits_is_trained_beside(folder, tmp_path, stage):
    run = tmp_path / "run"
    summary = train(options(folder, "", stage=stage, quantize="nf4", run=run))
    before, after = weights(folder / "start"), weights(run / "model")
    assert summary["validation"] < 1.05 * read_progress(run)[4]["validation"]
    learnt = weights(run / "checkpoint-8")
    assert not any("base" in name for name in learnt)
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name not in learnt)


def test_the_head_alone(folder, tmp_path):
    train(options(folder, "", only="head", run=tmp_path / "run"))
    assert set(weights(tmp_path / "run" / "checkpoint-8")) == {"emotion_head.weight"}
    assert {line["stage"] for line in read_progress(tmp_path / "run")} == {"head"}


def test_the_encoder_too_but_never_behind_a_cache(folder, tmp_path):
    tuned = options(folder, "", stage=2, train_encoder=True, run=tmp_path / "run", max_steps=2, warmup_steps=0)
    train(tuned)
    learnt = weights(tmp_path / "run" / "checkpoint-2")
    assert any(name.startswith("encoder.layers.") for name in learnt)
    assert "encoder.embed_positions.weight" not in learnt
    with pytest.raises(BadInput, match="with --features, cannot be trained"):
        train(tuned.model_copy(update={"run": tmp_path / "other", "features": (str(tmp_path / "cache"),)}))


def test_a_cformer_learns_its_tokens_and_their_count(tmp_path):
    make_data(tmp_path, make_checkpoint(tmp_path, adapter="cformer", cformer_pre_layers=1, cformer_post_layers=1))
    train(options(tmp_path, "run"))
    last = read_progress(tmp_path / "run")[-1]
    parts = {f"validation_{name}" for name in ("response_kl", "input_kl", "cif")}
    assert parts == {name for name in last if name.startswith("validation_")}
    assert last["validation"] == pytest.approx(sum(last[name] for name in parts))
    assert not any("token_head" in name for name in weights(tmp_path / "run" / "checkpoint-8"))


def test_an_adapter_that_spells_learns_all_but_where_the_embeddings_lie(tmp_path):
    adapter = CtcAdapter(SPEECH["d_model"], 64, 16, [5, 5], TEXT["vocab_size"], layers=1)
    adapter.blank.fill_(9)  # frames are read as tokens
    save_file({f"adapter.{name}": value for name, value in adapter.state_dict().items()}, tmp_path / "warm")
    spelling = {"adapter": "spelling", "adapter_weights": tmp_path / "warm", "emotion_source": "encoder"}
    start = make_checkpoint(tmp_path, **spelling, kernels="5,5", inner=16, layers=1)
    make_data(tmp_path, start)
    train(options(tmp_path, "run"))
    before, learnt = weights(start), weights(tmp_path / "run" / "checkpoint-8")
    assert learnt.keys() == {f"adapter.{name}" for name, _ in adapter.named_parameters() if not name.startswith("norm")}
    assert all(not torch.equal(before[name], value) for name, value in learnt.items())


def test_it_stops_when_validation_does_not_get_better(folder, tmp_path):
    run = tmp_path / "run"
    given = {"max_steps": 400, "validate_every": 1, "patience": 2, "learning_rate": 1, "stage": 2}
    summary = train(options(folder, "", run=run, keep=1, **given))
    validations = {line["step"]: line["validation"] for line in read_progress(run) if line["validation"] is not None}
    best = min(validations, key=validations.__getitem__)
    assert summary["steps"] == max(validations) == best + 2 < 400
    assert summary["chosen_step"] == best
    assert {path.name for path in run.glob("checkpoint-*")} == {f"checkpoint-{best}", f"checkpoint-{best + 2}"}
    learnt = weights(run / f"checkpoint-{best}")
    assert all(torch.equal(weights(run / "model")[name], value) for name, value in learnt.items())


def test_without_validation_rows_the_last_weights_are_taken(tmp_path, folder):
    shutil.copytree(folder / "start", tmp_path / "start")
    make_data(tmp_path, tmp_path / "start", rows=4, validation=0)
    summary = train(options(tmp_path, "run", max_steps=2))
    assert summary["validation"] is None
    assert summary["chosen_step"] == 2
    assert "No validation rows" in (tmp_path / "run" / "card.md").read_text("utf-8")
