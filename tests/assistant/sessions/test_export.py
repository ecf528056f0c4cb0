"""Sessions out and in: every format agrees with the session, and archives of strangers do no harm."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

import pytest
import soundfile

from assistant.errors import AssistantError
from assistant.events import SAMPLE_RATE
from assistant.sessions.export import as_markdown, as_srt, export, import_archive, joined, timeline
from assistant.sessions.journal import JsonLines
from assistant.sessions.maintenance import expire
from assistant.sessions.reader import as_json, read_session
from assistant.sessions.recorder import EVENTS
from tests.assistant.sessions.test_reader import record


def test_an_archive_comes_back_as_it_was(tmp_path: Path) -> None:
    session = read_session(record(tmp_path / "a"))
    path = export(session, "archive", tmp_path)
    again = read_session(import_archive(path, tmp_path / "b"))
    one, other = as_json(session), as_json(again)
    assert one["turns"] == other["turns"]
    assert again.damaged == 0
    assert {path.stat().st_mode & 0o777 for path in again.folder.rglob("*") if path.is_file()} == {0o600}


def test_sound_subtitles_and_text_tell_the_same(tmp_path: Path) -> None:
    session = read_session(record(tmp_path / "a"))
    samples, rate = soundfile.read(export(session, "wav", tmp_path))
    assert (len(samples), rate) == (len(joined(session)), SAMPLE_RATE)
    rows = timeline(session)
    assert [who for _, _, who, _ in rows] == ["you", "assistant"] * 3
    assert rows[-1][1] <= len(samples) / SAMPLE_RATE
    srt = as_srt(session)
    assert srt.count(" --> ") == 6
    assert "1\n00:00:00,000 --> 00:00:00,250\nYou: words 1\n" in srt
    text = as_markdown(session)
    assert "voice sounds sad, 35%" in text
    assert "*(interrupted)*" in text
    assert json.loads(export(session, "json", tmp_path).read_text()) == json.loads(json.dumps(as_json(session)))
    with pytest.raises(AssistantError):
        export(session, "srt", tmp_path / "missing" / "x.srt")


def test_a_recording_that_went_bad_is_said_in_one_line(tmp_path: Path) -> None:
    session = read_session(record(tmp_path / "a"))
    session.turns[1].reply_audio.write_bytes(b"fLaC, but not really")
    for form in ("wav", "srt"):
        with pytest.raises(AssistantError, match="as text instead"):
            export(session, form, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(AssistantError, match="choose another folder"):
        export(session, "json", tmp_path / "a" / "b" / "x.json")
    (tmp_path / "file").touch()
    with pytest.raises(AssistantError, match="choose another folder"):
        export(session, "json", tmp_path / "file" / "x.json")


def test_what_is_imported_begins_to_age_now(tmp_path: Path) -> None:
    old = record(tmp_path / "a")
    path = export(read_session(old), "archive", tmp_path)
    folder = import_archive(path, tmp_path / "b")
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert expire(folder.parent, 1) == []
    assert folder.name[:13] >= old.name[:13]


def _archive(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name",
    ["../evil", "/tmp/evil", "audio/../../evil", "audio/0001-user.flac/x", "evil.py", "audio/x.flac", "events.jsonl/"],
)
def test_strange_names_are_refused(tmp_path: Path, name: str) -> None:
    path = _archive(tmp_path / "x", {EVENTS: b"{}\n", name: b"x"})
    with pytest.raises(AssistantError):
        import_archive(path, tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_damaged_archives_are_refused_whole(tmp_path: Path) -> None:
    good = export(read_session(record(tmp_path / "a")), "archive", tmp_path).read_bytes()
    source, root = random.Random(0), tmp_path / "root"
    root.mkdir()
    for _ in range(60):
        data = bytearray(good)
        if source.random() < 0.5:
            data = data[: source.randrange(len(data))]
        else:
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        path = tmp_path / "bad"
        path.write_bytes(data)
        try:
            folder = import_archive(path, root)
        except AssistantError:
            continue
        finally:
            assert not list(root.glob(".import-*"))
        assert read_session(folder).damaged == 0


@pytest.mark.parametrize(
    "values",
    [
        {"turn": 1, "type": "turn_ended", "outcome": "x"},
        {"turn": 1, "type": "typed"},
        {"turn": 1, "type": "turn_ended", "reading": {"label": 3}},
        {"type": "session_started"},
    ],
)
def test_sound_lines_of_a_stranger_are_not_trusted(tmp_path: Path, values: dict) -> None:
    lines = JsonLines(tmp_path / EVENTS)
    lines.append({"v": 1, "t": "x", **values})
    lines.close()
    path = _archive(tmp_path / "x", {EVENTS: (tmp_path / EVENTS).read_bytes()})
    with pytest.raises(AssistantError):
        import_archive(path, tmp_path / "root")
