"""Broken manifests: each gets a message with file and line, and the good rows go on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import BadInput
from training.data.manifest import (
    LINE_BYTES,
    BadRow,
    Clip,
    Report,
    Row,
    Rules,
    find_audio,
    find_manifests,
    inspect,
    read_clip,
    read_rows,
)

GOOD = {"audio": "good.wav", "text": "hello there", "emotion": "happy"}
STAGE2 = Rules(emotions="required", emotion_map={"joy": "happy", "fear": "ignore"}, required=("output",))


def line(**changes: object) -> bytes:
    row = {**GOOD, "output": "Hi.", **changes}
    return json.dumps({name: value for name, value in row.items() if value is not ...}).encode()


def noise(seconds: float, rate: int = 16000) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * rate)).clip(-1, 1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    soundfile.write(folder / "good.wav", noise(2), 16000)
    soundfile.write(folder / "good.flac", noise(2, 8000), 8000)
    soundfile.write(folder / "brief.wav", noise(0.9), 16000)
    soundfile.write(folder / "tiny.wav", noise(0.01), 16000)
    soundfile.write(folder / "endless.wav", noise(31, 8000), 8000)
    soundfile.write(folder / "silent.wav", np.zeros(32000), 16000)
    soundfile.write(folder / "nan.wav", np.full(32000, np.nan), 16000, subtype="FLOAT")
    whole = (folder / "good.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.flac").write_bytes((folder / "good.flac").read_bytes()[:1000])
    (folder / "noise.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "text.wav").write_text("this is no sound")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "video.m4a").write_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(500))
    (folder / "folder.wav").mkdir()
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    (folder / "dangling.wav").symlink_to(folder / "gone.wav")
    return folder


# name: (bytes of the bad line, reason, part of the message); the audio is looked at where there is no other fault.
BROKEN = {
    "no JSON": (b"audio: good.wav", "broken JSON", "not JSON: Expecting value at character 1"),
    "half an object": (line()[:-8], "broken JSON", "not JSON"),
    "two objects": (line() + line(), "broken JSON", "Extra data"),
    "single quotes": (b"{'audio': 'good.wav'}", "broken JSON", "double quotes"),
    "an array": (b'["good.wav", "hello"]', "not an object", "an array"),
    "a string": (b'"good.wav"', "not an object", "write one row a line"),
    "null": (b"null", "not an object", "null"),
    "a number": (b"17", "not an object", "17"),
    "nested for ever": (b"[" * 100_000, "broken JSON", "nested too deep"),
    "a field twice": (b'{"audio": "good.wav", "text": "a", "text": "b"}', "field twice", "'text' is there twice"),
    "latin-1": (line(text="caf").replace(b"caf", b"caf\xe9"), "not UTF-8", "is not UTF-8"),
    "half a character": ('{"text": "\u00e9'.encode()[:-1], "not UTF-8", "is not UTF-8"),
    "half a surrogate pair": (line(text="\ud83d"), "broken text", "half of a surrogate pair"),
    "a huge line": (line(text="x" * LINE_BYTES), "line too long", "more than 1,048,576 bytes"),
    "no audio field": (line(audio=...), "missing field", "no 'audio': it has 'text', 'emotion', 'output'"),
    "no text field": (line(text=...), "missing field", "no 'text'"),
    "no output field": (line(output=...), "missing field", "no 'output'"),
    "an empty object": (b"{}", "missing field", "it has nothing"),
    "another field's name": (line(text=..., sentence="hello"), "missing field", "'sentence'"),
    "empty text": (line(text=""), "empty text", "'text' is empty"),
    "blank text": (line(text=" \t\n\u3000"), "empty text", "'text' is empty"),
    "text is a number": (line(text=3), "wrong type", "'text' is 3, not text"),
    "text is null": (line(text=None), "wrong type", "'text' is null, not text"),
    "text is an array": (line(text=["a", "b"]), "wrong type", "'text' is an array"),
    "text is an object": (line(text={"en": "a"}), "wrong type", "'text' is an object"),
    "text is a truth value": (line(text=True), "wrong type", "'text' is a truth value"),
    "audio is a number": (line(audio=7), "wrong type", "'audio' is 7"),
    "audio is empty": (line(audio=""), "empty audio", "give the recording"),
    "output is null": (line(output=None), "wrong type", "'output' is null"),
    "early_stop is a word": (line(early_stop="yes"), "wrong type", "'early_stop' is \"yes\", not true or false"),
    "unknown emotion": (line(emotion="cheerful"), "unknown emotion", 'emotion "cheerful" is none of neutral, happy'),
    "emotion is a number": (line(emotion=1), "wrong type", "'emotion' is 1"),
    "no emotion": (line(emotion=...), "no emotion", "every row needs one"),
    "empty emotion": (line(emotion=""), "no emotion", "every row needs one"),
    "emotion is null": (line(emotion=None), "no emotion", "every row needs one"),
    "emotion mapped away": (line(emotion="fear"), "no emotion", "every row needs one"),
    "a duplicate": (line(text="the last one"), "duplicate line", "the same as line 1"),
    "a duplicate in another order": (
        json.dumps(dict(reversed(json.loads(line(text="the last one")).items()))).encode(),
        "duplicate line",
        "the same as line 1",
    ),
    "missing audio": (line(audio="nowhere.wav"), "missing audio", "nowhere.wav is neither below"),
    "audio with a NUL": (line(audio="good\0.wav"), "missing audio", "'good\\x00.wav' is neither"),
    "audio with an endless name": (line(audio="a" * 5000), "missing audio", "is neither below"),
    "audio is a folder": (line(audio="folder.wav"), "unusable audio", "is a folder"),
    "audio links to itself": (line(audio="loop.wav"), "missing audio", "loop.wav"),
    "audio links nowhere": (line(audio="dangling.wav"), "missing audio", "dangling.wav"),
    "audio cut short": (line(audio="cut.wav"), "unusable audio", "cut short"),
    "FLAC cut short": (line(audio="cut.flac"), "unusable audio", "cut.flac"),
    "audio is random bytes": (line(audio="noise.wav"), "unusable audio", "noise.wav"),
    "audio is text": (line(audio="text.wav"), "unusable audio", "not WAV, FLAC, OGG or MP3"),
    "audio is empty file": (line(audio="empty.wav"), "unusable audio", "is empty"),
    "audio of a phone": (line(audio="video.m4a"), "unusable audio", "not WAV, FLAC, OGG or MP3"),
    "audio is not a number": (line(audio="nan.wav"), "unusable audio", "NaN"),
    "audio is silent": (line(audio="silent.wav"), "unusable audio", "silent"),
    "too short": (line(audio="brief.wav"), "too short", "brief.wav is 0.900 s long, and 1 to 30 s are allowed"),
    "no length at all": (line(audio="tiny.wav"), "unusable audio", "only 0.01 s long"),
    "too long": (line(audio="endless.wav"), "too long", "31.000 s long"),
    "a part beyond the end": (line(audio="good.wav:30000:9000"), "unusable audio", "too few from 30000 on"),
    "a part of nothing": (line(audio="good.wav:0:0"), "unusable audio", "too few from"),
    "a part that is too short": (line(audio="good.wav:0:15999"), "too short", "1.000 s"),
}


def read_and_look(manifest: Path, rules: Rules, report: Report) -> list[Row]:
    kept = []
    for row in read_rows([manifest], rules, report):
        problem = inspect(row, 1.0, 30.0).problem
        if problem:
            report.drop(row.file, row.line, *problem)
        else:
            kept.append(row)
    return kept


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_line_is_named_and_the_good_ones_go_on(recordings, name):
    bad, reason, message = BROKEN[name]
    manifest = recordings / f"{name}.jsonl"
    manifest.write_bytes(line(text="the last one") + b"\n" + bad + b"\n" + line(text="the first one") + b"\n")
    report = Report()
    kept = read_and_look(manifest, STAGE2, report)
    assert [row.text for row in kept] == ["the last one", "the first one"]
    (dropped,) = report.dropped
    assert (dropped.file, dropped.line, dropped.reason) == (str(manifest), 2, reason)
    assert message in str(dropped)
    assert str(dropped).startswith(f"{manifest}:2: ")
    assert len(str(dropped).splitlines()) == 1
    assert report.counts() == {str(manifest): {reason: 1}}


def test_there_are_at_least_thirty_broken_manifests():
    assert len(BROKEN) >= 30


UNUSABLE = {
    "zero rows": (b"", "it holds no rows"),
    "blank lines only": (b"\n  \n\r\n", "it holds no rows"),
    "only a byte order mark": (b"\xef\xbb\xbf\n", "it holds no rows"),
    "UTF-16": (("\ufeff" + line().decode()).encode("utf-16-le"), "it is UTF-16: save it as UTF-8"),
    "nothing sound": (b"{}\n[]\n", "nothing sound.jsonl:1: no 'audio'"),
    "a whole array": (b"[" + line() + b"]\n", "an array"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_manifest_without_a_sound_row_is_an_error_that_names_it(tmp_path, name):
    content, message = UNUSABLE[name]
    manifest = tmp_path / f"{name}.jsonl"
    manifest.write_bytes(content)
    with pytest.raises(BadInput, match="has no usable row") as raised:
        list(read_rows([manifest], Rules(), Report()))
    assert str(manifest) in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "loop", "pipe"])
def test_what_is_no_manifest_is_an_error_and_the_other_files_go_on(tmp_path, kind):
    place = tmp_path / f"{kind}.jsonl"
    if kind == "folder":
        place.mkdir()
    elif kind == "loop":
        place.symlink_to(place)
    elif kind == "pipe":
        os.mkfifo(place)  # reading it would wait for ever
    good = tmp_path / "z.jsonl"
    good.write_bytes(line())
    report = Report()
    assert [row.line for row in read_rows([place, good], Rules(), report)] == [1]
    assert [(one.file, one.line, one.reason) for one in report.dropped] == [(str(place), 0, "no manifest")]
    assert str(report.dropped[0]).startswith(f"{place}: it ")
    with pytest.raises(BadInput, match=kind):
        list(read_rows([place], Rules(), Report()))


def test_what_windows_writes_is_read(tmp_path):
    manifest = tmp_path / "windows.jsonl"
    manifest.write_bytes(b"\xef\xbb\xbf" + line() + b"\r\n\r\n" + line(text="b") + b"\r\n")
    assert [(row.line, row.text) for row in read_rows([manifest], Rules(), Report())] == [(1, "hello there"), (3, "b")]


def test_a_duplicate_in_another_file_names_that_file(tmp_path):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_bytes(line())
    report = Report()
    assert len(list(read_rows(files, Rules(), report))) == 1
    assert str(report.dropped[0]) == f"{files[1]}:1: the same row as {files[0]}:1"


def test_emotions_can_be_renamed_left_out_or_not_looked_at(tmp_path):
    manifest = tmp_path / "m.jsonl"
    names = ["joy", "Sad", "fear", "", None, "cheerful"]
    manifest.write_bytes(b"\n".join(line(emotion=name, text=f"a {name}") for name in names))
    mapping = {"joy": "happy", "fear": "ignore"}
    report = Report()
    rows = list(read_rows([manifest], Rules(emotion_map=mapping), report))
    assert [row.emotion for row in rows] == ["happy", "sad", None, None, None]
    assert [one.reason for one in report.dropped] == ["unknown emotion"]
    untouched = [row.emotion for row in read_rows([manifest], Rules(emotions="any"), Report())]
    assert untouched == ["joy", "Sad", "fear", "", "", "cheerful"]


def test_only_rows_with_the_wanted_fields_are_taken(tmp_path):
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(line(split="train", take=1) + b"\n" + line(split="test", take=1) + b"\n" + line())
    report = Report()
    rows = list(read_rows([manifest], Rules(where={"split": "train", "take": "1"}), report))
    assert [row.line for row in rows] == [1]
    assert [one.reason for one in report.dropped] == ["not wanted"] * 2


def test_a_row_may_name_a_key_instead_of_a_recording(tmp_path):
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(line(audio=..., key="abc"))
    (row,) = read_rows([manifest], Rules(), Report())
    assert inspect(row, 1.0, 30.0) == (None, 0, "abc", None)


def test_recordings_are_found_beside_above_and_in_the_working_directory(tmp_path, monkeypatch):
    for place in ("corpus/audio", "corpus/labels/clean", "elsewhere", "root"):
        (tmp_path / place).mkdir(parents=True)
    for file in ("corpus/audio/a.wav", "corpus/labels/clean/b.wav", "elsewhere/c.wav", "root/d.wav", "corpus/x:1:2"):
        (tmp_path / file).touch()
    manifest = tmp_path / "corpus/labels/clean/m.jsonl"
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = {name: find_audio(name, manifest).path for name in ("audio/a.wav", "b.wav", "c.wav")}
    assert found["audio/a.wav"] == tmp_path / "corpus/audio/a.wav"
    assert found["b.wav"] == tmp_path / "corpus/labels/clean/b.wav"
    assert found["c.wav"] == tmp_path / "elsewhere/c.wav"
    assert find_audio(str(tmp_path / "root/d.wav"), manifest).path == tmp_path / "root/d.wav"
    assert find_audio("d.wav", manifest, tmp_path / "root").path == tmp_path / "root/d.wav"
    assert find_audio("b.wav:10:20", manifest) == Clip(tmp_path / "corpus/labels/clean/b.wav", 10, 20)
    assert find_audio("x:1:2", manifest) == Clip(tmp_path / "corpus/x:1:2")  # a file of that name comes first
    with pytest.raises(BadRow, match=r"is neither in .*root"):
        find_audio("e.wav", manifest, tmp_path / "root")


def test_a_part_of_a_recording_is_that_part(recordings):
    whole, rate = soundfile.read(recordings / "good.flac")
    part = read_clip(Clip(recordings / "good.flac", 4000, 9000))
    assert rate == 8000
    assert len(part) == 18000
    assert part.dtype == np.float32
    np.testing.assert_allclose(part[200:-200:2], whole[4100:12900], atol=0.2)
    assert np.corrcoef(part[::2], whole[4000:13000])[0, 1] > 0.9


def test_limits_are_the_originals_to_the_sample(recordings, tmp_path):
    for samples in (15999, 16000, 480000, 480001):
        soundfile.write(tmp_path / f"{samples}.wav", noise(samples / 16000), 16000)
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(b"\n".join(line(audio=f"{n}.wav") for n in (15999, 16000, 480000, 480001)))
    rows = read_rows([manifest], Rules(), Report())
    assert [found.samples for row in rows if not (found := inspect(row, 1.0, 30.0)).problem] == [16000, 480000]


def test_manifests_are_found_by_name_or_pattern(tmp_path):
    for name in ("b.jsonl", "a_clean.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_manifests(tmp_path, ["*.jsonl"])] == ["a_clean.jsonl", "b.jsonl"]
    assert [path.name for path in find_manifests(tmp_path, ["b.jsonl", "*_clean.jsonl"])] == [
        "a_clean.jsonl",
        "b.jsonl",
    ]
    with pytest.raises(BadInput, match=r"has no c\.jsonl"):
        find_manifests(tmp_path, ["b.jsonl", "c.jsonl"])
    with pytest.raises(BadInput, match="is no folder"):
        find_manifests(tmp_path / "b.jsonl", ["*"])


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
objects = st.dictionaries(st.sampled_from(["audio", "text", "emotion", "output", "key", "early_stop", "x"]), values)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=40) | objects.map(lambda row: json.dumps(row).encode()), max_size=8))
def test_nothing_in_a_manifest_stops_the_reader(tmp_path_factory, lines):
    manifest = tmp_path_factory.mktemp("any") / "any.jsonl"
    manifest.write_bytes(line() + b"\n" + b"\n".join(lines) + b"\n" + line(text="at the end"))
    report = Report()
    rows = list(read_rows([manifest], STAGE2, report))
    content = manifest.read_bytes().split(b"\n")
    assert rows[0].line == 1
    assert rows[-1].text == "at the end"
    assert rows[-1].line == len(content)
    assert len(rows) + len(report.dropped) == sum(bool(one.strip()) for one in content)
    assert all(len(str(one).splitlines()) == 1 for one in report.dropped)
