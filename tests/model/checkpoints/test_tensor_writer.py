"""Writing tensors piece by piece."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from model.checkpoints import tensor_writer
from model.checkpoints.tensor_writer import TensorSpec, TensorWriter, lay_out
from tests.model.support.conversions import State, equal


@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=12),
    shard_bytes=st.integers(1, 2000),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_written_tensors_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], shard_bytes: int, seed: int
) -> None:
    rng = random.Random(seed)
    state = {}
    for number, shape in enumerate(shapes):
        tensor = torch.randn(shape).to(rng.choice([torch.float32, torch.float16, torch.bfloat16]))
        state[f"tensor {number}"] = tensor.transpose(0, -1) if shape and rng.random() < 0.5 else tensor
    layout = lay_out(
        {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}, shard_bytes
    )
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_writer, "_BLOCK_BYTES", 64)
        writer = TensorWriter(folder, layout, "print")
        for name in rng.sample(list(state), len(state)):
            assert writer.write(name, state[name])
        writer.close()
    (folder / tensor_writer.JOURNAL).unlink()
    found: State = {}
    for path in folder.iterdir():
        found |= load_file(path)
    assert equal(found, state)
