"""The user's settings, in one TOML file that holds only what differs from the defaults."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assistant.audio.echo import Duplex
from assistant.backend.protocol import ModelChoice
from assistant.errors import AssistantError
from assistant.files import write_atomically
from assistant.messages import BargeIn, TurnSettings
from assistant.speech.synthesizer import VoiceSettings

MOST_DAYS = 3650
"""The longest time for which sessions are kept, short of forever."""
Theme = Literal["system", "light", "dark", "contrast"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(_Section):
    """The checkpoint, how it is loaded, and the folders that the user added."""

    source: str = "mini"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    quantize: Literal["auto", "none", "int8", "nf4", "nf4-all"] = "auto"
    folders: tuple[str, ...] = ()

    @property
    def choice(self) -> ModelChoice:
        """The section as the model process takes it."""
        return ModelChoice(self.source, self.device, self.quantize)


class SoundSection(_Section):
    """Devices by name (None: the system's default), and how the assistant avoids hearing itself."""

    microphone: str | None = None
    speaker: str | None = None
    echo: Duplex = Duplex.CANCEL


class TurnSection(_Section):
    """Turn taking. `shortcut` is the talk key as Qt writes it."""

    hands_free: bool = False
    patience: Literal["quick", "normal", "patient"] = "normal"
    barge_in: BargeIn = BargeIn.VOICE
    empathy: bool = True
    shortcut: str = "Space"

    @property
    def settings(self) -> TurnSettings:
        """The section as the conversation takes it."""
        return TurnSettings(barge_in=self.barge_in, empathy=self.empathy)


class VoiceSection(_Section):
    """How replies are spoken; with `engine` "none" they are only shown."""

    engine: Literal["system", "kokoro", "none"] = "system"
    name: str | None = None
    rate: float = Field(default=1.0, ge=0.5, le=2.0)
    pitch: float = Field(default=1.0, ge=0.5, le=2.0)
    volume: float = Field(default=1.0, ge=0.0, le=1.0)
    follow_mood: bool = True

    @property
    def settings(self) -> VoiceSettings:
        """The section as the synthesizer takes it."""
        return VoiceSettings(self.name, self.rate, self.pitch, self.volume, self.follow_mood)


class RecordingSection(_Section):
    """Whether sessions are recorded ("off", for "days", or "keep"), and whether corrections may train the model.

    `asked` is set once a terminal has asked for the mode.
    """

    mode: Literal["off", "days", "keep"] = "off"
    days: int = Field(default=30, ge=1, le=MOST_DAYS)
    corrections: bool = False
    asked: bool = False

    @property
    def keep_days(self) -> int | None:
        """Days after which a session is deleted, or None for never."""
        return self.days if self.mode == "days" else None


class LooksSection(_Section):
    """The window: theme, size of the text, language ("system", "en", "zh"), and the tray."""

    theme: Theme = "system"
    text_size: float = Field(default=1.0, ge=0.75, le=2.0)
    language: Literal["system", "en", "zh"] = "system"
    tray: bool = False


class Settings(_Section):
    """All settings. `started` is set once the first steps are done."""

    started: bool = False
    model: ModelSection = ModelSection()
    sound: SoundSection = SoundSection()
    turns: TurnSection = TurnSection()
    voice: VoiceSection = VoiceSection()
    recording: RecordingSection = RecordingSection()
    looks: LooksSection = LooksSection()

    def changed(self, section: str, **values: Any) -> Settings:
        """The settings with new values in one section, validated.

        Raises:
            ValueError: a value is out of its range, or unknown.
        """
        old = getattr(self, section)
        new = type(old).model_validate(old.model_dump() | values)
        return self.model_copy(update={section: new})


def load(path: Path) -> tuple[Settings, str]:
    """Load the settings in `path` (the defaults if there is no file), and a message for the user, "" if none.

    A file that cannot be parsed is kept under another name; it is never overwritten.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Settings(), ""
    except (OSError, UnicodeDecodeError) as error:
        return Settings(), f"The settings cannot be read ({error}): the defaults are used."
    try:
        return Settings.model_validate(tomllib.loads(text)), ""
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except tomllib.TOMLDecodeError as error:
        why = str(error)
    aside = path.with_name(f"{path.stem}.bad-{datetime.now():%Y%m%d-%H%M%S}{path.suffix}")
    try:
        path.replace(aside)
    except OSError:
        return Settings(), f"The settings in {path} are damaged ({why}): the defaults are used."
    return (
        Settings(),
        f"The settings were damaged ({why}): the defaults are used, the old file is kept as {aside.name}.",
    )


def save(path: Path, settings: Settings) -> None:
    """Write what differs from the defaults, atomically, readable by the user alone.

    Raises:
        AssistantError: it cannot be written.
    """
    values = _without_none(settings.model_dump(mode="json", exclude_defaults=True))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, tomli_w.dumps(values))
    except OSError as error:
        message = f"The settings cannot be saved ({error.strerror}): they hold until the program ends."
        raise AssistantError(message) from error


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null; None is always a default here."""
    plain = {key: _without_none(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in plain.items() if value is not None and value != {}}
