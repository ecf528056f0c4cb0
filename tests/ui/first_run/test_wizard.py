"""The first-run wizard: model, sound, recording; skipping, going back, keyboard only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QWidget
from pytestqt.qtbot import QtBot

from assistant.audio.devices import Device, Devices, SoundUnavailable
from assistant.events import InputLevel, ModelStatus
from tests.support.fakes import ToneSynthesizer
from tests.ui.conftest import ScriptedTalk
from ui.core import theme
from ui.core.app import App, Services
from ui.first_run.steps import SoundStep
from ui.first_run.wizard import FirstRunWizard
from ui.widgets.emotion_correction import was_asked

HEADSET = Devices((Device("Built-in", 1, 48_000, True), Device("Headset", 1, 48_000, False)), ())
PROGRAM = """
import json, sys
for words, lines, code in json.load(open(sys.argv[1])):
    if all(word in sys.argv[2:] for word in words):
        for line in lines:
            print(json.dumps(line) if isinstance(line, dict) else line, file=sys.stdout if code == 0 else sys.stderr)
        sys.exit(code)
sys.exit("unexpected: " + " ".join(sys.argv[2:]))
"""
PLAN = {
    "estimates": [
        {"device": "cpu", "quantize": "int8", "verdict": "fits", "needed_bytes": 9e9, "free_bytes": 20e9},
    ],
    "recommended": {"device": "cpu", "quantize": "int8"},
}
ABSENT = {"source": "mini", "kind": "preset", "state": "absent", "download_bytes": 226_213_892, "error": None}
READY = ABSENT | {"state": "ready", "download_bytes": 0}


def folder_line(folder: Path, kind: str = "checkpoint", **more: Any) -> dict[str, Any]:
    found = {"source": str(folder), "kind": kind, "state": "ready", "bytes": 17_000_000_000, "download_bytes": 0}
    return found | {"stored": None, "reads_emotion": True, "plan": PLAN, "error": None} | more


class Scene:
    """An app whose child processes answer from a table of arguments, printed lines and exit code."""

    def __init__(self, home: Path) -> None:
        self._table, program = home / "table.json", home / "program.py"
        program.write_text(PROGRAM)
        self.says((["list", "mini"], [READY], 0))
        python = (sys.executable, str(program), str(self._table))
        services: Any = Services(home, python, python, lambda _: ToneSynthesizer(), ScriptedTalk)  # type: ignore[arg-type]
        self.app = App(services)
        self.app.start()

    def says(self, *answers: tuple[list[str], list[Any], int]) -> None:
        """Set the answers from now on."""
        self._table.write_text(json.dumps(answers))

    def calls(self, name: str) -> list[Any]:
        talk: Any = self.app.talk
        return [call[1:] for call in talk.calls if call[0] == name]


@pytest.fixture
def scene(qapp: QApplication, tmp_path: Path) -> Iterator[Scene]:
    theme.apply(qapp, "light")
    made = Scene(tmp_path)
    yield made
    made.app.close()


@pytest.fixture
def begin(scene: Scene, qtbot: QtBot) -> Iterator[Callable[[], FirstRunWizard]]:
    window = QWidget()
    qtbot.addWidget(window)
    window.resize(900, 600)

    def make() -> FirstRunWizard:
        made = FirstRunWizard(scene.app, lambda: HEADSET)
        made.setParent(window)
        made.resize(900, 600)
        window.show()
        qtbot.waitUntil(lambda: made.model.mini_available is not None)
        return made

    yield make
    window.close()


Begin = Callable[[], FirstRunWizard]


def press(qtbot: QtBot, part: Any) -> None:
    qtbot.mouseClick(part, Qt.MouseButton.LeftButton)


def choose(first: FirstRunWizard, what: str) -> None:
    first.model.choices.buttons[what].click()


def test_mini_that_is_here_begins_to_load_at_the_first_step(scene: Scene, begin: Begin, qtbot: QtBot) -> None:
    first = begin()
    assert "already" in first.model.availability.text()
    assert not scene.calls("replace_model")
    press(qtbot, first.next)
    assert [choice.source for (choice,) in scene.calls("replace_model")] == ["mini"]
    press(qtbot, first.back)
    press(qtbot, first.next)
    assert len(scene.calls("replace_model")) == 1


def test_the_larger_one_can_be_had_at_once(scene: Scene, begin: Begin, qtbot: QtBot) -> None:
    larger = ABSENT | {"source": "mini-0.5b", "download_bytes": 709_000_000}
    scene.says((["list", "mini"], [READY, larger], 0), (["fetch", "mini-0.5b", "--json"], [{"folders": ["a", "b"]}], 0))
    first = begin()
    choose(first, "mini-0.5b")
    qtbot.waitUntil(lambda: "709 MB" in first.model.availability.text())
    press(qtbot, first.next)
    qtbot.waitUntil(lambda: [choice.source for (choice,) in scene.calls("replace_model")] == ["mini-0.5b"])
    assert scene.app.settings.model.source == "mini-0.5b"
    assert scene.app.settings.model.folders == ()


def test_mini_is_fetched_while_the_steps_go_on(scene: Scene, begin: Begin, qtbot: QtBot) -> None:
    steps = [{"what": "Downloading whisper-base", "done": 50, "total": 100}, {"folders": ["a", "b"]}]
    scene.says((["list", "mini"], [ABSENT], 0), (["fetch", "mini", "--json"], steps, 0))
    first, emitted = begin(), []
    scene.app.event_received.connect(emitted.append)
    assert "226 MB" in first.model.availability.text()
    press(qtbot, first.next)
    assert first.step == 1
    qtbot.waitUntil(lambda: bool(scene.calls("replace_model")))
    assert ModelStatus("loading", "Downloading whisper-base: 50%") in emitted
    assert not first.model.progress.isVisible()


def test_a_fetch_that_fails_can_be_tried_again(scene: Scene, begin: Begin, qtbot: QtBot) -> None:
    scene.says((["list", "mini"], [ABSENT], 0), (["fetch"], ["whisper-base could not be fetched."], 3))
    first = begin()
    press(qtbot, first.next)
    qtbot.waitUntil(first.model.message.isVisible)
    assert first.model.message.text.text() == "whisper-base could not be fetched."
    assert not scene.calls("replace_model")
    scene.says((["fetch"], [{"folders": []}], 0))
    press(qtbot, first.model.message.action)
    qtbot.waitUntil(lambda: bool(scene.calls("replace_model")))
    assert not first.model.message.isVisible()


def test_later_loads_nothing(scene: Scene, begin: Begin, qtbot: QtBot) -> None:
    first = begin()
    choose(first, "later")
    press(qtbot, first.next)
    assert scene.app.settings.model.source == ""
    assert [choice.source for (choice,) in scene.calls("replace_model")] == [""]


def test_the_released_one_must_be_there_and_fit(scene: Scene, begin: Begin, qtbot: QtBot, tmp_path: Path) -> None:
    first = begin()
    checkpoint_source = first.model.checkpoint_source
    choose(first, "released")
    assert checkpoint_source.isVisible()
    press(qtbot, first.next)
    assert first.step == 0
    assert "fits into memory" in first.missing.text.text()
    checkpoint_source.inspect(str(tmp_path / "nowhere"))
    assert "Folder not found" in checkpoint_source.message.text.text()
    large = PLAN | {"recommended": None}
    scene.says((["list"], [folder_line(tmp_path, plan=large)], 0))
    checkpoint_source.inspect(str(tmp_path))
    qtbot.waitUntil(lambda: "Does not fit" in checkpoint_source.message.text.text())
    press(qtbot, first.next)
    assert first.step == 0
    scene.says((["list"], [folder_line(tmp_path)], 0))
    checkpoint_source.inspect(str(tmp_path))
    qtbot.waitUntil(lambda: "Fits on the CPU, 8-bit" in checkpoint_source.message.text.text())
    press(qtbot, first.next)
    assert (first.step, scene.app.settings.model.source) == (1, str(tmp_path))
    assert scene.app.settings.model.folders == (str(tmp_path),)


def test_an_original_is_converted_first(scene: Scene, begin: Begin, qtbot: QtBot, tmp_path: Path) -> None:
    original, target = tmp_path / "blsp", tmp_path / "models" / "blsp-converted"
    original.mkdir()
    target.mkdir(parents=True)
    first = begin()
    choose(first, "released")
    scene.says(
        (["convert", str(original), str(target)], [{"folder": str(target), "error": None}], 0),
        (["list", str(original)], [folder_line(original, "original", plan=None)], 0),
        (["list", str(target)], [folder_line(target)], 0),
    )
    checkpoint_source = first.model.checkpoint_source
    checkpoint_source.path.setText(str(original))
    qtbot.keyClick(checkpoint_source.path, Qt.Key.Key_Return)
    assert first.step == 0  # Enter in a line looks at it and does not go on
    qtbot.waitUntil(lambda: checkpoint_source.message.action is not None)
    assert checkpoint_source.folder == ""
    press(qtbot, checkpoint_source.message.action)
    qtbot.waitUntil(lambda: checkpoint_source.folder == str(target))


def test_the_hub_wants_a_commit(scene: Scene, begin: Begin, qtbot: QtBot, tmp_path: Path) -> None:
    first = begin()
    checkpoint_source = first.model.checkpoint_source
    checkpoint_source.repository.setText("owner/name")
    checkpoint_source.revision.setText("main")
    checkpoint_source.download()
    assert "40-digit commit" in checkpoint_source.message.text.text()
    scene.says(
        (["hub", "owner/name", "a" * 40], [{"folder": str(tmp_path), "error": None}], 0),
        (["list", str(tmp_path)], [folder_line(tmp_path)], 0),
    )
    checkpoint_source.revision.setText("a" * 40)
    checkpoint_source.download()
    qtbot.waitUntil(lambda: checkpoint_source.folder == str(tmp_path))


def test_devices_are_listed_chosen_and_heard(scene: Scene, begin: Begin, qtbot: QtBot) -> None:
    first = begin()
    press(qtbot, first.next)
    sound: Any = first.steps[1]
    qtbot.waitUntil(lambda: sound.devices.microphone.count() == 3)
    sound.devices.microphone.picked.emit("Headset")
    assert scene.app.settings.sound.microphone == "Headset"
    scene.app.event_received.emit(InputLevel(-20.0))
    assert sound.devices.meter.decibels == -20.0
    press(qtbot, sound.check.begin)
    assert scene.calls("audio_check")


def broken() -> Devices:
    raise SoundUnavailable("PortAudio is missing: install libportaudio2.")


@pytest.mark.parametrize(
    ("find", "said"), [(broken, "libportaudio2"), (lambda: Devices((), ()), "No microphone found")]
)
def test_sound_that_is_missing_is_said_in_place(
    scene: Scene, qtbot: QtBot, find: Callable[[], Devices], said: str
) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    step = SoundStep(scene.app, find)
    step.setParent(window)
    window.show()
    qtbot.waitUntil(step.devices.error.isVisible)
    assert said in step.devices.error.text.text()


def test_what_is_kept_is_chosen(scene: Scene, begin: Begin, qtbot: QtBot) -> None:
    first = begin()
    recording: Any = first.steps[2]
    for _ in range(2):
        press(qtbot, first.next)
    assert not recording.keep.days.isVisible()
    recording.keep.mode.buttons["days"].click()
    assert recording.keep.days.currentText() == "30 days"
    recording.keep.days.picked.emit(7)
    recording.corrections.click()
    kept = scene.app.settings.recording
    assert (kept.mode, kept.days, kept.corrections) == ("days", 7, True)
    assert not was_asked(scene.app)
    with qtbot.waitSignal(first.finished):
        press(qtbot, first.next)
    assert was_asked(scene.app)
    assert App(scene.app.services).settings.started


def test_the_keyboard_alone_is_enough(scene: Scene, begin: Begin, qtbot: QtBot) -> None:
    first = begin()
    first.window().activateWindow()
    qtbot.waitUntil(first.model.choices.buttons["mini"].hasFocus)

    def key(which: Qt.Key) -> None:
        qtbot.keyClick(first.focusWidget() or first, which)

    for _ in range(3):
        key(Qt.Key.Key_Down)
    assert first.model.choices.value == "later"
    key(Qt.Key.Key_Return)
    assert first.step == 1
    first.back.setFocus()
    key(Qt.Key.Key_Return)
    assert first.step == 0
    with qtbot.waitSignal(first.finished):
        for _ in range(3):
            key(Qt.Key.Key_Return)
    assert scene.app.settings.started
    assert scene.app.settings.model.source == ""


@pytest.mark.parametrize(("here", "source"), [(READY, "mini"), (ABSENT, "")])
def test_skipping_downloads_nothing(
    scene: Scene, begin: Begin, qtbot: QtBot, here: dict[str, Any], source: str
) -> None:
    scene.says((["list", "mini"], [here], 0))
    first = begin()
    with qtbot.waitSignal(first.finished):
        press(qtbot, first.skip)
    assert scene.app.settings.model.source == source
    assert scene.app.settings.started
    assert not first.model.progress.running


@pytest.mark.parametrize("name", theme.THEMES)
def test_every_step_can_be_drawn(scene: Scene, begin: Begin, qtbot: QtBot, name: Any) -> None:
    first = begin()
    scene.app.change("looks", theme=name, text_size=2.0)
    for _ in range(3):
        assert not first.grab().isNull()
        first.advance()
    scene.app.change("looks", theme="light", text_size=1.0)
