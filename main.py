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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from assistant.speech.synthesizer import KokoroSynthesizer, Pyttsx3Synthesizer, Synthesizer

EXAMPLES = """\
examples:
  undertone                                         the window
  undertone ask question.wav                        transcript, reading and reply of a recording
  undertone ask question.wav --speak reply.wav      ... and the reply spoken into a file
  undertone ask a.flac --text "And tomorrow?"       several inputs are one conversation, in order
  undertone ask *.wav --json                        one JSON object a line
  undertone read FOLDER --csv readings.csv          how the recordings of a folder sound, without replies
  undertone talk                                    the whole conversation, in this terminal
  undertone sessions list                           conversations recorded with talk --record; see also replay
  undertone doctor                                  what this machine has and what is missing
  undertone plan --model FOLDER                     which way to load a checkpoint fits into memory
  undertone generate --input-file in.jsonl --output-file out.jsonl --audio-field audio
                                                    answer every line of a file
"""


# ---- the window


def add_window(command: argparse.ArgumentParser) -> None:
    """The options of `window`, which also runs without a command."""
    command.add_argument("--microphone", metavar="FILE", help="a recording in place of the microphone")
    command.add_argument("--speaker", metavar="OUT.wav", help="a file in place of the speaker")


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


def add_ask(command: argparse.ArgumentParser, words: int) -> None:
    """The options of `ask`; `words` is the number of words of the command line."""
    from assistant.cli.options import VoiceOptions, add_inputs
    from model.commands.options import add_model

    command.description = "Hear recordings (WAV, FLAC, OGG, MP3), read their emotion, and answer them in order."
    command.epilog = EXAMPLES
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    add_inputs(command, words, "recordings", messages=True)
    command.add_argument("--speak", type=Path, metavar="OUT.wav", help="speak the replies into this WAV file")
    command.add_argument("--json", action="store_true", help="print one JSON object per input, nothing else")
    VoiceOptions.add_arguments(command)
    add_model(command)


def ask(options: argparse.Namespace) -> int:
    """Answer each of `options.inputs` as one turn of a conversation. Returns 2 when any of them failed."""
    from assistant.cli.options import VoiceOptions, speak
    from model.checkpoints import loader
    from model.commands.ask import answers
    from model.commands.options import downloads, quiet_libraries
    from model.errors import BadInput
    from model.inference.engine import Engine

    chosen = VoiceOptions.of(vars(options))
    if not options.inputs:
        raise BadInput("Nothing to answer: name a recording, or give a message with --text.")
    if options.speak and (options.speak.is_dir() or not os.access(options.speak.resolve().parent, os.W_OK)):
        raise BadInput(f"{options.speak} cannot be written: choose a folder that exists and is yours.")
    quiet_libraries()
    show = (lambda *_, **__: None) if options.json else print
    started = time.perf_counter()
    with downloads() as progress:
        loaded = loader.load(
            options.model,
            device=options.device,
            quantize=options.quantize,
            reading=options.reading,
            progress=progress,
        )
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
        with synthesizer(chosen.engine) as voice:
            seconds = speak(replies, voice, chosen.settings, options.speak)
        show(f"\nSpoken into {options.speak} ({seconds:.1f} s)")
    return worst


def synthesizer(engine: str) -> KokoroSynthesizer | Pyttsx3Synthesizer:
    """The system's voices, or the neural one, fetched when it is first asked for."""
    from functools import partial

    from assistant.speech.synthesizer import SYNTHESIZERS
    from model.commands.options import downloads
    from model.weights.fetch import ensure

    with downloads() as progress:
        return SYNTHESIZERS[engine](partial(ensure, progress=progress))


# ---- read


def add_read(command: argparse.ArgumentParser, words: int) -> None:
    """The options of `read`; `words` is the number of words of the command line."""
    from assistant.cli.options import add_inputs
    from model.commands.options import DEVICES, QUANTIZE, add_reading

    command.description = "Read the emotion of recordings (WAV, FLAC, OGG, MP3), one or thousands. No reply is made."
    add_inputs(command, words, "recordings, or folders of them")
    output = command.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object per recording, nothing else")
    output.add_argument(
        "--csv", type=Path, metavar="OUT", help="add the readings to a CSV file; those that it holds are kept"
    )
    command.add_argument(
        "--baseline",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="the speaker's normal voice: neutral recordings to compare with; give them after the others",
    )
    command.add_argument(
        "--no-contributions", action="store_true", help="leave out of --json what each moment contributes"
    )
    command.add_argument("--model", default="mini", help="mini, mini-0.5b, mini-speech, or a checkpoint folder")
    command.add_argument("--device", choices=DEVICES, default="auto")
    command.add_argument("--quantize", choices=QUANTIZE, default="auto")
    add_reading(command)


def read(options: argparse.Namespace) -> int:
    """Read recordings. Returns 2 when any of them could not be read."""
    from model.commands.read import run

    return run(
        options.inputs,
        model=options.model,
        device=options.device,
        quantize=options.quantize,
        reading=options.reading,
        baseline=options.baseline,
        as_json=options.json,
        table=options.csv,
        contributions=not options.no_contributions,
    )


# ---- talk and its sessions


def add_talk(command: argparse.ArgumentParser) -> None:
    """The options of `talk`."""
    from assistant.cli.options import TALK, TalkOptions

    command.description = TALK
    TalkOptions.add_arguments(command)


def talk(options: argparse.Namespace) -> int:
    """Hold a conversation until the user ends it."""
    from contextlib import nullcontext

    from assistant.cli.options import TalkOptions, converse
    from assistant.paths import user_folder
    from assistant.settings import load

    chosen, home = TalkOptions.of(vars(options)), user_folder()
    settings = chosen.over(load(home / "settings.toml")[0])
    engine = settings.voice.engine
    with nullcontext() if engine == "none" else synthesizer(engine) as voice:
        converse(chosen, settings, voice, home)
    return 0


def add_sessions(command: argparse.ArgumentParser) -> None:
    """The options of `sessions`."""
    from assistant.cli.session_commands import add_sessions

    add_sessions(command)


def add_replay(command: argparse.ArgumentParser) -> None:
    """The options of `replay`."""
    from assistant.cli.session_commands import add_replay

    add_replay(command)


def recorded(options: argparse.Namespace) -> int:
    """Look after the recorded sessions, or play one back."""
    from functools import partial

    from assistant.cli.session_commands import run
    from assistant.paths import user_folder

    run(options, user_folder() / "sessions", partial(print, flush=True))
    return 0


# ---- generate


def add_generate(command: argparse.ArgumentParser) -> None:
    """The options of `generate`."""
    from model.commands.generate import DESCRIPTION, Options

    command.description = DESCRIPTION
    Options.add_arguments(command)


def generate(options: argparse.Namespace) -> int:
    """Answer the lines of a file. Returns 2 when any of them failed."""
    from model.commands.generate import Options
    from model.commands.generate_command import run

    return run(Options.of(vars(options)))


# ---- plan, doctor


def add_plan(command: argparse.ArgumentParser) -> None:
    """The options of `plan`."""
    from model.commands.options import DEVICES, QUANTIZE

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


def add_doctor(command: argparse.ArgumentParser) -> None:
    """The options of `doctor`."""
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


def add_fetch(command: argparse.ArgumentParser) -> None:
    """The options of `fetch`."""
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


@dataclass(frozen=True, slots=True)
class Command:
    """A command: `add` gives its parser the options, `run` takes the parsed ones and returns the exit code."""

    help: str
    add: Callable[..., None]
    run: Callable[[argparse.Namespace], int]
    takes_inputs: bool = False
    """Whether `add` also takes the number of words, for `assistant.cli.options.add_inputs`."""


COMMANDS = {
    "window": Command("the desktop window; the same without a command", add_window, window),
    "ask": Command("answer recordings or typed messages", add_ask, ask, takes_inputs=True),
    "read": Command("how recordings sound, without replies or transcripts", add_read, read, takes_inputs=True),
    "talk": Command("a whole conversation, spoken or typed", add_talk, talk),
    "sessions": Command("recorded conversations: list, show, export, import, delete", add_sessions, recorded),
    "replay": Command("play a session back, or ask another model the same", add_replay, recorded),
    "generate": Command("answer every line of a JSON-lines file", add_generate, generate),
    "fetch": Command("download a model or a voice now, to use it offline later", add_fetch, fetch),
    "plan": Command("what a checkpoint needs of the free memory, before it is loaded", add_plan, plan),
    "doctor": Command("what this machine has, and what is missing", add_doctor, doctor),
}

PROGRAMS = {
    "convert": ("an original BLSP-Emo or Qwen-1 checkpoint becomes one of this project's", "model.convert"),
    "quantize": ("store a checkpoint in 4 bits", "model.quantize"),
    "models": ("list, verify and add checkpoints, in JSON lines", "model.manager"),
    "replies": ("measure a checkpoint's replies on fixed cases", "model.replies"),
    "bench": ("measure speed: `bench model`, `bench talk`, `bench full-size`", ""),
    "train": ("build corpora, train, fine-tune and evaluate", "training.__main__"),
}
"""Programs of their own, also run as `python -m MODULE`: the rest of the command line is theirs."""

BENCHES = {"model": "model.bench", "talk": "assistant.bench", "full-size": "model.full_size.__main__"}


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line. Only the command that `arguments` name gets its options, so that others cost nothing."""
    top = argparse.ArgumentParser(
        prog="undertone",
        description="A private voice assistant that hears how you say it. Nothing leaves this machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    top.set_defaults(command="window", microphone=None, speaker=None)
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.help, allow_abbrev=False)
        if name in arguments[:1]:
            command.add(one, *([len(arguments)] if command.takes_inputs else []))
    for name, (about, _) in PROGRAMS.items():
        commands.add_parser(name, help=about, add_help=False)
    return top


def program(name: str, rest: Sequence[str]) -> int:
    """Run one of `PROGRAMS` with its own command line."""
    import importlib

    module = PROGRAMS[name][1]
    if name == "bench":
        which, rest = (rest[0] if rest else ""), rest[1:]
        if which not in BENCHES:
            sys.stderr.write(f"usage: undertone bench {{{','.join(BENCHES)}}} [options]\n")
            return 0 if which in ("-h", "--help") else 2
        module = BENCHES[which]
    return int(importlib.import_module(module).main(list(rest)) or 0)


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
    run: Callable[[], int]
    if arguments and arguments[0] in PROGRAMS:
        run = lambda: program(arguments[0], arguments[1:])  # noqa: E731
    else:
        options = parser(arguments).parse_args(arguments)
        run = lambda: COMMANDS[options.command].run(options)  # noqa: E731
    from assistant import errors
    from model.errors import BadInput, ModelError

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a narrow terminal encoding is no reason to stop
    try:
        return run()
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
