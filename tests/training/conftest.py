"""A checkpoint, a data set and two runs on them, made once for all tests of training."""

from __future__ import annotations

import pytest

from tests.training.support.tiny_run import make_checkpoint, make_data, options
from training.stages.train import train


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A checkpoint with LoRA's dropout, and a data set."""
    folder = tmp_path_factory.mktemp("training")
    make_data(folder, make_checkpoint(folder))
    return folder


@pytest.fixture(scope="session")
def stage1(folder):
    """A run of stage 1 that nothing has interrupted."""
    train(options(folder, "stage1"))
    return folder / "stage1"


@pytest.fixture(scope="session")
def stage2(folder):
    train(options(folder, "stage2", stage=2))
    return folder / "stage2"
