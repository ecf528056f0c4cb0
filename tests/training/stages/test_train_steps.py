"""How rows become steps, and how processes are launched for them."""

from __future__ import annotations

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from tests.training.support.tiny_run import CONFIGS
from training.data.dataset import StepOrder, divide_step
from training.data.prepare import PreparedRows
from training.runs.config import TrainOptions
from training.stages.train import plan_steps

# ---- steps


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 5),
    st.booleans(),
)
def test_every_row_comes_once_before_any_comes_again(lengths, size, steps, seed, by_length):
    order = StepOrder(lengths, size, steps, seed, by_length=by_length)
    numbers = list(order)
    assert len(numbers) == len(order) == size * steps
    assert numbers == list(StepOrder(lengths, size, steps, seed, by_length=by_length))
    longer = list(StepOrder(lengths, size, steps + 3, seed, by_length=by_length))
    assert longer[: len(numbers)] == numbers  # more steps change none before
    counts = [numbers.count(row) for row in range(len(lengths))]
    window = max(1, min(512, len(lengths)) // size) * size  # rows are mixed within one
    assert max(counts) - min(counts) <= 1 + -(-window // len(lengths))
    for start in range(0, len(numbers), size if by_length else len(numbers)):
        step = [lengths[row] for row in numbers[start : start + size]]
        assert not by_length or step == sorted(step, reverse=True)


@given(st.integers(1, 1000), st.integers(1, 8), st.integers(1, 64))
def test_a_step_is_divided_evenly(size, processes, most):
    if size % processes:
        with pytest.raises(BadInput, match="cannot be shared evenly"):
            divide_step(size, processes, most)
        return
    rows, times = divide_step(size, processes, most)
    assert rows * times * processes == size
    assert rows <= most


def test_the_recipe_is_the_papers_and_its_warm_up_no_longer_than_a_tenth(folder):
    rows = len(PreparedRows(folder / "data", "train"))
    given = {"data": folder / "data", "model": "m", "run": "r"}
    steps = plan_steps(TrainOptions.of(given | {"stage": 1}), 1_900_000, 1)
    assert (steps.size, steps.rows, steps.times, steps.count, steps.warm_up) == (768, 8, 96, 2474, 247)
    steps = plan_steps(TrainOptions.of(given | {"stage": 2}), 70_000, 4)
    assert (steps.size, steps.rows, steps.times, steps.count, steps.warm_up) == (128, 8, 4, 1641, 164)
    assert plan_steps(TrainOptions.of(given | {"warmup_steps": 50, "max_steps": 60}), rows, 1).warm_up == 50


# ---- clusters


def launched(name: str):
    """What `accelerate launch` makes of a shipped configuration."""
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "-m", "training", "train"])
    return _validate_launch_command(arguments)[0]


def test_the_configuration_of_plain_processes_parses():
    arguments = launched("processes")
    assert arguments.multi_gpu
    assert arguments.num_processes == 2


def test_the_fsdp_configuration_builds_a_plugin(monkeypatch):
    for name, value in prepare_multi_gpu_env(launched("fsdp")).items():
        if name.startswith(("FSDP", "ACCELERATE")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.transformer_cls_names_to_wrap == ["Qwen2DecoderLayer", "WhisperEncoderLayer"]
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("stage", [2, 3])
def test_the_zero_configurations_reach_deepspeed(stage):
    arguments = launched(f"zero{stage}")
    arguments.deepspeed_fields_from_accelerate_config = "zero_stage"  # as `launch_command` does
    _, environment = prepare_deepspeed_cmd_env(arguments)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
