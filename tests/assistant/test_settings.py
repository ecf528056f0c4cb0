"""The settings file: only what differs, never lost, never trusted."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from assistant.errors import AssistantError
from assistant.messages import BargeIn
from assistant.settings import Settings, load, save


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "settings.toml"
    save(path, Settings().changed("turns", barge_in=BargeIn.KEY).changed("sound", microphone="USB"))
    assert path.read_text() == '[sound]\nmicrophone = "USB"\n\n[turns]\nbarge_in = "key"\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load(path)[0].turns.barge_in is BargeIn.KEY


@settings(max_examples=30)
@given(
    rate=st.floats(0.5, 2.0),
    name=st.none() | st.text(max_size=20),
    folders=st.lists(st.text(max_size=30), max_size=3),
    days=st.integers(1, 3650),
)
def test_what_is_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rate: float, name: str | None, folders: list[str], days: int
) -> None:
    path = tmp_path_factory.mktemp("s") / "settings.toml"
    chosen = Settings(started=True).changed("voice", rate=rate, name=name).changed("recording", mode="days", days=days)
    chosen = chosen.changed("model", folders=tuple(folders))
    save(path, chosen)
    assert load(path) == (chosen, "")


@pytest.mark.parametrize(
    "text", ["not toml [", "[voice]\nrate = 9.0\n", "[voice]\nrate = 'fast'\n", "surprise = 1\n", "[turns]\nno = 1\n"]
)
def test_a_damaged_file_is_kept_aside_and_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    found, emitted = load(path)
    assert found == Settings()
    (aside,) = tmp_path.iterdir()
    assert aside.name in emitted
    assert aside.read_text() == text


def test_settings_that_cannot_be_read_or_saved(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in load(tmp_path / "settings.toml")[1]
    (tmp_path / "file").touch()
    with pytest.raises(AssistantError, match="cannot be saved"):
        save(tmp_path / "file" / "settings.toml", Settings())


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(ValidationError):
        Settings().changed("voice", volume=1.5)
