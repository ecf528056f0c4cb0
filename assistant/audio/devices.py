"""Microphones and speakers through PortAudio (sounddevice): listed, opened, watched and reopened.

Devices fail in three ways, and all three are
watched for: an error at opening, a stream that ends, and callbacks that just stop coming. Then everything is
closed, PortAudio is started again (it sees new devices only then) and the devices are opened anew. One thread,
the watch, makes every call into PortAudio: a device that hangs keeps nobody else waiting.
"""

from __future__ import annotations

import atexit
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from assistant.audio.echo import Reference
from assistant.audio.streams import SoundMicrophone, SoundSpeaker
from assistant.errors import AssistantError
from assistant.events import AudioChunk, Failed

_WATCH_SECONDS = 0.2
_CLOSE_SECONDS = 3.0  # for a device that hangs
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
_CALLS = threading.Lock()  # devices must not be listed while PortAudio restarts


class SoundUnavailable(AssistantError):
    """There is no working device."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device by its name. The name survives a restart of PortAudio; the index does not."""

    name: str
    channels: int
    rate: int
    default: bool


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of this machine."""

    microphones: tuple[Device, ...]
    speakers: tuple[Device, ...]


def portaudio() -> Any:
    """The sounddevice module, imported late: without PortAudio its import fails.

    Raises:
        SoundUnavailable: there is no PortAudio.
    """
    try:
        import sounddevice
    except OSError as error:
        raise SoundUnavailable("PortAudio is missing: install libportaudio2 to talk; typing works without.") from error
    return sounddevice


def devices() -> Devices:
    """The microphones and speakers by name.

    Raises:
        SoundUnavailable: there is no PortAudio, or it fails or hangs.
    """
    sound = portaudio()
    if not _CALLS.acquire(timeout=_CLOSE_SECONDS):
        raise SoundUnavailable("The sound system does not answer: start it again.")
    try:
        found = list(sound.query_devices())
        chosen = sound.default.device
    except sound.PortAudioError as error:
        raise SoundUnavailable(f"The sound system fails ({error}): check it, then try again.") from error
    finally:
        _CALLS.release()

    def listed(kind: str, default: int) -> tuple[Device, ...]:
        key = f"max_{kind}_channels"
        return tuple(
            Device(one["name"], one[key], round(one["default_samplerate"]), index == default)
            for index, one in enumerate(found)
            if one[key] > 0
        )

    return Devices(listed("input", chosen[0]), listed("output", chosen[1]))


class SoundSystem:
    """A microphone and a speaker that are opened, watched and reopened when they fail.

    Args:
        sink: where the microphone's chunks go.
        report: called with a message when a device fails and when it works again.
        changed: called when devices were opened or could not be opened; see `SoundSpeaker.away`.
        reference: takes what is played and when something is recorded, for echo cancellation.
        microphone, speaker: names; None for the system's defaults, which are also taken while a named one is away.
    """

    def __init__(
        self,
        sink: Callable[[AudioChunk], None],
        report: Callable[[Failed], None],
        *,
        changed: Callable[[], None] = lambda: None,
        reference: Reference | None = None,
        microphone: str | None = None,
        speaker: str | None = None,
    ) -> None:
        reference = reference or Reference()
        self._wake = threading.Event()
        self.microphone = SoundMicrophone(reference, sink)
        self.speaker = SoundSpeaker(reference, self._wake.set)
        self._names = (microphone, speaker)
        self._report = report
        self._opened = changed
        self._ended = self._changed = False
        self._watch: threading.Thread | None = None

    def start(self) -> None:
        """Open the devices and watch them.

        Raises:
            SoundUnavailable: there is no PortAudio at all.
        """
        try:
            portaudio()
        except SoundUnavailable as error:
            self.microphone.trouble = self.speaker.trouble = str(error)
            self._opened()
            raise
        self._watch = threading.Thread(target=self._keep, daemon=True, name="sound watch")
        self._watch.start()

    @property
    def output(self) -> SoundSpeaker | None:
        """The speaker; None while its device is away."""
        return None if self.speaker.away else self.speaker

    def input_ended(self, seconds: float) -> bool | None:
        """A device's input has no end."""
        return None

    def choose(self, microphone: str | None, speaker: str | None) -> None:
        """Use other devices from now on."""
        self._names = (microphone, speaker)
        self._changed = True
        self._wake.set()

    def close(self) -> None:
        """Close the devices; one that hangs is abandoned."""
        self._ended = True
        self._wake.set()
        if self._watch is not None:
            self._watch.join(_CLOSE_SECONDS)
            if self._watch.is_alive():
                # PortAudio's own exit handler would hang too.
                atexit.unregister(portaudio()._exit_handler)

    # ---- the watch's thread

    def _keep(self) -> None:
        """Open the devices, watch until one fails or the choice changes, and reopen them."""
        waits = _waits()
        while not self._ended:
            self._changed = False
            self._open()
            self._opened()
            retry_at = time.monotonic() + next(waits)
            while not self._over(retry_at):
                if self._notify():
                    waits = _waits()
                self._wake.wait(_WATCH_SECONDS)
                self._wake.clear()
                self.speaker.flush()
            self._notify()
            self.microphone.close()
            self.speaker.close()

    def _open(self) -> None:
        sound = portaudio()
        microphone, speaker = self._names
        with _CALLS:
            # A fresh list of devices. Streams do not survive this, so it happens only between closing and opening.
            if sound._initialized:
                sound._terminate()
            try:
                sound._initialize()
            except sound.PortAudioError as error:
                self.microphone.trouble = self.speaker.trouble = str(error).splitlines()[0]
                return
            self.speaker.open(sound, speaker)
            self.microphone.open(sound, microphone)

    def _over(self, retry_at: float) -> bool:
        """Whether to reopen: the choice changed, a device was lost, or a missing one may be back."""
        both = (self.microphone, self.speaker)
        for one in both:
            one.poll()
        lost = any(not one.alive and not one.trouble for one in both)
        missing = self.speaker.trouble or (self.microphone.trouble and self.speaker.idle)
        return self._ended or self._changed or (bool(lost or missing) and time.monotonic() >= retry_at)

    def _notify(self) -> bool:
        """Report devices that failed or recovered since the last call. Returns whether all of them work."""
        for one in (self.microphone, self.speaker):
            if one.works and one.reported:
                one.reported = False
                self._report(Failed(None, f"The {one.kind} is back."))
            elif not one.alive and not one.reported and not self._ended and not self._changed:
                one.reported = True
                why = one.trouble or "it stopped"
                remedy = "plug one in or choose another; typing works meanwhile"
                self._report(Failed(None, f"The {one.kind} cannot be used ({why}): {remedy}."))
            if one.works and one.missed != one.told_missed:
                one.told_missed = one.missed
                if one.missed:
                    words = f"There is no {one.kind} called {one.missed}: the system's default is used."
                    self._report(Failed(None, words))
        return self.microphone.works and self.speaker.works


def _waits() -> Iterator[float]:
    return itertools.chain(_RETRY_SECONDS, itertools.repeat(_RETRY_SECONDS[-1]))
