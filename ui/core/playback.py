"""Playback of a recording on the conversation's speaker."""

from __future__ import annotations

from PySide6.QtCore import QObject, QTimer, Signal

from assistant.events import SAMPLE_RATE, Samples
from ui.core.app import App

SPEEDS = (0.75, 1.0, 1.25, 1.5, 2.0)
_FRAME_MS = 40
_SETTLED = 2  # frames until the speaker reports this recording, not the one before
_PATIENCE = 25  # frames within which it must start


class Playback(QObject):
    """Plays one recording, mono at 16 kHz. It cannot start during a turn of the conversation.

    Signals:
        moved: the position in seconds.
        changed: whether it plays.
        refused: why it could not start, for the user.
    """

    moved = Signal(float)
    changed = Signal(bool)
    refused = Signal(str)

    def __init__(self, app: App, parent: QObject) -> None:
        super().__init__(parent)
        self._app = app
        self._samples: Samples | None = None
        self.position = 0.0
        self.speed = 1.0
        self.playing = False
        self._begun = False  # the speaker has started it
        self._waited = 0
        self._frames = QTimer(self, interval=_FRAME_MS)
        self._frames.timeout.connect(self.follow)

    @property
    def duration(self) -> float:
        """The length of the recording in seconds."""
        return 0.0 if self._samples is None else len(self._samples) / SAMPLE_RATE

    def load(self, samples: Samples | None) -> None:
        """Load a recording (None for none) and go to its start."""
        self.pause()
        self._samples = samples
        self._move(0.0)

    def play(self) -> None:
        """Play from the current position, or from the start at the end."""
        if self._samples is None or not len(self._samples):
            return
        if self._app.talk is None:
            self.refused.emit(self.tr("Cannot play: the conversation has not started."))
            return
        if self.position >= self.duration - 0.05:
            self._move(0.0)
        self._app.talk.clips.play(self._samples, SAMPLE_RATE, self.position, self.speed)
        self._begun, self._waited = False, 0
        self._frames.start()
        self._notify(playing=True)

    def pause(self) -> None:
        """Stop the sound and keep the position."""
        if self.playing:
            self._frames.stop()
            if self._app.talk is not None:
                self._app.talk.clips.stop()
            self._notify(playing=False)

    def toggle(self) -> None:
        """Play or pause."""
        self.pause() if self.playing else self.play()

    def seek(self, seconds: float) -> None:
        """Go to a position in seconds; playback continues from there."""
        self._move(min(max(seconds, 0.0), self.duration))
        if self.playing:
            self.play()

    def set_speed(self, speed: float) -> None:
        """Set the speed, one of `SPEEDS`."""
        self.speed = speed
        if self.playing:
            self.play()

    def follow(self) -> None:
        """Poll the speaker's position; called every frame while playing."""
        talk = self._app.talk
        if not self.playing or talk is None:
            return
        self._waited += 1
        ended = self._begun or talk.clips.position >= self.duration - 0.05
        if self._waited <= _SETTLED:
            return
        if talk.clips.playing:
            self._begun = True
            self._move(min(talk.clips.position, self.duration))
        elif ended:  # it ended, or a turn of the conversation started
            self._move(min(talk.clips.position, self.duration))
            self._frames.stop()
            self._notify(playing=False)
        elif self._waited >= _PATIENCE:
            self._frames.stop()
            self._notify(playing=False)
            self.refused.emit(self.tr("Cannot play during a conversation. Stop it first, or wait a moment."))

    def _move(self, seconds: float) -> None:
        self.position = seconds
        self.moved.emit(seconds)

    def _notify(self, *, playing: bool) -> None:
        if playing != self.playing:
            self.playing = playing
            self.changed.emit(playing)
