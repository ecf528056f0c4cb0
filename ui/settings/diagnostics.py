"""Settings: the results of `undertone doctor`, the log, and a report without personal data."""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt, QUrl
from PySide6.QtGui import QDesktopServices, QGuiApplication
from PySide6.QtWidgets import QFileDialog, QPlainTextEdit, QVBoxLayout, QWidget

from assistant.files import write_atomically
from assistant.settings import Settings
from ui.core import theme
from ui.core.app import App
from ui.core.translations import tr
from ui.widgets.common import button, column, label, row
from ui.widgets.forms import InlineMessage, Section, StatusIcon, actions

_LOG = "undertone.log"
_TRACEBACKS = 3
_PATH = re.compile(r"(?<![\w/\\])(?:[A-Za-z]:[\\/]|~?/)[^\s:;,'\")]+")


class Diagnostics(Section):
    """The findings with their remedies, the log folder and the report."""

    def __init__(self, app: App) -> None:
        super().__init__(tr("Diagnostics"), tr("What works on this computer and what is missing."))
        self.app = app
        self.found: dict[str, dict[str, str | None]] = {}
        self._rows = QVBoxLayout()
        self._rows.setContentsMargins(0, 0, 0, 0)
        self._rows.setSpacing(10)
        rows = QWidget()
        rows.setLayout(self._rows)
        self.state = InlineMessage()
        self.again = button(tr("Run again"), self.inspect, icon="again")
        self.log = button(tr("Open log folder"), self._open, "quiet", icon="folder")
        self.report = QPlainTextEdit()
        self.report.setReadOnly(True)
        self.report.setMinimumHeight(220)
        self.report.setTabChangesFocus(True)
        self.copy = button(tr("Copy"), self._copy, icon="copy")
        self.save = button(tr("Save…"), self._save, "quiet")
        self.done = InlineMessage()
        self.add(self.state, rows, gap=12)
        self.add(actions(self.again, self.log))
        self.add_field(
            tr("Report for support"),
            self.report,
            actions(self.copy, self.save),
            self.done,
            note=tr("This is the full report. It contains none of your words and no names of people, folders or "
                    "devices. It stays here unless you share it."),
        )  # fmt: skip
        self.inspect()

    def inspect(self) -> None:
        """Run the doctor in a child process."""
        self.again.setEnabled(False)
        self.state.report(tr("Checking…"))
        job = self.app.run("doctor", "--model", self.app.settings.model.source, "--json")
        job.ended.connect(lambda _code, message: self._show(job.results, message))

    def _show(self, results: list[dict[str, Any]], message: str) -> None:
        self.again.setEnabled(True)
        if not results:
            self.state.report(tr("Could not run the diagnostics: {why}").format(why=message or "?"), error=True)
            return
        self.found = results[-1]
        while (item := self._rows.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.deleteLater()
        remedies = 0
        for name, one in sorted(self.found.items(), key=lambda pair: pair[1]["remedy"] is None):
            remedies += one["remedy"] is not None
            self._rows.addWidget(_finding(name, str(one["value"]), one["remedy"]))
        text = tr("Issues: {count}").format(count=remedies) if remedies else tr("Everything works.")
        self.state.report(text)
        self.report.setPlainText(report(self.found, self.app.settings, str(self.app.services.home), self._log_text()))

    def _log_text(self) -> str:
        try:
            return (self.app.services.home / "logs" / _LOG).read_text("utf-8", errors="replace")[-100_000:]
        except OSError:
            return ""

    def _open(self) -> None:
        folder = self.app.services.home / "logs"
        if folder.is_dir():
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(folder)))
        else:
            self.done.report(tr("No log yet: nothing has gone wrong."))

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self.report.toPlainText())
        self.done.report(tr("Copied."))

    def _save(self) -> None:
        dialog = QFileDialog(self, tr("Save the report"))
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.selectFile("undertone-report.txt")
        dialog.fileSelected.connect(self.write)
        dialog.show()

    def write(self, path: str) -> None:
        """Save the report."""
        try:
            write_atomically(Path(path), self.report.toPlainText() + "\n", mode=None)
        except OSError as error:
            self.done.report(
                tr("Could not save ({why}). Choose another folder.").format(why=error.strerror), error=True
            )
        else:
            self.done.report(tr("Saved."))


def _finding(name: str, value: str, remedy: str | None) -> QWidget:
    made = QWidget()
    heading = label(name, "heading", wrap=False)
    heading.setFixedWidth(round(11.5 * theme.pixels("body")))
    text = column(label(value, "" if remedy else "muted", selectable=True), spacing=2)
    if remedy:
        text.addWidget(label(remedy, "muted", selectable=True))
    mark = StatusIcon("warning", "danger", 18) if remedy else StatusIcon("check", "muted", 18)
    line_layout = row(mark, heading, spacing=10)
    for part in (mark, heading):
        line_layout.setAlignment(part, Qt.AlignmentFlag.AlignTop)
    line_layout.addLayout(text, 1)
    made.setLayout(line_layout)
    made.setAccessibleName(f"{name}: {value} {remedy or ''}".strip())
    return made


# ---- the report


def report(found: Mapping[str, Mapping[str, str | None]], settings: Settings, home: str, log: str) -> str:
    """Return a report that helps to find a fault: findings, settings, and the last errors without messages."""
    lines = ["Undertone", f"system: {platform.system()} {platform.release()} {platform.machine()}", "", "[doctor]"]
    for name, one in found.items():
        remedy = f" -> {one['remedy']}" if one["remedy"] else ""
        lines.append(
            redacted(f"{name}: {one['value']}{remedy}", (home, settings.model.source, *settings.model.folders))
        )
    lines += ["", "[settings]"]
    for section, values in settings.model_dump(mode="json", exclude_defaults=True).items():
        lines.append(f"{section}: {_anonymous(section, values)}")
    lines += ["", "[last errors]", *(_errors(log) or ["none"])]
    return "\n".join(lines)


def redacted(text: str, folders: Sequence[str] = ()) -> str:
    """Remove paths, the user's name and the computer's name. `folders` are known paths that may hold spaces."""
    for folder in sorted({*folders, str(Path.home())}, key=len, reverse=True):
        if "/" in folder or "\\" in folder:
            text = re.sub(rf"{re.escape(folder)}[^\s:;,'\")]*", "(a path)", text)
    text = _PATH.sub("(a path)", text)
    for name in {_user(), platform.node()} - {"", "root", "localhost"}:
        text = re.sub(rf"\b{re.escape(name)}\b", "(somebody)", text, flags=re.IGNORECASE)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _anonymous(section: str, values: Any) -> Any:
    """Remove personal names and paths from settings."""
    if not isinstance(values, dict):
        return values
    kept = dict(values)
    for name in ("microphone", "speaker"):
        if section == "sound" and kept.get(name):
            kept[name] = "(chosen by name)"
    if section == "model":
        if "folders" in kept:
            kept["folders"] = len(kept["folders"])
        if "/" in kept.get("source", "") or "\\" in kept.get("source", ""):
            kept["source"] = "(a folder)"
    return kept


def _errors(log: str) -> list[str]:
    """Return the stack (file, line) and type of the last errors, without messages or values."""
    told = []
    for trace in log.split("Traceback (most recent call last):")[1:][-_TRACEBACKS:]:
        frames = re.findall(r'File "[^"\n]*?([^"/\\\n]+)", line (\d+), in (\w+)', trace)
        kind = re.findall(r"^([A-Za-z_][\w.]*)", trace, flags=re.MULTILINE)
        where = " > ".join(f"{file}:{number} {function}" for file, number, function in frames[-6:])
        told.append(f"{kind[0] if kind else 'error'} at {where}")
    return told
