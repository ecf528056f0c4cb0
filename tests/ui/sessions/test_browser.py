"""The Sessions page: list, player, corrections, export and import, deleting, comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractButton, QApplication, QComboBox, QFileDialog, QLabel, QLineEdit, QWidget
from pytestqt.qtbot import QtBot

from assistant.events import SAMPLE_RATE, Outcome, Spoken, Turn, TurnEnded, Typed
from assistant.sessions.corrections import corrections
from assistant.sessions.export import export
from assistant.sessions.journal import JsonLines, read_lines
from assistant.sessions.reader import read_session
from assistant.sessions.recorder import EVENTS, Recorder
from tests.ui.support import fake_program
from tests.ui.support.sessions import STORY, record, spoken
from ui.core.app import App, Notification, Services
from ui.sessions.browser import SessionsPage
from ui.sessions.timeline import load_session_audio
from ui.sessions.transcript import TurnRow, displayable, unplayed_text
from ui.widgets.word_diff import MarkedText, differing

NOW = datetime.now().astimezone()
Show = Callable[[], SessionsPage]


@pytest.fixture
def services(services: Services, tmp_path: Path) -> Services:
    """Services whose commands answer from `answers.json`."""
    (tmp_path / "answers.json").write_text("[]")
    program = (*services.python, str(Path(fake_program.__file__)), str(tmp_path / "answers.json"))
    return replace(services, command=program)


@pytest.fixture
def show(app: App, qtbot: QtBot) -> Iterator[Show]:
    """Open the page and wait until all sessions are listed and the first is open."""
    pages: list[SessionsPage] = []

    def opened() -> SessionsPage:
        page = SessionsPage(app)
        pages.append(page)
        qtbot.addWidget(page)
        page.setMinimumSize(480, 420)  # as the window
        page.resize(1300, 800)
        page.show()
        qtbot.waitUntil(lambda: page.list.complete)
        if page.list.shown:
            settle(page, qtbot)
        return page

    yield opened
    for page in pages:
        page.finish()
        page.list.background.close()
        page.player.background.close()


@pytest.fixture
def dialogs(monkeypatch: pytest.MonkeyPatch) -> list[QFileDialog]:
    """Make file dialogs without showing them, which warns without a desktop."""
    made: list[QFileDialog] = []
    monkeypatch.setattr(QFileDialog, "open", lambda dialog: made.append(dialog))
    return made


def settle(page: SessionsPage, qtbot: QtBot) -> None:
    """Wait until the selected session is open with all its turns."""
    player = page.player

    def there() -> bool:
        session_audio, chosen = player.session_audio, player.summary
        same = session_audio is not None and chosen is not None and session_audio.session.folder == chosen.folder
        return same and session_audio is not None and len(player.transcript.rows) == len(session_audio.session.turns)

    qtbot.waitUntil(there)


def emitted(app: App) -> list[Notification]:
    heard: list[Notification] = []
    app.notified.connect(heard.append)
    return heard


def folders(page: SessionsPage) -> list[Path]:
    return [session.folder for session in page.list.shown]


def clips(app: App) -> Any:
    talk: Any = app.talk
    return talk.clips


def played(app: App) -> list[tuple[Any, ...]]:
    talk: Any = app.talk
    return [call for call in talk.calls if call[0].startswith("clips.")]


# ---- the list


def test_without_sessions_it_says_how_to_begin_and_shows_the_first_one(app: App, show: Show, qtbot: QtBot) -> None:
    page = show()
    assert page.stack.currentWidget() is page.nothing
    page.nothing.button.click()
    assert app.settings.recording.mode == "days"
    qtbot.waitUntil(lambda: page.stack.currentWidget() is page.recording)
    recorder = Recorder(app.sessions, lambda _failed: None)
    recorder.utterance(1, Typed("Hello there"))
    qtbot.waitUntil(lambda: bool(page.list.shown))
    assert page.list.shown[0].running
    page.delete()
    assert folders(page)  # it is still being recorded
    turn = Turn(1, Typed("Hello there"), reply="Hello.", heard="Hello.")
    recorder.ended(TurnEnded(turn))
    recorder.close()
    qtbot.waitUntil(lambda: not page.list.shown[0].running)
    assert page.list.shown[0].first_words == "Hello there"


def test_newest_first_searched_and_counted(app: App, show: Show, qtbot: QtBot) -> None:
    old = record(app.sessions, NOW - timedelta(days=40), STORY[4:])
    new = record(app.sessions, NOW)
    page = show()
    assert folders(page) == [new, old]
    assert page.list.count.text() == "2 sessions"
    assert page.player.session_audio is not None
    assert page.player.session_audio.session.folder == new
    for query, found in (("sad", [new]), ("weasels", [new, old]), ("today", [new]), ("nothing like it", [])):
        page.list.field.setText(query)
        assert folders(page) == found
        assert page.list.count.text() == f"{len(found)} of 2 sessions"
    assert page.list.stack.currentWidget() is page.list.none_found
    page.list.none_found.button.click()
    assert folders(page) == [new, old]
    app.change("recording", mode="keep")
    assert page.list.retention.text() == "Sessions are kept until you delete them."
    app.change("recording", mode="days", days=7)
    assert page.list.retention.text() == "Sessions are kept for 7 days."
    page.list.view.setCurrentIndex(page.list.view.model().index(1, 0))
    assert "older than 7 days" in page.player.about.text()


# ---- the player


def test_playing_in_step(app: App, show: Show, qtbot: QtBot) -> None:
    record(app.sessions, NOW)
    page = show()
    player, session_audio = page.player, page.player.session_audio
    assert session_audio is not None
    player.play.click()
    name, samples, rate, at, speed = played(app)[-1]
    assert (name, len(samples), rate, at, speed) == ("clips.play", len(session_audio.samples), SAMPLE_RATE, 0.0, 1.0)
    assert player.play.accessibleName() == "Pause (Space)"
    speaker = clips(app)
    speaker.playing, speaker.position = True, session_audio.start(2) + 0.1
    qtbot.waitUntil(lambda: player.playback.position == speaker.position)
    assert [row.current for row in player.transcript.rows] == [False, False, True, False, False, False]
    assert (player.chip.emotion, player.timeline.turn) == ("surprise", 2)
    assert player.timeline.lanes["you"].position == speaker.position
    player.speed.setCurrentIndex(player.speed.findData(1.5))
    assert played(app)[-1][3:] == (speaker.position, 1.5)
    player.play.click()
    assert played(app)[-1] == ("clips.stop",)
    assert not player.playback.playing
    speaker.playing = False
    player.jump(1)
    assert player.playback.position == session_audio.start(3)
    assert not player.chip.isVisible()  # typed: there is no voice
    player.jump(-1)
    assert player.playback.position == session_audio.start(2)
    player.playback.seek(session_audio.start(2) + 2)
    player.jump(-1)
    assert player.playback.position == session_audio.start(2)
    lane = player.timeline.lanes["assistant"]
    QTest.mouseClick(lane, Qt.MouseButton.LeftButton, pos=QPoint(lane.width() // 2, 9))
    assert player.playback.position == pytest.approx(session_audio.seconds / 2, abs=0.2)
    page.hide()
    assert not player.playback.playing


def test_the_end_and_a_speaker_that_is_busy(app: App, show: Show, qtbot: QtBot) -> None:
    record(app.sessions, NOW, STORY[:1])
    page = show()
    playback, speaker = page.player.playback, clips(app)
    playback.play()
    for _ in range(3):
        playback.follow()
    speaker.playing = True
    playback.follow()
    speaker.playing, speaker.position = False, playback.duration
    playback.follow()
    assert not playback.playing
    assert playback.position == playback.duration
    speaker.position = 0.0
    playback.play()  # from the beginning again
    assert played(app)[-1][3] == 0.0
    for _ in range(30):
        playback.follow()
    assert not playback.playing
    assert "during a conversation" in page.player.status.text()


def test_what_was_not_heard_and_what_is_lost_is_said_in_place(app: App, show: Show, qtbot: QtBot) -> None:
    folder = record(app.sessions, NOW)
    (folder / "audio" / "0001-user.flac").unlink()
    (folder / "audio" / "0002-reply.flac").write_bytes(b"no longer what it was")
    page = show()

    def said(turn: int) -> str:
        return " | ".join(part.text() for part in page.player.transcript.rows[turn].findChildren(QLabel))

    assert "The recording is missing or damaged" in said(0)
    assert "Something is terribly wrong!" in said(0)
    assert "The reply's audio is missing or damaged" in said(1)
    assert "interrupted | By monkeys! That is quite | Not played: a story. Did they take anything else?" in said(2)
    assert "typed" in said(3)
    assert "damaged" not in said(4)
    assert page.player.problem.text().startswith("2 lines or recordings")
    assert page.list.shown[0].damaged == 1  # the one that is gone; the other is found when it is opened


def test_a_tape_fits_what_is_played(app: App) -> None:
    session_audio = load_session_audio(record(app.sessions, NOW))
    assert [(part.turn, part.who) for part in session_audio.parts] == [
        (n, who) for n in range(6) for who in ("you", "assistant")
    ]
    assert [session_audio.turn_at(start) for start, _ in session_audio.spans] == list(range(6))
    assert session_audio.turn_at(session_audio.spans[1][0] - 0.1) == 0
    assert session_audio.turn_at(1e9) == 5
    for part in session_audio.parts:
        sound = session_audio.samples[round(part.start * SAMPLE_RATE) : round(part.end * SAMPLE_RATE)]
        silent = part.who == "you" and isinstance(session_audio.session.turns[part.turn].turn.message, Typed)
        assert (abs(sound).max() > 0.05) is not silent
    assert sum(len(pieces) for pieces in session_audio.lanes.values()) == 12
    assert session_audio.lanes["you"][0].reading is not None


def test_correcting_a_reading_and_taking_it_back(app: App, show: Show, qtbot: QtBot) -> None:
    folder = record(app.sessions, NOW)
    page, heard = show(), emitted(app)
    page.list.field.setText("sad")
    app.change("recording", corrections=True)

    def choose(text: str) -> None:
        menu = page.player.transcript.rows[0]._menu()
        next(action for action in menu.actions() if action.text() == text).trigger()

    def corrected() -> str | None:
        session_audio = page.player.session_audio
        return session_audio.session.turns[0].corrected if session_audio else None

    choose("Voice sounds angry")
    qtbot.waitUntil(lambda: corrected() == "angry")
    assert [(one.emotion, one.read_as) for one in corrections(app.corrections)] == [("angry", "sad")]
    qtbot.waitUntil(lambda: page.player.chip.emotion == "angry")
    assert folders(page) == [folder]  # it stays, though it is sad no more
    assert heard[-1].act is not None
    heard[-1].act()
    qtbot.waitUntil(lambda: corrected() is None)
    assert corrections(app.corrections) == []
    settle(page, qtbot)
    app.change("recording", corrections=False)
    choose("Voice sounds happy")
    qtbot.waitUntil(lambda: corrected() == "happy")
    assert corrections(app.corrections) == []  # no consent
    settle(page, qtbot)
    choose("As detected")
    qtbot.waitUntil(lambda: corrected() is None)


# ---- deleting, out and in


def test_deleting_can_be_undone_until_its_time_is_over(app: App, show: Show, qtbot: QtBot) -> None:
    one, other = record(app.sessions, NOW), record(app.sessions, NOW - timedelta(days=1), STORY[:2])
    page, heard = show(), emitted(app)
    page.delete()
    assert folders(page) == [other]
    assert not one.exists()
    assert (heard[-1].action, page.player.summary and page.player.summary.folder) == ("Undo", other)
    assert heard[-1].act is not None
    heard[-1].act()
    qtbot.waitUntil(lambda: folders(page) == [one, other])
    assert read_session(one).turns
    qtbot.waitUntil(lambda: page.player.summary is not None and page.player.summary.folder == one)
    page.delete()
    app.trash.empty().join()
    assert heard[-1].act is not None
    heard[-1].act()
    assert "Could not restore" in heard[-1].text
    assert folders(page) == [other]
    page.delete()
    assert page.stack.currentWidget() is page.nothing


def test_what_a_kill_left_deleted_goes_at_the_next_start(app: App, show: Show, services: Services) -> None:
    record(app.sessions, NOW)
    show().delete()
    assert list(app.trash.folder.iterdir())
    App(services).trash.empty().join()
    assert not list(app.trash.folder.iterdir())


def test_what_cannot_be_deleted_stays(app: App, show: Show, services: Services) -> None:
    folder = record(app.sessions, NOW)
    page, heard = show(), emitted(app)
    (services.home / "deleted").write_text("a file stands in the folder's place")
    page.delete()
    assert "Could not delete" in heard[-1].text
    assert folders(page) == [folder]
    assert read_session(folder).turns


@pytest.mark.parametrize(
    ("form", "ending"),
    [("wav", ".wav"), ("markdown", ".md"), ("srt", ".srt"), ("json", ".json"), ("archive", ".undertone")],
)
def test_exporting_to_a_chosen_place(
    app: App, show: Show, qtbot: QtBot, dialogs: list[QFileDialog], tmp_path: Path, form: str, ending: str
) -> None:
    record(app.sessions, NOW, STORY[:2])
    page, heard = show(), emitted(app)
    page.player.export_requested.emit(form)
    [dialog] = dialogs
    assert dialog.selectedFiles()[0].endswith(ending)
    target = tmp_path / f"mine{ending}"
    dialog.fileSelected.emit(str(target))
    qtbot.waitUntil(target.is_file)
    qtbot.waitUntil(lambda: bool(heard))
    assert heard[-1].text == f"Saved as {target}."
    page.save(form, tmp_path / "missing" / "x")
    qtbot.waitUntil(lambda: heard[-1].error)
    assert "choose another folder" in heard[-1].text


def test_importing_an_archive(app: App, show: Show, qtbot: QtBot, dialogs: list[QFileDialog], tmp_path: Path) -> None:
    session = read_session(record(tmp_path / "elsewhere", NOW - timedelta(days=3)))
    archive = export(session, "archive", tmp_path)
    page, heard = show(), emitted(app)
    page.list.import_requested.emit()
    [dialog] = dialogs
    dialog.fileSelected.emit(str(archive))
    qtbot.waitUntil(lambda: len(folders(page)) == 1)
    settle(page, qtbot)
    assert page.list.shown[0].turns == 6
    (tmp_path / "bad.undertone").write_bytes(b"PK but not really")
    page.import_from(tmp_path / "bad.undertone")
    qtbot.waitUntil(lambda: heard[-1].error)
    assert "no archive of a session" in heard[-1].text


# ---- another model


def answers(tmp_path: Path, lines: list[Any], code: int | None, said: str = "") -> None:
    (tmp_path / "answers.json").write_text(json.dumps([[["replay"], lines, code, said]]))


def compared(turn: int, reading: str, reply: str, ms: float | None) -> dict[str, Any]:
    words, emotion, before, _ = STORY[turn - 1]
    return {
        "turn": turn,
        "words": words,
        "before": {"reading": emotion, "reply": before, "encode_ms": 80.0, "first_token_ms": 400.0},
        "after": {"reading": reading, "reply": reply, "first_token_ms": ms},
    }


def test_asking_another_model(app: App, show: Show, qtbot: QtBot, tmp_path: Path) -> None:
    folder = record(app.sessions, NOW)
    app.change("model", folders=("/models/other",))
    page = show()
    page.player.compare.click()
    compare = page.comparison
    assert page.right.currentWidget() is compare
    assert {compare.model.itemData(n) for n in range(compare.model.count())} >= {"mini", "/models/other"}
    compare.model.setCurrentIndex(compare.model.findData("/models/other"))
    reply = "Let us look at the letter together. It may be a colleague's new address."
    rows = [compared(1, "sad", STORY[0][2], 300.0), compared(2, "happy", reply, 200.0)]
    answers(tmp_path, [*rows, {"noise": 1}], 0)
    compare.ask.click()
    assert not compare.stop.isHidden()
    qtbot.waitUntil(lambda: not compare.running)
    [asked] = (tmp_path / "answers.json.calls").read_text().splitlines()
    assert json.loads(asked) == ["replay", str(folder), "--model", "/models/other", "--device", "auto", "--json"]
    assert compare.result.text() == (
        "1 of 2 emotions and 1 of 2 replies differ · first word: 0.40 s before, 0.25 s now"
    )
    old, new = compare.rows[1].findChildren(MarkedText)
    assert [old.text[slice(*mark)] for mark in old.marks] == ["sender"]
    assert [new.text[slice(*mark)] for mark in new.marks] == ["letter"]
    assert old.accessibleDescription() == "removed: sender"
    compare.take(compared(3, "sad", "Something else.", None))  # nothing in common: marks would be everywhere
    assert [part.marks for part in compare.rows[2].findChildren(MarkedText)] == [[], []]
    QTest.keyClick(compare, Qt.Key.Key_Escape)
    assert page.right.currentWidget() is page.player


def test_cancelling_and_failing_are_said_in_place(app: App, show: Show, qtbot: QtBot, tmp_path: Path) -> None:
    record(app.sessions, NOW)
    page = show()
    page.player.comparison_requested.emit()
    compare = page.comparison
    answers(tmp_path, [compared(1, "sad", "Oh.", None)], None)
    compare.begin()
    qtbot.waitUntil(lambda: len(compare.rows) == 1)
    assert (compare.progress.value(), compare.progress.maximum()) == (1, 6)
    assert "1 of 6 turns answered" in compare.status.text()
    compare.stop.click()
    qtbot.waitUntil(lambda: not compare.running)
    assert compare.status.text() == "Cancelled."
    answers(tmp_path, [], 3, "There is no model in /models/x: choose another folder.\n")
    compare.begin()
    qtbot.waitUntil(lambda: not compare.running)
    assert compare.error.text() == "There is no model in /models/x: choose another folder."
    assert not compare.ask.isHidden()


@pytest.mark.parametrize(
    ("before", "after", "gone", "new"),
    [
        ("", "", [], []),
        ("one two", "one two", [], []),
        ("one two three", "one 2 three", ["two"], ["2"]),
        ("你好吗", "你好啊", ["吗"], ["啊"]),
        ("one", "", ["one"], []),
    ],
)
def test_words_that_differ(before: str, after: str, gone: list[str], new: list[str]) -> None:
    left, right = differing(before, after)
    assert [before[slice(*span)] for span in left] == gone
    assert [after[slice(*span)] for span in right] == new


def test_marks_lie_on_their_words_behind_an_emoji(qtbot: QtBot) -> None:
    text = "🙂🙂 yes"
    shown = MarkedText(text, [(3, 6)], struck=True)
    qtbot.addWidget(shown)
    [mark] = shown.layout_for(300)[0].formats()
    assert (mark.start, mark.length) == (5, 3)  # Qt counts halves of characters


# ---- manners


def test_everything_with_the_keyboard_alone(app: App, show: Show, qtbot: QtBot) -> None:
    record(app.sessions, NOW)
    record(app.sessions, NOW - timedelta(days=1), STORY[:2])
    page = show()
    page.activateWindow()
    page.list.view.setFocus()
    QTest.keyClick(page.list.view, Qt.Key.Key_Down)
    settle(page, qtbot)
    assert page.player.session_audio is not None
    assert len(page.player.session_audio.session.turns) == 2
    QTest.keyClick(page.list.view, Qt.Key.Key_Space)
    assert page.player.playback.playing
    QTest.keyClick(page.list.view, Qt.Key.Key_Right)
    assert page.player.playback.position == page.player.session_audio.start(1)
    QTest.keyClick(page.list.view, Qt.Key.Key_Left, Qt.KeyboardModifier.ShiftModifier)
    assert page.player.playback.position == pytest.approx(page.player.session_audio.start(1) - 5, abs=0.1)
    QTest.keyClick(page.player.transcript, Qt.Key.Key_Space)
    assert not page.player.playback.playing
    QTest.keyClick(page.list.field, Qt.Key.Key_Space)  # a blank, not the player's
    assert page.list.field.text() == " "
    assert not page.player.playback.playing
    reached: list[QWidget] = []
    page.list.field.setFocus()
    for _ in range(40):
        focus = QApplication.focusWidget()
        assert focus is not None
        reached.append(focus)
        QTest.keyClick(focus, Qt.Key.Key_Tab)
    row = page.player.transcript.rows[1]
    for part in (
        page.list.view,
        page.player.timeline,
        page.player.play,
        page.player.speed,
        page.player.export,
        row.correct,
    ):
        assert part in reached, part.accessibleName()
    QTest.keyClick(page.list.view, Qt.Key.Key_Delete)
    assert len(page.list.shown) == 1


def test_every_control_has_a_name(app: App, show: Show, qtbot: QtBot) -> None:
    record(app.sessions, NOW)
    page = show()
    page.player.comparison_requested.emit()
    for part in page.findChildren(QWidget):
        if isinstance(part, QAbstractButton | QComboBox | QLineEdit) and not part.objectName().startswith("qt_"):
            inner = isinstance(part.parent(), QLineEdit | QComboBox)
            assert inner or part.accessibleName() or getattr(part, "text", str)(), part
    for row in page.player.transcript.rows:
        assert row.accessibleName().startswith("Turn ")


def test_a_narrow_window_shows_one_after_the_other(app: App, show: Show, qtbot: QtBot) -> None:
    record(app.sessions, NOW)
    page = show()
    page.resize(480, 700)
    assert (page.list.isVisible(), page.right.isVisible()) == (True, False)
    QTest.keyClick(page.list.view, Qt.Key.Key_Return)
    assert (page.list.isVisible(), page.right.isVisible()) == (False, True)
    layout = page.layout()
    assert layout is not None
    assert layout.totalMinimumSize().width() <= 480
    QTest.keyClick(page.player.timeline, Qt.Key.Key_Escape)
    assert (page.list.isVisible(), page.right.isVisible()) == (True, False)
    page.resize(1000, 700)
    assert (page.list.isVisible(), page.right.isVisible()) == (True, True)


HOSTILE = (
    "<img src='file:///etc/passwd'><b>bold</b>",
    "\ud800 half a character",
    "‮right to left‭" * 2000,
    "a" * 1_000_000,
    "\x00\x07\x1b[31m",
    "👩‍👩‍👧‍👦" * 500,
)


def test_hostile_texts_do_no_harm(app: App, show: Show, qtbot: QtBot) -> None:
    folder = record(app.sessions, NOW, STORY[:1])
    lines, _ = read_lines(folder / EVENTS)
    again = JsonLines(folder / EVENTS)
    for number, text in enumerate(HOSTILE, 2):
        again.append({"v": 1, "t": 1.0, "type": "typed", "turn": number, "text": text})
        ended = next(line for line in lines if line["type"] == "turn_ended")
        reading = ended["reading"] | {"label": "../../x"}
        again.append(ended | {"turn": number, "reply": text, "heard": "", "reading": reading, "audio": None})
        again.append({"v": 1, "t": "x", "type": "correction", "turn": number, "emotion": text[:20]})
    again.close()
    page = show()
    for part in page.findChildren(QLabel):
        assert part.textFormat() == Qt.TextFormat.PlainText or part.pixmap() is not None
    assert all(len(displayable(text)) < 4200 for text in HOSTILE)
    assert not page.grab().isNull()
    for text in HOSTILE:
        assert not MarkedText(displayable(text), differing(displayable(text), "x")[0], struck=True).grab().isNull()


def test_what_was_not_heard(app: App) -> None:
    session_audio = load_session_audio(
        record(app.sessions, NOW, [("weasels", "sad", "one two three four", 0.5), ("x", None, "all", 1.0)])
    )
    assert [unplayed_text(one) for one in session_audio.session.turns] == ["three four", ""]
    first = session_audio.session.turns[0]
    other = replace(first, turn=replace(first.turn, heard="something else"))
    assert unplayed_text(other) == "one two three four"


def test_an_unanswered_turn(app: App, qtbot: QtBot) -> None:
    recorder = Recorder(app.sessions, lambda _failed: None)
    recorder.ended(TurnEnded(Turn(1, spoken("weasels"), outcome=Outcome.FAILED)))
    recorder.close()
    assert recorder.folder is not None
    session_audio = load_session_audio(recorder.folder)
    assert isinstance(session_audio.session.turns[0].turn.message, Spoken)
    row = TurnRow(session_audio, 0)
    qtbot.addWidget(row)
    said = [part.text() for part in row.findChildren(QLabel)]
    assert "(no transcript)" in said
    assert "no reply" in said
