"""One session: timeline, playback, transcript and emotion in step, and its actions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from functools import partial

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeyEvent, QResizeEvent
from PySide6.QtWidgets import QHBoxLayout, QMenu, QSizePolicy, QStackedWidget, QToolButton, QWidget

from assistant.sessions.reader import correct
from ui.core import theme
from ui.core.app import App
from ui.core.background import Background
from ui.core.emotion_text import voice_sounds
from ui.core.playback import SPEEDS, Playback
from ui.core.translations import tr
from ui.sessions.formatting import format_day, format_duration, format_start, format_turns
from ui.sessions.session_emotion import SessionEmotionPanel
from ui.sessions.summary import Summary
from ui.sessions.timeline import SessionAudio, Timeline, emotion_of, load_session_audio
from ui.sessions.transcript import Transcript
from ui.widgets.common import EmotionChip, EmptyState, IconButton, Picker, button, column, label, line, row

_WIDE = 860  # pixels; wider shows the emotion column
_ROOMY = 600  # pixels; wider shows texts on buttons
_STEP_SECONDS = 5.0


class SessionPlayer(QWidget):
    """Shows one session.

    Signals:
        back_requested: in a narrow window, the user wants the list again.
        delete_requested: the user wants to delete the session.
        comparison_requested: the user wants to ask another model.
        export_requested: a format of `assistant.sessions.export.FORMATS`.
        corrected: a reading was corrected, so the list may change.
    """

    back_requested = Signal()
    delete_requested = Signal()
    comparison_requested = Signal()
    export_requested = Signal(str)
    corrected = Signal()

    def __init__(self, app: App) -> None:
        super().__init__()
        self.app = app
        self.background = Background()
        self.destroyed.connect(self.background.close)
        self.playback = Playback(app, self)
        self.session_audio: SessionAudio | None = None
        self._summary: Summary | None = None
        self._make()
        self.playback.moved.connect(self._move)
        self.playback.changed.connect(self._show_playing)
        self.playback.refused.connect(self._report)
        app.settings_changed.connect(self._describe)

    def _make(self) -> None:
        self.back = IconButton("left", self.tr("All sessions (Esc)"), self.back_requested.emit)
        self.back.hide()
        self.title = label("", "title")
        self.about = label("", "small")
        self.problem = label("", "error")
        self.compare = button(self.tr("Ask another model"), self.comparison_requested.emit, icon="model")
        self.compare.setToolTip(self.tr("Ask another model and compare"))
        self.small_compare = IconButton("model", self.compare.text(), self.comparison_requested.emit)
        self.export = IconButton("export", self.tr("Export"))
        self.export.setMenu(self._export_menu())
        self.export.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self._delete = IconButton("delete", self.tr("Delete (Del)"), self.delete_requested.emit)
        head = row(self.back, self.title, self.compare, self.small_compare, self.export, self._delete)
        head.setStretch(1, 1)
        self.timeline = Timeline()
        self.timeline.seek_requested.connect(self.playback.seek)
        self.transcript = Transcript()
        self.transcript.seek_requested.connect(self.playback.seek)
        self.transcript.corrected.connect(self.correct)
        self.emotion = SessionEmotionPanel()
        self.emotion.seek_requested.connect(self.playback.seek)
        self.emotion.turn_requested.connect(self.go_to)
        body = row(self.transcript, self.emotion, spacing=0)
        body.setStretch(0, 3)
        body.setStretch(1, 2)
        self._session = QWidget()
        layout = column()
        layout.setContentsMargins(16, 14, 16, 0)
        layout.addLayout(head)
        for part in (self.about, self.problem, self.timeline):
            layout.addWidget(part)
        layout.addLayout(self._transport())
        layout.addWidget(line())
        layout.addLayout(body, 1)
        self._session.setLayout(layout)
        self._nothing = EmptyState("sessions", self.tr("Choose a session to play"))
        self._opening = EmptyState("sessions", self.tr("Opening…"))
        self._stack = QStackedWidget()
        for page in (self._nothing, self._opening, self._session):
            self._stack.addWidget(page)
        self.setLayout(column(self._stack, spacing=0))

    def _transport(self) -> QHBoxLayout:
        self.play = IconButton("play", self.tr("Play (Space)"), self.playback.toggle, 28)
        before = IconButton("previous", self.tr("Previous turn (Left)"), partial(self.jump, -1))
        after = IconButton("next", self.tr("Next turn (Right)"), partial(self.jump, 1))
        self.time = label("", wrap=False)
        self.speed = Picker()
        self.speed.setMinimumContentsLength(3)
        self.speed.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        self.speed.setMaximumWidth(120)
        self.speed.setAccessibleName(self.tr("Speed"))
        for speed in SPEEDS:
            self.speed.addItem(f"{speed:g}×", speed)
        self.speed.setCurrentIndex(SPEEDS.index(1.0))
        self.speed.currentIndexChanged.connect(lambda index: self.playback.set_speed(SPEEDS[index]))
        self.chip = EmotionChip()
        self.status = label("", "error")
        bar = row(before, self.play, after, 8, self.time, 8, self.speed, 8, self.chip, self.status, spacing=4)
        bar.setStretch(bar.count() - 1, 1)
        return bar

    def _export_menu(self) -> QMenu:
        menu = QMenu(self)
        for form, text in {
            "wav": self.tr("Audio (WAV)"),
            "markdown": self.tr("Text (Markdown)"),
            "srt": self.tr("Subtitles (SRT)"),
            "json": self.tr("Data (JSON)"),
            "archive": self.tr("Archive for another computer"),
        }.items():
            menu.addAction(text).triggered.connect(partial(self._export, form))
        return menu

    def _export(self, form: str, _checked: bool = False) -> None:
        self.export_requested.emit(form)

    # ---- for the page

    @property
    def summary(self) -> Summary | None:
        """The session that is shown or opening."""
        return self._summary

    def show_session(self, summary: Summary | None) -> None:
        """Show a session. The same session keeps its position and is reloaded if it changed."""
        before, self._summary = self._summary, summary
        if summary is None:
            self._take(None)
            return
        again = before is not None and before.folder == summary.folder and self.session_audio is not None
        if not again:
            self._take(None)
        self._describe()
        self.background.run(
            partial(load_session_audio, summary.folder),
            partial(self._show_loaded, summary),
            partial(self._fail, summary),
        )

    def correct(self, turn: int, emotion: str | None) -> None:
        """Correct the emotion of a turn, by its number; None restores the reading."""
        if self.session_audio is None:
            return
        session = self.session_audio.session
        before = next(one.corrected for one in session.turns if one.turn.number == turn)
        self.background.run(
            partial(
                correct,
                session.folder,
                turn,
                emotion,
                consent=self.app.settings.recording.corrections,
                corrections=self.app.corrections,
            ),
            lambda _done: self._corrected(turn, emotion, before),
            self._report,
        )

    def jump(self, turns: int) -> None:
        """Move by a number of turns. Within a turn, back goes to its start."""
        if self.session_audio is None or not self.session_audio.parts:
            return
        here = self.session_audio.turn_at(self.playback.position)
        late = self.playback.position > self.session_audio.start(here) + 1.0
        self.go_to(here + turns + (turns < 0 and late))

    def go_to(self, turn: int) -> None:
        """Go to the start of a turn, by its index."""
        if self.session_audio is not None and self.session_audio.parts:
            self.playback.seek(self.session_audio.start(min(max(turn, 0), len(self.session_audio.session.turns) - 1)))

    def take_key(self, event: QKeyEvent) -> bool:
        """Handle a key of the player; return whether it was one."""
        if self.session_audio is None or event.modifiers() & ~(
            Qt.KeyboardModifier.ShiftModifier | Qt.KeyboardModifier.KeypadModifier
        ):
            return False
        little = bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier)
        seek, here = self.playback.seek, self.playback.position
        keys: dict[int, Callable[[], object]] = {
            Qt.Key.Key_Space: self.playback.toggle,
            Qt.Key.Key_Left: partial(seek, here - _STEP_SECONDS) if little else partial(self.jump, -1),
            Qt.Key.Key_Right: partial(seek, here + _STEP_SECONDS) if little else partial(self.jump, 1),
            Qt.Key.Key_Home: partial(seek, 0.0),
            Qt.Key.Key_End: partial(self.go_to, len(self.session_audio.session.turns)),
            Qt.Key.Key_Delete: self.delete_requested.emit,
        }
        act = keys.get(event.key())
        if act is not None:
            act()
        return act is not None

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Show the emotion column and the button texts where there is room."""
        super().resizeEvent(event)
        factor = theme.pixels("body") / theme.SIZES["body"]
        self.emotion.setVisible(self.width() >= _WIDE * factor)
        self.compare.setVisible(self.width() >= _ROOMY * factor)
        self.small_compare.setVisible(self.width() < _ROOMY * factor)

    # ---- internal

    def _show_loaded(self, summary: Summary, session_audio: SessionAudio) -> None:
        if self._summary is not None and self._summary.folder == summary.folder:
            self._take(session_audio)

    def _fail(self, summary: Summary, why: str) -> None:
        if self._summary is not None and self._summary.folder == summary.folder:
            self._take(None)
            self.problem.setText(why)
            self.problem.show()
            self._stack.setCurrentWidget(self._session)

    def _take(self, session_audio: SessionAudio | None) -> None:
        same = (
            session_audio is not None
            and self.session_audio is not None
            and session_audio.session.folder == self.session_audio.session.folder
        )
        unchanged = (
            same and session_audio is not None and session_audio.seconds == self.playback.duration
        )  # it was corrected while playing
        position = self.playback.position if same else 0.0
        self.session_audio = session_audio
        if not unchanged:
            self.playback.load(session_audio.samples if session_audio else None)
        self.timeline.show_session_audio(session_audio)
        self.transcript.show_session_audio(session_audio)
        self.emotion.show_session_audio(session_audio)
        self._report("")
        self._describe()
        if unchanged:
            self._move(position)
        else:
            self.playback.seek(position)
        self._stack.setCurrentWidget(
            self._session if session_audio is not None else self._opening if self._summary else self._nothing
        )

    def _describe(self, *_: object) -> None:
        summary, session_audio = self._summary, self.session_audio
        if summary is None:
            return
        today = date.today()
        self.title.setText(format_start(summary))
        parts = [
            format_turns(summary.turns),
            format_duration(summary.seconds),
            summary.model,
            self._kept(summary, today),
        ]
        self.about.setText(" · ".join(part for part in parts if part))
        count = session_audio.session.damaged if session_audio else 0
        missing = self.tr("{} lines or recordings are missing or damaged. The rest is shown.").format(count)
        self.problem.setText(missing)
        self.problem.setVisible(bool(count))

    def _kept(self, summary: Summary, today: date) -> str:
        """Say how long the session is kept."""
        recording = self.app.settings.recording
        if recording.keep_days is None or summary.day is None:
            return self.tr("kept until you delete it")
        last = summary.day + timedelta(days=recording.keep_days)
        if last < today:
            return self.tr("older than {} days, deleted at next start").format(recording.keep_days)
        return self.tr("kept {} days, until {}").format(recording.keep_days, _until(last, today))

    def _move(self, seconds: float) -> None:
        session_audio = self.session_audio
        whole = session_audio.seconds if session_audio else 0.0
        self.time.setText(f"{format_duration(seconds)} / {format_duration(whole)}")
        self.time.setAccessibleName(self.tr("{} of {}").format(format_duration(seconds), format_duration(whole)))
        self.timeline.set_position(seconds)
        self.emotion.set_position(seconds)
        turn = session_audio.turn_at(seconds) if session_audio else -1
        self.transcript.set_current(turn)
        recorded = session_audio.session.turns[turn] if session_audio and turn >= 0 else None
        emotion = emotion_of(recorded) if recorded else None
        self.chip.setVisible(emotion is not None)
        if recorded is not None and emotion is not None:
            reading = recorded.turn.reading
            sure = f"{reading.confidence:.0%}" if reading is not None and recorded.corrected is None else ""
            self.chip.show_emotion(emotion, self.tr("corrected") if recorded.corrected else sure)

    def _show_playing(self, playing: bool) -> None:
        self.play.show_icon(*(("pause", self.tr("Pause (Space)")) if playing else ("play", self.tr("Play (Space)"))))
        if playing:
            self._report("")

    def _report(self, text: str) -> None:
        self.status.setText(text)
        self.status.setAccessibleName(text)

    def _corrected(self, turn: int, emotion: str | None, before: str | None) -> None:
        sounded = voice_sounds(emotion) if emotion else self.tr("as detected")
        what = self.tr("Turn {} corrected: {}.").format(turn, sounded)
        self.app.notify(what, self.tr("Undo"), lambda: self.correct(turn, before))
        self.corrected.emit()


def _until(day: date, today: date) -> str:
    return {0: tr("today"), 1: tr("tomorrow")}.get((day - today).days) or format_day(day, today)
