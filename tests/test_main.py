"""The command line, with a tiny random checkpoint behind it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import main
from assistant.events import EMOTIONS
from model.checkpoints import loader
from model.commands import ask
from tests.support.tiny import tiny_checkpoint

KEYS = {
    "file", "duration_seconds", "transcript", "reading", "why", "reply", "path", "model", "device", "quantize",
    "limit_reached", "timings_ms", "error",
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A tiny checkpoint instead of the downloaded one, and a home of its own."""
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(loader, "load", lambda *_args, **_kwargs: tiny_checkpoint())
    return tmp_path


def write(path: Path, samples: np.ndarray) -> str:
    soundfile.write(path, samples, 16_000)
    return str(path)


def speech(path: Path, seed: int = 0) -> str:
    return write(path, 0.1 * np.random.default_rng(seed).standard_normal(24_000))


def test_inputs_keep_their_order() -> None:
    words = ["ask", "a.wav", "--text", "one", "b.wav", "c.wav", "--json", "--text=two", "a.wav", "--model", "a.wav"]
    expected = [Path("a.wav"), "one", Path("b.wav"), Path("c.wav"), "two", Path("a.wav")]
    assert main.parser(words).parse_args(words).inputs == expected
    words = ["ask", "--speak", "r.wav", "--text", "one", "--", "-a.wav"]
    assert main.parser(words).parse_args(words).inputs == ["one", Path("-a.wav")]


def test_one_json_object_per_input_and_nothing_else(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.main(["ask", speech(tiny / "a.wav"), "--text", "and you?", speech(tiny / "b.flac", 1), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0
    assert [line["file"] for line in lines] == [str(tiny / "a.wav"), None, str(tiny / "b.flac")]
    for line in lines:
        assert set(line) == KEYS
        assert set(line["timings_ms"]) == {"load", "encode", "prefill", "first_token", "reply"}
        assert line["error"] is None
    reading = lines[0]["reading"]
    assert set(reading["probabilities"]) == set(EMOTIONS)
    logits = np.sum(reading["contributions"], axis=0) + reading["offset"]
    expected = np.exp(logits - logits.max())
    assert np.allclose(list(reading["probabilities"].values()), expected / expected.sum(), atol=1e-5)
    assert lines[1]["reading"] is None
    assert lines[1]["transcript"] == "and you?"
    assert lines[0]["duration_seconds"] == 1.5


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"not audio at all",
        np.zeros(16_000),
        np.full(16_000, np.nan),
        0.1 * np.ones(100),
    ],
    ids=["missing", "empty", "text", "silence", "nan", "short"],
)
def test_bad_input_is_one_line_and_the_others_are_answered(
    tiny: Path, capsys: pytest.CaptureFixture[str], content: object
) -> None:
    bad = tiny / "bad.wav"
    if isinstance(content, bytes):
        bad.write_bytes(content)
    elif isinstance(content, np.ndarray):
        soundfile.write(bad, content, 16_000, subtype="FLOAT")
    code = main.main(["ask", str(bad), "--text", "hello", "--json"])
    captured = capsys.readouterr()
    first, second = (json.loads(line) for line in captured.out.splitlines())
    assert code == 2
    assert first["error"] in captured.err
    assert "bad.wav" in first["error"]
    assert "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert second["reply"] is not None
    assert second["error"] is None


@pytest.mark.parametrize("arguments", [["ask"], ["ask", "--text", "  "]])
def test_nothing_to_answer(tiny: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main.main(arguments) == 2
    assert capsys.readouterr().err.strip()


def test_the_reply_is_spoken_into_a_file(tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(ask, "answer", lambda *_: "Good morning. It is seven o'clock.")
    assert main.main(["ask", "--text", "hi", "--speak", str(tiny / "out.wav")]) == 0
    samples, rate = soundfile.read(tiny / "out.wav")
    assert 1 < len(samples) / rate < 6
    assert np.abs(samples).max() > 0.05


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_answered(tiny: Path, capsys) -> None:
    assert main.main(["ask", "--text", "hi", "--speak", str(tiny / "nowhere" / "out.wav")]) == 2
    captured = capsys.readouterr()
    assert "choose a folder" in captured.err
    assert not captured.out


def test_an_unknown_checkpoint_says_what_there_is(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path))
    assert main.main(["ask", "--text", "hi", "--model", str(tmp_path / "nowhere")]) == 3
    assert "mini" in capsys.readouterr().err


def test_a_bug_is_logged_and_exits_with_one(tiny: Path, capsys, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(ask, "read_message", broken)
    assert main.main(["ask", "--text", "hi"]) == 1
    assert "planted" not in capsys.readouterr().err
    assert "planted" in (tiny / "home" / "logs" / "undertone.log").read_text()


def test_interrupt_exits_with_130(tiny: Path, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ask, "read_message", interrupted)
    assert main.main(["ask", "--text", "hi"]) == 130


def test_unknown_options_are_refused(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main(["ask", "--text", "hi", "--speek", "x.wav"])
    assert stopped.value.code == 2
    assert "--speek" in capsys.readouterr().err


def test_doctor_reports_every_finding(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path))
    assert main.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "gpu", "memory", "disk", "model mini", "voices", "sound"} <= set(report)
    assert "downloads" in report["model mini"]["remedy"]


def test_the_window_of_the_process_imports_nothing_heavy_by_itself() -> None:
    source = Path(main.__file__).read_text("utf-8")
    head = source.split("def parser", 1)[0].split("if TYPE_CHECKING:")[0]
    assert "torch" not in head
    assert "from model" not in head
