"""The choice of microphone and speaker, with the input level and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtCore import QTimer
from PySide6.QtGui import QHideEvent, QShowEvent
from PySide6.QtWidgets import QWidget

from assistant.audio.devices import Device, Devices
from assistant.events import InputLevel
from ui.core.app import App
from ui.core.background import Background
from ui.core.translations import tr
from ui.widgets.common import Picker, column, label
from ui.widgets.forms import InlineMessage, LevelMeter

_POLL_MS = 2000


class DeviceChoice(QWidget):
    """Two device lists that stay up to date, and the microphone level.

    Args:
        devices: lists the devices; called off Qt's thread.
        extra: shown below the speaker.
    """

    def __init__(self, app: App, devices: Callable[[], Devices], extra: QWidget | None = None) -> None:
        super().__init__()
        self.app = app
        self._devices = devices
        self._background = Background()
        self.destroyed.connect(self._background.close)
        self._listing = False
        self.microphone, self.speaker = Picker(), Picker()
        self.meter, self.error = LevelMeter(), InlineMessage()
        self.microphone.picked.connect(lambda name: app.change("sound", microphone=name))
        self.speaker.picked.connect(lambda name: app.change("sound", speaker=name))
        titles = []
        for title, part in ((tr("Microphone"), self.microphone), (tr("Speaker"), self.speaker)):
            titles.append(label(title, "heading"))
            titles[-1].setBuddy(part)
            part.setAccessibleName(title)
        layout = column(titles[0], self.microphone, self.meter, 14, titles[1], self.speaker, spacing=6)
        if extra is not None:
            layout.addWidget(extra)
        layout.addWidget(self.error)
        self.setLayout(layout)
        self.show_devices(Devices((), ()))
        self.error.report("")
        self.timer = QTimer(self, interval=_POLL_MS)
        self.timer.timeout.connect(self.inspect)
        app.event_received.connect(self._on_event)
        app.settings_changed.connect(self._follow)

    def showEvent(self, event: QShowEvent) -> None:
        """Poll the devices while visible."""
        super().showEvent(event)
        self.inspect()
        self.timer.start()

    def hideEvent(self, event: QHideEvent) -> None:
        """Stop polling."""
        super().hideEvent(event)
        self.timer.stop()

    def inspect(self) -> None:
        """List the devices off Qt's thread."""
        if not self._listing:
            self._listing = True
            self._background.run(self._devices, self._found, self._fail)

    def show_devices(self, found: Devices) -> None:
        """Offer these devices, and the chosen one even if it is not connected."""
        self._shown = found
        sound = self.app.settings.sound
        self.microphone.show_options(_options(found.microphones, sound.microphone), sound.microphone)
        self.speaker.show_options(_options(found.speakers, sound.speaker), sound.speaker)

    def _found(self, found: Devices) -> None:
        self._listing = False
        none = tr("No microphone found. Connect one, or continue and type.")
        self.error.report("" if found.microphones else none, error=True)
        self.show_devices(found)

    def _fail(self, why: str) -> None:
        self._listing = False
        self.error.report(why, error=True)

    def _on_event(self, event: object) -> None:
        if isinstance(event, InputLevel) and self.isVisible():
            self.meter.show_level(event.decibels)

    def _follow(self, _settings: object) -> None:
        self.show_devices(self._shown)


def _options(found: Sequence[Device], chosen: str | None) -> list[tuple[str | None, str]]:
    default = next((one.name for one in found if one.default), "")
    first = tr("System default: {name}").format(name=default) if default else tr("System default")
    names = list(dict.fromkeys(one.name for one in found))
    away = [] if chosen is None or chosen in names else [(chosen, tr("{name} (not connected)").format(name=chosen))]
    return [(None, first), *((name, name) for name in names), *away]
