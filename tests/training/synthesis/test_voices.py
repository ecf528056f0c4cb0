"""The voices of the corpus: espeak-ng itself, and scripted programs in place of flite and ffmpeg."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.errors import BadInput
from training.synthesis import voices
from training.synthesis.voices import Source, human_sources, speak

RATE = 16_000
TEXT = "Maria put the kettle on the table yesterday."


def source(engine: str, voice: str = "", where: Path | str = "", text: str = TEXT) -> Source:
    return Source(f"{engine}-{voice}-0001", engine, voice, "train", text, str(where))


def tone(seconds: float, rate: int) -> np.ndarray:
    return 0.3 * np.sin(np.arange(round(seconds * rate)) / 20)


def program(folder: Path, name: str, script: str) -> None:
    """Put a Python script on the path under the name of a program."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_espeak_speaks_at_the_same_rate_for_the_same_seed(tmp_path: Path) -> None:
    """Not sample by sample: espeak-ng lets its pitch flutter at random."""
    one, again = (speak(source("espeak", "en-us+m1"), 0, tmp_path) for _ in range(2))
    assert one.dtype == np.float32
    assert np.abs(one).max() == pytest.approx(0.7)
    assert 1.0 < len(one) / RATE < 6.0
    assert np.flatnonzero(np.abs(one) > 0.014)[0] <= RATE // 10  # of the silence before it no more is left
    assert len(again) == pytest.approx(len(one), rel=0.02)


def test_a_voice_that_espeak_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no voice 'nobody'"):
        speak(source("espeak", "nobody"), 0, tmp_path)


def test_what_is_too_short_is_left_out(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", tone(0.5, RATE), RATE)
    with pytest.raises(BadInput, match=r"human-ada-0001: under 0\.6 s of speech"):
        speak(source("human", "ada", tmp_path / "short.wav"), 0, tmp_path)


def test_a_recording_of_any_rate_becomes_mono_at_16_khz(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(1.0, 44_100)] * 2, 1), 44_100)
    assert len(speak(source("human", "ada", tmp_path / "a.wav"), 0, tmp_path)) == pytest.approx(RATE, abs=RATE // 10)


def test_flite_is_run_for_its_voice(path: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    program(
        path,
        "flite",
        "import numpy, soundfile\n"
        f"open({str(said)!r}, 'w').write(repr(sys.argv[1:5]))\n"
        "soundfile.write(sys.argv[6], 0.2 * numpy.sin(numpy.arange(16000) / 9), 8000)",
    )
    samples = speak(source("flite", "slt"), 0, tmp_path)
    assert said.read_text() == repr(["-voice", "slt", "-t", TEXT])
    assert len(samples) == pytest.approx(2 * RATE, abs=RATE // 10)


def test_ffmpeg_reads_asterisks_recordings(path: Path, tmp_path: Path) -> None:
    program(path, "ffmpeg", "import numpy\nsys.stdout.buffer.write(numpy.full(20000, 0.5, 'float32').tobytes())")
    assert len(speak(source("human", "allison", tmp_path / "a.g722"), 0, tmp_path)) == pytest.approx(20_000, abs=2)
    program(path, "ffmpeg", "sys.exit('banner\\na.g722: no such file')")
    with pytest.raises(BadInput, match=r"a\.g722: a\.g722: no such file"):
        speak(source("human", "allison", tmp_path / "a.g722"), 0, tmp_path)


@pytest.mark.parametrize(
    ("engine", "where", "message"),
    [("flite", "", "flite is missing"), ("human", "a.g722", "needs ffmpeg"), ("kokoro", "", "no Kokoro model")],
)
def test_what_is_missing_is_named(path: Path, tmp_path: Path, engine: str, where: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        speak(source(engine, "af_bella", where), 0, tmp_path)


def test_human_speech_is_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIBRIVOX", "ALLISON", "ALLISON_TEXTS"):
        monkeypatch.setattr(voices, name, tmp_path / name)
    assert human_sources(5) == []
    (tmp_path / "LIBRIVOX").mkdir()
    (tmp_path / "LIBRIVOX" / "transcription").write_text("<s> go forward </s> (first-1)\n")
    (tmp_path / "ALLISON").mkdir()
    texts = [f"{number}: this is prompt number {number}" for number in range(10)]
    listed = "\n".join([*texts, "beep: [a tone]", "short: two words"])
    (tmp_path / "ALLISON_TEXTS").write_bytes(gzip.compress(listed.encode()))
    found = human_sources(5)
    assert [(one.voice, one.split) for one in found] == [("librivox", "human"), *[("allison", "human")] * 5]
    assert found[0] == Source(
        "human-librivox-first-1", "human", "librivox", "human", "go forward", str(tmp_path / "LIBRIVOX" / "first-1.wav")
    )
    assert [one.text for one in found[1:]] == [f"this is prompt number {number}" for number in (0, 2, 4, 6, 8)]
