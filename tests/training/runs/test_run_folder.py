"""The run folder: what a watcher may rely on, and what a kill may leave."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from model.files import write_atomically
from training.runs import run_folder
from training.runs.config import RECIPES, CleanOptions, InitOptions, LabelOptions, PrepareOptions, TrainOptions
from training.runs.run_folder import (
    LOCK,
    OPTIONS,
    PROGRESS,
    STOP,
    ProgressTail,
    append_lines,
    checkpoints,
    is_running,
    open_run,
    read_lines,
    read_options,
    read_progress,
    repair,
    request_stop,
)

OURS = {
    "learning_rate": 1e-4,
    "model": 'a "quoted" name\n\u007f, é',
    "kernels": [5, 5],
    "emotion_map": {"joy": "happy"},
}


def test_a_run_keeps_its_options_and_its_reports(tmp_path):
    with open_run(tmp_path / "run", OURS) as run:
        run.report(
            "stage1", 1, 10, loss=2.5, learning_rate=1e-4, samples_per_second=3.0, eta_seconds=9.0, grad_norm=1.0
        )
        run.report("stage1", 2, 10, validation=2.0)
        run.write_card("# A card\n")
    assert read_options(tmp_path / "run") == OURS
    first, second = read_progress(tmp_path / "run")
    assert first == {
        "stage": "stage1",
        "step": 1,
        "of": 10,
        "loss": 2.5,
        "validation": None,
        "learning_rate": 1e-4,
        "samples_per_second": 3.0,
        "eta_seconds": 9.0,
        "grad_norm": 1.0,
    }
    assert second["validation"] == 2.0
    assert (tmp_path / "run" / "card.md").read_text() == "# A card\n"


def test_two_processes_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.0)
    script = "import sys\nfrom filelock import FileLock\nwith FileLock(sys.argv[1]):\n    print(flush=True); input()\n"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        assert is_running(tmp_path)
        with pytest.raises(BadInput, match="in use by another process"), open_run(tmp_path, {}):
            pass
        other.communicate(b"\n")
    assert not is_running(tmp_path)
    with open_run(tmp_path, {}):
        assert is_running(tmp_path)


def test_a_folder_nobody_ever_worked_in_is_not_running(tmp_path):
    assert not is_running(tmp_path / "nowhere")


def test_going_on_needs_the_same_options(tmp_path):
    with open_run(tmp_path, {"seed": 1, "threads": 2}):
        pass
    with pytest.raises(BadInput, match="seed = 1, not 2"), open_run(tmp_path, {"seed": 2, "threads": 2}):
        pass
    with pytest.raises(BadInput, match="new = None, not 1"), open_run(tmp_path, {"seed": 1, "threads": 2, "new": 1}):
        pass
    with open_run(tmp_path, {"seed": 1, "threads": 3}, changeable=["threads"]):
        assert read_options(tmp_path)["threads"] == 3


def test_other_options_are_as_good_while_nothing_is_kept_and_nobody_works(tmp_path, monkeypatch):
    kept = tmp_path / "checkpoint.pt"
    with open_run(tmp_path, {"seed": 1}, kept=kept):
        monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.0)
        with pytest.raises(BadInput, match="in use"), open_run(tmp_path, {"seed": 2}, kept=kept):
            pass
        assert read_options(tmp_path) == {"seed": 1}
    with open_run(tmp_path, {"seed": 2}, kept=kept):
        kept.touch()
    with pytest.raises(BadInput, match="seed = 2, not 3"), open_run(tmp_path, {"seed": 3}, kept=kept):
        pass


def test_stop_is_seen_and_a_start_takes_it_away(tmp_path):
    with open_run(tmp_path, {}) as run:
        assert not run.stop_requested
        request_stop(tmp_path)
        assert run.stop_requested
    with open_run(tmp_path, {}) as run:
        assert not run.stop_requested
        assert not (tmp_path / STOP).exists()


@pytest.mark.parametrize("torn", [b'{"stage": "x", "st', b"\xff\xfe\x00", b"{", b""])
def test_a_torn_line_is_skipped_and_the_next_start_goes_on_behind_it(tmp_path, torn):
    with open_run(tmp_path, {}) as run:
        run.report("a", 1, 2)
    with (tmp_path / PROGRESS).open("ab") as file:
        file.write(torn)
    assert [row["step"] for row in read_progress(tmp_path)] == [1]
    with open_run(tmp_path, {}) as run:
        run.report("a", 2, 2)
    assert [row["step"] for row in read_progress(tmp_path)] == [1, 2]


def test_a_tail_gives_each_report_once_however_it_arrives(tmp_path):
    line = json.dumps({"step": 1, "note": "é"}, ensure_ascii=False).encode() + b"\n"
    tail = ProgressTail(tmp_path)
    assert tail.new() == []
    for byte in line[:-1]:
        with (tmp_path / PROGRESS).open("ab") as file:
            file.write(bytes([byte]))
        assert tail.new() == []
    append_lines(tmp_path / PROGRESS, [])
    with (tmp_path / PROGRESS).open("ab") as file:
        file.write(b"\n")
    append_lines(tmp_path / PROGRESS, [{"step": 2}, {"step": 3}])
    assert [row["step"] for row in tail.new()] == [1, 2, 3]
    assert tail.new() == []


def test_a_tail_begins_again_when_the_file_does(tmp_path):
    tail = ProgressTail(tmp_path)
    append_lines(tmp_path / PROGRESS, [{"step": 100, "long": "x" * 50}])
    assert len(tail.new()) == 1
    write_atomically(tmp_path / PROGRESS, '{"step": 1}\n')
    assert tail.new() == [{"step": 1}]


rows = st.lists(
    st.dictionaries(st.text(max_size=5), st.none() | st.integers(-5, 5) | st.text(max_size=9), max_size=3), max_size=6
)


@given(rows, st.binary(max_size=9))
def test_what_is_appended_is_read_whatever_stands_between(tmp_path_factory, given_rows, noise):
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    path.write_bytes(b"[1]\nnull\n" + noise.replace(b"{", b"") + b"\n")
    append_lines(path, given_rows)
    with path.open("ab") as file:
        file.write(noise.replace(b"\n", b""))
    repair(path)
    append_lines(path, given_rows)
    assert read_lines(path)[0] == given_rows * 2


def test_a_reader_meets_no_half_written_options(tmp_path, monkeypatch):
    write_atomically(tmp_path / OPTIONS, "seed = 1\n")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr("model.files.os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / OPTIONS, "seed = 2\n")
    assert read_options(tmp_path) == {"seed": 1}


@pytest.mark.parametrize("content", [None, "seed = ", "\udcff"])
def test_a_folder_without_readable_options_is_refused_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / OPTIONS).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match=r"is no run folder") as raised:
        read_options(tmp_path)
    assert len(str(raised.value).splitlines()) == 1


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"), open_run(tmp_path / "file", {}):
        pass


def test_checkpoints_are_complete_and_in_order(tmp_path):
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3", "checkpoint-x", "checkpoint-40"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-40":  # killed while it was being written
            (tmp_path / name / "trainer_state.json").write_text("{}")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


def test_a_bar_reports_what_it_shows(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: float(next(clock)))
    with open_run(tmp_path, {}) as run, run.bar("label", 10, done=4) as bar:
        bar.advance(2, loss=1.0)
        bar.set(10)
    reports = read_progress(tmp_path)
    assert [(one["step"], one["of"], one["loss"]) for one in reports] == [(6, 10, 1.0), (10, 10, None)]
    assert reports[-1]["eta_seconds"] == 0
    assert all(one["samples_per_second"] > 0 for one in reports)


GIVEN = {
    InitOptions: {"out": "x", "kernels": "5,3", "adapter_weights": "a.safetensors"},
    LabelOptions: {"model": "m", "manifest": "a.jsonl", "lab_dir": "l", "emotion_map": "joy=happy, fear=ignore"},
    CleanOptions: {"input_dir": "l", "also": "as a bot,beep", "strict": True},
    PrepareOptions: {"dataroot": "l", "save_dir": "d", "model": "m", "manifest_files": "a.jsonl,b*.jsonl"},
    TrainOptions: {"data": "d", "model": "m", "run": "r", "losses": "response_ce", "learning_rate": "3e-4"},
}


@pytest.mark.parametrize("kind", GIVEN)
def test_every_commands_options_survive_a_run_folder(tmp_path, kind):
    options = kind.of(GIVEN[kind])
    with open_run(tmp_path, options.plain()):
        assert kind.of(read_options(tmp_path)) == options
    with open_run(tmp_path, options.plain()):  # and are the same when they come back
        pass


@pytest.mark.parametrize("kind", GIVEN)
def test_the_command_line_means_the_same(kind, capsys):
    parser = argparse.ArgumentParser()
    kind.add_arguments(parser)
    words = []
    for name, value in GIVEN[kind].items():
        flag = f"--{name.replace('_', '-')}"
        words += [value] if name == "out" else [flag] if value is True else [flag, value]
    assert kind.of(vars(parser.parse_args(words))) == kind.of(GIVEN[kind])
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(["--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(field.description.split()[:4]) in text for field in kind.model_fields.values())


def test_the_recipe_is_the_papers_unless_told_otherwise():
    given = {"data": "d", "model": "m", "run": "r"}
    assert TrainOptions.of(given).recipe() == RECIPES[1]
    stage2 = TrainOptions.of(given | {"stage": "2", "batch_size": 8}).recipe()
    assert stage2 == RECIPES[2] | {"batch_size": 8}
    assert stage2["losses"] == ("response_ce", "input_er")


def test_the_lock_file_may_be_left_from_a_kill(tmp_path):
    (tmp_path / LOCK).touch()
    with open_run(tmp_path, {}), FileLock(tmp_path / "other"):
        assert is_running(tmp_path)
