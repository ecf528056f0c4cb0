"""Options of `ask` and `talk`, and what they come to."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from assistant.errors import AssistantError, BadInput
from assistant.events import EmotionReading
from assistant.options import Options
from assistant.settings import Settings
from assistant.speech.sentences import sentences
from assistant.speech.synthesizer import Pyttsx3Synthesizer, Synthesizer, VoiceSettings, mood_of, write_wav

_SOUND_FILES = (".wav", ".flac", ".ogg", ".mp3")
_VOICE: dict[str, Any] = {"group": "voice"}
_SOUND: dict[str, Any] = {"group": "sound", "metavar": "NAME"}
_TURNS: dict[str, Any] = {"group": "turns"}


class _InOrder(argparse.Action):
    """Collects files (as `Path`) and messages (as text) in one list, in the order of the command line."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        one = values if option_string else Path(values)
        namespace.inputs = [*namespace.inputs, one]


def add_inputs(command: argparse.ArgumentParser, words: int, about: str, *, messages: bool = False) -> None:
    """Add files, which may stand anywhere among the options, as `inputs`: a list of `Path`, in order.

    argparse gives a positional argument with `nargs="*"` only the first run of words. So there is one optional
    positional argument for each word that the command line has.

    Args:
        words: the number of words of the command line.
        about: the help text.
        messages: also add `--text`, whose values stand among the files as text.
    """
    command.usage = f"{command.prog} [options] [FILE{' | --text TEXT' if messages else ''}]..."
    command.set_defaults(inputs=[])
    for number in range(max(1, words)):
        shown = argparse.SUPPRESS if number else about
        command.add_argument("inputs", action=_InOrder, metavar="FILE", help=shown).required = False
    if messages:
        command.add_argument(
            "--text", action=_InOrder, dest="inputs", metavar="TEXT", help="a typed message (repeatable)"
        )


class VoiceOptions(Options):
    """How replies are spoken. None: as in the settings, or the normal voice."""

    voice: str | None = Field(
        None,
        description="a voice of the system, kokoro, or kokoro:NAME (English, neural)",
        json_schema_extra=_VOICE | {"metavar": "NAME"},
    )
    rate: float | None = Field(None, ge=0.1, le=4, description="1 is the normal pace", json_schema_extra=_VOICE)
    pitch: float | None = Field(None, ge=0.1, le=4, description="1 is the normal pitch", json_schema_extra=_VOICE)
    volume: float | None = Field(None, ge=0.1, le=4, description="1 is the normal volume", json_schema_extra=_VOICE)
    follow_mood: bool | None = Field(
        None, description="rate, pitch and volume follow the reading gently", json_schema_extra=_VOICE
    )

    @property
    def engine(self) -> Literal["system", "kokoro"]:
        """The engine that `voice` belongs to."""
        return "kokoro" if (self.voice or "").partition(":")[0] == "kokoro" else "system"

    @property
    def name(self) -> str | None:
        """The voice's name in its engine."""
        name = self.voice or ""
        return ("" if name == "kokoro" else name.removeprefix("kokoro:")) or None

    @property
    def settings(self) -> VoiceSettings:
        """The options as a synthesizer takes them."""
        given = self.model_dump(include={"rate", "pitch", "volume", "follow_mood"}, exclude_none=True)
        return VoiceSettings(name=self.name, **given)


class TalkOptions(VoiceOptions):
    """`talk`: what is given takes precedence over the settings file."""

    model: str | None = Field(None, description="mini, mini-0.5b, mini-speech, or a checkpoint folder")
    device: Literal["auto", "cpu", "cuda"] | None = Field(None, description="where to compute")
    quantize: Literal["auto", "none", "int8", "nf4", "nf4-all"] | None = Field(None, description="int8 is for CPUs")
    empathy: bool | None = Field(None, description="ask the model to answer the emotion as well as the words")
    microphone: str | None = Field(None, description="a device, or a recording in its place", json_schema_extra=_SOUND)
    speaker: str | None = Field(None, description="a device, or a .wav file in its place", json_schema_extra=_SOUND)
    echo: Literal["cancel", "half", "open"] | None = Field(
        None,
        description="how the assistant keeps from hearing itself: cancel its voice, ignore the microphone while it "
        "speaks (half), or nothing",
        json_schema_extra={"group": "sound"},
    )
    hands_free: bool | None = Field(
        None,
        description="hear by itself, unless the settings say otherwise; --push-to-talk: only between two keys",
        json_schema_extra=_TURNS | {"off": "--push-to-talk"},
    )
    patience: Literal["quick", "normal", "patient"] | None = Field(
        None, description="how long a silence ends a turn", json_schema_extra=_TURNS
    )
    barge_in: Literal["voice", "key", "off"] | None = Field(
        None, description="what may interrupt a reply", json_schema_extra=_TURNS
    )
    record: bool | None = Field(None, description="keep the conversation as a session, or not")
    as_json: bool = Field(
        False, description="print one JSON object per event, nothing else", json_schema_extra={"switch": "--json"}
    )

    def over(self, settings: Settings) -> Settings:
        """The settings with what was given on the command line.

        Raises:
            BadInput: a value is out of the settings' range.
        """
        changes: dict[str, dict[str, Any]] = {
            "model": {"source": self.model, "device": self.device, "quantize": self.quantize},
            "sound": {"microphone": self.microphone, "speaker": self.speaker, "echo": self.echo},
            "turns": {
                "hands_free": self._hands_free(settings),
                "patience": self.patience,
                "barge_in": self.barge_in,
                "empathy": self.empathy,
            },
            "voice": {
                "rate": self.rate,
                "pitch": self.pitch,
                "volume": self.volume,
                "follow_mood": self.follow_mood,
            },
        }
        try:
            if self.voice is not None:
                settings = settings.changed("voice", engine=self.engine, name=self.name)
            for section, values in changes.items():
                settings = settings.changed(section, **{name: one for name, one in values.items() if one is not None})
        except ValidationError as error:
            first = error.errors()[0]
            raise BadInput(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}") from error
        return settings

    def _hands_free(self, settings: Settings) -> bool:
        """A terminal does not tell when a key goes up, so it is hands-free unless the user chose otherwise."""
        if self.hands_free is not None:
            return self.hands_free
        return settings.turns.hands_free if "hands_free" in settings.turns.model_fields_set else True


TALK = (
    "Talk with the assistant. Everything starts from your settings; the options below override them. In a terminal "
    "the space key begins what you say and ends it, because a terminal does not tell when a key goes up; what you "
    "type is sent with Enter; Ctrl-C stops the reply, twice ends. Elsewhere each line of the standard input is a "
    "message."
)


def speak(
    replies: Iterable[tuple[str, EmotionReading | None]], voice: Synthesizer, settings: VoiceSettings, path: Path
) -> float:
    """Speak the replies, in order, into one WAV file; the voice follows each reading gently. Returns its seconds."""
    spoken = [
        voice.speak(sentence, settings, mood_of(reading)) for reply, reading in replies for sentence in sentences(reply)
    ]
    write_wav(path, spoken)
    return sum(one.seconds for one in spoken)


def converse(options: TalkOptions, settings: Settings, voice: Synthesizer | None, home: Path) -> None:
    """Hold the conversation that `talk` asks for until the user ends it.

    Args:
        options: of the command line.
        settings: the user's, with the options applied.
        voice: reads the replies aloud, or None; it belongs to the caller.
        home: the folder of settings, sessions and logs.

    Raises:
        AssistantError: a recording or a device's place cannot be used.
    """
    from assistant.audio.file_devices import file_sound
    from assistant.cli.recording_choice import in_terminal, recording_choice
    from assistant.cli.terminal import run
    from assistant.talk import Talk, TalkSettings

    microphone, speaker = options.microphone, options.speaker
    heard = [Path(microphone)] if microphone and Path(microphone).is_file() else []
    if not heard and str(microphone).endswith(_SOUND_FILES):
        raise BadInput(f"There is no file {microphone}: name a recording, or a device.")
    ask = options.record is None and in_terminal(as_json=options.as_json)
    recording = recording_choice(home / "settings.toml", ask=ask)
    record = recording.mode != "off" if options.record is None else options.record
    spoken = Path(speaker) if speaker and speaker.endswith(".wav") else None
    chosen = TalkSettings.of(
        settings.model_copy(update={"recording": recording}),
        sessions=home / "sessions" if record else None,
        corrections=home / "corrections.jsonl",
    )
    run(
        lambda listener: Talk(chosen, voice, listener, sound=file_sound(heard, spoken), earlier=home / "sessions"),
        as_json=options.as_json,
        log=home / "logs" / "sound.log",
    )


def voices_found() -> tuple[str, str | None]:
    """The voices of the system, for `doctor`, and what to do where there are none."""
    try:
        with Pyttsx3Synthesizer() as synthesizer:
            names = [voice.name for voice in synthesizer.voices()]
    except AssistantError as error:
        return "none", str(error)
    more = ", ..." if len(names) > 8 else ""
    return f"{len(names)} of the system: {', '.join(names[:8])}{more}", None


def sound_found() -> tuple[str, str | None]:
    """Microphones and speakers, for `doctor`, and what to do where one is missing."""
    from assistant.audio.devices import SoundUnavailable, devices

    try:
        found = devices()
    except SoundUnavailable as error:
        return "none", str(error)
    inputs, outputs = len(found.microphones), len(found.speakers)
    missing = not (inputs and outputs)
    remedy = "Plug in a microphone and a speaker to talk; recordings work without." if missing else None
    return f"{inputs} microphones, {outputs} speakers", remedy
