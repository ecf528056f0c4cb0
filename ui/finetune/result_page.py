"""Fine-tuning, step 4: the result to see and hear, and using, exporting or deleting the checkpoint."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFileDialog, QFrame, QGridLayout, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

from assistant.errors import AssistantError
from assistant.events import EMOTIONS
from assistant.finetune.run_watcher import TuningRun, adopt, discard, in_use, restore, roll_back
from assistant.finetune.tuning_data import read_sound
from ui.core.app import App
from ui.core.background import Background
from ui.core.translations import tr
from ui.core.untrusted_text import tooltip
from ui.widgets.common import EmotionChip, IconButton, button, column, label, line, restyle, row
from ui.widgets.forms import InlineMessage, StatusIcon
from ui.widgets.plots import Confusion, ResponsivePair

_SHOWN = 4  # best and worst recordings, each


class ResultPage(QWidget):
    """The result of a run.

    Signals:
        closed: the run was deleted, or the user goes back.
    """

    closed = Signal()

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app
        self._files = Background()
        self.run: TuningRun | None = None
        self.title = label("", "title")
        self.mark = StatusIcon("info", "muted", 28)
        self.verdict = label("", "lead")
        self.use_note = label("", "muted")
        self.message = InlineMessage()
        self.before, self.after = Confusion(tr("Before")), Confusion(tr("After"))
        self._sections = QVBoxLayout()
        self._sections.setContentsMargins(0, 0, 0, 0)
        self._sections.setSpacing(12)
        self.use = button(tr("Use it"), self._use, "primary")
        self.back = button(tr("Restore the previous model"), self._roll_back, "", "undo")
        self.export = button(tr("Export…"), self._ask_where, "", "export")
        self.discard = button(tr("Delete"), self._discard, "quiet")
        self.done = button(tr("All runs"), self.closed.emit)
        inner = QWidget()
        top = row(self.mark, spacing=12)
        top.addWidget(self.verdict, 1)
        top.setAlignment(self.mark, Qt.AlignmentFlag.AlignTop)
        layout = column(self.title, spacing=12)
        layout.addLayout(top)
        layout.addWidget(self.use_note)
        layout.addWidget(self.message)
        layout.addWidget(line())
        layout.addLayout(self._sections)
        layout.addStretch(1)
        layout.setContentsMargins(24, 20, 24, 12)
        inner.setLayout(layout)
        scroll = QScrollArea()
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        scroll.setWidget(inner)
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        below = row(self.done, self.discard, None, self.export, self.back, self.use)
        below.setContentsMargins(24, 8, 24, 20)
        outer = column(scroll, spacing=0)
        outer.addLayout(below)
        self.setLayout(outer)
        app.settings_changed.connect(lambda _: self._show_use())
        self.destroyed.connect(self._files.close)

    def show_run(self, run: TuningRun) -> None:
        """Show the result of a run, from this computer or another."""
        self.run = run
        summary = run.summary or {}
        self.title.setText(tr("Result of {name}").format(name=run.name))
        icon, role = {"better": ("check", "accent"), "worse": ("warning", "danger")}.get(
            str(summary.get("verdict")), ("info", "muted")
        )
        self.mark.show_icon(icon, role)
        self.verdict.setText(str(summary.get("why", "")))
        self.message.report("")
        self._fill(summary)
        self._show_use()

    # ---- use and restore

    def _show_use(self) -> None:
        run = self.run
        if run is None or run.summary is None:
            return
        used, worse = in_use(run, self._app.settings), run.summary.get("verdict") == "worse"
        here = (run.checkpoint / "config.json").is_file()
        self.use.setVisible(not used and here)
        self.use.setText(tr("Use it anyway") if worse else tr("Use it"))
        restyle(self.use, kind="" if worse else "primary")
        self.back.setVisible(used)
        self.discard.setEnabled(not used)
        self.export.setEnabled(here)
        if used:
            self.use_note.setText(tr("In use. The previous model is kept, and you can restore it with one click."))
        elif not here:
            self.use_note.setText(tr("The model itself is not in this folder. Only its results are shown."))
        else:
            self.use_note.setText(tr("Not in use yet. The assistant replies as before."))

    def _use(self) -> None:
        assert self.run is not None
        try:
            self._app.change("model", **adopt(self.run, self._app.settings))
        except (ValueError, OSError) as error:
            self.message.report(str(error), error=True)
            return
        self._app.notify(tr("Loading the fine-tuned model…"), tr("Undo"), self._roll_back)

    def _roll_back(self) -> None:
        assert self.run is not None
        try:
            self._app.change("model", **roll_back(self.run, self._app.settings))
        except (ValueError, OSError) as error:
            self.message.report(str(error), error=True)

    def _ask_where(self) -> None:
        dialog = QFileDialog(self, tr("Choose a folder to export to"))
        dialog.setFileMode(QFileDialog.FileMode.Directory)
        dialog.setOption(QFileDialog.Option.ShowDirsOnly)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(self.export_to)
        dialog.show()

    def export_to(self, folder: str) -> None:
        """Copy the checkpoint and its card to a new folder below `folder`."""
        run = self.run
        assert run is not None
        target = Path(folder) / run.folder.name

        def copy() -> Path:
            try:
                shutil.copytree(run.checkpoint, target)
            except FileExistsError as error:
                raise AssistantError(tr("{path} already exists.").format(path=target)) from error
            except (OSError, shutil.Error) as error:
                raise AssistantError(tr("Could not write {path} ({why}).").format(path=target, why=error)) from error
            return target

        self._files.run(
            copy,
            lambda path: self.message.report(tr("Exported to {path}.").format(path=path)),
            lambda text: self.message.report(text, error=True),
        )

    def _discard(self) -> None:
        assert self.run is not None
        try:
            kept = discard(self.run)
        except OSError as error:
            self.message.report(tr("Could not delete ({why}).").format(why=error.strerror), error=True)
            return
        self._app.notify(tr("Deleted {name}.").format(name=self.run.name), tr("Undo"), partial(restore, kept))
        self.closed.emit()

    # ---- display

    def _fill(self, summary: dict[str, Any]) -> None:
        while (item := self._sections.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        read = summary.get("reading")
        if read:
            self.before, self.after = Confusion(tr("Before")), Confusion(tr("After"))
            self.before.show_table(read["before"]["confusion"])
            self.after.show_table(read["after"]["confusion"])
            pair = ResponsivePair(self.before, self.after)
            self._add(label(tr("Emotion accuracy on held-out recordings"), "heading"), pair)
            self._add(label(_accuracy_text(summary), "small"))
        self._add(label(tr("Replies to neutral speech"), "heading"), label(_loss_text(summary)))
        rows = summary.get("recordings", [])
        if answered := [one for one in rows if "reply_after" in one]:
            self._add(label(tr("Replies to the same recordings, before and after"), "heading"))
            for one in answered:
                self._add(self._replies(one))
        sure = sorted((one for one in rows if one.get("after") and one.get("emotion")), key=_correct_share)
        if sure:
            self._add(label(tr("Best and worst recordings"), "heading"))
            worst = sure[:_SHOWN]
            best = [one for one in sure[::-1][:_SHOWN] if one not in worst]
            for one in (*best, *worst):
                self._add(self._sample(one))

    def _add(self, *parts: QWidget) -> None:
        for part in parts:
            self._sections.addWidget(part)

    def _replies(self, one: dict[str, Any]) -> QWidget:
        box = QFrame()
        box.setProperty("role", "sunken")
        grid = QGridLayout()
        grid.setContentsMargins(14, 10, 14, 12)
        grid.setHorizontalSpacing(16)
        heard = one.get("heard") or one.get("text") or ""
        head = row(self._play(one), EmotionChip(one["emotion"], tr("spoken")), label(f"“{heard}”"))
        head.setStretch(2, 1)
        grid.addLayout(head, 0, 0, 1, 2)
        for at, (name, text) in enumerate((("before", tr("Before")), ("after", tr("After")))):
            grid.addWidget(label(f"{text} · {self._as_read(one, name)}", "small"), 1, at)
            reply = label(one[f"reply_{name}"] or "—", selectable=True)
            reply.setAlignment(Qt.AlignmentFlag.AlignTop)
            grid.addWidget(reply, 2, at)
            grid.setColumnStretch(at, 1)
        box.setLayout(grid)
        return box

    def _sample(self, one: dict[str, Any]) -> QWidget:
        made = QWidget()
        name = label(Path(one["audio"]).name, wrap=False)
        name.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)  # it may be cut off
        name.setToolTip(tooltip(one["audio"]))
        read = f"{self._as_read(one, 'before')}  →  {self._as_read(one, 'after')}"
        layout = row(self._play(one), EmotionChip(one["emotion"], tr("spoken")), name, spacing=10)
        layout.setStretch(2, 1)
        layout.addWidget(label(read, "muted", wrap=False))
        made.setLayout(layout)
        return made

    def _as_read(self, one: dict[str, Any], side: str) -> str:
        """Format a reading's label and share; below the checkpoint's threshold it is "unsure"."""
        shares = one.get(side) or []
        if not shares:
            return "—"
        best = max(range(len(shares)), key=lambda at: float(shares[at]))
        summary = (self.run.summary if self.run else None) or {}
        threshold = summary.get("thresholds", [0.0, 0.0])[side == "after"]
        text = f"{EMOTIONS[best]} {shares[best]:.0%}"
        return text if shares[best] >= threshold else tr("unsure ({text})").format(text=text)

    def _play(self, one: dict[str, Any]) -> IconButton:
        name = Path(one["audio"]).name
        return IconButton("play", tr("Play {name}").format(name=name), partial(self.play, Path(one["audio"])))

    def play(self, audio: Path) -> None:
        """Play a recording."""
        try:
            samples, rate = read_sound(audio)
        except AssistantError as error:
            self.message.report(str(error), error=True)
            return
        if self._app.talk is not None:
            self._app.talk.clips.play(samples, rate)


def _correct_share(one: dict[str, Any]) -> float:
    return float(one["after"][EMOTIONS.index(one["emotion"])])


def _accuracy_text(summary: dict[str, Any]) -> str:
    read = summary["reading"]
    sides = []
    for name, text in (("before", tr("before")), ("after", tr("after"))):
        one = read[name]
        low, high = one["interval_95"]
        sides.append(f"{text} {one['accuracy']:.0%} ({low:.0%}–{high:.0%})")
    low, high = read["difference"]["interval_95"]
    basis = {"speaker": tr("speaker"), "sentence": tr("sentence")}.get(
        str(summary.get("held_out_by")), tr("recording", "noun")
    )
    return tr(
        "Accuracy: {sides}. Difference {difference} (95 % interval {low} to {high}). {n} recordings, each "
        "judged by a model that was not trained on the same {basis}. Rows: spoken. Columns: detected."
    ).format(
        sides=tr(", ").join(sides),
        difference=f"{read['difference']['accuracy']:+.0%}",
        low=f"{low:+.0%}",
        high=f"{high:+.0%}",
        n=read["after"]["n"],
        basis=basis,
    )


def _loss_text(summary: dict[str, Any]) -> str:
    loss = summary.get("continuation")
    if not loss:
        if summary.get("what") == "head" and not summary.get("replies_depend_on_reading", True):
            return tr("This model's replies do not depend on the emotion head, so they are unchanged.")
        return tr("Not measured: no neutral recording was held out.")
    return tr("Continuation loss: {before} before, {after} after ({change}; up to +5 % counts as equal).").format(
        before=f"{loss['before']:.3f}", after=f"{loss['after']:.3f}", change=f"{loss['ratio'] - 1:+.1%}"
    )
