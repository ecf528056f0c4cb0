"""Undertone: a private voice assistant that hears how you say it. This file wires the parts together.

Every import of the project happens inside a function: a child process re-imports this file.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.progress import TaskID

    from assistant.events import EmotionReading, Exchange, Message
    from assistant.speech import KokoroSynthesizer, Pyttsx3Synthesizer, VoiceSettings
    from model.checkpoint import Checkpoint
    from model.doctor import Finding
    from model.engine import Engine
    from model.fetch import Progress

EXAMPLES = """\
examples:
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


VALUED = ("--speak", "--voice", "--rate", "--pitch", "--volume", "--model", "--device", "--quantize")
"""Options of `ask` whose value is the next word: that word is no input."""

QUANTIZE = ("auto", "none", "int8", "nf4", "nf4-all")
"""int8 is for CPUs; nf4 has the language model in 4 bits, nf4-all the encoder too."""


def factor(text: str) -> float:
    """A number from 0.1 to 4, for argparse."""
    value = float(text)
    if not 0.1 <= value <= 4:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 4")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from assistant.session_commands import add_commands
    from model.generate import DESCRIPTION, Options

    top = argparse.ArgumentParser(
        prog="undertone",
        description="A private voice assistant that hears how you say it. Nothing leaves this machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ask = commands.add_parser(
        "ask",
        allow_abbrev=False,
        help="answer recordings or typed messages",
        description="Hear recordings (WAV, FLAC, OGG, MP3), read their emotion, and answer them in order.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ask.add_argument("files", nargs="*", metavar="FILE", help="recordings")
    ask.add_argument("--text", action="append", default=[], help="a typed message (repeatable)")
    ask.add_argument("--speak", type=Path, metavar="OUT.wav", help="speak the replies into this WAV file")
    ask.add_argument("--json", action="store_true", help="print one JSON object per input, nothing else")
    add_voice(ask.add_argument_group("voice, for --speak"))
    add_model(ask)
    add_talk(commands.add_parser("talk", allow_abbrev=False, help="a whole conversation, spoken or typed"))
    add_commands(commands)
    batch = commands.add_parser(
        "generate", allow_abbrev=False, help="answer every line of a JSON-lines file", description=DESCRIPTION
    )
    Options.add_to(batch)
    plan = commands.add_parser("plan", help="what a checkpoint needs of the memory that is free, before it is loaded")
    plan.add_argument("--model", default="mini", help="a preset, a checkpoint folder, or an original's folder")
    plan.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    plan.add_argument("--quantize", choices=QUANTIZE, default="auto", help="only this way; all by default")
    plan.add_argument("--context", type=int, metavar="N", help="positions of conversation to keep")
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    doctor = commands.add_parser("doctor", help="what this machine has, and what is missing")
    doctor.add_argument("--model", metavar="MODEL", help="also this preset or checkpoint folder")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return top


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


def add_model(command: argparse.ArgumentParser) -> None:
    """The options of the model."""
    command.add_argument("--model", default="mini", help="mini, mini-0.5b, or a checkpoint folder")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--quantize", choices=QUANTIZE, default="auto")
    command.add_argument(
        "--empathy",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask the model to answer the emotion as well as the words",
    )


def add_talk(command: argparse.ArgumentParser) -> None:
    """The options of `talk`."""
    command.description = (
        "Talk with the assistant. In a terminal the space key begins what you say and ends it, for a terminal does "
        "not tell when a key goes up; what you type is sent with Enter; Ctrl-C stops the reply, twice ends. "
        "Elsewhere each line of the standard input is a message."
    )
    add_model(command)
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
        "--record", action=argparse.BooleanOptionalAction, default=False, help="keep the conversation as a session"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object per event, nothing else")


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


def ask(options: argparse.Namespace, inputs: Sequence[str | Path]) -> int:
    """Answer each input as one turn of a conversation; see DESIGN: one bad input does not stop the others."""
    from assistant.events import Exchange, Spoken
    from model import checkpoint
    from model.engine import Engine
    from model.errors import BadInput

    if not inputs:
        raise BadInput("Nothing to answer: name a recording, or give a message with --text.")
    if options.speak and (options.speak.is_dir() or not os.access(options.speak.resolve().parent, os.W_OK)):
        raise BadInput(f"{options.speak} cannot be written: choose a folder that exists and is yours.")
    quiet_libraries()
    started = time.perf_counter()
    with downloads() as progress:
        loaded = checkpoint.load(options.model, device=options.device, quantize=options.quantize, progress=progress)
    engine = Engine(loaded)
    load_ms = (time.perf_counter() - started) * 1e3
    history: list[Exchange] = []
    replies: list[tuple[str, EmotionReading | None]] = []
    worst = 0
    for given in inputs:
        result = blank_result(given, loaded)
        try:
            message = read_message(given, result)
            result["timings_ms"]["load"] = load_ms
            reply = answer(engine, history, message, options, result)
        except BadInput as error:
            name = f"{given}: " if isinstance(given, Path) and str(given) not in str(error) else ""
            worst, result["error"] = 2, f"{name}{error}"
            print(result["error"], file=sys.stderr)
        else:
            history.append(Exchange(message, reply))
            replies.append((reply, engine.hear(message).reading if isinstance(message, Spoken) else None))
        if options.json:
            print(json.dumps(result, ensure_ascii=False), flush=True)
    if options.speak and replies:
        speak(replies, options)
    return worst


def blank_result(given: str | Path, loaded: Checkpoint) -> dict[str, Any]:
    """One JSON line of `ask`, before anything is known."""
    return {
        "file": str(given) if isinstance(given, Path) else None,
        "duration_seconds": None,
        "transcript": None if isinstance(given, Path) else given,
        "reading": None,
        "reply": None,
        "path": loaded.model.config.path,
        "model": loaded.name,
        "device": loaded.device,
        "quantize": loaded.quantize,
        "timings_ms": dict.fromkeys(("load", "encode", "prefill", "first_token", "reply")),
        "error": None,
    }


def read_message(given: str | Path, result: dict[str, Any]) -> Message:
    """The message behind one input.

    Raises:
        BadInput: the recording cannot be used, or the text is empty.
    """
    from assistant.events import Spoken, Typed
    from model.audio import read_audio
    from model.config import SAMPLE_RATE
    from model.errors import BadInput

    if isinstance(given, Path):
        samples = read_audio(given)
        result["duration_seconds"] = round(len(samples) / SAMPLE_RATE, 3)
        return Spoken(samples)
    if not given.strip():
        raise BadInput("The message after --text is empty: type what you want to say.")
    if not given.isprintable() and any("\ud800" <= character <= "\udfff" for character in given):
        raise BadInput("The message after --text is not UTF-8: check your terminal's encoding.")
    return Typed(given.strip())


def answer(
    engine: Engine,
    history: Sequence[Exchange],
    message: Message,
    options: argparse.Namespace,
    result: dict[str, Any],
) -> str:
    """Hear and answer one message, filling `result` and printing as things become known."""
    from assistant.events import Spoken

    timings = result["timings_ms"]
    show = (lambda *_, **__: None) if options.json else print
    if isinstance(message, Spoken):
        began = time.perf_counter()
        hearing = engine.hear(message)
        # The transcript comes before the reply only where the reply is conditioned on the words.
        words = engine.transcript(message) if result["path"] == "transcript" else None
        timings["encode"] = (time.perf_counter() - began) * 1e3
        show(f"\n{result['file']}  ({result['duration_seconds']:.1f} s)")
        if words is not None:
            show(f"  You said   {words.text}")
        show(f"  Voice      {describe(hearing.reading, engine)}")
        result["reading"] = hearing.reading.as_dict() if hearing.reading else None
        result["transcript"] = words.text if words is not None else None
    else:
        show(f"\n  You typed  {message.text}")
    show("  Reply      ", end="")
    reply = ""
    for piece in engine.reply(history, message, empathy=options.empathy):
        reply += piece
        show(piece.replace("\n", "\n             "), end="", flush=True)
    show()
    figures = engine.figures
    timings["prefill"] = figures.prefill_ms
    timings["first_token"] = figures.first_token_ms
    timings["reply"] = figures.reply_ms
    if isinstance(message, Spoken):
        words = engine.transcript(message)
        result["transcript"] = words.text if words else None
        if words is not None and result["path"] == "speech":
            show(f"  You said   {words.text}")
    result["reply"] = reply.strip()
    return reply.strip()


def describe(reading: EmotionReading | None, engine: Engine) -> str:
    """The reading in words."""
    from assistant.events import UNSURE

    if reading is None:
        return "no reading: this checkpoint has no emotion head"
    # A head on encoder frames and prosody was fitted on synthetic voices: the user is told each time.
    estimate = " (a prosody estimate)" if engine.model.config.emotion_source == "encoder" else ""
    if reading.label == UNSURE:
        return f"unsure, closest to {reading.strongest} with {reading.confidence:.0%}{estimate}"
    return f"sounds {reading.label}, {reading.confidence:.0%}{estimate}"


def speak(replies: Sequence[tuple[str, EmotionReading | None]], options: argparse.Namespace) -> None:
    """Speak the replies, in order, into one WAV file; the voice follows each reading gently."""
    from assistant.speakable import sentences
    from assistant.speech import mood_of, write_wav

    settings = voice_settings(options)
    with synthesiser(options) as voice:
        spoken = [
            voice.speak(sentence, settings, mood_of(reading))
            for reply, reading in replies
            for sentence in sentences(reply)
        ]
    write_wav(options.speak, spoken)
    if not options.json:
        print(f"\nSpoken into {options.speak} ({sum(one.seconds for one in spoken):.1f} s)")


def voice_settings(options: argparse.Namespace) -> VoiceSettings:
    """What the voice's options ask for; the neural voice's name is what follows "kokoro:"."""
    from assistant.speech import VoiceSettings

    name = options.voice or ""
    return VoiceSettings(
        name=("" if name == "kokoro" else name.removeprefix("kokoro:")) or None,
        rate=options.rate,
        pitch=options.pitch,
        volume=options.volume,
        follow_mood=options.follow_mood,
    )


def synthesiser(options: argparse.Namespace) -> KokoroSynthesizer | Pyttsx3Synthesizer:
    """The system's voices, or the neural one, fetched when it is first asked for."""
    from assistant.speech import KokoroSynthesizer, Pyttsx3Synthesizer
    from model.fetch import ensure

    if (options.voice or "").partition(":")[0] != "kokoro":
        return Pyttsx3Synthesizer()
    with downloads() as progress:
        return KokoroSynthesizer(ensure("kokoro-82m", progress=progress))


def talk(options: argparse.Namespace) -> int:
    """Hold a conversation until the user ends it."""
    from assistant.line import Duplex
    from assistant.signals import BargeIn, ModelChoice, TurnSettings
    from assistant.talk import Talk, TalkSettings
    from assistant.terminal import run
    from model.fetch import home

    heard = [Path(options.microphone)] if options.microphone and Path(options.microphone).is_file() else []
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
        sessions=home() / "sessions" if options.record else None,
    )
    with synthesiser(options) as voice:
        run(
            lambda listener: Talk(settings, voice, listener, heard=heard, spoken=spoken),
            as_json=options.json,
            log=home() / "logs" / "sound.log",
        )
    return 0


def generate(arguments: argparse.Namespace) -> int:
    """Answer the lines of a file. Returns 2 when any of them failed; each such line is named with its reason."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    from model.generate import Job, Options

    options = Options.chosen(arguments)
    with Job(options) as job:
        if job.done < len(job.lines):
            quiet_libraries()
            from model.answer_lines import Answerer, load

            with downloads() as progress:
                loaded = load(options, progress)
            with Bars(console=Console(stderr=True)) as bars:
                task = bars.add_task("lines", total=len(job.lines), completed=job.done)
                for results in job.write(Answerer(loaded, options)):
                    for number, result in enumerate(results, job.done - len(results) + 1):
                        if "error" in result:
                            print(f"line {number}: {result['error']}", file=sys.stderr)
                    bars.update(task, completed=job.done)
        failed = f"; {job.failed} of them failed and hold an error" if job.failed else ""
        print(f"{job.done} lines in {options.output_file}{failed}", file=sys.stderr)
    return 2 if job.failed else 0


def plan(options: argparse.Namespace) -> int:
    """Print what each way to load a checkpoint needs and which fits. Returns 3 when none does."""
    from model import checkpoint
    from model.plan import plan as make_plan

    quiet_libraries()
    about = checkpoint.inspect(options.model)
    made = make_plan(about, device=options.device, quantize=options.quantize, context=options.context)
    print(json.dumps(made.as_dict()) if options.json else "\n".join(made.table()))
    return 3 if made.recommended is None else 0


def doctor(source: str | None, *, as_json: bool) -> int:
    """Print what this machine has, what is missing and how to get it. Returns 3 when the model cannot run."""
    from assistant.errors import AssistantError
    from assistant.speech import Pyttsx3Synthesizer
    from model.doctor import Finding, about, findings

    report = findings() + (about(source) if source else [])
    try:
        with Pyttsx3Synthesizer() as synthesizer:
            names = [voice.name for voice in synthesizer.voices()]
            more = ", ..." if len(names) > 8 else ""
            report.append(Finding("voices", f"{len(names)} of the system: {', '.join(names[:8])}{more}"))
    except AssistantError as error:
        report.append(Finding("voices", "none", str(error)))
    report.append(sound_devices())
    if as_json:
        print(json.dumps({one.name: {"value": one.value, "remedy": one.remedy} for one in report}))
    else:
        width = max(len(one.name) for one in report)
        for one in report:
            print(f"{'!' if one.remedy else ' '} {one.name:{width}}  {one.value}")
            if one.remedy:
                print(f"  {'':{width}}  -> {one.remedy}")
    return 3 if any(one.essential for one in report) else 0


def recorded(options: argparse.Namespace) -> int:
    """Look after the recorded sessions, or play one back."""
    from assistant.session_commands import manage, replay
    from model.store import home

    return (replay if options.command == "replay" else manage)(options, home() / "sessions", print)


def sound_devices() -> Finding:
    """Microphones and speakers, or why there are none."""
    from assistant.sound import SoundUnavailable, devices
    from model.doctor import Finding

    try:
        found = devices()
    except SoundUnavailable as error:
        return Finding("sound", "none", str(error))
    inputs, outputs = len(found.microphones), len(found.speakers)
    missing = not (inputs and outputs)
    remedy = "Plug in a microphone and a speaker to talk; recordings work without." if missing else None
    return Finding("sound", f"{inputs} microphones, {outputs} speakers", remedy)


@contextmanager
def downloads() -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr for the fetching of weights, shown only when something is fetched."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    # An empty bar would still print a line, so it starts with the first report.
    with ExitStack() as stack:
        bars = Bars(*columns, console=Console(stderr=True))
        tasks: dict[str, TaskID] = {}

        def show(step: Progress) -> None:
            if not tasks:
                stack.enter_context(bars)
            if step.what not in tasks:
                tasks[step.what] = bars.add_task(step.what, total=step.total)
            bars.update(tasks[step.what], completed=step.done, total=step.total)

        yield show


def quiet_libraries() -> None:
    """Keep transformers' own progress bars and advice out of the command line's output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def report_bug() -> int:
    """Write the current exception to the log file; one line tells where. Returns exit code 1."""
    import traceback

    from model.fetch import home

    folder = home() / "logs"
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
    from assistant.errors import AssistantError
    from model.errors import BadInput, ModelError

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a narrow terminal encoding is no reason to stop
    try:
        if options.command == "doctor":
            return doctor(options.model, as_json=options.json)
        if options.command == "plan":
            return plan(options)
        if options.command == "generate":
            return generate(options)
        if options.command == "talk":
            return talk(options)
        if options.command in ("sessions", "replay"):
            return recorded(options)
        return ask(options, inputs_in_order(arguments, [*options.files, *rest]))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except (ModelError, AssistantError) as error:
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
