"""`plan` and `bench`: what is counted is right, and what is measured was measured."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests.training.support.tiny_run import make_checkpoint, make_data, options
from training.__main__ import main
from training.data.batches import collate
from training.data.prepare import PreparedRows
from training.stages.cost_estimate import plan
from training.stages.footprint import step_bytes
from training.stages.student import load_student
from training.stages.train import speech_rows, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planning")
    make_data(folder, make_checkpoint(folder))
    return folder


def test_bytes_kept_for_the_backward_pass_by_hand():
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, 64))

        def forward(self, batch):
            hidden = batch["rows"] @ self.weight  # keeps the rows; the weight does not count
            return {"loss": (hidden * hidden).sum()}  # keeps hidden, once

    rows = torch.ones(10, 64)
    state = torch.random.get_rng_state()
    assert step_bytes(Square(), {"rows": rows}) == 2 * rows.nbytes
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_plan_describes_the_run_that_follows(folder):
    found = plan(options(folder, "run", stage=2))
    summary = train(options(folder, "run", stage=2))
    assert found["trained_parameters"] == summary["trained_parameters"]
    assert found["steps"] == summary["of"]
    assert (found["rows_at_once"], found["accumulated"], found["batch_size"]) == (2, 2, 4)
    kept = (folder / "run" / "checkpoint-8" / "model.safetensors").stat().st_size
    kept += (folder / "run" / "checkpoint-8" / "optimizer.pt").stat().st_size
    assert kept == pytest.approx(found["checkpoint_bytes"], rel=0.2)
    assert found["verdict"] == "fits"
    assert not found["gradient_checkpointing"]
    assert found["activations_checkpointed_bytes"] < found["activations_plain_bytes"]
    assert found["peak_bytes"] > found["weights_bytes"] + found["needed_bytes"]
    assert found["hours"] * 3600 == pytest.approx(8 * found["seconds_per_step"], rel=0.6)


def test_the_estimate_covers_what_the_longest_rows_keep(folder):
    given = options(folder, "none")
    student = load_student(given, folder / "start", "cpu")
    rows, _ = speech_rows(given, student, PreparedRows(given.data, "train"))
    longest = sorted(range(len(rows)), key=lambda number: rows.lengths[number])[-2:]
    kept = step_bytes(student.recipe, collate([rows[number] for number in longest]))
    assert kept <= plan(given)["activations_plain_bytes"] <= 1.5 * kept


def test_the_command_lines(folder, capsys):
    given = ["--data", folder / "data", "--model", folder / "start", "--run", folder / "none", "--json"]
    assert main(["plan", *map(str, given), "--batch-size", "4", "--gradient-checkpointing", "on"]) == 0
    assert json.loads(capsys.readouterr().out)["gradient_checkpointing"] is True
    assert not (folder / "none").exists()
    bench = ["bench", str(folder / "start"), "--data", str(folder / "data"), "--steps", "2", "--batch-size", "4"]
    assert main([*bench, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    rates = {name: value for name, value in figures.items() if name.startswith("samples_per_second")}
    assert len(rates) == 4
    assert min(rates.values()) > 0
    assert figures["ratio"] == rates["samples_per_second_cached_by_length"] / rates["samples_per_second_uncached"]
