"""The assistant's part of the command line: options of the voice and of a conversation, and what they come to."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from assistant.errors import AssistantError, BadInput
from assistant.events import EmotionReading
from assistant.speech.sentences import sentences
from assistant.speech.synthesizer import Pyttsx3Synthesizer, Synthesizer, VoiceSettings, mood_of, write_wav

_SOUND_FILES = (".wav", ".flac", ".ogg", ".mp3")


def factor(text: str) -> float:
    """A number from 0.1 to 4, for argparse."""
    value = float(text)
    if not 0.1 <= value <= 4:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 4")
    return value


def add_voice(group: argparse._ArgumentGroup) -> None:
    """The options of the voice."""
    group.add_argument(
        "--voice", metavar="NAME", help="a voice of the system, kokoro, or kokoro:NAME (English, neural)"
    )
    for name, what in (("rate", "pace"), ("pitch", "pitch"), ("volume", "volume")):
        group.add_argument(f"--{name}", type=factor, default=1.0, metavar="FACTOR", help=f"of the normal {what}")
    group.add_argument(
        "--follow-mood",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let rate, pitch and volume follow the reading gently",
    )


def voice_settings(options: argparse.Namespace) -> VoiceSettings:
    """What the voice's options ask for; the neural voice's name is what follows "kokoro:"."""
    name = options.voice or ""
    return VoiceSettings(
        name=("" if name == "kokoro" else name.removeprefix("kokoro:")) or None,
        rate=options.rate,
        pitch=options.pitch,
        volume=options.volume,
        follow_mood=options.follow_mood,
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


def add_conversation(command: argparse.ArgumentParser) -> None:
    """The options of `talk`, the model's aside."""
    command.description = (
        "Talk with the assistant. In a terminal the space key begins what you say and ends it, for a terminal does "
        "not tell when a key goes up; what you type is sent with Enter; Ctrl-C stops the reply, twice ends. "
        "Elsewhere each line of the standard input is a message."
    )
    add_voice(command.add_argument_group("voice"))
    sound = command.add_argument_group("sound")
    sound.add_argument("--microphone", metavar="NAME", help="a device, or a recording to be heard in its place")
    sound.add_argument("--speaker", metavar="NAME", help="a device, or a .wav that is written in its place")
    sound.add_argument(
        "--echo",
        choices=("cancel", "half", "open"),
        default="cancel",
        help="keep the assistant from hearing itself: cancel its voice, be deaf while it speaks (half), or nothing",
    )
    turns = command.add_argument_group("turns")
    mode = turns.add_mutually_exclusive_group()
    mode.add_argument("--hands-free", dest="hands_free", action="store_true", default=True, help="the default")
    mode.add_argument("--push-to-talk", dest="hands_free", action="store_false", help="only hear between two keys")
    turns.add_argument(
        "--patience", choices=("quick", "normal", "patient"), default="normal", help="silence that ends what one says"
    )
    turns.add_argument(
        "--barge-in", choices=("voice", "key", "off"), default="voice", help="what may interrupt a reply"
    )
    command.add_argument(
        "--record",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep the conversation as a session, or not: else as chosen in the settings",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object per event, nothing else")


def converse(options: argparse.Namespace, voice: Synthesizer, home: Path) -> None:
    """Hold the conversation that the options of `talk` ask for until the user ends it.

    Args:
        voice: reads the replies; it belongs to the caller.
        home: the folder of settings, sessions and logs.

    Raises:
        AssistantError: a recording or a device's place cannot be used.
    """
    from assistant.audio.echo import Duplex
    from assistant.audio.file_devices import file_sound
    from assistant.backend.protocol import ModelChoice
    from assistant.cli.recording_choice import in_terminal, recording_choice
    from assistant.cli.terminal import run
    from assistant.messages import BargeIn, TurnSettings
    from assistant.talk import Talk, TalkSettings

    heard = [Path(options.microphone)] if options.microphone and Path(options.microphone).is_file() else []
    if not heard and str(options.microphone).endswith(_SOUND_FILES):
        raise BadInput(f"There is no file {options.microphone}: name a recording, or a device.")
    ask = options.record is None and in_terminal(as_json=options.json)
    recording = recording_choice(home / "settings.toml", ask=ask)
    record = recording.mode != "off" if options.record is None else options.record
    spoken = Path(options.speaker) if options.speaker and options.speaker.endswith(".wav") else None
    settings = TalkSettings(
        model=ModelChoice(options.model, options.device, options.quantize),
        turns=TurnSettings(barge_in=BargeIn(options.barge_in), empathy=options.empathy),
        voice=voice_settings(options),
        microphone=options.microphone,
        speaker=options.speaker,
        hands_free=options.hands_free,
        patience=options.patience,
        duplex=Duplex(options.echo),
        sessions=home / "sessions" if record else None,
        keep_days=recording.keep_days,
        corrections=home / "corrections.jsonl",
    )
    run(
        lambda listener: Talk(settings, voice, listener, sound=file_sound(heard, spoken), earlier=home / "sessions"),
        as_json=options.json,
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
