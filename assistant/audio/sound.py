"""What a conversation needs of a microphone and a speaker, whatever they are: devices, files, or a network stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from assistant.audio.echo import Reference
from assistant.events import AudioChunk, Failed
from assistant.speech.playback import Speaker


class Sound(Protocol):
    """A microphone and a speaker. Its methods may be called from any thread."""

    @property
    def output(self) -> Speaker | None:
        """The speaker; None while its device is away, so that replies can only be read."""

    def start(self) -> None:
        """Begin to deliver chunks and to play.

        Raises:
            AssistantError: there is no sound system; the message says what to install.
        """

    def choose(self, microphone: str | None, speaker: str | None) -> None:
        """Use other devices by name from now on; None is the system's default."""

    def input_ended(self, seconds: float) -> bool | None:
        """Whether the input came to its end `seconds` ago; None for an input that has no end."""

    def close(self) -> None:
        """Stop. What is played into a file is complete when this returns.

        Raises:
            AssistantError: that file cannot be written.
        """


class OpenSound(Protocol):
    """Makes the sound of a conversation; the caller starts and closes it."""

    def __call__(
        self,
        sink: Callable[[AudioChunk], None],
        report: Callable[[Failed], None],
        *,
        changed: Callable[[], None],
        reference: Reference,
    ) -> Sound:
        """Connect the sound.

        Args:
            sink: takes the microphone's chunks.
            report: takes what goes wrong, in words.
            changed: called whenever `Sound.output` may be another one.
            reference: takes what is played, and when something is recorded, for echo cancellation.
        """
