"""Undertone: a private voice assistant that hears how you say it. This file wires the parts together.

Every import of the project happens inside a function: a child process re-imports this file, and --help is quick.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assistant.speech.synthesizer import KokoroSynthesizer, Pyttsx3Synthesizer, Synthesizer

EXAMPLES = """\
examples:
  undertone                                         the window
  undertone ask question.wav                        transcript, reading and reply of a recording
  undertone ask question.wav --speak reply.wav      ... and the reply spoken into a file
  undertone ask a.flac --text "And tomorrow?"       several inputs are one conversation, in order
  undertone ask *.wav --json                        one JSON object a line
  undertone talk                                    the whole conversation, in this terminal
  undertone sessions list                           conversations recorded with talk --record; see also replay
  undertone doctor                                  what this machine has and what is missing
  undertone plan --model FOLDER                     which way to load a checkpoint fits into memory
  undertone generate --input-file in.jsonl --output-file out.jsonl --audio-field audio
                                                    answer every line of a file
"""


def parser() -> argparse.ArgumentParser:
    """The command line; each command's options are beside the command."""
    from assistant.cli.session_commands import add_commands as add_sessions

    top = argparse.ArgumentParser(
        prog="undertone",
        description="A private voice assistant that hears how you say it. Nothing leaves this machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    top.set_defaults(command="window", microphone=None, speaker=None)
    for add in (add_window, add_ask, add_talk, add_sessions, add_generate, add_plan, add_doctor, add_fetch):
        add(commands)
    return top


# ---- the window


def add_window(commands: Any) -> None:
    """The options of `window`, which is also what runs without a command."""
    command = commands.add_parser("window", help="the desktop window; the same without a command")
    command.add_argument("--microphone", metavar="FILE", help="a recording to be heard in the microphone's place")
    command.add_argument("--speaker", metavar="OUT.wav", help="written in the speaker's place")


def window(options: argparse.Namespace) -> int:
    """Open the window and stay until it is closed."""
    from functools import partial

    from assistant.audio.file_devices import file_sound
    from assistant.paths import user_folder
    from assistant.talk import Talk
    from ui.core.app import Services
    from ui.window import run

    home = user_folder()
    heard = [Path(options.microphone)] if options.microphone else []
    spoken = Path(options.speaker) if options.speaker else None
    return run(
        Services(
            home=home,
            command=(sys.executable, "-m", "main"),
            python=(sys.executable,),
            synthesizer=fetched_synthesizer,
            talk=partial(Talk, sound=file_sound(heard, spoken), earlier=home / "sessions"),
        )
    )


def fetched_synthesizer(engine: str) -> Synthesizer:
    """The synthesizer of an engine of the settings, without any download.

    Raises:
        AssistantError: its weights are not here yet.
    """
    from functools import partial

    from assistant.errors import AssistantError
    from assistant.speech.synthesizer import SYNTHESIZERS
    from model.errors import WeightsMissing
    from model.weights.fetch import ensure

    try:
        return SYNTHESIZERS[engine](partial(ensure, offline=True))
    except WeightsMissing as error:
        raise AssistantError("The neural voice is not on this machine yet: download it in the settings.") from error


# ---- ask

VALUED = ("--speak", "--voice", "--rate", "--pitch", "--volume", "--model", "--device", "--quantize")
"""Options of `ask` whose value is the next word: that word is no input."""


def add_ask(commands: Any) -> None:
    """The options of `ask`."""
    from assistant.cli.options import add_voice
    from model.commands.options import add_model

    command = commands.add_parser(
        "ask",
        allow_abbrev=False,
        help="answer recordings or typed messages",
        description="Hear recordings (WAV, FLAC, OGG, MP3), read their emotion, and answer them in order.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("files", nargs="*", metavar="FILE", help="recordings")
    command.add_argument("--text", action="append", default=[], help="a typed message (repeatable)")
    command.add_argument("--speak", type=Path, metavar="OUT.wav", help="speak the replies into this WAV file")
    command.add_argument("--json", action="store_true", help="print one JSON object per input, nothing else")
    add_voice(command.add_argument_group("voice, for --speak"))
    add_model(command)


def inputs_in_order(arguments: Sequence[str], files: Sequence[str]) -> list[str | Path]:
    """The inputs of `ask` as they stood on the command line: typed messages as str, recordings as Path."""
    left, inputs = list(files), list[str | Path]()
    words = iter(arguments)
    for word in words:
        if word == "--text":
            inputs.append(next(words))
        elif word in VALUED:
            next(words)
        elif word.startswith("--text="):
            inputs.append(word.removeprefix("--text="))
        elif word in left:
            left.remove(word)
            inputs.append(Path(word))
    return inputs


def ask(options: argparse.Namespace) -> int:
    """Answer each of `options.inputs` as one turn of a conversation. Returns 2 when any of them failed."""
    from assistant.cli.options import speak, voice_settings
    from model.checkpoints import loader
    from model.commands.ask import answers
    from model.commands.options import downloads, quiet_libraries
    from model.errors import BadInput
    from model.inference.engine import Engine

    if not options.inputs:
        raise BadInput("Nothing to answer: name a recording, or give a message with --text.")
    if options.speak and (options.speak.is_dir() or not os.access(options.speak.resolve().parent, os.W_OK)):
        raise BadInput(f"{options.speak} cannot be written: choose a folder that exists and is yours.")
    quiet_libraries()
    show = (lambda *_, **__: None) if options.json else print
    started = time.perf_counter()
    with downloads() as progress:
        loaded = loader.load(options.model, device=options.device, quantize=options.quantize, progress=progress)
    engine = Engine(loaded)
    load_ms = (time.perf_counter() - started) * 1e3
    worst, replies = 0, []
    for result, reading in answers(engine, options.inputs, show, empathy=options.empathy, load_ms=load_ms):
        if result["error"] is None:
            replies.append((result["reply"], reading))
        else:
            worst = 2
            print(result["error"], file=sys.stderr)
        if options.json:
            print(json.dumps(result, ensure_ascii=False), flush=True)
    if options.speak and replies:
        with synthesizer(options) as voice:
            seconds = speak(replies, voice, voice_settings(options), options.speak)
        show(f"\nSpoken into {options.speak} ({seconds:.1f} s)")
    return worst


def synthesizer(options: argparse.Namespace) -> KokoroSynthesizer | Pyttsx3Synthesizer:
    """The system's voices, or the neural one, fetched when it is first asked for."""
    from functools import partial

    from assistant.speech.synthesizer import SYNTHESIZERS
    from model.commands.options import downloads
    from model.weights.fetch import ensure

    engine = "kokoro" if (options.voice or "").partition(":")[0] == "kokoro" else "system"
    with downloads() as progress:
        return SYNTHESIZERS[engine](partial(ensure, progress=progress))


# ---- talk, and what it recorded


def add_talk(commands: Any) -> None:
    """The options of `talk`."""
    from assistant.cli.options import add_conversation
    from model.commands.options import add_model

    command = commands.add_parser("talk", allow_abbrev=False, help="a whole conversation, spoken or typed")
    add_model(command)
    add_conversation(command)


def talk(options: argparse.Namespace) -> int:
    """Hold a conversation until the user ends it."""
    from assistant.cli.options import converse
    from assistant.paths import user_folder

    with synthesizer(options) as voice:
        converse(options, voice, user_folder())
    return 0


def recorded(options: argparse.Namespace) -> int:
    """Look after the recorded sessions, or play one back."""
    from functools import partial

    from assistant.cli.session_commands import run
    from assistant.paths import user_folder

    run(options, user_folder() / "sessions", partial(print, flush=True))
    return 0


# ---- generate


def add_generate(commands: Any) -> None:
    """The options of `generate`."""
    from model.commands.generate import DESCRIPTION, Options

    Options.add_to(
        commands.add_parser(
            "generate", allow_abbrev=False, help="answer every line of a JSON-lines file", description=DESCRIPTION
        )
    )


def generate(options: argparse.Namespace) -> int:
    """Answer the lines of a file. Returns 2 when any of them failed."""
    from model.commands.generate import Options
    from model.commands.generate_command import run

    return run(Options.chosen(options))


# ---- plan, doctor


def add_plan(commands: Any) -> None:
    """The options of `plan`."""
    from model.commands.options import DEVICES, QUANTIZE

    command = commands.add_parser(
        "plan", help="what a checkpoint needs of the memory that is free, before it is loaded"
    )
    command.add_argument("--model", default="mini", help="a preset, a checkpoint folder, or an original's folder")
    command.add_argument("--device", choices=DEVICES, default="auto")
    command.add_argument("--quantize", choices=QUANTIZE, default="auto", help="only this way; all by default")
    command.add_argument("--context", type=int, metavar="N", help="positions of conversation to keep")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def plan(options: argparse.Namespace) -> int:
    """Print what each way to load a checkpoint needs and which fits. Returns 3 when none does."""
    from assistant.backend.protocol import ModelChoice
    from model.commands.options import quiet_libraries
    from model.inference.backends import loader_of

    quiet_libraries()
    choice = ModelChoice(options.model, options.device, options.quantize)
    made = loader_of(options.model).plan(choice, options.context)
    print(json.dumps(made.as_dict()) if options.json else "\n".join(made.table()))
    return 3 if made.recommended is None else 0


def add_doctor(commands: Any) -> None:
    """The options of `doctor`."""
    command = commands.add_parser("doctor", help="what this machine has, and what is missing")
    command.add_argument("--model", metavar="MODEL", help="also this preset or checkpoint folder")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def doctor(options: argparse.Namespace) -> int:
    """Print what this machine has, what is missing and how to get it. Returns 3 when the model cannot run."""
    from assistant.cli.options import sound_found, voices_found
    from model.commands.doctor import Finding, about, as_dict, findings, lines

    report = findings() + (about(options.model) if options.model else [])
    report += [Finding("voices", *voices_found()), Finding("sound", *sound_found())]
    print(json.dumps(as_dict(report)) if options.json else "\n".join(lines(report)))
    return 3 if any(one.essential for one in report) else 0


# ---- fetch


def add_fetch(commands: Any) -> None:
    """The options of `fetch`."""
    command = commands.add_parser("fetch", help="download a model or a voice now, to be used without a network later")
    command.add_argument(
        "what", metavar="NAME", help="a preset (mini, mini-0.5b, mini-speech) or an entry of weights.toml"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object per step, nothing else")


def fetch(options: argparse.Namespace) -> int:
    """Fetch the parts of a preset, or one artifact."""
    from dataclasses import asdict

    from model.checkpoints.loader import presets
    from model.commands.options import downloads
    from model.weights.fetch import ensure

    preset = presets().get(options.what)
    names = [preset["speech"], preset["text"]] if preset else [options.what]
    with downloads() as bar:
        shown = (lambda step: print(json.dumps(asdict(step)), flush=True)) if options.json else bar
        folders = [str(ensure(name, progress=shown)) for name in names]
    print(json.dumps({"folders": folders}) if options.json else "\n".join(folders))
    return 0


# ---- main

COMMANDS = {
    "window": window, "ask": ask, "talk": talk, "sessions": recorded, "replay": recorded, "generate": generate,
    "plan": plan, "doctor": doctor, "fetch": fetch,
}  # fmt: skip
"""Each takes the parsed options and returns the exit code."""


def report_bug() -> int:
    """Write the current exception to the log file; one line tells where. Returns exit code 1."""
    import traceback

    from assistant.paths import user_folder

    folder = user_folder() / "logs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "undertone.log").open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{traceback.format_exc()}\n")
    print(f"This is a bug in Undertone, sorry. The details are in {log.name}", file=sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0 done, 1 a bug, 2 bad input, 3 something is missing."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Two compute threads that spin while they wait starve each other and the sound.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options, rest = parser().parse_known_args(arguments)
    unknown = [word for word in rest if options.command != "ask" or word.startswith("-")]
    if unknown:
        parser().error(f"unrecognized arguments: {' '.join(unknown)}")
    from assistant import errors
    from model.errors import BadInput, ModelError

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a narrow terminal encoding is no reason to stop
    try:
        if options.command == "ask":
            options.inputs = inputs_in_order(arguments, [*options.files, *rest])
        return COMMANDS[options.command](options)
    except (BadInput, errors.BadInput) as error:
        print(error, file=sys.stderr)
        return 2
    except (ModelError, errors.AssistantError) as error:
        print(error, file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has what they wanted; nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # noqa: BLE001 (the last resort: a bug is logged, the user gets one line)
        return report_bug()


if __name__ == "__main__":
    sys.exit(main())
