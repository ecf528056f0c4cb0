"""The Settings page, with its sections on the left. Changes apply at once."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

from PySide6.QtCore import QEvent, QSize, Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QListWidget, QScrollArea, QStackedWidget, QVBoxLayout, QWidget

from assistant.audio.devices import Devices
from assistant.audio.devices import devices as find_devices
from ui.core import icons, theme
from ui.core.app import App
from ui.core.translations import tr
from ui.widgets.common import Picker, column
from ui.widgets.forms import Section

SECTIONS = ("sound", "turns", "voice", "model", "recording", "appearance", "shortcuts", "diagnostics")
_ICONS = ("speaker", "talk", "play", "model", "record", "settings", "keyboard", "info")
_NARROW = 700
"""Pixels at the normal text size; narrower pages show a drop-down instead of the list."""


def names() -> dict[str, str]:
    """Return the sections and their titles."""
    titles = (
        tr("Sound"),
        tr("Turn-taking"),
        tr("Voice"),
        tr("Model"),
        tr("Recording"),
        tr("Appearance"),
        tr("Shortcuts"),
        tr("Diagnostics"),
    )
    return dict(zip(SECTIONS, titles, strict=True))


class SettingsPage(QWidget):
    """All settings. A section is made when first shown.

    Args:
        devices: lists the devices; called off Qt's thread.
    """

    def __init__(self, app: App, devices: Callable[[], Devices] = find_devices) -> None:
        super().__init__()
        self.app = app
        self.devices = devices
        self.sections: dict[str, Section] = {}
        self._areas: dict[str, QScrollArea] = {}
        self._shown = SECTIONS[0]
        self.list = QListWidget()
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setFrameShape(QFrame.Shape.NoFrame)
        self.list.currentRowChanged.connect(lambda at: self.show_section(SECTIONS[at]) if at >= 0 else None)
        self.drop = Picker()
        self.drop.picked.connect(self.show_section)
        self._stack = QStackedWidget()
        self.left = QWidget()
        left = QVBoxLayout()
        left.setContentsMargins(12, 16, 4, 16)
        left.addWidget(self.list)
        self.left.setLayout(left)
        self.above = QWidget()
        above = QVBoxLayout()
        above.setContentsMargins(16, 12, 16, 4)
        above.addWidget(self.drop)
        self.above.setLayout(above)
        right = QWidget()
        right.setLayout(column(self.above, self._stack, spacing=0))
        layout = QHBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.left)
        layout.addWidget(right, 1)
        self.setLayout(layout)
        self._retranslate()
        self.show_section(self._shown)

    @property
    def view_state(self) -> str:
        """The current section."""
        return self._shown

    @view_state.setter
    def view_state(self, section: str) -> None:
        self.show_section(section)

    def show_section(self, name: str) -> Section:
        """Show a section of `SECTIONS` and return it."""
        if name not in self.sections:
            section = _maker(name, self)()
            inside = QWidget()
            box = QHBoxLayout()
            box.setContentsMargins(28, 20, 28, 28)
            box.addWidget(section, 1)
            box.addStretch(0)
            inside.setLayout(box)
            area = QScrollArea()
            area.setWidgetResizable(True)
            area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            area.setWidget(inside)
            self.sections[name], self._areas[name] = section, area
            self._stack.addWidget(area)
        self._shown = name
        self._stack.setCurrentWidget(self._areas[name])
        self.list.setCurrentRow(SECTIONS.index(name))
        self.drop.show_options(list(names().items()), name)
        return self.sections[name]

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Replace the list by a drop-down when narrow."""
        super().resizeEvent(event)
        self._fold()

    def changeEvent(self, event: QEvent) -> None:
        """Follow theme and text size."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.FontChange) and self.list.count():
            self._retranslate()

    def _retranslate(self) -> None:
        """Fill the list in the current language and colours."""
        self.list.blockSignals(True)
        self.list.clear()
        self.list.addItems(list(names().values()))
        for at, icon in enumerate(_ICONS):
            self.list.item(at).setIcon(icons.icon(icon, "muted"))
        self.list.setCurrentRow(SECTIONS.index(self._shown))
        self.list.blockSignals(False)
        c = theme.colours()
        self.list.setStyleSheet(
            "QListView::item { border: 2px solid transparent; border-radius: 8px; padding: 2px 6px; }"
            f"QListView::item {{ color: {c.muted}; }}"
            f"QListView::item:hover {{ background: {c.sunken}; }}"
            f"QListView::item:selected {{ background: {c.sunken}; color: {c.text}; }}"
            f"QListView::item:selected:active:focus {{ border-color: {c.accent}; }}"
        )
        self.list.setAccessibleName(tr("Settings sections"))
        self.drop.setAccessibleName(tr("Section"))
        self._fold()

    def _fold(self) -> None:
        scale = theme.pixels("body") / theme.SIZES["body"]
        narrow = self.width() < _NARROW * scale
        self.left.setVisible(not narrow)
        self.above.setVisible(narrow)
        self.setFocusProxy(self.drop if narrow else self.list)
        widest = max(self.list.fontMetrics().horizontalAdvance(name) for name in names().values())
        self.left.setFixedWidth(widest + 76)
        for at in range(self.list.count()):
            self.list.item(at).setSizeHint(QSize(0, theme.pixels("body") + 22))


def _maker(name: str, page: SettingsPage) -> Callable[[], Section]:
    module, kind = {
        "sound": ("ui.settings.sound", "SoundSettings"),
        "turns": ("ui.settings.turns", "TurnsSettings"),
        "voice": ("ui.settings.voice", "VoiceSettings"),
        "model": ("ui.settings.models", "ModelSettings"),
        "recording": ("ui.settings.recording", "RecordingSettings"),
        "appearance": ("ui.settings.appearance", "AppearanceSettings"),
        "shortcuts": ("ui.settings.shortcuts", "ShortcutSettings"),
        "diagnostics": ("ui.settings.diagnostics", "Diagnostics"),
    }[name]
    more = {"sound": (page.devices,), "turns": (page.show_section,)}.get(name, ())
    return partial(getattr(importlib.import_module(module), kind), page.app, *more)
