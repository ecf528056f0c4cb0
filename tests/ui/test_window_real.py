"""The whole program: `main()`, the real mini model, a real sound stack, clicks and keys."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

from assistant.backend.protocol import Ready
from assistant.events import (
    ModelStatus,
    Outcome,
    PlaybackProgressed,
    PlaybackStarted,
    Samples,
    State,
    Transcribed,
    TurnEnded,
)
from assistant.sessions.reader import read_session, sessions
from assistant.settings import load
from model.commands.convert import main as convert
from tests import ROOT
from tests.support.work import Calls
from tests.ui.support.script import Wait, click, named, own_home, play, texts
from ui.core import theme
from ui.main_window import MainWindow

if TYPE_CHECKING:
    from tests.support.sound_stack import SoundStack

pytest_plugins = ("tests.support.sound_stack",)
pytestmark = pytest.mark.real
RATE = 16_000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder with the first-run wizard done."""
    monkeypatch.setenv("UNDERTONE_HOME", os.environ.get("UNDERTONE_HOME", ""))
    folder = own_home(tmp_path)
    (folder / "settings.toml").write_text('started = true\n[recording]\nmode = "keep"\n[looks]\ntheme = "light"\n')
    return folder


def recording(name: str) -> Samples:
    samples, _ = soundfile.read(ROOT / "resources" / "samples" / f"{name}.flac", dtype="float32")
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    return samples[max(0, loud[0] - 800) : loud[-1] + 800]


def saying(stack: SoundStack, samples: Samples) -> Wait:
    """Speak into the microphone while the window runs, and wait until it is done."""
    thread = threading.Thread(target=stack.say, args=(samples,))
    thread.start()
    return "what is said", lambda: not thread.is_alive()


class Watch:
    """The events that reached the window."""

    def __init__(self, window: MainWindow) -> None:
        self.events: list[Any] = []
        window.app.event_received.connect(self.events.append)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def turns(self) -> list[Any]:
        return [ended.turn for ended in self.of(TurnEnded)]

    def has(self, kind: type, count: int = 1) -> Wait:
        return f"{count} {kind.__name__}", lambda: len(self.of(kind)) >= count

    def heard(self, words: int) -> Wait:
        """Wait for that many words of the current reply."""

        def enough() -> bool:
            emitted = self.of(PlaybackProgressed)
            return (
                bool(emitted) and emitted[-1].turn > len(self.of(TurnEnded)) and len(emitted[-1].heard.split()) >= words
            )

        return f"{words} words", enough


def devices_work(window: MainWindow) -> Wait:
    talk = window.app.talk
    return "the devices", lambda: talk.sound.microphone.works and talk.sound.speaker.works


def test_a_conversation_by_key_by_voice_and_by_hand(
    sound_stack: SoundStack, home: Path, figure: Callable[[str], None]
) -> None:
    def script(window: MainWindow) -> Generator[Wait, None, None]:
        watch = Watch(window)
        yield watch.has(Ready)
        yield devices_work(window)

        # Held to talk, by the space bar.
        QTest.keyPress(window.pages["talk"], Qt.Key.Key_Space)
        yield "listening", lambda: window.app.talk.loop.conversation.user_speaking
        yield saying(sound_stack, recording("who-sent-this"))
        QTest.keyRelease(window.pages["talk"], Qt.Key.Key_Space)
        yield watch.has(PlaybackStarted)
        yield watch.heard(6)
        click(window, "Stop")
        yield watch.has(TurnEnded)
        yield watch.has(Transcribed)
        assert "message" in watch.turns()[0].transcript
        assert watch.turns()[0].outcome is Outcome.STOPPED
        assert watch.turns()[0].transcript in texts(window)

        # Hands-free, and interrupted by voice.
        click(window, "Hands-free")
        yield "the switch", lambda: window.app.settings.turns.hands_free
        yield saying(sound_stack, recording("go-forward"))
        yield watch.has(PlaybackStarted, 2)
        yield watch.heard(2)
        yield saying(sound_stack, recording("novel-3"))
        yield watch.has(TurnEnded, 2)
        interrupted = watch.turns()[1]
        assert interrupted.outcome is Outcome.INTERRUPTED
        assert interrupted.reply.startswith(interrupted.heard)
        yield watch.has(PlaybackStarted, 3)
        click(window, "Stop")
        yield watch.has(TurnEnded, 3)
        click(window, "Hands-free")

        # Typed.
        line = named(window, "Message")
        line.setFocus()
        QTest.keyClicks(line, "What is two plus two?")
        QTest.keyClick(line, Qt.Key.Key_Return)
        yield watch.has(TurnEnded, 4)
        assert "What is two plus two?" in texts(window)

        # The reading of the first turn was wrong, says the user.
        window.pages["talk"].panel.show_turn(1)
        wrong = watch.turns()[0].reading.label
        click(window, f"It sounded {'sad' if wrong != 'sad' else 'happy'}")
        yield "the line on disk", lambda: "correction" in kinds_of(home)

    played = play(script, calls=Calls())
    assert played.code == 0
    figure(f"at most {played.most_calls} function calls in one go")
    assert 0 < played.most_calls < 120_000  # opening its largest page takes half of them
    (folder,) = sessions(home / "sessions")
    session = read_session(folder)
    assert [one.turn.outcome.value for one in session.turns] == ["stopped", "interrupted", "stopped", "answered"]
    assert session.turns[0].corrected in ("sad", "happy")


def kinds_of(home: Path) -> list[str]:
    lines = [line for one in sessions(home / "sessions") for line in (one / "events.jsonl").read_text().splitlines()]
    return [json.loads(line)["type"] for line in lines]


def test_what_goes_wrong_is_told_and_survived(sound_stack: SoundStack, home: Path) -> None:
    """The model process is killed during a reply, the sound system dies and returns; the window survives."""

    def script(window: MainWindow) -> Generator[Wait, None, None]:
        watch = Watch(window)
        yield watch.has(Ready)
        window.app.talk.type("Tell me about the sea.")
        yield watch.has(PlaybackStarted)
        window.app.talk.stop()
        yield watch.has(TurnEnded)
        window.app.talk.type("Tell me more.")
        os.kill(window.app.talk.model._process.pid, signal.SIGKILL)
        yield watch.has(Ready, 2)
        yield watch.has(TurnEnded, 2)
        again = "It is restarting"
        assert any(again in status.text for status in watch.of(ModelStatus))
        window.app.talk.type("And now?")
        yield "an answer", lambda: len(watch.turns()) == 3 and watch.turns()[2].reply
        window.app.talk.stop()
        sound_stack.kill()
        yield "the loss is told", lambda: "cannot be used" in texts(window)
        sound_stack.start()
        yield "it is back", lambda: "is back" in texts(window)
        yield "quiet", lambda: window.app.talk.loop.conversation.state is State.IDLE

    assert play(script).code == 0


def test_another_checkpoint_answers(sound_stack: SoundStack, home: Path) -> None:
    """A tiny converted checkpoint in NF4, untrained, replies like the original would."""
    folder = home / "tiny"
    assert convert([str(ROOT / "tests" / "goldens" / "checkpoints" / "a"), str(folder)]) == 0

    def script(window: MainWindow) -> Generator[Wait, None, None]:
        watch = Watch(window)
        yield watch.has(Ready)
        window.app.change("model", source=str(folder), device="cpu", quantize="nf4", folders=(str(folder),))
        yield watch.has(Ready, 2)
        yield "the status names it", lambda: "nf4" in named(window, "Model").text()
        window.app.talk.type("Hello")
        yield watch.has(TurnEnded)
        assert watch.turns()[0].reply

    assert play(script).code == 0
    assert load(home / "settings.toml")[0].model.quantize == "nf4"


def test_a_session_is_played_and_asked_again(sound_stack: SoundStack, home: Path) -> None:
    def script(window: MainWindow) -> Generator[Wait, None, None]:
        watch = Watch(window)
        yield watch.has(Ready)
        window.app.talk.type("Good morning.")
        yield watch.has(PlaybackStarted)
        yield watch.has(TurnEnded)
        window.app.talk.new()
        click(window, "Sessions")
        yield "the list", lambda: "Good morning." in texts(window)
        page = window.pages["sessions"]
        yield from player_of(page, window)

    assert play(script).code == 0


def player_of(page: Any, window: MainWindow) -> Generator[Wait, None, None]:
    yield "the player", lambda: findable(page, "Play")
    click(page, "Play")
    yield "sound", lambda: window.app.talk.clips.playing
    yield "its end", lambda: not window.app.talk.clips.playing


def findable(parent: Any, name: str) -> bool:
    try:
        return bool(named(parent, name))
    except AssertionError:
        return False


def test_from_no_settings_to_talking(sound_stack: SoundStack, home: Path) -> None:
    """The first-run wizard by keyboard, with mini already downloaded."""
    (home / "settings.toml").unlink()

    def script(window: MainWindow) -> Generator[Wait, None, None]:
        watch = Watch(window)
        first: Any = window.pages["first"]
        yield "it is known that mini is here", lambda: first.model.mini_available
        assert not watch.of(ModelStatus)  # nothing is loaded before it is chosen
        click(window, "Next")
        yield "the devices", lambda: "No microphone found" not in texts(first) and first.step == 1
        yield devices_work(window)
        said = saying(sound_stack, recording("go-forward"))
        meter = named(window, "Microphone level")
        yield "the level moved", lambda: meter.accessibleDescription() not in ("", "-60 dB")
        yield said
        click(window, "Next")
        click(window, "Keep for a limited time")
        click(window, "Start talking")
        yield "the Talk page", lambda: window.page == "talk"
        yield watch.has(Ready)
        line = named(window, "Message")
        line.setFocus()
        QTest.keyClicks(line, "Good morning.")
        QTest.keyClick(line, Qt.Key.Key_Return)
        yield watch.has(TurnEnded)
        assert watch.turns()[0].reply

    assert play(script).code == 0
    kept, error = load(home / "settings.toml")
    assert (kept.started, kept.recording.mode, kept.model.source, error) == (True, "days", "mini", "")
    assert len(sessions(home / "sessions")) == 1


def test_settings_are_in_force_at_once_and_at_the_next_start(sound_stack: SoundStack, home: Path) -> None:
    def change(window: MainWindow) -> Generator[Wait, None, None]:
        yield "the window is in front", window.isActiveWindow
        QTest.keyClick(window, Qt.Key.Key_Comma, Qt.KeyboardModifier.ControlModifier)
        yield "the settings", lambda: window.page == "settings"
        settings: Any = window.pages["settings"]
        for section, choice in (("turns", "Patient"), ("appearance", "Dark"), ("recording", "Keep nothing")):
            settings.show_section(section)
            yield choice, lambda choice=choice: findable(settings, choice)
            click(settings, choice)
        window.resize(720, 640)
        yield "the theme", lambda: theme.colours() is theme.DARK

    def inspect(window: MainWindow) -> Generator[Wait, None, None]:
        yield "the window as it was", lambda: (window.width(), window.height()) == (720, 640)
        assert theme.colours() is theme.DARK
        settings: Any = window.show_page("settings")
        for section, choice in (("turns", "Patient"), ("appearance", "Dark"), ("recording", "Keep nothing")):
            settings.show_section(section)
            yield choice, lambda choice=choice: named(settings, choice).isChecked()

    assert play(change).code == 0
    assert play(inspect).code == 0
    kept, _ = load(home / "settings.toml")
    assert (kept.turns.patience, kept.looks.theme, kept.recording.mode) == ("patient", "dark", "off")


def test_the_small_window_and_back(sound_stack: SoundStack, home: Path) -> None:
    def script(window: MainWindow) -> Generator[Wait, None, None]:
        watch = Watch(window)
        yield watch.has(Ready)
        click(window, "Compact window")
        small = window.pages["talk"].compact  # type: ignore[attr-defined]
        yield "the small window alone", lambda: small.isVisible() and not window.isVisible()
        QTest.keyPress(small, Qt.Key.Key_Space)
        yield saying(sound_stack, recording("who-sent-this"))
        QTest.keyRelease(small, Qt.Key.Key_Space)
        yield watch.has(PlaybackStarted)
        assert small.text.toPlainText().strip()
        QTest.keyClick(small, Qt.Key.Key_Escape)
        yield watch.has(TurnEnded)
        assert watch.turns()[0].outcome is Outcome.STOPPED
        click(small, "Full window")
        yield "the whole window alone", lambda: window.isVisible() and not small.isVisible()

    assert play(script).code == 0


def test_a_correction_is_taken_back_and_another_model_asked(sound_stack: SoundStack, home: Path) -> None:
    """A spoken turn is corrected, the correction undone, and the session replayed on the same model."""

    def script(window: MainWindow) -> Generator[Wait, None, None]:
        watch = Watch(window)
        yield watch.has(Ready)
        talk: Any = window.pages["talk"]
        QTest.keyPress(talk, Qt.Key.Key_Space)
        yield saying(sound_stack, recording("who-sent-this"))
        QTest.keyRelease(talk, Qt.Key.Key_Space)
        yield watch.has(TurnEnded)
        wrong = watch.turns()[0].reading.label
        click(window, f"It sounded {'sad' if wrong != 'sad' else 'happy'}")
        yield "the correction on disk", lambda: kinds_of(home).count("correction") == 1
        click(talk.panel.correction, "Undo")
        yield "its undo on disk", lambda: kinds_of(home).count("correction") == 2
        window.app.talk.new()
        click(window, "Sessions")
        page: Any = window.pages["sessions"]
        yield "the player", lambda: page.player.session_audio is not None and findable(page, "Ask another model")
        click(page, "Ask another model")
        assert named(page, "Model").currentText() == "mini"
        click(page, "Ask")
        yield "what it makes of it", lambda: len(page.comparison.rows) == 1 and not page.comparison.running
        assert "1 emotions and" in page.comparison.result.text()
        assert "Before" in texts(page.comparison)
        before, after = (page.comparison.values[0][side] for side in ("before", "after"))
        assert before["reading"] == after["reading"]

    assert play(script).code == 0
    (folder,) = sessions(home / "sessions")
    assert read_session(folder).turns[0].corrected is None
