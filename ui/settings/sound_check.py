"""The test of microphone and speaker: a soft noise measures the echo, then the user speaks and hears it."""

from __future__ import annotations

from typing import Any, cast

from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import QProgressBar, QWidget

from assistant.audio.audio_check import CheckResult, EchoStrength, Step
from assistant.audio.echo import Duplex
from assistant.events import SAMPLE_RATE
from ui.core.app import App
from ui.core.event_bridge import EventBridge
from ui.core.translations import tr
from ui.widgets.common import button, column, label
from ui.widgets.forms import InlineMessage, actions

_SILENT_DB, _SOFT_DB, _LOUD_DB = -60.0, -45.0, -6.0
_PATIENCE_MS = 4000


class SoundCheck(QWidget):
    """A button, the current step, and the result.

    Signals:
        finished: the last `CheckResult`.
    """

    finished = Signal(object)

    def __init__(self, app: App) -> None:
        super().__init__()
        self.app = app
        self._bridge = EventBridge(self)  # the check reports its steps on another thread
        self._bridge.event_received.connect(self._show)
        self._result: CheckResult | None = None
        self.begin = button(tr("Check microphone and speaker"), self.start, icon="microphone")
        self.stop = button(tr("Stop"), self._stop, "quiet")
        self.again = button(tr("Play again"), self._play, "quiet", icon="play")
        self.step = label("", "lead")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(6)
        self.bar.setAccessibleName(tr("Progress of the check"))
        self.echo, self.level = InlineMessage(), InlineMessage()
        self._late = QTimer(self, singleShot=True, interval=_PATIENCE_MS)
        self._late.timeout.connect(self._report_silence)
        self.setLayout(column(actions(self.begin, self.stop, self.again), self.step, self.bar, self.level, self.echo))
        for part in (self.stop, self.again, self.step, self.bar):
            part.hide()

    def start(self) -> None:
        """Start the test."""
        talk = self.app.talk
        if talk is None:
            self.level.report(tr("No audio available. See Diagnostics."), error=True)
            return
        self._result = None
        self.level.report("")
        self.echo.report("")
        self._set_running(True)
        self.step.setText(tr("Starting…"))
        self.bar.setRange(0, 0)
        self._late.start()
        talk.audio_check(cast("Any", self._bridge))

    def _set_running(self, on: bool) -> None:
        for part in (self.stop, self.step, self.bar):
            part.setVisible(on)
        self.begin.setVisible(not on)
        self.again.setVisible(not on and self._result is not None and self._result.recording is not None)

    def _show(self, result: CheckResult) -> None:
        self._late.start()
        if result.step is Step.DONE:
            self._result = result
            self._late.stop()
            self._set_running(False)
            self._judge_level(result)
            self._judge_echo(result)
            self.finished.emit(result)
            return
        self.level.report("")
        text = {
            Step.ROOM: tr("Be quiet for a moment…"),
            Step.NOISE: tr("Playing a soft noise…"),
            Step.SPEAK: tr("Now say something."),
            Step.LISTEN: tr("Playing your recording."),
        }
        if self.step.text() != text[result.step]:
            self.step.setText(text[result.step])
            self.bar.setRange(0, max(1, round(result.seconds_left * 100)))
        self.bar.setValue(self.bar.maximum() - round(result.seconds_left * 100))

    def _judge_level(self, result: CheckResult) -> None:
        level = result.level
        if level is None or level < _SILENT_DB:
            self.level.report(tr("No signal from the microphone. Choose another one above, or turn it on."), error=True)
        elif level < _SOFT_DB:
            self.level.report(tr("Your level is low. Move closer or raise the microphone volume."), error=True)
        elif level > _LOUD_DB:
            self.level.report(tr("Your level is too high. Lower the microphone volume."), error=True)
        else:
            self.level.report(tr("Your level is good ({level:.0f} dB).").format(level=level))

    def _judge_echo(self, result: CheckResult) -> None:
        echo = result.echo
        if echo is None:
            return
        if result.strength is EchoStrength.NONE:
            self.echo.report(tr("No echo: the assistant does not hear itself."))
        elif result.strength is EchoStrength.SOME:
            self.echo.report(
                tr("Echo removed: {before:.0f} dB before, {after:.0f} dB after.").format(
                    before=echo.before, after=echo.after
                )
            )
        else:
            self.echo.report(
                tr("The assistant would hear itself. Lower the speaker volume or use headphones."),
                error=True,
                action=tr("Don't listen while it speaks"),
                act=lambda: self.app.change("sound", echo=Duplex.HALF),
            )

    def _report_silence(self) -> None:
        self.level.report(tr("No signal from the microphone. Stop and choose another one above."), error=True)

    def _stop(self) -> None:
        if self.app.talk is not None:
            self.app.talk.stop()
        self._late.stop()
        self._set_running(False)

    def _play(self) -> None:
        result, talk = self._result, self.app.talk
        if talk is not None and result is not None and result.recording is not None:
            talk.clips.play(result.recording, SAMPLE_RATE)
