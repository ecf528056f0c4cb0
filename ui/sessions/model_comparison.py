"""Replays a session on another model: emotions, replies and delays side by side."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from PySide6.QtCore import QElapsedTimer, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QBoxLayout, QFileDialog, QProgressBar, QWidget

from ui.core.app import App
from ui.core.jobs import Job
from ui.core.translations import tr
from ui.core.untrusted_text import brief, one_line, tooltip
from ui.sessions.formatting import format_duration, format_start
from ui.sessions.summary import Summary
from ui.sessions.transcript import ReadingArea, displayable
from ui.widgets.common import EmotionChip, IconButton, Picker, button, column, label, line, row
from ui.widgets.model_text import presets
from ui.widgets.word_diff import MarkedText, Span, differing, marked

_SIDE_BY_SIDE_WIDTH = 560  # pixels; wider shows both answers side by side
_MOSTLY_DIFFERENT = 0.7  # share of changed words above which no words are marked
STOPPED = -1


class TurnComparison(QWidget):
    """One turn, before and now."""

    def __init__(self, values: dict[str, Any], *, side_by_side: bool) -> None:
        super().__init__()
        before, after = values["before"], values["after"]
        old, new = (displayable(str(answer.get("reply") or "")) for answer in (before, after))
        gone, added = differing(old, new)
        other = (
            bool(gone and added) and marked(old, gone) > _MOSTLY_DIFFERENT and marked(new, added) > _MOSTLY_DIFFERENT
        )
        if other:  # too many marks are hard to read
            gone, added = [], []
        text = displayable(str(values.get("words") or "")) or self.tr("(no transcript)")
        self.sides = QBoxLayout(QBoxLayout.Direction.LeftToRight)
        self.sides.setSpacing(24)
        self.sides.addLayout(self._side(self.tr("Before"), before, old, gone, struck=True), 1)
        self.sides.addLayout(self._side(self.tr("Now"), after, new, added, struck=False), 1)
        layout = column(label(f"{values['turn']}  {text}", "heading"), spacing=8)
        layout.addLayout(self.sides)
        if other:
            layout.addWidget(label(self.tr("The replies are completely different, so no words are marked."), "small"))
        layout.addWidget(line())
        layout.setContentsMargins(0, 12, 8, 0)
        self.setLayout(layout)
        self.set_side_by_side(side_by_side=side_by_side)

    def set_side_by_side(self, *, side_by_side: bool) -> None:
        """Put the two answers side by side, or stack them."""
        across, down = QBoxLayout.Direction.LeftToRight, QBoxLayout.Direction.TopToBottom
        self.sides.setDirection(across if side_by_side else down)

    def _side(self, name: str, answer: dict[str, Any], text: str, marks: list[Span], *, struck: bool) -> QBoxLayout:
        reading, first = answer.get("reading"), answer.get("first_token_ms")
        chip = EmotionChip(str(reading)) if reading else label(self.tr("no emotion detected"), "small", wrap=False)
        delay = label(self.tr("first word {:.2f} s").format(first / 1000) if first is not None else "", "small")
        head = row(label(name, "small", wrap=False), chip, delay, spacing=10)
        head.setStretch(2, 1)
        side = column(spacing=6)
        side.addLayout(head)
        side.addWidget(MarkedText(text, marks, struck=struck) if text else label(self.tr("(no reply)"), "muted"))
        side.addStretch(1)
        return side


class ModelComparison(QWidget):
    """Chooses a model, runs it on the session in a child process, and compares.

    Signals:
        back_requested: the user wants the session again.
    """

    back_requested = Signal()

    def __init__(self, app: App) -> None:
        super().__init__()
        self.app = app
        self._summary: Summary | None = None
        self._job: Job | None = None
        self._folders: list[str] = []  # chosen here, in addition to those of the settings
        self._since = QElapsedTimer()
        self._tick = QTimer(self, interval=1000)
        self._tick.timeout.connect(self._count)
        self.rows: list[TurnComparison] = []
        self.values: list[dict[str, Any]] = []
        self._make()
        app.settings_changed.connect(self._follow)

    def _make(self) -> None:
        back = IconButton("left", self.tr("Back to the session (Esc)"), self.back_requested.emit)
        self.title = label("", "title")
        head = row(back, self.title)
        head.setStretch(1, 1)
        self.model = Picker()
        self.model.setAccessibleName(self.tr("Model"))
        folder = IconButton("folder", self.tr("Choose a model folder"), self._choose_folder)
        self.ask = button(self.tr("Ask"), self.begin, "primary")
        self.stop = button(self.tr("Cancel"), self.cancel)
        choice = row(self.model, folder, self.ask, self.stop)
        choice.setStretch(0, 1)
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setFixedHeight(6)
        self.progress.setAccessibleName(self.tr("Progress"))
        self.status = label("", "muted")
        self.error = label("", "error", selectable=True)
        self.result = label("", "lead")
        self._inner = QWidget()
        self._column = column(spacing=0)
        self._column.addStretch(1)
        self._inner.setLayout(self._column)
        area = ReadingArea(self.tr("Before and now, by turn"))
        area.setWidget(self._inner)
        layout = column(spacing=10)
        layout.setContentsMargins(16, 14, 16, 0)
        layout.addLayout(head)
        layout.addLayout(choice)
        for part in (self.progress, self.status, self.error, self.result):
            layout.addWidget(part)
        layout.addWidget(area, 1)
        self.setLayout(layout)
        self._offer()
        self._show_state()

    @property
    def running(self) -> bool:
        """Whether a model is running."""
        return self._job is not None

    def show_session(self, summary: Summary) -> None:
        """Prepare a comparison for this session and drop the previous one."""
        if self._summary is not None and self._summary.folder == summary.folder:
            return
        self.cancel()
        self._summary = summary
        when = format_start(summary)
        self.title.setText(self.tr("{}: another model").format(when))
        self.clear()
        self.status.setText(
            self.tr(
                "The model replies to the same {} messages, each with the original conversation before it. The "
                "recording does not change."
            ).format(summary.turns)
        )
        self._show_state()

    def begin(self) -> None:
        """Run the chosen model."""
        if self._summary is None or self.running:
            return
        self.clear()
        self.progress.setRange(0, 0)
        source, device = str(self.model.currentData()), self.app.settings.model.device
        self._job = self.app.run("replay", str(self._summary.folder), "--model", source, "--device", device, "--json")
        self._job.printed.connect(self.take)
        self._job.ended.connect(self.end)
        self._since.start()
        self._tick.start()
        self._count()
        self._show_state()

    def cancel(self) -> None:
        """Stop the run."""
        if self._job is not None:
            self._job.stop()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Put the answers side by side where there is room."""
        super().resizeEvent(event)
        for turn in self.rows:
            turn.set_side_by_side(side_by_side=self._side_by_side)

    # ---- internal

    @property
    def _side_by_side(self) -> bool:
        return self.width() >= _SIDE_BY_SIDE_WIDTH

    def _follow(self, *_: object) -> None:
        self._offer()

    def _offer(self, chosen: str = "") -> None:
        settings = self.app.settings.model
        sources = dict.fromkeys([*presets(), *settings.folders, *self._folders, settings.source])
        chosen = chosen or str(self.model.currentData() or "")
        self.model.clear()
        for source in sources:
            self.model.addItem(one_line(Path(source).name), source)
            self.model.setItemData(self.model.count() - 1, tooltip(source), Qt.ItemDataRole.ToolTipRole)
        self.model.setCurrentIndex(max(0, self.model.findData(chosen)))

    def _choose_folder(self) -> None:
        dialog = QFileDialog(self, self.tr("Model folder"))
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setFileMode(QFileDialog.FileMode.Directory)
        dialog.fileSelected.connect(self._add_folder)
        dialog.open()

    def _add_folder(self, folder: str) -> None:
        self._folders.append(folder)
        self._offer(folder)

    def clear(self) -> None:
        """Remove all comparisons."""
        for made in self.rows:
            made.deleteLater()
        self.rows = []
        self.values = []
        for part in (self.error, self.result, self.status):
            part.setText("")

    def take(self, values: dict[str, Any]) -> None:
        """Show one turn's comparison, an object that the command printed."""
        if not {"turn", "before", "after"} <= values.keys():
            return
        self.values.append(values)
        made = TurnComparison(values, side_by_side=self._side_by_side)
        self.rows.append(made)
        self._column.insertWidget(self._column.count() - 1, made)
        turns = self._summary.turns if self._summary else 0
        self.progress.setRange(0, max(turns, len(self.rows)))
        self.progress.setValue(len(self.rows))
        self._count()

    def _count(self) -> None:
        seconds = format_duration(self._since.elapsed() / 1000)
        turns = self._summary.turns if self._summary else 0
        self.status.setText(
            self.tr("Running {}: {} of {} turns answered, {}").format(
                self.model.currentText(), len(self.rows), turns, seconds
            )
        )

    def end(self, code: int, why: str) -> None:
        """Show the result: the command ended with this exit code and, if it failed, this message."""
        self._job = None
        self._tick.stop()
        self.status.setText("")
        if code == STOPPED:
            self.status.setText(self.tr("Cancelled."))
        elif code:
            self.error.setText(brief(why) or self.tr("The model process ended unexpectedly. Try again."))
        else:
            self.result.setText(comparison_summary(self.values))
        self._show_state()

    def _show_state(self) -> None:
        self.progress.setVisible(self.running)
        self.stop.setVisible(self.running)
        self.ask.setVisible(not self.running)
        self.model.setEnabled(not self.running)
        for part in (self.status, self.error, self.result):
            part.setVisible(bool(part.text()))
        self.status.setVisible(bool(self.status.text()) or self.running)
        self.ask.setMinimumSize(QSize(88, 0))


def comparison_summary(values: list[dict[str, Any]]) -> str:
    """Summarise a comparison: how many emotions and replies differ, and the median delays."""

    def differ(what: str) -> int:
        return sum(one["before"].get(what) != one["after"].get(what) for one in values)

    text = tr("{} of {} emotions and {} of {} replies differ")
    parts = [text.format(differ("reading"), len(values), differ("reply"), len(values))]
    delays = [
        [one[side]["first_token_ms"] / 1000 for one in values if one[side].get("first_token_ms") is not None]
        for side in ("before", "after")
    ]
    if all(delays):
        text = tr("first word: {:.2f} s before, {:.2f} s now")
        parts.append(text.format(*map(median, delays)))
    return " · ".join(parts)
