"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from model.files import replacing, replacing_folder, write_atomically


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "käse")
    assert path.read_bytes() == "käse".encode()
    write_atomically(path, b"\x00", mode=0o600)
    assert path.read_bytes() == b"\x00"
    assert list(tmp_path.iterdir()) == [path]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def interrupted_write(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def failed_folder(path: Path) -> None:
    with replacing_folder(path) as partial:
        (partial / "half.txt").write_text("half")
        raise OSError("full")


def test_an_exception_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    (tmp_path / ".a.json.part").write_text("a much longer text that a kill left behind")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    for content in ("old", "new"):
        with replacing_folder(folder) as partial:
            (partial / f"{content}.txt").write_text(content)
    assert [path.name for path in folder.iterdir()] == ["new.txt"]
    with pytest.raises(OSError, match="full"):
        failed_folder(folder)
    assert [path.name for path in folder.iterdir()] == ["new.txt"]
    assert list(folder.parent.iterdir()) == [folder]
