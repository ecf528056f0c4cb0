"""The check of recordings: what is wrong with each is found and named, and the good ones go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from assistant.finetune.tuning_data import Recording
from model.errors import BadInput
from training.__main__ import main
from training.finetune.recordings import check

RATE = 16_000


def voice(seconds: float = 2.0, seed: int = 0, noise: float = 0.001) -> np.ndarray:
    """Syllables of a hum with pauses between them."""
    time = np.arange(int(seconds * RATE)) / RATE
    hum = sum(np.sin(2 * np.pi * (120 + seed) * k * time) / k for k in range(1, 8))
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * time), 0, 1) ** 2
    random = np.random.default_rng(seed)
    return (0.2 * hum * syllables + random.normal(0, noise, len(time))).astype(np.float32)


def write(path: Path, samples: np.ndarray | None = None, text: str = "some words", rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, voice() if samples is None else samples, rate)
    if text:
        path.with_suffix(".txt").write_text(text, "utf-8")
    return path


def kinds(row: Recording, **mapping: str) -> list[str]:
    return [one.kind for one in row.problems(mapping)]


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (voice(), []),
        (voice(0.3), ["too short"]),
        (voice(31), ["too long"]),
        ((voice() * 20).clip(-1, 1), ["clipped"]),
        (np.zeros(RATE, np.float32), ["silent"]),
        (voice(noise=0.2), ["noisy"]),
        (voice(0.05), ["too short"]),
    ],
)
def test_how_a_recording_sounds(tmp_path: Path, samples: np.ndarray, found: list[str]) -> None:
    write(tmp_path / "sad" / "a.wav", samples)
    (row,) = check(tmp_path, {})
    assert kinds(row) == found
    assert row.usable({}) == (found in ([], ["clipped"], ["noisy"]))


@pytest.mark.parametrize("rate", [8000, 22_050, 48_000])
def test_clipping_is_seen_at_any_rate(tmp_path: Path, rate: int) -> None:
    write(tmp_path / "sad" / "loud.wav", (voice() * 20).clip(-1, 1), rate=rate)
    write(tmp_path / "sad" / "fine.wav", voice() * 2, rate=rate)
    assert {Path(row.audio).stem: kinds(row) for row in check(tmp_path, {})} == {"loud": ["clipped"], "fine": []}


def test_files_that_are_no_sound(tmp_path: Path) -> None:
    whole = write(tmp_path / "sad" / "cut.wav")
    whole.write_bytes(whole.read_bytes()[:20_000])
    (tmp_path / "sad" / "text.wav").write_bytes(b"words")
    (tmp_path / "sad" / "empty.flac").write_bytes(b"")
    assert [kinds(row)[0] for row in check(tmp_path, {})] == ["unreadable"] * 3


def test_the_same_sound_twice(tmp_path: Path) -> None:
    one = write(tmp_path / "sad" / "a.wav")
    one.with_name("b.wav").write_bytes(one.read_bytes())
    write(tmp_path / "sad" / "c.wav", voice(seed=1))
    first, second, other = check(tmp_path, {})
    assert [row.heard for row in (first, other)] == [(), ()]
    assert [one.kind for one in second.heard] == ["duplicate"]
    assert "a.wav" in second.heard[0].message


@pytest.mark.parametrize(
    ("name", "emotion", "speaker", "suggestion"),
    [
        ("happy/01.wav", "happy", "", ""),
        ("anna/sad/01.wav", "sad", "anna", ""),
        ("anna_angry_3.wav", "angry", "anna", ""),
        ("joy/01.wav", "joy", "", "happy"),
        ("03-furious.wav", "furious", "", "angry"),
        ("wistful/01.wav", "wistful", "", ""),
        ("take1.wav", "", "", ""),
        ("sad/happy-birthday.wav", "sad", "", ""),
    ],
)
def test_names_tell_emotion_and_speaker(tmp_path: Path, name: str, emotion: str, speaker: str, suggestion: str) -> None:
    write(tmp_path / name)
    (row,) = check(tmp_path, {})
    assert (row.emotion, row.speaker, row.suggestion, row.text) == (emotion, speaker, suggestion, "some words")


def test_a_table_tells_more_than_names(tmp_path: Path) -> None:
    write(tmp_path / "happy" / "1.wav", text="")
    write(tmp_path / "happy" / "2.wav", voice(seed=9), text="beside")
    (tmp_path / "metadata.csv").write_text("file,transcript,label,speaker\nhappy/1.wav,Hello,sad,anna\n", "utf-8")
    first, second = check(tmp_path, {})
    assert (first.text, first.emotion, first.speaker) == ("Hello", "sad", "anna")
    assert (second.text, second.emotion) == ("beside", "happy")
    (tmp_path / "metadata.csv").write_text("a,b\n", "utf-8")
    with pytest.raises(BadInput, match="first line"):
        check(tmp_path, {})


def test_bad_lines_of_a_manifest_are_rows_too(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    good = {"audio": "a.wav", "text": "words", "emotion": "Joy", "voice": "anna"}
    lines = [json.dumps(good), "{broken", json.dumps(good), json.dumps(good | {"audio": "gone.wav"})]
    lines.append(json.dumps(good | {"consent": False, "text": None}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines), "utf-8")
    rows = check(tmp_path / "m.jsonl", {"Joy": "happy"})
    assert [kinds(row, Joy="happy") for row in rows] == [
        [],
        ["bad line", "no emotion", "no transcript"],
        ["duplicate", "no emotion", "no transcript"],
        ["missing"],
        ["no consent", "duplicate", "no transcript"],
    ]
    assert rows[0].speaker == "anna"
    assert rows[1].audio == "m.jsonl:2"


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no recording"):
        check(tmp_path, {})
    with pytest.raises(BadInput, match="does not exist"):
        check(tmp_path / "none.jsonl", {})


def test_the_command_prints_every_recording_and_writes_the_good_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        write(tmp_path / "data" / "sad" / f"{number}.wav", voice(seed=number))
        write(tmp_path / "data" / "joy" / f"{number}.wav", voice(seed=10 + number))
    out = tmp_path / "manifest.jsonl"
    words = ["check", str(tmp_path / "data"), "--json", "--write", str(out)]
    assert main(words) == 2  # one emotion alone
    capsys.readouterr()
    assert main([*words, "--emotion-map", "joy=happy"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["recording"]["audio"]).parent.name for line in lines[:-1]] == ["joy", "joy", "sad", "sad"]
    assert lines[-1]["usable"] == 4
    assert [json.loads(line)["emotion"] for line in out.read_text().splitlines()] == ["happy", "happy", "sad", "sad"]
    assert main([*words, "--emotion-map", "joy=glad"]) == 2
    assert "joy=glad" in capsys.readouterr().err
