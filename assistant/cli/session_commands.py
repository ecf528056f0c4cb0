"""`sessions` and `replay` on the command line: list, show, export, import, delete; play back, or ask another model."""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from assistant.backend.model_process import ModelProcess
from assistant.backend.protocol import ModelChoice
from assistant.errors import AssistantError, BadInput
from assistant.events import SAMPLE_RATE, Exchange, ModelStatus, Spoken
from assistant.messages import Ask, ModelDone, ModelFailed, ModelReading, ModelText
from assistant.sessions.export import FORMATS, differences, export, import_archive, joined
from assistant.sessions.maintenance import delete, tidy
from assistant.sessions.reader import Session, as_json, read_session, sessions, summary, words_of

Speak = Callable[[str], None]


def add_sessions(manage: argparse.ArgumentParser) -> None:
    """The options of `sessions`."""
    actions = manage.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, what in (("list", "newest first"), ("show", "one in full"), ("delete", "for good")):
        action = actions.add_parser(name, help=what)
        if name != "list":
            action.add_argument("session", help="a session's name, the beginning of it, or its folder")
        action.add_argument("--json", action="store_true", help="print JSON and nothing else")
    out = actions.add_parser("export", help="WAV, JSON, SRT, Markdown, or an archive that import reads")
    out.add_argument("session")
    out.add_argument("--format", choices=FORMATS, default="archive")
    out.add_argument("--output", type=Path, default=Path(), metavar="FILE", help="file or folder (here)")
    bring = actions.add_parser("import", help="read an archive that was exported elsewhere")
    bring.add_argument("archive", type=Path)
    for action in (out, bring):
        action.add_argument("--json", action="store_true", help="print JSON and nothing else")


def add_replay(replay: argparse.ArgumentParser) -> None:
    """The options of `replay`."""
    replay.add_argument("session")
    replay.add_argument("--model", help="ask the same recordings again with this one, and print the differences")
    replay.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    replay.add_argument("--quantize", default="auto")
    replay.add_argument("--output", type=Path, metavar="OUT.wav", help="write what would be played into a file")
    replay.add_argument("--json", action="store_true", help="print one JSON object a turn, nothing else")


def find(root: Path, name: str) -> Path:
    """The folder of a session by its name, the beginning of it, or a path.

    Raises:
        BadInput: there is none, or more than one.
    """
    if Path(name).is_dir():
        return Path(name)
    found = [folder for folder in sessions(root) if folder.name.startswith(name)]
    if len(found) != 1:
        what = f"{len(found)} sessions begin" if found else "No session begins"
        raise BadInput(f"{what} with {name!r}: see `undertone sessions list`.")
    return found[0]


def run(options: argparse.Namespace, root: Path, report: Speak) -> None:
    """Run `sessions` or `replay`, after repairing what a killed run left.

    Raises:
        BadInput: what the options name cannot be used.
        AssistantError: a model, a device or a disk fails.
    """
    for message in tidy(root):
        sys.stderr.write(f"{message}\n")
    if options.command == "replay":
        _replay(read_session(find(root, options.session)), options, report)
    else:
        _manage(options, root, report)


def _manage(options: argparse.Namespace, root: Path, report: Speak) -> None:
    if options.action == "list":
        _list([summary(read_session(folder)) for folder in sessions(root)], report, as_lines=options.json)
        return
    if options.action == "import":
        done: dict[str, Any] = {"session": import_archive(options.archive, root).name}
    elif options.action == "show":
        session = read_session(find(root, options.session))
        report(json.dumps(as_json(session), ensure_ascii=False) if options.json else _shown(session))
        return
    elif options.action == "delete":
        folder = find(root, options.session)
        delete(folder)
        done = {"deleted": folder.name}
    else:
        session = read_session(find(root, options.session))
        done = {"file": str(export(session, options.format, options.output))}
    report(json.dumps(done) if options.json else " ".join(done.values()))


def _list(rows: list[dict[str, Any]], report: Speak, *, as_lines: bool) -> None:
    for row in rows:
        if as_lines:
            report(json.dumps(row, ensure_ascii=False))
        else:
            damaged = f"  ({row['damaged']} damaged)" if row["damaged"] else ""
            emotions = ", ".join(row["emotions"]) or "no readings"
            report(f"{row['name']}  {row['turns']:3d} turns  {emotions}  {row['first_words'][:50]}{damaged}")
    if not rows and not as_lines:
        report("No session is recorded yet: talk with --record.")


def _shown(session: Session) -> str:
    lines = [f"{session.folder.name}  {session.started}  {session.about.get('model', '')}"]
    for recorded in session.turns:
        turn = recorded.turn
        sounded = f"  ({turn.reading.label}, {turn.reading.confidence:.0%})" if turn.reading else ""
        lines.append(f"\n{turn.number:3d}  You    {words_of(turn) or '...'}{sounded}")
        cut = "" if turn.heard == turn.reply else f"  [{turn.outcome.value}; all of it: {turn.reply}]"
        lines.append(f"     Reply  {turn.heard}{cut}")
    if session.damaged:
        lines.append(f"\n{session.damaged} lines or recordings are damaged and left out.")
    return "\n".join(lines)


def _replay(session: Session, options: argparse.Namespace, report: Speak) -> None:
    """Play the session; with --model print differences, turn by turn."""
    if options.model:
        choice = ModelChoice(options.model, options.device, options.quantize)
        with contextlib.closing(ask_again(session, choice)) as answers:
            for row in differences(session, answers):
                report(json.dumps(row, ensure_ascii=False) if options.json else _difference(row))
        return
    if not options.json:
        report(_shown(session))
    if options.output:
        say_file = export(session, "wav", options.output)
        report(json.dumps({"file": str(say_file)}) if options.json else f"\nWritten to {say_file}")
    else:
        _play(session)


def _play(session: Session) -> None:
    from assistant.audio.devices import SoundUnavailable, portaudio

    sound = portaudio()
    try:
        sound.play(joined(session), SAMPLE_RATE, blocking=True)
    except sound.PortAudioError as error:
        raise SoundUnavailable(f"Nothing can be played ({error}): use --output OUT.wav.") from error


def _difference(row: dict[str, Any]) -> str:
    before, after = row["before"], row["after"]
    return (
        f"\n{row['turn']:3d}  You    {row['words'] or '...'}"
        f"\n     before {before['reading'] or 'no reading'}: {before['reply']}"
        f"\n     now    {after['reading'] or 'no reading'}: {after['reply']}"
        f"\n     first token {_ms(before['first_token_ms'])} before, {_ms(after['first_token_ms'])} now"
    )


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f} ms"


def ask_again(
    session: Session, choice: ModelChoice, server: str = "model.commands.server"
) -> Generator[dict[str, object], None, None]:
    """Ask a model the same messages, each with its original history; yields answers as they come.

    Args:
        server: the module that the model's process runs.

    Raises:
        AssistantError: the model cannot be loaded.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    model = ModelProcess(choice, answers.put, server=server)
    try:
        history: list[Exchange] = []
        for number, recorded in enumerate(session.turns, 1):
            turn = recorded.turn
            if isinstance(turn.message, Spoken) and not len(turn.message.samples):
                yield {"reading": None, "reply": "(the recording is missing)", "first_token_ms": None}
                continue
            model.ask(Ask(number, tuple(history), turn.message, True))
            yield _answer(answers, number)
            if turn.heard.strip():
                history.append(Exchange(turn.message, turn.heard))
    finally:
        model.close()


def _answer(answers: queue.SimpleQueue[Any], number: int) -> dict[str, object]:
    row: dict[str, object] = {"reading": None, "reply": "", "encode_ms": None, "first_token_ms": None}
    while True:
        report = answers.get()
        if isinstance(report, ModelStatus) and report.status == "loading":
            sys.stderr.write(f"{report.text}\n")
        elif isinstance(report, ModelStatus) and report.status == "failed":
            raise AssistantError(report.text)
        elif isinstance(report, ModelFailed):
            row["reply"] = f"({report.message})"
            return row
        elif isinstance(report, ModelReading) and report.ask == number:
            row["reading"] = report.reading.label if report.reading else None
        elif isinstance(report, ModelText) and report.ask == number:
            row["reply"] = f"{row['reply']}{report.text}"
        elif isinstance(report, ModelDone) and report.ask == number:
            row["reply"] = str(row["reply"]).strip()
            return row | {key: report.figures.get(key) for key in ("encode_ms", "first_token_ms")}
