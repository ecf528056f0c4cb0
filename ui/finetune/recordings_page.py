"""Fine-tuning, step 1: the checked recordings in a table where the user plays and fixes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6.QtCore import (
    QModelIndex,
    Signal,
)
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QTableView,
    QWidget,
)

from assistant.errors import AssistantError
from assistant.events import EMOTIONS
from assistant.finetune.tuning_data import IGNORE, Recording, overview, read_sound
from ui.core.app import App
from ui.core.translations import tr
from ui.finetune.recording_table import (
    EMOTION,
    FILE,
    LENGTH,
    PLAY,
    PROBLEM,
    TEXT,
    USE,
    CheckboxDelegate,
    EmotionDelegate,
    ProblemFilter,
    RecordingTable,
)
from ui.widgets.common import Picker, button, column, label, row
from ui.widgets.forms import InlineMessage, JobProgress
from ui.widgets.plots import EmotionBalance


class RecordingsPage(QWidget):
    """The check of the recordings.

    Signals:
        confirmed: the user goes on with these recordings.
    """

    confirmed = Signal()

    def __init__(self, app: App, back: Callable[[], object]) -> None:
        super().__init__()
        self._app = app
        self.name = ""
        self.table = RecordingTable()
        self.table.changed.connect(self._update_overview)
        self.shown = ProblemFilter()
        self.shown.setSourceModel(self.table)
        self.title = label("", "title")
        self.facts = label("", "muted")
        self.balance = EmotionBalance()
        self.progress = JobProgress()
        self.message = InlineMessage()
        self.kinds = Picker()
        self.kinds.setMaximumWidth(260)
        self.kinds.setAccessibleName(tr("Which recordings are shown"))
        self.kinds.picked.connect(self.show_kind)
        self._mappings = column(spacing=6)
        self.view = self._table_view()
        self.remark = label("", "small")
        self.next = button(tr("Continue"), self.confirmed.emit, "primary")
        self.next.setEnabled(False)
        self._writing: list[int] = []
        below = row(button(tr("Back"), back))
        below.addWidget(self.remark, 1)
        below.addWidget(self.next)
        layout = column(self.title, self.facts, self.balance, self.progress, self.message, spacing=10)
        layout.addLayout(self._mappings)
        layout.addLayout(row(label(tr("Show"), "muted", wrap=False), self.kinds, None))
        layout.addWidget(self.view, 1)
        layout.addLayout(below)
        layout.setContentsMargins(24, 20, 24, 20)
        self.setLayout(layout)
        self.progress.ended.connect(self._ended)

    # ---- the check

    def check(self, source: Path) -> None:
        """Check a manifest, a folder, or the corrections."""
        self.table.clear()
        self.shown.show_kind("")
        self.name = source.stem if source.is_file() else source.name
        self.title.setText(tr("Recordings in {name}").format(name=source.name))
        self.message.report("")
        self._update_overview()
        job = self._app.run_module("training", "check", str(source), "--json")
        job.printed.connect(self._found)
        self.progress.follow(job, tr("Checking the recordings…"))

    @property
    def rows(self) -> list[Recording]:
        """The recordings with the user's edits."""
        return self.table.rows

    def _found(self, line: dict[str, Any]) -> None:
        if "recording" in line:
            self.table.add(Recording.of(line["recording"]))
        elif "audio" in line and self._writing:
            self._written(line)

    def _ended(self, code: int, message: str, _last: object) -> None:
        self._writing = []
        if code:
            self.message.report(message or tr("The check ended unexpectedly."), error=True)
        self._offer_fixes()
        self._update_overview()

    # ---- overview

    def _update_overview(self) -> None:
        found = overview(self.table.rows, self.table.mapping)
        text = tr("{usable} of {all} can be used · {minutes} · {speakers}").format(
            usable=found.usable,
            all=found.recordings,
            minutes=tr("{n} minutes").format(n=f"{found.minutes:.1f}"),
            speakers=tr("one speaker") if found.speakers <= 1 else tr("{n} speakers").format(n=found.speakers),
        )
        self.facts.setText(text if found.recordings else tr("No recordings yet."))
        self.balance.show_counts(dict(found.emotions))
        ready = bool(found.recordings) and not found.refusal and not self.progress.running
        self.next.setEnabled(ready)
        self.remark.setText("" if self.progress.running else found.refusal or " ".join(found.remarks))
        self._show_kinds(Counter(dict(found.problems)))
        if self.shown.kind:
            self.shown.invalidate()

    def _show_kinds(self, kinds: Counter[str]) -> None:
        if self.shown.kind not in ("", *kinds):
            self.shown.show_kind("")
        everything = ("", tr("all {n} recordings").format(n=len(self.rows)))
        self.kinds.show_options(
            [everything, *((kind, f"{tr(kind)}: {n}") for kind, n in kinds.items())], self.shown.kind
        )

    def show_kind(self, kind: str) -> None:
        """Show only recordings with that problem, "" for all."""
        self.shown.show_kind(kind)
        self._update_overview()

    def _offer_fixes(self) -> None:
        """Offer to map unknown emotions and to transcribe recordings without a transcript."""
        _empty(self._mappings)
        unknown: dict[str, list[Recording]] = {}
        for one in self.rows:
            if one.emotion and one.emotion.lower() not in EMOTIONS:
                unknown.setdefault(one.emotion, []).append(one)
        for name, group in sorted(unknown.items(), key=lambda pair: -len(pair[1]))[:6]:
            suggestion = next((one.suggestion for one in group if one.suggestion), "")
            self._mappings.addWidget(self._mapping(name, len(group), suggestion))
        silent = [at for at, one in enumerate(self.rows) if not one.text.strip() and one.seconds is not None]
        if silent:
            some = tr("One recording has") if len(silent) == 1 else tr("{n} recordings have").format(n=len(silent))
            text = tr("{some} no transcript. You need one only to fine-tune replies.").format(some=some)
            self.message.report(text, action=tr("Transcribe"), act=self.write_transcripts)

    def _mapping(self, name: str, count: int, suggestion: str) -> QWidget:
        picker = Picker()
        options = [("", tr("choose…")), *((one, tr(one)) for one in EMOTIONS), (IGNORE, tr("leave out"))]
        picker.show_options(options, self.table.mapping.get(name, ""))
        picker.setAccessibleName(tr("Meaning of {name}").format(name=name))
        picker.setMaximumWidth(180)
        picker.picked.connect(lambda value: self.table.map_emotion(name, value) if value else None)
        made = QWidget()
        text = label(tr("“{name}” ({n}) means").format(name=name, n=count), wrap=False)
        parts: list[QWidget | int | None] = [text, picker]
        if suggestion and name not in self.table.mapping:

            def take() -> None:
                picker.setCurrentIndex(picker.findData(suggestion))
                self.table.map_emotion(name, suggestion)

            parts.append(button(tr("Use “{name}”").format(name=tr(suggestion)), take, "quiet"))
        made.setLayout(row(*parts, None))
        return made

    # ---- transcripts and playback

    def write_transcripts(self) -> None:
        """Transcribe the recordings that have no transcript."""
        self._writing = [at for at, one in enumerate(self.rows) if not one.text.strip() and one.seconds is not None]
        files = [self.rows[at].audio for at in self._writing]
        if files and not self.progress.running:
            job = self._app.run_module("training", "transcribe", "--json", *files)
            job.printed.connect(self._found)
            self.message.report("")
            self.progress.follow(job, tr("Transcribing {n} recordings…").format(n=len(files)))
            self._update_overview()

    def _written(self, line: dict[str, Any]) -> None:
        for one in self.rows:
            if one.audio == line["audio"] and not one.text:
                one.text = str(line["text"])
        self.table.touch()

    def play(self, at: int) -> None:
        """Play a recording."""
        try:
            samples, rate = read_sound(Path(self.rows[at].audio))
        except AssistantError as error:
            self.message.report(str(error), error=True)
            return
        if self._app.talk is not None:
            self._app.talk.clips.play(samples, rate)

    def _table_view(self) -> QTableView:
        view = QTableView()
        view.setModel(self.shown)
        view.setItemDelegateForColumn(USE, CheckboxDelegate(view))
        view.setItemDelegateForColumn(EMOTION, EmotionDelegate(view))
        view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        view.setEditTriggers(
            QAbstractItemView.EditTrigger.SelectedClicked
            | QAbstractItemView.EditTrigger.DoubleClicked
            | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        view.setShowGrid(False)
        view.setWordWrap(False)
        view.setAlternatingRowColors(True)
        view.verticalHeader().hide()
        view.verticalHeader().setDefaultSectionSize(36)
        view.setMinimumHeight(150)
        view.setAccessibleName(tr("Recordings"))
        header = view.horizontalHeader()
        header.setHighlightSections(False)
        for at, width in ((USE, 48), (PLAY, 40), (FILE, 190), (EMOTION, 120), (LENGTH, 72), (PROBLEM, 190)):
            view.setColumnWidth(at, width)
        header.setSectionResizeMode(TEXT, QHeaderView.ResizeMode.Stretch)
        view.clicked.connect(self._clicked)
        view.activated.connect(self._clicked)
        return view

    def _clicked(self, index: QModelIndex) -> None:
        if index.column() == PLAY:
            self.play(self.shown.mapToSource(index).row())


def _empty(layout: Any) -> None:
    while (item := layout.takeAt(0)) is not None:
        if (widget := item.widget()) is not None:
            widget.hide()
            widget.deleteLater()
