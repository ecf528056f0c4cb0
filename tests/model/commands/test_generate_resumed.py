"""The batch tool goes on after a kill, at any byte, and never writes over what is not its own."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

import main
from model.commands.generate import Job, Options
from model.errors import BadInput
from tests.model.support.generating import options

# ---- going on after a kill


def scripted(first: int, lines: Any) -> list[dict]:
    """Replies that depend on a line and its number alone, some of them errors."""
    return [
        {"response": f"ü {number} {raw.decode()}", "reference": None, **({"error": "no"} if number % 4 == 0 else {})}
        for number, raw in enumerate(lines, first)
    ]


def killed(chosen: Options, batches: int) -> tuple[bytes, bytes]:
    """Run some batches and stop; the output and the side file as they lie there."""
    with Job(chosen) as job:
        list(itertools.islice(job.write(scripted), batches))
    return chosen.output_file.read_bytes(), side(chosen).read_bytes()


def side(chosen: Options) -> Path:
    return chosen.output_file.with_name("out.jsonl.run")


def finish(chosen: Options) -> tuple[bytes, list[int]]:
    """Run to the end; the output and the numbers of the lines that were answered."""
    answered: list[int] = []

    def watched(first: int, lines: Any) -> list[dict]:
        answered.extend(range(first, first + len(lines)))
        return scripted(first, lines)

    with Job(chosen) as job:
        for _ in job.write(watched):
            pass
    with chosen.output_file.open("rb") as file:
        assert job.failed == sum("error" in json.loads(line) for line in file)
    assert not side(chosen).exists()
    assert sorted(path.name for path in chosen.output_file.parent.iterdir()) == ["in.jsonl", "out.jsonl"]
    return chosen.output_file.read_bytes(), answered


LINES: list[Any] = [{"text": f"line {number} \u2028 é", "n": number} for number in range(11)]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_kill_at_any_byte_changes_nothing(tmp_path: Path, legacy: bool) -> None:
    words = ["--batch-size", "3", *(["--legacy-batching"] if legacy else [])]
    whole, _ = finish(options(tmp_path, LINES, *words))
    chosen = options(tmp_path, LINES, *words)
    chosen.output_file.unlink()
    output, state = killed(chosen, 3)
    assert whole.startswith(output)
    assert len(output) < len(whole)

    @settings(max_examples=40, deadline=None)
    @given(
        cut=st.integers(0, len(whole)),
        # What a file system may show behind the last byte that reached the disk.
        garbage=st.sampled_from([b"", b"\0" * 30, b"\0\n", b'{"resp', b'"response"\n']),
    )
    def check(cut: int, garbage: bytes) -> None:
        left = whole[:cut]
        chosen.output_file.write_bytes(left + garbage if left.endswith(b"\n") and cut < len(whole) else left)
        side(chosen).write_bytes(state)
        again, answered = finish(chosen)
        assert again == whole
        kept = left.count(b"\n")
        if legacy and kept < len(LINES):
            kept -= kept % 3  # a batch is answered as a whole
        assert answered == list(range(kept + 1, len(LINES) + 1))

    check()


def test_a_process_killed_in_its_third_batch(tmp_path: Path) -> None:
    chosen = options(tmp_path, LINES, "--batch-size", "2")
    program = """
import os, signal, sys
from pathlib import Path
from model.commands.generate import Job, Options

def answer(first, lines):
    if first == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return [{"response": str(number), "reference": ""} for number, _ in enumerate(lines, first)]

with Job(Options(input_file=Path(sys.argv[1]), output_file=Path(sys.argv[2]), batch_size=2)) as job:
    for _ in job.write(answer):
        pass
"""
    words = [sys.executable, "-c", program, str(chosen.input_file), str(chosen.output_file)]
    died = subprocess.run(words, cwd=Path(main.__file__).parent, timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    assert chosen.output_file.read_bytes().count(b"\n") == 4
    output, answered = finish(chosen)
    assert answered == list(range(5, 12))
    assert output.startswith(b'{"response": "1", "reference": ""}\n')


def test_a_kill_before_the_first_line(tmp_path: Path) -> None:
    chosen = options(tmp_path, LINES)
    whole, _ = finish(chosen)
    for made in ([], [chosen.output_file], [chosen.output_file, side(chosen)], [side(chosen)]):
        chosen.output_file.unlink(missing_ok=True)
        for path in made:
            path.write_bytes(b"")
        assert finish(chosen) == (whole, list(range(1, 12)))


def test_more_lines_and_other_batches_go_on(tmp_path: Path) -> None:
    killed(options(tmp_path, LINES, "--batch-size", "4"), 2)
    longer = [*LINES, {"text": "new"}]
    _, answered = finish(options(tmp_path, longer, "--batch-size", "5"))
    assert answered == [9, 10, 11, 12]


@pytest.mark.parametrize(
    ("lines", "words", "said"),
    [
        (LINES, ["--instruction", "x"], "--instruction ''"),
        (LINES, ["--do-sample"], "--do-sample"),
        (LINES, ["--batch-size", "4"], "--batch-size 3"),
        ([{"text": "other"}, *LINES[1:]], [], "has changed"),
        (LINES[:-1], [], "has changed"),
    ],
)
def test_changes_are_noticed(tmp_path: Path, lines: list[Any], words: list[str], said: str) -> None:
    own = ["--legacy-batching", "--batch-size", "3"]
    killed(options(tmp_path, LINES, *own), 1)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(BadInput, match=said), Job(options(tmp_path, lines, *own, *words)):
        pass
    assert (tmp_path / "out.jsonl").read_bytes() == before
    chosen = options(tmp_path, lines, *own, *words, "--restart")
    assert len(finish(chosen)[1]) == len(lines)


@pytest.mark.parametrize("state", [b"", b"[]", b'{"options": 3, "lines": 1, "sha256": ""}', b"\xff"])
def test_a_damaged_side_file_is_said(tmp_path: Path, state: bytes) -> None:
    chosen = options(tmp_path, LINES, "--batch-size", "3")
    killed(chosen, 1)
    side(chosen).write_bytes(state)
    with pytest.raises(BadInput, match="--restart"), Job(chosen):
        pass


def test_a_finished_or_foreign_file_is_not_overwritten(tmp_path: Path) -> None:
    chosen = options(tmp_path, LINES)
    whole, _ = finish(chosen)
    with pytest.raises(BadInput, match="already exists"), Job(chosen):
        pass
    assert chosen.output_file.read_bytes() == whole
    with pytest.raises(BadInput, match="input file"):
        Job(options(tmp_path, None, output_file=tmp_path / "in.jsonl"))
    with pytest.raises(BadInput, match="choose an existing folder"):
        Job(options(tmp_path, None, output_file=tmp_path / "nowhere" / "out.jsonl"))
    with pytest.raises(BadInput, match="choose an existing folder"):
        Job(options(tmp_path, None, output_file=tmp_path))


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    chosen = options(tmp_path, LINES)
    with FileLock(f"{side(chosen)}.lock"), pytest.raises(BadInput, match="another process"), Job(chosen):
        pass
    side(chosen).with_name("out.jsonl.run.lock").unlink()
    finish(chosen)


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = options(tmp_path, LINES, "--batch-size", "3")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with Job(chosen) as job:
        running = job.write(scripted)
        next(running)
        monkeypatch.setattr("model.commands.generate.os.fsync", full)
        with pytest.raises(BadInput, match="make room"):
            next(running)
    monkeypatch.undo()
    every = scripted(1, chosen.input_file.read_bytes().splitlines())
    assert finish(chosen)[0] == "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in every).encode()
