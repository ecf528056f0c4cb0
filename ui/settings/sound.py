"""Settings: microphone and speaker."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from assistant.audio.devices import Devices
from assistant.audio.devices import devices as find_devices
from assistant.audio.echo import Duplex
from assistant.events import Samples
from assistant.settings import Settings
from ui.core.app import App
from ui.core.translations import tr
from ui.settings.device_choice import DeviceChoice
from ui.settings.sound_check import SoundCheck
from ui.widgets.common import button
from ui.widgets.forms import Choices, Section, actions

_RATE = 24_000


class SoundSettings(Section):
    """Devices with their level, a test, and echo cancellation.

    Args:
        devices: lists the devices; called off Qt's thread.
    """

    def __init__(self, app: App, devices: Callable[[], Devices] = find_devices) -> None:
        super().__init__(tr("Sound"))
        self.app = app
        self.test = button(tr("Play test sound"), self._play_test, icon="speaker")
        inspect = button(tr("Refresh devices"), self._rescan, "quiet", icon="again")
        self.check = SoundCheck(app)
        self.echo = Choices(
            [
                (
                    Duplex.CANCEL,
                    tr("Remove the assistant's voice"),
                    tr("For loudspeakers: you can interrupt it by speaking."),
                ),
                (
                    Duplex.HALF,
                    tr("Don't listen while it speaks"),
                    tr("For loud rooms: interrupt it with the talk key."),
                ),
                (Duplex.OPEN, tr("Off"), tr("For headphones: your voice is not filtered.")),
            ],
            app.settings.sound.echo,
            tr("Echo cancellation"),
        )
        self.echo.chosen.connect(lambda mode: app.change("sound", echo=mode))
        self.devices = DeviceChoice(app, devices, actions(self.test, inspect))
        self.add(self.devices)
        self.add_field(
            tr("Test"),
            self.check,
            note=tr("Takes eight seconds: you hear a soft noise, speak, then hear yourself. Nothing is saved."),
        )
        self.add_field(tr("Echo cancellation"), self.echo)
        app.settings_changed.connect(self._follow)

    def _rescan(self) -> None:
        sound = self.app.settings.sound
        if self.app.talk is not None:
            self.app.talk.choose_devices(sound.microphone, sound.speaker)  # restarts the sound system
        self.devices.inspect()

    def _play_test(self) -> None:
        if self.app.talk is not None:
            self.app.talk.clips.play(test_sound(), _RATE)

    def _follow(self, settings: Settings) -> None:
        self.echo.choose(settings.sound.echo)


def test_sound() -> Samples:
    """Return three soft tones, one after the other."""
    time = np.arange(round(0.35 * _RATE)) / _RATE
    fade = np.minimum(1, time / 0.01) * np.exp(-4 * time)
    tones = [0.2 * fade * np.sin(2 * np.pi * hertz * time) for hertz in (440.0, 554.4, 659.3)]
    return np.concatenate(tones).astype(np.float32)
