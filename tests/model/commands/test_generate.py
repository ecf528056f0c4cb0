"""The batch tool: bad lines in their place, options that cannot work, the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import main
from assistant.events import Spoken
from model.audio.files import read_audio
from model.checkpoints import loader
from model.commands import answer_lines
from model.commands.answer_lines import Answerer
from model.commands.generate import Job
from model.errors import BadInput
from model.inference.engine import Engine
from tests.model.support.generating import capture, options, run
from tests.support.converted import GOLDENS
from tests.support.tiny import tiny_checkpoint

# ---- lines and files


def recording(path: Path, seed: int = 0) -> Path:
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(12_000), 16_000)
    return path


def test_bad_lines_keep_their_place(tmp_path: Path) -> None:
    recording(tmp_path / "good.wav")
    (tmp_path / "text.wav").write_text("not audio")
    lines = [
        json.dumps({"audio": "good.wav", "emotion": "sad", "instruction": "Hm: "}).encode(),
        b'{"audio": "good.wav", "emotion"',
        b"\xff\xfe",
        b"[1, 2]",
        b"",
        json.dumps({"audio": "missing.wav", "emotion": "happy"}).encode(),
        json.dumps({"audio": "text.wav", "emotion": "angry"}).encode(),
        json.dumps({"audio": 7, "emotion": "neutral"}).encode(),
        json.dumps({"audio": None, "emotion": "neutral"}).encode(),
        json.dumps({"audio": "good.wav", "text": ["x"], "emotion": None}).encode(),
        b'{"emotion": "\\ud800", "text": "hi"}',
        b'{"emotion": NaN, "text": "hi"}',
        b'{"emotion": 1e999, "text": "hi"}',
        b"[" * 100_000,
        json.dumps({"audio": "a\0b", "emotion": "x"}).encode(),
        json.dumps({"audio": "x" * 5000, "emotion": "x"}).encode(),
        json.dumps({"text": "word " * 4096, "emotion": "long"}).encode(),
        json.dumps({"text": "hi", "emotion": {"a": [1, "ü"]}}).encode() + b"\r",
    ]
    words = ["--audio-field", "audio", "--text-field", "text", "--reference-field", "emotion", "--max-new-tokens", "4"]
    ours = run(tiny_checkpoint(), options(tmp_path, b"\n".join(lines) + b"\n\n", *words, "--batch-size", "5"))
    assert len(ours) == len(lines)
    assert [number for number, line in enumerate(ours) if "error" not in line] == [0, len(lines) - 1]
    assert all(line["response"] == "" and "\n" not in line["error"] for line in ours[1:-1])
    assert [line["reference"] for line in ours] == [
        "sad", "", "", "", "", "happy", "angry", "neutral", "neutral", None, "", "", "", "", "x", "x", "long",
        {"a": [1, "ü"]},
    ]  # fmt: skip
    assert "missing.wav" in ours[5]["error"]
    assert "'text' is not text" in ours[9]["error"]
    assert "shorten" in ours[16]["error"]


def test_recordings_are_found_beside_the_input_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "clips").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    recording(tmp_path / "data" / "clips" / "a.wav", 1)
    recording(tmp_path / "here" / "b.wav", 2)
    recording(tmp_path / "here" / "both.wav", 3)
    recording(tmp_path / "data" / "both.wav", 4)
    absolute = recording(tmp_path / "c.wav", 5)
    monkeypatch.chdir(tmp_path / "here")
    lines = [{"audio": name} for name in ("clips/a.wav", "b.wav", "both.wav", str(absolute))]
    chosen = options(tmp_path / "data", lines, "--audio-field", "audio", "--max-new-tokens", "1")
    answerer = Answerer(tiny_checkpoint(), chosen)
    found = [answerer._read(1, json.dumps(line).encode()).samples for line in lines]
    for samples, seed in zip(found, (1, 2, 4, 5), strict=True):
        assert samples is not None
        assert np.allclose(samples, 0.1 * np.random.default_rng(seed).standard_normal(12_000), atol=1e-3)


def test_the_default_batch_size_changes_no_reply(tmp_path: Path) -> None:
    lines: list[Any] = [{"audio": str(GOLDENS / "audio" / "speech_1p2s.wav"), "text": "abc " * n} for n in range(5)]
    lines.insert(2, {"text": "no sound"})
    words = ["--audio-field", "audio", "--text-field", "text", "--max-new-tokens", "6"]
    outputs = {
        json.dumps(run(tiny_checkpoint(), options(tmp_path, lines, *words, "--batch-size", size, restart=True)))
        for size in ("1", "4", "24")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("legacy", [False, True])
def test_rows_in_int8_are_answered_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool) -> None:
    loaded = tiny_checkpoint()
    loaded.quantize = "int8"
    calls = capture(monkeypatch)
    lines = [{"instruction": f"say {number}"} for number in range(3)]
    run(loaded, options(tmp_path, lines, *(["--legacy-batching"] if legacy else [])))
    assert [len(prompts) for prompts in calls] == ([3] if legacy else [1, 1, 1])


@pytest.mark.parametrize(
    ("stored", "words", "asked"),
    [
        (False, ["--device", "cpu"], "none"),
        (True, ["--device", "cpu"], "auto"),
        (False, ["--device", "cuda"], "auto"),
        (False, ["--device", "cpu", "--quantize", "int8"], "int8"),
    ],
)
def test_weights_on_a_cpu_stay_as_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool, words: list[str], asked: str
) -> None:
    config = {"model_type": "blsp_emo", **({"quantization_config": {"load_in_4bit": True}} if stored else {})}
    (tmp_path / "config.json").write_text(json.dumps(config))
    seen: list[str] = []
    monkeypatch.setattr(loader, "load", lambda *_args, quantize, **_kwargs: seen.append(quantize))
    answer_lines.load(options(tmp_path, None, "--model", str(tmp_path), *words))
    assert seen == [asked]


def test_a_checkpoint_that_answers_from_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mini's way: what was said stands in the prompt, behind the instruction, as the engine would put it."""
    loaded = tiny_checkpoint(path="transcript", adapter_kernel_sizes=[], emotion_source="none", examples=[["a", "b"]])
    heard: list[Spoken] = []

    class Words:
        text = "the sea"

    def transcript(_: Engine, spoken: Spoken) -> Words:
        heard.append(spoken)
        return Words()

    monkeypatch.setattr(Engine, "transcript", transcript)
    calls = capture(monkeypatch)
    lines = [{"audio": str(GOLDENS / "audio" / "speech_1p2s.wav")}, {"audio": None, "instruction": "only text"}]
    run(loaded, options(tmp_path, lines, "--audio-field", "audio"))
    run(loaded, options(tmp_path, lines, "--audio-field", "audio", "--instruction", "Repeat: ", restart=True))
    texts = [loaded.tokenizer.decode(prompt.prefix) for call in calls for prompt in call]
    assert [text.rpartition("user\n")[2] for text in texts] == [
        "the sea", "only text", "Repeat: the sea", "Repeat: ",
    ]  # fmt: skip
    assert all("user\na<|im_end|>\n<|im_start|>assistant\nb" in text for text in texts)
    assert len(heard) == 2


def test_a_checkpoint_that_spells_is_told_the_tone_as_in_a_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_checkpoint(adapter_type="spelling", tone_template="He said, {tone}: {words}!")
    path = GOLDENS / "audio" / "speech_1p2s.wav"
    lines = [{"audio": str(path), "instruction": "Hear: "}]
    assert run(loaded, options(tmp_path, lines, "--audio-field", "audio"))[0]["response"]
    calls = capture(monkeypatch)
    run(loaded, options(tmp_path, lines, "--audio-field", "audio", restart=True))
    ((prompt,),) = calls
    frames: dict[int, Any] = {}
    Engine(loaded).content(Spoken(read_audio(path)), frames)
    assert re.search(r"user\nHear: He said, (happy|angry|sad|surprised): $", loaded.tokenizer.decode(prompt.prefix))
    assert loaded.tokenizer.decode(prompt.suffix).startswith("!")
    assert torch.equal(prompt.speech, torch.stack(list(frames.values())))


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        (b"", [], "is empty"),
        (b" \n\n", [], "is empty"),
        (b'{"text": "hi"}', ["--audio-field", "audoi"], "'audoi'"),
        (b'{"text": "hi"}', ["--reference-field", "emotion"], "the fields are text"),
        (None, [], "cannot be read"),
    ],
)
def test_input_that_cannot_be_used(tmp_path: Path, content: bytes | None, words: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Job(options(tmp_path, content, *words))


@pytest.mark.parametrize(
    "words",
    [
        ["--num-beams", "2"],
        ["--batch-size", "0"],
        ["--max-new-tokens", "0"],
        ["--min-new-tokens", "9", "--max-new-tokens", "8"],
        ["--temperature", "0"],
        ["--top-p", "0"],
        ["--top-k", "-1"],
        ["--repetition-penalty", "0"],
    ],
)
def test_options_that_cannot_work(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(BadInput, match=words[0].replace("--num-beams", "Beam search")):
        options(tmp_path, [{}], *words)


# ---- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load", lambda *_args, **_kwargs: tiny_checkpoint())
    recording(tmp_path / "a.wav")
    lines = [{"audio": "a.wav", "e": "sad"}, {"audio": "b.wav", "e": "happy"}, {"audio": "a.wav", "e": "angry"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [
        "generate", "--input-file", str(tmp_path / "in.jsonl"), "--output-file", str(tmp_path / "out.jsonl"),
        "--audio-field", "audio", "--reference-field", "e", "--max-new-tokens", "5", "--batch-size", "2",
    ]  # fmt: skip
    assert main.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "line 2: " in captured.err
    assert "b.wav" in captured.err
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [line["reference"] for line in written] == ["sad", "happy", "angry"]
    assert ["error" in line for line in written] == [False, True, False]
    assert main.main(words) == 2
    assert "--restart" in capsys.readouterr().err
    (tmp_path / "in.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert main.main([*words, "--restart"]) == 0


def test_missing_weights_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"instruction": "hi"}\n')
    words = ["--input-file", str(tmp_path / "in.jsonl"), "--output-file", str(tmp_path / "out.jsonl")]
    assert main.main(["generate", *words, "--model", str(tmp_path / "nowhere")]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
