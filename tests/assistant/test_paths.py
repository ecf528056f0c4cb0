"""Where the user's things are kept."""

from __future__ import annotations

import stat
from pathlib import Path

import platformdirs
import pytest

from assistant.errors import AssistantError
from assistant.paths import user_folder
from model.weights import store


def test_a_chosen_folder_is_made_for_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path / "mine"))
    assert user_folder() == tmp_path / "mine"
    assert stat.S_IMODE(user_folder().stat().st_mode) == 0o700


def test_the_variables_earlier_name_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERTONE_HOME", "")
    monkeypatch.setenv("BLSP_HOME", str(tmp_path / "earlier"))
    assert user_folder() == store.home() == tmp_path / "earlier"
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path / "mine"))
    assert user_folder() == store.home() == tmp_path / "mine"


def test_without_a_choice_it_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNDERTONE_HOME", "BLSP_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert user_folder() == platformdirs.user_data_path("undertone")
    assert not user_folder().is_relative_to(platformdirs.user_cache_path())


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path / "file" / "mine"))
    with pytest.raises(AssistantError, match="UNDERTONE_HOME"):
        user_folder()
