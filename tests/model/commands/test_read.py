"""The command `read`: JSON lines, the CSV file, folders, and the baseline, on tiny random checkpoints."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock

import main
from assistant.events import EMOTIONS, Spoken
from model.audio.files import read_audio
from model.checkpoints import loader
from model.checkpoints.emotion_loader import load_emotion
from model.commands.read import recordings
from model.commands.read_table import COLUMNS, ReadTable
from model.errors import BadInput, WeightsMissing
from model.inference.emotion_reader import NO_HEAD, EmotionReader
from model.inference.engine import Engine
from tests.support.tiny import tiny_checkpoint


def speech(path: Path, seed: int = 0, seconds: float = 1.5) -> Path:
    """Noise in place of speech; tiny models have no opinion."""
    noise = np.random.default_rng(seed).standard_normal(int(16_000 * seconds))
    soundfile.write(path, 0.1 * noise, 16_000)
    return path


def silence(path: Path) -> Path:
    soundfile.write(path, np.zeros(16_000), 16_000)
    return path


def read(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[dict], str]:
    code = main.main(["read", *map(str, words)])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


# ---- loading


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"emotion_source": "encoder", "emotion_layers": [0, 1], "window": "trimmed", "lora_rank": 0},
        {"adapter_type": "cformer", "adapter_kernel_sizes": []},
        {"adapter_type": "spelling", "adapter_kernel_sizes": [5, 5]},
    ],
    ids=["conv", "encoder", "cformer", "spelling"],
)
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_reading_is_the_same_without_the_language_model(
    tmp_path: Path, without_recogniser: None, config: dict, quantize: str
) -> None:
    tiny_checkpoint(**config).save(tmp_path / "tiny")
    samples = read_audio(speech(tmp_path / "a.wav", seconds=2))
    whole = Engine(loader.load(str(tmp_path / "tiny"), device="cpu", quantize=quantize, threads=1))
    loaded = load_emotion(str(tmp_path / "tiny"), device="cpu", quantize=quantize)
    alone, why = EmotionReader(loaded.model, loaded.extractor).read(samples)
    reading = whole.hear(Spoken(samples)).reading
    assert why is None
    assert alone is not None
    assert reading is not None
    assert alone.frame_seconds == reading.frame_seconds
    np.testing.assert_allclose(alone.contributions, reading.contributions, atol=1e-5)
    np.testing.assert_allclose(alone.probabilities, reading.probabilities, atol=1e-6)
    held = {name.split(".")[0] for name in loaded.model.state_dict()}
    assert ("language_model" in held) == (config.get("adapter_type") == "spelling")


def test_a_checkpoint_without_a_head_gives_no_reading(tmp_path: Path, without_recogniser: None, capsys) -> None:
    tiny_checkpoint(emotion_source="none").save(tmp_path / "tiny")
    one = speech(tmp_path / "a.wav")
    code, (line,), _ = read(capsys, one, "--baseline", one, "--json", "--model", tmp_path / "tiny")
    assert code == 0
    assert line == {"file": str(one), "duration_seconds": 1.5, "reading": None, "why": NO_HEAD}


def test_damaged_and_unknown_checkpoints_say_so(folder: Path, tmp_path: Path, capsys) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(WeightsMissing, match="again"):
        load_emotion(str(folder))
    code, lines, err = read(capsys, speech(tmp_path / "a.wav"), "--model", "nothing-here", "--json")
    assert (code, lines) == (3, [])
    assert len(err.splitlines()) == 1


# ---- JSON lines


def test_one_object_per_recording_in_order(folder: Path, tmp_path: Path, capsys) -> None:
    names = ["b.wav", "a.flac", "c.ogg"]
    for seed, name in enumerate(names):
        speech(tmp_path / name, seed)
    given = [tmp_path / name for name in names]
    code, lines, err = read(capsys, given[0], "--model", folder, "--json", *given[1:])
    assert code == 0
    assert [line["file"] for line in lines] == list(map(str, given))
    for line in lines:
        assert list(line) == ["file", "duration_seconds", "reading", "why"]
        assert (line["duration_seconds"], line["why"]) == (1.5, None)
        reading = line["reading"]
        assert list(reading) == [
            "label", "confidence", "probabilities", "candidates", "frame_seconds", "contributions", "offset",
        ]  # fmt: skip
        assert list(reading["probabilities"]) == list(EMOTIONS)
        logits = np.sum(reading["contributions"], axis=0) + reading["offset"]
        expected = np.exp(logits - logits.max())
        assert np.allclose(list(reading["probabilities"].values()), expected / expected.sum(), atol=1e-5)
        assert reading["candidates"] == [reading["label"]]
    assert "3 recordings, 4.5 s of audio" in err


def test_ask_gives_the_same_reading(folder: Path, tmp_path: Path, capsys) -> None:
    one = speech(tmp_path / "a.wav")
    _, (line,), _ = read(capsys, one, "--model", folder, "--json", "--quantize", "none")
    assert main.main(["ask", str(one), "--text", "hi", "--model", str(folder), "--json", "--quantize", "none"]) == 0
    asked, typed = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(asked["reading"]) == list(line["reading"])
    assert asked["reading"]["label"] == line["reading"]["label"]
    np.testing.assert_allclose(asked["reading"]["contributions"], line["reading"]["contributions"], atol=1e-5)
    assert asked["why"] is None
    assert typed["reading"] is None
    assert "typed" in typed["why"]


def test_an_unsure_reading_names_no_candidates(tmp_path: Path, without_recogniser: None, capsys) -> None:
    tiny_checkpoint(emotion_threshold=1.0).save(tmp_path / "tiny")
    one = speech(tmp_path / "a.wav")
    _, (line,), _ = read(capsys, one, "--model", tmp_path / "tiny", "--json", "--no-contributions")
    assert list(line["reading"]) == ["label", "confidence", "probabilities", "candidates", "frame_seconds"]
    assert line["reading"]["label"] == line["reading"]["candidates"] == "unsure"
    assert main.main(["read", str(one), "--model", str(tmp_path / "tiny")]) == 0
    assert "unsure, closest to" in capsys.readouterr().out


def test_what_cannot_be_read_is_named_and_the_others_go_on(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    given = [
        tmp_path / "absent.wav",
        silence(tmp_path / "silent.wav"),
        tmp_path / "text.wav",
        speech(tmp_path / "a.wav"),
    ]
    code, lines, err = read(capsys, *given, "--model", folder, "--json")
    assert code == 2
    assert [line["reading"] is None for line in lines] == [True, True, True, False]
    assert [line["duration_seconds"] for line in lines] == [None, 1.0, None, 1.5]
    assert "does not exist" in lines[0]["why"]
    assert lines[1]["why"].startswith("silent")
    assert "not WAV" in lines[2]["why"]
    assert [line.split(": ")[0] for line in err.splitlines()[:-1]] == [str(given[0]), str(given[2])]
    assert err.splitlines()[-1].endswith("1 without a reading, 2 could not be read")


def test_silence_is_an_answer_and_no_failure(folder: Path, tmp_path: Path, capsys) -> None:
    code, (line,), err = read(capsys, silence(tmp_path / "a.wav"), "--model", folder, "--json")
    assert (code, err) == (0, "")
    assert line["reading"] is None
    assert main.main(["read", str(tmp_path / "a.wav"), "--model", str(folder)]) == 0
    assert "no reading: silent" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [[], ["--baseline", "a.wav"], ["--csv", "nowhere/out.csv", "a.wav"], ["--csv", ".", "a.wav"]]
)
def test_nothing_to_read_or_nowhere_to_write(words: list[str], capsys) -> None:
    code, lines, err = read(capsys, *words)
    assert (code, lines) == (2, [])
    assert len(err.splitlines()) == 1


# ---- folders


def test_folders_are_walked_by_name(folder: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "root"
    for name in ("b/2.wav", "b/1.MP3", "a/x.flac", ".hidden/no.wav", "z.opus", ".no.wav", "notes.txt", "b/10.oga"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    found = [str(path.relative_to(root)) for path in recordings([root])]
    assert found == [str(Path(name)) for name in ("z.opus", "a/x.flac", "b/1.MP3", "b/10.oga", "b/2.wav")]
    (root / "empty").mkdir()
    code, (line,), err = read(capsys, root / "empty", "--model", folder, "--json")
    assert code == 2
    assert line["why"].startswith("no recording in it")
    assert len(err.splitlines()) == 1


# ---- the baseline


def test_a_baseline_is_the_mean_of_each_recordings_mean_frame(folder: Path, tmp_path: Path, capsys) -> None:
    loaded = load_emotion(str(folder))
    reader = EmotionReader(loaded.model, loaded.extractor)
    short, long = (read_audio(speech(tmp_path / f"{n}.wav", n, n)) for n in (1, 3))
    expected = (reader.frames(short).mean(0) + reader.frames(long).mean(0)) / 2
    assert torch.allclose(reader.mean_of([short, long]), expected, atol=1e-6)
    given = tmp_path / "1.wav", "--json", "--model", folder
    _, (plain,), _ = read(capsys, *given)
    _, (compared,), _ = read(capsys, *given, "--baseline", tmp_path / "1.wav", tmp_path / "3.wav")
    assert compared["reading"]["probabilities"] != plain["reading"]["probabilities"]
    logits = np.sum(compared["reading"]["contributions"], axis=0) + compared["reading"]["offset"]
    probabilities = list(compared["reading"]["probabilities"].values())
    assert np.allclose(np.log(probabilities) - np.log(probabilities[0]), logits - logits[0], atol=1e-5)


def test_a_baseline_that_cannot_be_read_stops_it(folder: Path, tmp_path: Path, capsys) -> None:
    one = speech(tmp_path / "a.wav")
    code, lines, err = read(capsys, one, "--json", "--model", folder, "--baseline", silence(tmp_path / "s.wav"))
    assert (code, lines) == (2, [])
    assert "s.wav: silent" in err


# ---- the CSV file


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_readings_as_a_table(folder: Path, tmp_path: Path, capsys) -> None:
    given = [speech(tmp_path / "a, b.wav"), silence(tmp_path / "s.wav"), tmp_path / "absent.wav"]
    out = tmp_path / "out.csv"
    code, lines, err = read(capsys, *given, "--csv", out, "--model", folder)
    assert (code, lines) == (2, [])
    assert "3 recordings in" in err
    first, second, third = rows(out)
    assert tuple(first) == COLUMNS
    assert first["file"] == str(given[0])
    assert first["label"] == first["candidates"] in EMOTIONS
    assert sum(float(first[name]) for name in EMOTIONS) == pytest.approx(1, abs=1e-5)
    assert (first["size"], first["mtime_ns"]) == (str(given[0].stat().st_size), str(given[0].stat().st_mtime_ns))
    assert (second["label"], second["duration_seconds"]) == ("", "1.0")
    assert second["why"].startswith("silent")
    assert (third["duration_seconds"], third["size"]) == ("", "")
    assert not list(tmp_path.glob("out.csv?*"))


def test_only_new_and_changed_recordings_are_read(folder: Path, tmp_path: Path, capsys) -> None:
    kept, changed = speech(tmp_path / "kept.wav"), speech(tmp_path / "changed.wav", 1)
    out = tmp_path / "out.csv"
    assert read(capsys, kept, changed, "--csv", out, "--model", folder)[0] == 0
    before = {row["file"]: row for row in rows(out)}
    # Other sound of the same size and time: a row that stays was not read again.
    about = kept.stat()
    speech(kept, 7)
    os.utime(kept, ns=(about.st_atime_ns, about.st_mtime_ns))
    speech(changed, 8)
    os.utime(changed, ns=(0, 1))
    new = speech(tmp_path / "new.wav", 2)
    code, _, err = read(capsys, kept, changed, new, new, "--csv", out, "--model", folder)
    after = {row["file"]: row for row in rows(out)}
    assert code == 0
    assert "4 recordings in" in err
    assert len(rows(out)) == 3
    assert after[str(kept)] == before[str(kept)]
    assert after[str(changed)]["neutral"] != before[str(changed)]["neutral"]
    # Another baseline gives other readings: all are read again.
    read(capsys, kept, "--csv", out, "--model", folder, "--baseline", new)
    assert {row["file"]: row for row in rows(out)}[str(kept)]["neutral"] != before[str(kept)]["neutral"]
    assert len(rows(out)) == 3


def test_what_failed_before_still_counts(folder: Path, tmp_path: Path, capsys) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    for _ in range(2):
        assert read(capsys, bad, "--csv", tmp_path / "out.csv", "--model", folder)[0] == 2
    assert len(rows(tmp_path / "out.csv")) == 1


def result(file: Path, why: str) -> dict[str, object]:
    return {"file": str(file), "duration_seconds": 1.5, "reading": None, "why": why}


def test_a_torn_last_line_is_repaired_wherever_it_is_torn(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    files = [speech(tmp_path / f"{name}.wav", seconds=0.2) for name in ("a", 'q"\nü,')]
    with ReadTable(out, "tiny 1") as table:
        for file in files:
            table.add(result(file, 'it says "no",\nand ends'))
        assert table.unread(files) == []
    whole = out.read_bytes()
    header, first = whole.index(b"\n") + 1, whole.index(b"1\n", whole.index(b"ends")) + 2
    for cut in range(len(whole)):
        out.write_bytes(whole[:cut])
        with ReadTable(out, "tiny 1") as table:
            assert out.read_bytes() == whole[: header if cut < first else first]
            assert table.unread(files) == (files if cut < first else files[1:])
            for file in table.unread(files):
                table.add(result(file, 'it says "no",\nand ends'))
        assert out.read_bytes() == whole


@pytest.mark.parametrize("content", ["name,age\nx,1\n", "RIFF", "\x00\x01", "a,b"])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: str) -> None:
    out = tmp_path / "out.csv"
    out.write_text(content)
    with pytest.raises(BadInput, match="not a table of readings"), ReadTable(out, "tiny 1"):
        pass
    assert out.read_text() == content


def test_one_process_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with FileLock(f"{out}.lock"), pytest.raises(BadInput, match="another process"), ReadTable(out, "tiny 1"):
        pass


def test_a_table_saved_by_a_spreadsheet_goes_on(tmp_path: Path) -> None:
    out, file = tmp_path / "out.csv", speech(tmp_path / "a.wav")
    with ReadTable(out, "tiny 1") as table:
        table.add(result(file, "quiet"))
    plain = out.read_bytes()
    out.write_bytes(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"))
    with ReadTable(out, "tiny 1") as table:
        assert table.unread([file]) == []
    assert out.read_bytes() == plain
