"""The entry in the applications menu and its switch."""

from __future__ import annotations

import configparser
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PySide6.QtWidgets import QMainWindow
from pytestqt.qtbot import QtBot

from ui.core import desktop_entry
from ui.core.app import App
from ui.settings.appearance import AppearanceSettings


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    return tmp_path


def entry(share: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(share / "applications" / "undertone.desktop", "utf-8")
    return parser["Desktop Entry"]


def test_the_entry_starts_the_program_wherever_it_lies(share: Path) -> None:
    desktop_entry.install(["/a b/py$thon", "-m", "main"], Path("/a b"))
    written = entry(share)
    assert (written["Type"], written["Icon"], written["Terminal"]) == ("Application", "undertone", "false")
    assert all(one.endswith(";") for key, one in written.items() if key.startswith(("Categories", "Keywords")))
    line = written["Exec"].replace("\\\\", "\\").replace("%%", "%")
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True).stdout
    assert words.splitlines() == ["/a b/py$thon", "-m", "main"]
    assert written["Path"] == "/a b"
    icon = share / "icons" / "hicolor" / "scalable" / "apps" / "undertone.svg"
    assert ElementTree.parse(icon).getroot().tag.endswith("svg")


def test_an_installed_program_is_preferred(share: Path) -> None:
    program = share / "bin" / "undertone"
    program.parent.mkdir()
    program.touch()
    desktop_entry.install(["python", "-m", "main"], share)
    assert entry(share)["Exec"] == f'"{program}"'


def test_the_switch(app: App, share: Path, qtbot: QtBot) -> None:
    looks = AppearanceSettings(app)
    window = QMainWindow()
    window.setCentralWidget(looks)
    qtbot.addWidget(window)
    looks.menu.click()
    assert desktop_entry.installed()
    looks.menu.click()
    assert not desktop_entry.installed()
    (share / "applications").rmdir()
    (share / "applications").touch()
    looks.menu.click()
    assert "Could not change" in looks.error.text.text()
    assert not looks.menu.isChecked()
