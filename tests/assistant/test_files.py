from __future__ import annotations

from pathlib import Path

import pytest

from assistant.files import replacing, write_atomically


def test_a_file_is_replaced_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("old")
    write_atomically(path, "new é")
    assert path.read_text("utf-8") == "new é"
    assert path.stat().st_mode & 0o777 == 0o600
    write_atomically(tmp_path / "export.txt", b"\x00", mode=None)
    assert (tmp_path / "export.txt").stat().st_mode & 0o044
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "session.wav"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text(str(1 / 0))
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "gone" / "file", "text")
    assert [one.name for one in tmp_path.iterdir()] == ["session.wav"]
    assert path.read_text() == "old"


def test_long_names_fit(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("x" * 250), "text")
    assert (tmp_path / ("x" * 250)).read_text() == "text"
