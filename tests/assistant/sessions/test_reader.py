"""Recording and reading sessions: kills, cuts, flipped bits, full disks."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from assistant.errors import AssistantError, BadInput
from assistant.events import EmotionReading, Failed, Outcome, Spoken, Turn, TurnEnded, Typed
from assistant.sessions import journal, maintenance, reader
from assistant.sessions.maintenance import delete, expire, recover, tidy
from assistant.sessions.reader import read_session, sessions, summary
from assistant.sessions.recorder import EVENTS, LOCK, Recorder
from tests.support.session_victim import chunk

READING = EmotionReading(
    probabilities=np.array([0.1, 0.2, 0.3, 0.35, 0.05], np.float32),
    label="sad",
    frame_seconds=0.16,
    contributions=np.arange(20, dtype=np.float32).reshape(4, 5),
    offset=np.zeros(5, np.float32),
)


def said(seed: int) -> Spoken:
    return Spoken((np.random.default_rng(seed).integers(-9000, 9000, 4000) / 32768).astype(np.float32))


def record(root: Path, turns: int = 3) -> Path:
    failures: list[Failed] = []
    recorder = Recorder(root, failures.append, about={"model": "mini"})
    for number in range(1, turns + 1):
        message = Typed("typed words") if number == 2 else said(number)
        recorder.utterance(number, message)
        turn = Turn(
            number, message, f"words {number}", READING, "All of it.", "All of", Outcome.INTERRUPTED, {"a": 1.0}
        )
        recorder.ended(TurnEnded(turn), np.full(2000, 0.1, np.float32), 24_000)
    recorder.note("correction", turn=1, emotion="happy")
    recorder.close()
    assert not failures
    assert recorder.folder is not None
    return recorder.folder


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    folder = record(tmp_path)
    read = read_session(folder)
    assert (read.damaged, read.about["model"], len(read.turns)) == (0, "mini", 3)
    first = read.turns[0]
    assert np.array_equal(first.turn.message.samples, said(1).samples)
    assert first.turn.reading.as_dict() == READING.as_dict()
    assert (first.turn.reply, first.turn.heard, first.turn.outcome) == ("All of it.", "All of", Outcome.INTERRUPTED)
    assert first.corrected == "happy"
    assert read.turns[1].turn.message == Typed("typed words")
    assert reader.read_flac(first.reply_audio)[1] == 24_000
    assert summary(read)["emotions"] == ["sad"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_empty_session_leaves_nothing(tmp_path: Path) -> None:
    Recorder(tmp_path, lambda failed: pytest.fail(failed.message)).close()
    assert list(tmp_path.iterdir()) == []


def test_a_kill_at_any_instant_loses_no_acknowledged_chunk(tmp_path: Path) -> None:
    """20 kills here; the same with 200 is `UNDERTONE_KILLS=200 pytest`."""
    source = random.Random(0)
    for attempt in range(int(os.environ.get("UNDERTONE_KILLS", "20"))):
        root = tmp_path / str(attempt)
        command = [sys.executable, "-m", "tests.support.session_victim", str(root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
            acknowledged = [victim.stdout.readline() for _ in range(source.randrange(1, 150))]
            victim.kill()
            acknowledged += victim.stdout.readlines()
        whole = [line.split() for line in acknowledged if line.endswith("\n")]
        turn, number = (int(part) for part in whole[-1])
        (folder,) = sessions(root)
        recover(folder)
        read = read_session(folder)
        assert read.damaged <= 1  # the torn line
        for past in read.turns:
            if past.turn.number < turn:
                expected = np.concatenate([chunk(past.turn.number, n) for n in range(20)])
                assert np.allclose(past.turn.message.samples, expected, atol=1e-4)
        last = next(past for past in read.turns if past.turn.number == turn)
        kept = np.concatenate([chunk(turn, n) for n in range(min(number + 1, 20))])
        assert np.allclose(last.turn.message.samples[: len(kept)], kept, atol=1e-4)
        assert len(read.turns) == len({past.turn.number for past in read.turns})


def test_every_truncation_and_flipped_bits_are_never_read_wrongly(tmp_path: Path) -> None:
    folder = record(tmp_path / "a")
    whole = read_session(folder)
    truth = {past.turn.number: past for past in whole.turns}

    def check(copy: Path) -> None:
        read = read_session(copy)
        for past in read.turns:
            original = truth[past.turn.number]
            samples = getattr(past.turn.message, "samples", np.zeros(0))
            assert past.turn.reply in ("", original.turn.reply)
            assert past.turn.heard in ("", original.turn.heard)
            if len(samples):
                assert np.array_equal(samples, original.turn.message.samples)
            if past.turn.reading is not None:
                assert past.turn.reading.as_dict() == READING.as_dict()

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    events = (folder / EVENTS).read_bytes()
    for length in range(0, len(events), 31):
        (copy / EVENTS).write_bytes(events[:length])
        check(copy)
    (copy / EVENTS).write_bytes(events)
    source = random.Random(1)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    for _ in range(int(os.environ.get("UNDERTONE_FLIPS", "200"))):
        name = source.choice(files)
        data = bytearray((folder / name).read_bytes())
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        (copy / name).write_bytes(data)
        check(copy)
        shutil.copy2(folder / name, copy / name)


def test_a_damaged_journal_gives_only_true_samples(tmp_path: Path) -> None:
    path = tmp_path / "one.journal"
    written = journal.Journal(path)
    chunks = [np.full(50, n, np.int16) for n in range(30)]
    for one in chunks:
        written.append(one)
    whole, truth = path.read_bytes(), np.concatenate(chunks)
    assert np.array_equal(journal.read_journal(path), truth)
    source = random.Random(2)
    for _ in range(300):
        data = bytearray(whole)
        if source.random() < 0.5:
            data = data[: source.randrange(len(data))]
        else:
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        path.write_bytes(data)
        read = journal.read_journal(path)
        assert np.array_equal(read, truth[: len(read)])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failing_disk_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failures: list[Failed] = []
    recorder = Recorder(tmp_path, failures.append)
    recorder.utterance(1, said(1))

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(journal.os, "write", fail)
    recorder.sound(2, np.zeros(160, np.float32))
    recorder.sound(2, np.zeros(160, np.float32))
    recorder.utterance(2, said(2))
    recorder.ended(TurnEnded(Turn(2, said(2))))
    recorder.close()
    (failure,) = failures
    assert os.strerror(number) in failure.message
    assert not recorder.recording
    monkeypatch.undo()
    assert len(read_session(recorder.folder).turns) == 1


def test_a_root_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failures: list[Failed] = []
    recorder = Recorder(tmp_path / "file" / "sessions", failures.append)
    recorder.utterance(1, said(1))
    assert len(failures) == 1
    recorder.close()


def test_a_start_repairs_what_was_cut_off_and_leaves_what_is_in_use(tmp_path: Path) -> None:
    cut = record(tmp_path)
    left = journal.Journal(cut / "0004-user.journal")
    left.append(np.full(800, 7, np.int16))
    running = Recorder(tmp_path, lambda failed: pytest.fail(failed.message))
    running.sound(1, np.full(800, 0.1, np.float32))
    old = record(tmp_path)
    month_ago = datetime.now(UTC).astimezone() - timedelta(days=31)
    old.rename(tmp_path / f"{month_ago:%Y-%m-%d_%H-%M-%S}-abcd")
    emitted = tidy(tmp_path, keep_days=30)
    assert len(emitted) == 2
    assert cut.name in emitted[0]
    assert "1 session older than 30 days" in emitted[1]
    assert np.all(read_session(cut).turns[-1].turn.message.samples == np.float32(7 / 32768))
    assert len(list(running.folder.glob("*.journal"))) == 1
    assert tidy(tmp_path) == []
    running.utterance(1, said(1))
    running.close()
    assert not (running.folder / LOCK).exists()
    assert not (cut / LOCK).exists()


def test_a_repair_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = record(tmp_path)
    journal.Journal(folder / "0004-user.journal").append(np.full(800, 7, np.int16))

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(maintenance, "write_flac", full)
    (message,) = tidy(tmp_path)
    assert "free space" in message
    assert len(list(folder.glob("*.journal"))) == 1


def test_what_was_undone_is_read_no_more(tmp_path: Path) -> None:
    folder = record(tmp_path)
    lines = journal.JsonLines(folder / EVENTS)
    lines.append({"v": 1, "t": 9.0, "type": "undone", "turn": 1})
    lines.close()
    assert [past.turn.number for past in read_session(folder).turns] == [2, 3]


def test_a_turn_in_the_middle_of_which_recording_began_is_whole(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, lambda failed: pytest.fail(failed.message))
    recorder.ended(TurnEnded(Turn(5, said(5), "words", None, "Yes.", "Yes.")))
    recorder.close()
    (past,) = read_session(recorder.folder).turns
    assert np.array_equal(past.turn.message.samples, said(5).samples)


def test_old_sessions_expire(tmp_path: Path) -> None:
    old, new = record(tmp_path), record(tmp_path)
    month_ago = datetime.now(UTC).astimezone() - timedelta(days=31)
    old.rename(tmp_path / f"{month_ago:%Y-%m-%d_%H-%M-%S}-abcd")
    assert [path.name[-4:] for path in expire(tmp_path, 30)] == ["abcd"]
    assert sessions(tmp_path) == [new]
    with pytest.raises(AssistantError):
        delete(tmp_path)
    with pytest.raises(AssistantError):
        read_session(tmp_path)


def test_a_deletion_that_is_cut_off_leaves_no_half_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, stays = record(tmp_path), record(tmp_path)

    def killed(folder: Path) -> None:
        (folder / "audio" / "0001-user.flac").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(maintenance.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            delete(gone)
    assert sessions(tmp_path) == [stays]
    assert len(list(tmp_path.iterdir())) == 2
    assert tidy(tmp_path) == []
    assert list(tmp_path.iterdir()) == [stays]


def test_only_an_import_that_was_given_up_is_swept_away(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / f".import-{name}" / "audio").mkdir(parents=True)
    os.utime(tmp_path / ".import-old", (0, 0))
    tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".import-new"]


def test_what_is_being_recorded_is_not_deleted(tmp_path: Path) -> None:
    running = Recorder(tmp_path, lambda failed: pytest.fail(failed.message))
    running.utterance(1, said(1))
    with pytest.raises(BadInput, match="end the conversation"):
        delete(running.folder)
    in_a_month = datetime.now(UTC).astimezone() + timedelta(days=31)
    assert expire(tmp_path, 30, now=in_a_month) == []
    running.close()
    assert len(expire(tmp_path, 30, now=in_a_month)) == 1


def test_a_killed_run_in_which_nothing_was_said_leaves_nothing(tmp_path: Path) -> None:
    code = """
import os, sys, pathlib, assistant.sessions.recorder
assistant.sessions.recorder.Recorder(pathlib.Path(sys.argv[1]), print)
os._exit(0)"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(sessions(tmp_path)) == 1
    assert tidy(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_sessions_expire_as_they_were_promised_to(tmp_path: Path) -> None:
    """Recording is off now: what was recorded for 30 days still goes after 30, what was to be kept stays."""
    month_ago = datetime.now(UTC).astimezone() - timedelta(days=31)
    for number, days in enumerate([30, 60, None]):
        recorder = Recorder(tmp_path, lambda failed: pytest.fail(failed.message), about={"keep_days": days})
        recorder.utterance(1, said(1))
        recorder.close()
        recorder.folder.rename(tmp_path / f"{month_ago:%Y-%m-%d_%H-%M-%S}-{number}")
    assert tidy(tmp_path) == []
    assert tidy(tmp_path, as_promised=True) == ["1 session deleted: you chose to keep them that long."]
    assert [folder.name[-1] for folder in sessions(tmp_path)] == ["2", "1"]


def test_afterthoughts_alone_are_no_turn(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, lambda failed: pytest.fail(failed.message))
    recorder.utterance(2, said(2))
    recorder.note("transcribed", turn=1, text="late", language="en")
    recorder.close()
    assert [past.turn.number for past in read_session(recorder.folder).turns] == [2]


def test_what_was_typed_in_mid_speech_stays_typed(tmp_path: Path) -> None:
    """A kill between the typed message's line and the end of the journal, whose speech came to nothing."""
    recorder = Recorder(tmp_path, lambda failed: pytest.fail(failed.message))
    recorder.utterance(1, Typed("never mind"))
    recorder.close()
    journal.Journal(recorder.folder / "0001-user.journal").append(np.full(800, 7, np.int16))
    assert recover(recorder.folder) == 0
    (past,) = read_session(recorder.folder).turns
    assert past.turn.message == Typed("never mind")


def test_a_folder_that_cannot_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "is_file", forbidden)
    record(tmp_path)
    (message,) = tidy(tmp_path)
    assert "make it yours" in message


def test_a_recording_that_is_none_is_counted_and_left_out(tmp_path: Path) -> None:
    """Its hash is right: such a session can only come from elsewhere."""
    recorder = Recorder(tmp_path, lambda failed: pytest.fail(failed.message))
    recorder.utterance(1, said(1))
    sound = b"no sound at all"
    (recorder.folder / "audio" / "0002-user.flac").write_bytes(sound)
    name = {"audio": "audio/0002-user.flac", "sha256": hashlib.sha256(sound).hexdigest()}
    recorder.note("utterance", turn=2, **name)
    recorder.close()
    read = read_session(recorder.folder)
    assert read.damaged == 1
    assert [past.user_audio is None for past in read.turns] == [False, True]
