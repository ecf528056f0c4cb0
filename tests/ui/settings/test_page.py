"""The Settings page: each section applies at once and follows outside changes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QMainWindow, QWidget
from pytestqt.qtbot import QtBot

from assistant.audio.audio_check import CheckResult, Step
from assistant.audio.devices import Device, Devices, SoundUnavailable
from assistant.audio.echo import Duplex, Echo
from assistant.errors import AssistantError
from assistant.events import InputLevel
from assistant.messages import BargeIn
from assistant.speech.synthesizer import Synthesizer, Voice
from tests import ROOT
from tests.support.fakes import ToneSynthesizer
from ui.core import theme
from ui.core.app import App, Notification, Services
from ui.main_window import PAGES, MainWindow
from ui.settings.page import SECTIONS, SettingsPage
from ui.settings.sound import SoundSettings
from ui.settings.sound_check import SoundCheck

FAKE = ROOT / "tests" / "ui" / "support" / "fake_program.py"
Answers = list[tuple[list[str], list[dict[str, Any]], int | None, str]]

LAPTOP = Device("Laptop microphone", 1, 48_000, True)
HEADSET = Device("Headset", 1, 16_000, False)
SPEAKER = Device("Loudspeaker", 2, 48_000, True)


class SpeakingSynthesizer(ToneSynthesizer):
    def voices(self) -> list[Voice]:
        return [Voice("de", "German", "de"), Voice("gb", "English (Great Britain)", "en-gb")]


def synthesizer(engine: str) -> Synthesizer:
    if engine == "kokoro":
        raise AssistantError("The neural voice is not on this machine yet.")
    return SpeakingSynthesizer()


@pytest.fixture
def services(services: Services, tmp_path: Path) -> Services:
    """Services with a synthesizer and scripted commands."""
    answer(tmp_path, [])
    fake = (sys.executable, str(FAKE), str(tmp_path / "answers.json"))
    return replace(services, command=fake, python=fake, synthesizer=synthesizer)


def answer(folder: Path, answers: Answers) -> None:
    (folder / "answers.json").write_text(json.dumps(answers), "utf-8")


@pytest.fixture
def page(app: App, qtbot: QtBot) -> Iterator[SettingsPage]:
    pages = {name: lambda _app: QWidget() for name in PAGES}
    window = MainWindow(
        app, pages | {"settings": lambda app: SettingsPage(app, lambda: Devices((LAPTOP,), (SPEAKER,)))}
    )
    qtbot.addWidget(window)
    window.resize(900, 600)
    window.show()
    made = window.show_page("settings")
    assert isinstance(made, SettingsPage)
    yield made
    theme.apply(QApplication.instance(), "light")  # type: ignore[arg-type]


@pytest.fixture
def section(page: SettingsPage) -> Callable[[str], Any]:
    return page.show_section


def hold(widget: QWidget, qtbot: QtBot) -> QMainWindow:
    """Show a widget in a window of fixed size (the offscreen platform warns about resizing) and keep the window."""
    window = QMainWindow()
    window.setFixedSize(700, 800)
    window.setCentralWidget(widget)
    qtbot.addWidget(window)
    window.show()
    return window


def calls(app: App, name: str) -> list[tuple[Any, ...]]:
    talk: Any = app.talk
    return [call[1:] for call in talk.calls if call[0] == name]


def test_every_section_opens_and_names_its_controls(page: SettingsPage) -> None:
    for name in SECTIONS:
        shown = page.show_section(name)
        assert shown.isVisible()
        for control in shown.findChildren(QWidget):
            reached = control.focusPolicy() & Qt.FocusPolicy.TabFocus and control.isVisibleTo(shown)
            if reached and not control.focusProxy() and control.metaObject().className() != "QScrollArea":
                text = getattr(control, "text", str)()
                assert control.accessibleName() or text, control
    page.window().resize(480, 420)
    assert page.above.isVisible()
    assert not page.left.isVisible()
    page.drop.picked.emit("voice")
    assert page.sections["voice"].isVisible()


def test_devices_are_named_and_followed(app: App, qtbot: QtBot) -> None:
    found = [Devices((LAPTOP,), (SPEAKER,))]
    shown = SoundSettings(app, lambda: found[-1])
    _window = hold(shown, qtbot)
    qtbot.waitUntil(lambda: shown.devices.microphone.count() == 2)
    assert shown.devices.microphone.itemText(0) == "System default: Laptop microphone"
    found.append(Devices((LAPTOP, HEADSET), (SPEAKER,)))
    shown.devices.inspect()
    qtbot.waitUntil(lambda: shown.devices.microphone.count() == 3)
    shown.devices.microphone.setCurrentIndex(2)
    shown.devices.microphone.activated.emit(2)
    assert app.settings.sound.microphone == "Headset"
    assert calls(app, "choose_devices")[-1] == ("Headset", None)
    found.append(Devices((LAPTOP,), (SPEAKER,)))
    shown.devices.inspect()
    qtbot.waitUntil(lambda: shown.devices.microphone.currentText() == "Headset (not connected)")
    talk: Any = app.talk
    talk.happen(InputLevel(-20.0))
    qtbot.waitUntil(lambda: shown.devices.meter.decibels == -20.0)
    shown.test.click()
    assert calls(app, "clips.play")
    shown.hide()
    assert not shown.devices.timer.isActive()


def test_a_missing_sound_system_is_told_in_place(app: App, qtbot: QtBot) -> None:
    def fail() -> Devices:
        raise SoundUnavailable("PortAudio is missing: install libportaudio2.")

    shown = SoundSettings(app, fail)
    _window = hold(shown, qtbot)
    qtbot.waitUntil(lambda: "PortAudio" in shown.devices.error.text.text())


def test_the_check_is_walked_through_and_judged(app: App, qtbot: QtBot) -> None:
    check = SoundCheck(app)
    _window = hold(check, qtbot)
    check.begin.click()
    (emitted,) = calls(app, "audio_check")[-1]
    voice = np.full(16_000, 0.1, np.float32)
    emitted(CheckResult(Step.SPEAK, 2.0))
    qtbot.waitUntil(lambda: check.step.text() == "Now say something.")
    assert not check.begin.isVisible()
    strong = Echo(before=-10.0, after=-20.0)
    emitted(CheckResult(Step.DONE, 0.0, strong, voice))
    qtbot.waitUntil(check.begin.isVisible)
    assert "level is good (-20 dB)" in check.level.text.text()
    assert check.echo.action is not None
    check.echo.action.click()
    assert app.settings.sound.echo is Duplex.HALF
    check.again.click()
    assert calls(app, "clips.play")[-1][1] == 16_000
    emitted(CheckResult(Step.DONE, 0.0, Echo(before=-20.0, after=-45.0), voice * 0))
    qtbot.waitUntil(lambda: "Echo removed: -20 dB before, -45 dB after" in check.echo.text.text())
    assert "No signal from the microphone" in check.level.text.text()
    check.begin.click()
    check.stop.click()
    assert calls(app, "stop")
    assert check.begin.isVisible()


def test_turns(app: App, section: Callable[[str], Any], page: SettingsPage) -> None:
    turns = section("turns")
    turns.hands_free.click()
    turns.patience.buttons["patient"].click()
    turns.barge_in.buttons[BargeIn.KEY].click()
    turns.empathy.click()
    now = app.settings.turns
    assert (now.hands_free, now.patience, now.barge_in, now.empathy) == (True, "patient", BargeIn.KEY, False)
    app.change("turns", hands_free=False, patience="quick")  # as the talk page does
    assert not turns.hands_free.isChecked()
    assert turns.patience.value == "quick"


def test_the_talk_key_is_taken_and_needed_keys_are_refused(
    app: App, section: Callable[[str], Any], qtbot: QtBot
) -> None:
    keys = section("shortcuts")
    keys.key.setFocus()
    for key, modifier, expected in (
        (Qt.Key.Key_F5, Qt.KeyboardModifier.NoModifier, "F5"),
        (Qt.Key.Key_T, Qt.KeyboardModifier.ControlModifier, "Ctrl+T"),
        (Qt.Key.Key_Escape, Qt.KeyboardModifier.NoModifier, "Ctrl+T"),
        (Qt.Key.Key_Tab, Qt.KeyboardModifier.NoModifier, "Ctrl+T"),
        (Qt.Key.Key_1, Qt.KeyboardModifier.ControlModifier, "Ctrl+T"),
        (Qt.Key.Key_Space, Qt.KeyboardModifier.NoModifier, "Space"),
    ):
        qtbot.mouseClick(keys.key, Qt.MouseButton.LeftButton)
        assert keys.key.text() == "Press a key…"
        qtbot.keyClick(keys.key, key, modifier)
        assert app.settings.turns.shortcut == expected
    assert "already in use" in keys.message.text.text() or not keys.message.isVisible()


def test_voices_are_listed_chosen_and_heard(app: App, section: Callable[[str], Any], qtbot: QtBot) -> None:
    voice = section("voice")
    qtbot.waitUntil(lambda: voice.voice.count() == 3)
    assert voice.voice.itemText(1) == "English (Great Britain) · en-gb"
    voice.voice.picked.emit("de")
    assert app.settings.voice.name == "de"
    voice.preview.click()
    qtbot.waitUntil(lambda: bool(calls(app, "clips.play")))
    spoken: Any = app.synthesizer
    assert spoken.spoken[-1].startswith("Der Zug")
    voice.moods["sad"].click()
    qtbot.waitUntil(lambda: len(calls(app, "clips.play")) == 2)
    voice.rate.slider.setValue(30)
    with qtbot.waitSignal(app.settings_changed):
        pass
    assert app.settings.voice.rate == 1.5
    voice.engine.buttons["none"].click()
    assert app.settings.voice.engine == "none"
    assert not voice.preview.isEnabled()


def test_the_neural_voice_is_offered_with_its_size(
    app: App, section: Callable[[str], Any], qtbot: QtBot, tmp_path: Path
) -> None:
    answer(tmp_path, [(["fetch"], [{"what": "Downloading", "done": 5, "total": 10_000}], None, "")])
    voice = section("voice")
    voice.engine.buttons["kokoro"].click()
    qtbot.waitUntil(lambda: voice.offer.isVisible() and "MB" in voice.offer.text.text())
    assert voice.engine.value == "system"
    voice.offer.action.click()
    qtbot.waitUntil(lambda: voice.progress.text.text().startswith("Downloading ·"))
    voice.progress.stop.click()
    qtbot.waitUntil(lambda: voice.offer.text.text() == "Stopped.")
    answer(tmp_path, [(["fetch"], [], 3, "Check the network and start again.")])
    voice.offer.action.click()
    qtbot.waitUntil(lambda: voice.offer.text.text() == "Check the network and start again.")


def recorded(home: Path, name: str) -> Path:
    folder = home / "sessions" / name
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text("{}\n" * 100)
    return folder


def test_all_sessions_are_deleted_but_the_running_one_and_come_back(
    app: App, section: Callable[[str], Any], qtbot: QtBot
) -> None:
    home = app.services.home
    folders = [recorded(home, name) for name in ("2026-01-01_10-00-00", "2026-01-02_10-00-00", "2026-01-03_10-00-00")]
    talk: Any = app.talk
    talk.folder = folders[2]
    emitted: list[Notification] = []
    app.notified.connect(emitted.append)
    recording = section("recording")
    qtbot.waitUntil(lambda: recording.stored.text() == "Sessions: 3, 900 B")
    recording.delete.click()
    qtbot.waitUntil(lambda: recording.stored.text().startswith("Sessions: 1"))
    assert [one.exists() for one in folders] == [False, False, True]
    assert emitted[-1].act is not None
    emitted[-1].act()
    qtbot.waitUntil(lambda: recording.stored.text().startswith("Sessions: 3"))
    recording.delete.click()
    app.trash.empty().join()
    assert not list((home / "deleted").iterdir())
    assert emitted[-1].act is not None
    emitted[-1].act()
    assert "Could not restore" in emitted[-1].text


def test_recording_and_consent(app: App, section: Callable[[str], Any], qtbot: QtBot) -> None:
    recording = section("recording")
    recording.keep.mode.buttons["days"].click()
    assert recording.keep.days.isVisible()
    recording.keep.days.picked.emit(7)
    recording.consent.click()
    assert app.settings.recording.keep_days == 7
    assert app.settings.recording.corrections
    assert calls(app, "record")


def test_looks_take_effect_at_once(app: App, section: Callable[[str], Any], page: SettingsPage, qtbot: QtBot) -> None:
    looks = section("appearance")
    looks.theme.buttons["contrast"].click()
    assert theme.colours() is theme.CONTRAST
    looks.text_size.slider.setValue(looks.text_size.slider.maximum())
    with qtbot.waitSignal(app.settings_changed):
        pass
    assert theme.pixels("body") == 28
    assert page.above.isVisible()  # 900 pixels are narrow for text of that size
    looks.tray.click()
    assert app.settings.looks.tray
