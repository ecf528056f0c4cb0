"""Conversions that are interrupted, killed or refused by the disk: nothing is lost, nothing half-made is left."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from model.checkpoints import convert as module
from model.checkpoints import tensor_writer
from model.checkpoints.blsp_emo import canonical, interpret_config
from model.checkpoints.convert import convert, examine
from model.checkpoints.safe_reader import read_shard
from model.errors import BadInput, WeightsMissing
from model.weights import fetch
from tests import ROOT
from tests.model.support.conversions import (
    CHECKPOINTS,
    contents,
    converted,
    equal,
    expected,
    interrupted_after,
    state_of,
    variant,
)


@given(
    form=st.sampled_from(["bin", "safetensors", "legacy"]),
    steps=st.lists(st.integers(0, 87), min_size=1, max_size=3),
    commit=st.integers(50_000, 500_000),
)
@settings(max_examples=5, deadline=None)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, form: str, steps: list[int], commit: int
) -> None:
    folder = tmp_path_factory.mktemp("again")
    source = variant(CHECKPOINTS / "b", folder / "source", form, 4)
    straight = contents(converted(source, folder / "straight", shard_bytes=400_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_writer, "COMMIT_BYTES", commit)
        for step in steps:
            with pytest.raises(KeyboardInterrupt):
                convert(examine(source, shard_bytes=400_000), folder / "target", interrupted_after(step))
            assert not (folder / "target").exists()
        assert contents(converted(source, folder / "target", shard_bytes=400_000)) == straight
    assert not (folder / "target.part").exists()


def test_what_is_done_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = variant(CHECKPOINTS / "b", tmp_path / "source", "bin", 4)
    read: list[str] = []
    monkeypatch.setattr(module, "read_shard", lambda file: read.append(file.name) or read_shard(file))
    with pytest.raises(KeyboardInterrupt):
        convert(examine(source), tmp_path / "target", interrupted_after(50))
    assert len(read) == 3
    convert(examine(source), tmp_path / "target")
    assert [name[14:19] for name in read] == ["00001", "00002", "00003", "00003", "00004"]


def test_a_source_that_changed_is_begun_afresh(tmp_path: Path) -> None:
    source = variant(CHECKPOINTS / "b", tmp_path / "source", "bin", 4)
    with pytest.raises(KeyboardInterrupt):
        convert(examine(source), tmp_path / "target", interrupted_after(60))
    variant(CHECKPOINTS / "b", source, "bin", 4, lambda state, _: state["whisper_model.conv1.bias"].fill_(7))
    target = converted(source, tmp_path / "target")
    assert equal(load_file(target / "model.safetensors"), expected(state_of(source)))


def test_a_torn_journal_is_begun_afresh(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(examine(CHECKPOINTS / "b"), tmp_path / "target", interrupted_after(60))
    journal = tmp_path / "target.part" / tensor_writer.JOURNAL
    journal.write_bytes(journal.read_bytes()[:100])
    target = converted(CHECKPOINTS / "b", tmp_path / "target")
    assert equal(load_file(target / "model.safetensors"), expected(state_of(CHECKPOINTS / "b")))


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(WeightsMissing, match=r"0\.1 GB and only 0\.0 GB are free .* make room"):
        convert(examine(CHECKPOINTS / "a"), tmp_path / "target")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_a_run_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = [0]
    write = tensor_writer._write

    def failing(file: Any, content: Any) -> None:
        written[0] += 1
        if written[0] > 70:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(tensor_writer, "_write", failing)
        with pytest.raises(WeightsMissing, match=r"disk is full.*free .* and try again") as caught:
            convert(examine(CHECKPOINTS / "b"), tmp_path / "target")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "target").exists()
    target = converted(CHECKPOINTS / "b", tmp_path / "target")
    assert equal(load_file(target / "model.safetensors"), expected(state_of(CHECKPOINTS / "b")))


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files above 1 MB, as a quota or an old file system does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_files")
def test_a_system_that_refuses_to_write_is_explained(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"File too large.*choose another TARGET"):
        convert(examine(CHECKPOINTS / "a"), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    (tmp_path / "other.part").mkdir()
    (tmp_path / "other.part" / "letter.txt").write_text("dear")
    (tmp_path / "empty").mkdir()
    conversion = examine(CHECKPOINTS / "a")
    for name in ("full", "file", "other"):
        with pytest.raises(BadInput, match=r"remove it or choose another TARGET\.$"):
            convert(conversion, tmp_path / name)
    assert (tmp_path / "other.part" / "letter.txt").read_text() == "dear"
    convert(conversion, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_two_conversions_at_once_are_one_too_many(tmp_path: Path) -> None:
    conversion = examine(CHECKPOINTS / "a")
    refused: list[str] = []

    def second(_: fetch.Progress) -> None:
        if not refused:
            with pytest.raises(BadInput, match="another conversion") as caught:
                convert(conversion, tmp_path / "target")
            refused.append(str(caught.value))

    convert(conversion, tmp_path / "target", second)
    assert len(refused) == 1
    assert equal(load_file(tmp_path / "target" / "model.safetensors"), expected(state_of(CHECKPOINTS / "a")))


MEASURED = """
    import json, re, sys
    from pathlib import Path
    from model.commands import convert
    from model.checkpoints.memory import peak_bytes
    imports = peak_bytes()
    code = convert.main(sys.argv[1:])
    print(json.dumps({"code": code, "imports": imports, "peak": peak_bytes()}), file=sys.stderr)
"""

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from model.checkpoints.convert import convert, examine
    def step(progress):
        if progress.done > float(sys.argv[3]) * progress.total:
            os.kill(os.getpid(), signal.SIGKILL)
    convert(examine(Path(sys.argv[1])), Path(sys.argv[2]), step)
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def large_checkpoint(folder: Path) -> int:
    """Eight shards in the original's format, random, made shard by shard; returns the largest one's size."""
    config = json.loads((CHECKPOINTS / "b" / "config.json").read_text())
    config["qwen_config"] |= {"hidden_size": 512, "num_attention_heads": 4, "kv_channels": 128, "num_hidden_layers": 22}
    config["qwen_config"] |= {"intermediate_size": 22016, "vocab_size": 151936}
    names = {canonical(name, plain=False) for name in state_of(CHECKPOINTS / "b")}
    moves = interpret_config(config, names).moves
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(fetch.ensure("qwen-tiktoken") / "qwen.tiktoken", folder)
    shards: list[list[str]] = [[]]
    total = sum(torch.Size(move.shape).numel() for move in moves.values())
    filled = 0
    for name, move in moves.items():
        if filled > total * len(shards) / 8:
            shards.append([])
        shards[-1].append(name)
        filled += torch.Size(move.shape).numel()
    assert len(shards) == 8
    weight_map = {}
    random_values = torch.Generator().manual_seed(0)
    for number, shard in enumerate(shards, 1):
        state = {}
        for name in shard:
            released = name.replace("qwen_model.", "qwen_model.model.")
            state[released] = torch.empty(moves[name].shape, dtype=torch.float16).uniform_(generator=random_values)
        file = f"pytorch_model-{number:05}-of-00008.bin"
        torch.save(state, folder / file)
        weight_map |= dict.fromkeys(state, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sizes = [path.stat().st_size for path in folder.glob("*.bin")]
    assert sum(sizes) >= 1e9
    return max(sizes)


@pytest.mark.real
def test_a_gigabyte_in_little_memory_and_after_a_kill(tmp_path: Path) -> None:
    largest = large_checkpoint(tmp_path / "source")
    killed = run(KILLED, tmp_path / "source", tmp_path / "killed", 0.6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed").exists()
    for target in ("straight", "killed"):
        done = run(MEASURED, tmp_path / "source", tmp_path / target, "--json")
        figures = json.loads(done.stderr.splitlines()[-1])
        assert figures["code"] == 0, done.stderr
        assert figures["peak"] - figures["imports"] <= largest + 300 * 2**20
    pairs = [(path, tmp_path / "killed" / path.name) for path in sorted((tmp_path / "straight").iterdir())]
    assert len(pairs) == len(list((tmp_path / "killed").iterdir()))
    for straight, resumed in pairs:
        assert subprocess.run(["cmp", straight, resumed]).returncode == 0
