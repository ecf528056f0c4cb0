"""Settings: microphone and speaker."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PySide6.QtCore import QTimer
from PySide6.QtGui import QHideEvent, QShowEvent

from assistant.events import InputLevel, Samples
from assistant.line import Duplex
from assistant.settings import Settings
from assistant.sound import Device, Devices
from assistant.sound import devices as find_devices
from ui.app import App
from ui.background import Background
from ui.settings_parts import Choices, LevelMeter, Outcome, Section, actions
from ui.sound_check import SoundCheck
from ui.translations import tr
from ui.widgets import Picker, button

_LOOK_MS = 2000
_RATE = 24_000


class SoundSettings(Section):
    """Devices by name, their level, a check, and what is done about the echo.

    Args:
        devices: finds the devices; called off Qt's thread.
    """

    def __init__(self, app: App, devices: Callable[[], Devices] = find_devices) -> None:
        super().__init__(tr("Sound"))
        self.app = app
        self._devices = devices
        self._background = Background()
        self.destroyed.connect(self._background.close)
        self._looking = False
        self.microphone, self.speaker = Picker(), Picker()
        self.microphone.picked.connect(lambda name: app.change("sound", microphone=name))
        self.speaker.picked.connect(lambda name: app.change("sound", speaker=name))
        self.meter = LevelMeter()
        self.trouble = Outcome()
        self.test = button(tr("Play a test sound"), self._play_test, icon="speaker")
        look = button(tr("Look for new devices"), self._look_anew, "quiet", icon="again")
        self.check = SoundCheck(app)
        self.echo = Choices(
            [
                (
                    Duplex.CANCEL,
                    tr("Take its own voice out"),
                    tr("For loudspeakers: you can interrupt it by speaking."),
                ),
                (
                    Duplex.HALF,
                    tr("Do not listen while it speaks"),
                    tr("For loud rooms: interrupt it with the key instead."),
                ),
                (Duplex.OPEN, tr("Listen to everything"), tr("For headphones: nothing is taken out of your voice.")),
            ],
            app.settings.sound.echo,
            tr("So that it does not hear itself"),
        )
        self.echo.chosen.connect(lambda mode: app.change("sound", echo=mode))
        self.add_field(tr("Microphone"), self.microphone, self.meter)
        self.add_field(tr("Speaker"), self.speaker, actions(self.test, look), self.trouble)
        self.add_field(
            tr("Try it out"),
            self.check,
            note=tr("Eight seconds: a soft noise, then you speak, then you hear yourself. Nothing is kept."),
        )
        self.add_field(tr("So that it does not hear itself"), self.echo)
        self._show_devices(Devices((), ()))
        self._timer = QTimer(self, interval=_LOOK_MS)
        self._timer.timeout.connect(self.look)
        app.happened.connect(self._hear)
        app.settings_changed.connect(self._follow)

    def showEvent(self, event: QShowEvent) -> None:
        """Look for devices while it is seen."""
        super().showEvent(event)
        self.look()
        self._timer.start()

    def hideEvent(self, event: QHideEvent) -> None:
        """And no longer."""
        super().hideEvent(event)
        self._timer.stop()

    def look(self) -> None:
        """List the devices, off Qt's thread."""
        if not self._looking:
            self._looking = True
            self._background.run(self._devices, self._show_devices, self._fail)

    def _look_anew(self) -> None:
        sound = self.app.settings.sound
        if self.app.talk is not None:
            self.app.talk.choose_devices(sound.microphone, sound.speaker)  # the sound system starts afresh
        self.look()

    def _show_devices(self, found: Devices) -> None:
        self._looking = False
        self._found = found
        self.trouble.say("")
        sound = self.app.settings.sound
        self.microphone.show_options(_options(found.microphones, sound.microphone), sound.microphone)
        self.speaker.show_options(_options(found.speakers, sound.speaker), sound.speaker)

    def _fail(self, why: str) -> None:
        self._looking = False
        self.trouble.say(why, trouble=True)

    def _play_test(self) -> None:
        if self.app.talk is not None:
            self.app.talk.clips.play(test_sound(), _RATE)

    def _hear(self, event: object) -> None:
        if isinstance(event, InputLevel) and self.isVisible():
            self.meter.show_level(event.decibels)

    def _follow(self, settings: Settings) -> None:
        self.echo.choose(settings.sound.echo)
        self._show_devices(self._found)


def _options(found: Sequence[Device], chosen: str | None) -> list[tuple[str | None, str]]:
    default = next((one.name for one in found if one.default), "")
    first = tr("The system's choice: {name}").format(name=default) if default else tr("The system's choice")
    names = list(dict.fromkeys(one.name for one in found))
    away = [] if chosen is None or chosen in names else [(chosen, tr("{name} (not there now)").format(name=chosen))]
    return [(None, first), *((name, name) for name in names), *away]


def test_sound() -> Samples:
    """Three soft tones, one after the other."""
    time = np.arange(round(0.35 * _RATE)) / _RATE
    fade = np.minimum(1, time / 0.01) * np.exp(-4 * time)
    tones = [0.2 * fade * np.sin(2 * np.pi * hertz * time) for hertz in (440.0, 554.4, 659.3)]
    return np.concatenate(tones).astype(np.float32)
