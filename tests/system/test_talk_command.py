"""`undertone talk`: as a command, with piped lines and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import soundfile

from assistant.audio.echo import Duplex
from assistant.audio.endpointing import PATIENCE
from assistant.cli.options import TalkOptions
from assistant.errors import BadInput
from assistant.messages import BargeIn
from assistant.sessions.reader import read_session, words_of
from assistant.settings import Settings, load
from tests import ROOT
from tests.support.fakes import HANG_SECONDS

COUNT = "One, two, three, four."


def choices(name: str) -> tuple[object, ...]:
    """The values of an option of `talk`, without None."""
    literal, _ = get_args(TalkOptions.model_fields[name].annotation)
    return get_args(literal)


def test_the_commands_choices_are_the_programs() -> None:
    assert choices("echo") == tuple(one.value for one in Duplex)
    assert choices("barge_in") == tuple(one.value for one in BargeIn)
    assert choices("patience") == tuple(PATIENCE)


def test_options_take_precedence_over_the_settings() -> None:
    settings = Settings().changed("voice", engine="none", rate=1.5).changed("model", source="mini-0.5b")
    settings = settings.changed("turns", patience="patient", hands_free=False)
    assert TalkOptions.of({}).over(settings) == settings
    changed = TalkOptions.of({"voice": "kokoro:af_sky", "model": "mini", "hands_free": True, "echo": "open"})
    over = changed.over(settings)
    assert (over.voice.engine, over.voice.name, over.voice.rate) == ("kokoro", "af_sky", 1.5)
    assert (over.model.source, over.turns.hands_free, over.turns.patience) == ("mini", True, "patient")
    assert over.sound.echo is Duplex.OPEN
    assert TalkOptions.of({"voice": "kokoro"}).over(over).voice.name is None


def test_a_terminal_is_hands_free_unless_the_settings_say_otherwise() -> None:
    assert TalkOptions.of({}).over(Settings()).turns.hands_free


def test_a_value_that_the_settings_refuse_is_one_line() -> None:
    with pytest.raises(BadInput, match=r"^--rate: .*less than or equal to 2"):
        TalkOptions.of({"rate": "3"}).over(Settings())
    with pytest.raises(BadInput, match=r"^--rate: "):
        TalkOptions.of({"rate": "fast"})


def command(folder: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    """The command line on the scripted model, without any sound device."""
    (folder / "replies.txt").write_text(f"Hello.\n{COUNT}", "utf-8")
    code = (
        "import sys; from dataclasses import replace; from assistant.talk import TalkSettings; import main; "
        "of = TalkSettings.of; "
        "TalkSettings.of = lambda *one, **two: replace(of(*one, **two), server='tests.support.talk_server'); "
        "sys.exit(main.main(sys.argv[1:]))"
    )
    environment = {**os.environ, "UNDERTONE_HOME": str(folder / "home"), "PULSE_SERVER": f"unix:{folder}/none"}
    return [sys.executable, "-c", code, "talk", "--model", str(folder / "replies.txt"), *words], environment


def test_piped_lines_are_answered_one_by_one_as_json(tmp_path: Path) -> None:
    words, environment = command(tmp_path, "--json", "--record", "--speaker", str(tmp_path / "out.wav"))
    done = subprocess.run(
        words, input="Hi\n\nCount, please.", env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    turns = [event["turn"] for event in events if event["type"] == "turn_ended"]
    assert [(turn["message"]["text"], turn["heard"], turn["outcome"]) for turn in turns] == [
        ("Hi", "Hello.", "answered"),
        ("Count, please.", COUNT, "answered"),
    ]
    assert soundfile.info(tmp_path / "out.wav").duration > 1.5
    (folder,) = (tmp_path / "home" / "sessions").iterdir()
    assert [recorded.turn.heard for recorded in read_session(folder).turns] == ["Hello.", COUNT]


def test_ctrl_c_stops_the_reply_and_twice_ends(tmp_path: Path) -> None:
    words, environment = command(tmp_path, "--json", "--speaker", str(tmp_path / "out.wav"))
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def until(kind: str) -> dict[str, Any]:
        return next(event for event in map(json.loads, process.stdout) if event["type"] == kind)  # type: ignore[union-attr]

    process.stdin.write("Hi\nCount, please.\n")
    until("turn_ended")
    until("playback_started")
    process.send_signal(signal.SIGINT)
    assert until("turn_ended")["turn"]["outcome"] == "stopped"
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130


def test_a_terminal_shows_the_conversation_and_takes_keys(tmp_path: Path) -> None:
    words, environment = command(tmp_path, "--speaker", str(tmp_path / "out.wav"))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, env={**environment, "TERM": "xterm", "COLUMNS": "100"}, cwd=ROOT
    )
    os.close(theirs)
    shown = ""

    def until(text: str, times: int = 1) -> None:
        nonlocal shown
        while shown.count(text) < times:
            assert select.select([ours], [], [], HANG_SECONDS)[0], f"{text!r} does not come after {shown!r}"
            shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown + os.read(ours, 4096).decode())

    until("Record your conversations")
    os.write(ours, b"forever\r")  # is no number of days
    until("For how many days?", 2)
    os.write(ours, b"30\r")
    until("is ready")
    os.write(ours, b"Hllo\x7f\x7f\x7fello\r")
    until("You   Hello")
    until("Reply Hello.")
    os.write(ours, b" ")  # the talk key: nobody says anything
    until("you are speaking")
    os.write(ours, b" ")
    os.write(ours, b"\x03")
    os.write(ours, b"\x03")
    while True:
        try:
            if not os.read(ours, 4096):
                break
        except OSError:
            break
    assert process.wait() == 130
    os.close(ours)
    chosen = load(tmp_path / "home" / "settings.toml")[0].recording
    assert (chosen.mode, chosen.days, chosen.asked) == ("days", 30, True)
    (folder,) = (tmp_path / "home" / "sessions").iterdir()
    read = read_session(folder)
    assert (read.about["keep_days"], [words_of(one.turn) for one in read.turns]) == (30, ["Hello"])


@pytest.mark.parametrize(
    ("written", "word", "recorded"),
    [
        ('[recording]\nmode = "keep"\n', None, 1),
        ('[recording]\nmode = "keep"\n', "--no-record", 0),
        ("", None, 0),  # nobody was asked, and there is nobody here to be
        ("", "--record", 1),
    ],
)
def test_what_is_recorded_follows_the_settings(tmp_path: Path, written: str, word: str | None, recorded: int) -> None:
    words, environment = command(tmp_path, "--speaker", str(tmp_path / "out.wav"), *([word] if word else []))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "settings.toml").write_text(written, "utf-8")
    done = subprocess.run(words, input="Hi\n", env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "May your" in done.stdout) == (0, False), done.stderr
    assert len(list((tmp_path / "home").glob("sessions/*"))) == recorded
    assert (tmp_path / "home" / "settings.toml").read_text("utf-8") == written
