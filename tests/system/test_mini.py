"""The mini model on real weights and real human speech, as a user meets it."""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import main
from assistant.events import EMOTIONS, UNSURE, Exchange, Spoken, Typed
from model.audio.features import encoder_frames
from model.audio.files import read_audio
from model.checkpoints import loader
from model.checkpoints.inventory import adapter_file
from model.checkpoints.loader import RESOURCES, Checkpoint
from model.commands.bench import likelihood
from model.errors import WeightsMissing
from model.inference.engine import Engine
from model.inference.kv_cache import Decoder, KeyValueCache
from model.inference.prompt import chat_ids
from model.nn.ctc_adapter import CtcAdapter
from model.nn.int8 import quantize_int8
from model.weights import fetch
from training.metrics.wer import word_errors

pytestmark = pytest.mark.real
SAMPLES = RESOURCES / "samples"


def transcripts() -> dict[str, str]:
    with (SAMPLES / "transcripts.tsv").open(encoding="utf-8") as file:
        return {row["file"]: row["transcript"] for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module")
def exact() -> Checkpoint:
    """Mini in fp32."""
    return loader.load("mini", device="cpu", quantize="none")


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Mini as it ships: int8."""
    return Engine(loader.load("mini", device="cpu"))


def test_the_words_of_human_speech(engine: Engine) -> None:
    errors = total = 0
    for name, text in transcripts().items():
        words = engine.transcript(Spoken(read_audio(SAMPLES / name)))
        assert words is not None
        wrong, count = word_errors(text, words.text)
        errors, total = errors + wrong, total + count
    assert total > 90
    assert errors / total <= 0.10, f"{errors} of {total} words wrong"


def test_what_the_adapter_spells_of_human_speech() -> None:
    """`mini-speech` as it ships; its card says how far this is from the transcript's words."""
    shipped = loader.load("mini-speech", device="cpu")
    held, file = shipped.model.state_dict(), load_file(adapter_file(loader.presets()["mini-speech"]))
    assert all(torch.equal(held[name], value.to(held[name].dtype)) for name, value in file.items())
    engine, adapter, embed = Engine(shipped), shipped.model.adapter, shipped.model.get_input_embeddings()
    assert isinstance(adapter, CtcAdapter)
    errors = total = 0
    for name, text in transcripts().items():
        samples = read_audio(SAMPLES / name)
        hearing = engine.hear(Spoken(samples))
        frames = encoder_frames(len(samples))
        with torch.inference_mode():
            spelt = adapter.decode(hearing.pieces[0][0][:, :frames], torch.tensor([frames]), embed)
        assert hearing.frames is not None
        torch.testing.assert_close(spelt.frames[0], hearing.frames)
        wrong, count = word_errors(text, shipped.tokenizer.decode(spelt.ids[0]))
        errors, total = errors + wrong, total + count
    assert total > 90
    assert errors / total <= 0.5, f"{errors} of {total} words wrong"


def test_an_adapter_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shipped, other = load_file(adapter_file(loader.presets()["mini-speech"])), tmp_path / "adapter.safetensors"
    without = {name: value for name, value in shipped.items() if ".lora_" not in name}
    narrow = {name: value[:4].clone() if name.endswith("lora_a") else value for name, value in shipped.items()}
    monkeypatch.setattr("model.checkpoints.inventory.adapter_file", lambda _: other)
    for wrong in (without, narrow):
        save_file(wrong, other)
        with pytest.raises(WeightsMissing, match="adapter of mini-speech is of another version"):
            loader.load("mini-speech", device="cpu")


def test_mini_speech_answers_without_writing_words_first() -> None:
    command = [sys.executable, "main.py", "ask", str(SAMPLES / "novel-1.flac"), "--model", "mini-speech", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=RESOURCES.parent)
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line["path"] == "speech"
    assert line["error"] is None
    assert len(line["reply"].split()) > 3
    assert "Dashwood" in line["transcript"]  # the words are written for the reader all the same


def test_a_trimmed_window_reads_the_same_words_as_thirty_seconds(exact: Checkpoint) -> None:
    from model.audio.features import encode, log_mel

    samples = read_audio(SAMPLES / "novel-3.flac")
    texts = []
    for trimmed in (True, False):
        with torch.inference_mode():
            states = encode(exact.transcriber.encoder, log_mel(exact.extractor, samples, trimmed=trimmed))
        texts.append(exact.transcriber.transcribe(states[-1], len(samples) / 16_000).text)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("samples", [np.zeros(32_000), 0.001 * np.random.default_rng(0).standard_normal(48_000)])
def test_silence_and_hiss_have_no_words(engine: Engine, samples: np.ndarray) -> None:
    words = engine.transcript(Spoken(samples.astype(np.float32)))
    assert words is not None
    assert words.text == ""


def test_a_reading_is_complete_and_exact(engine: Engine) -> None:
    samples = read_audio(SAMPLES / "something-is-terribly-wrong.flac")
    reading = engine.hear(Spoken(samples)).reading
    assert reading is not None
    assert reading.label in (*EMOTIONS, UNSURE)
    assert abs(float(reading.probabilities.sum()) - 1) < 1e-5
    assert len(reading.contributions) * reading.frame_seconds == pytest.approx(len(samples) / 16_000, abs=0.1)
    logits = torch.from_numpy(reading.contributions.sum(0) + reading.offset)
    assert np.allclose(logits.softmax(-1).numpy(), reading.probabilities, atol=1e-5)


def test_ask_hears_reads_answers_and_speaks(tmp_path: Path) -> None:
    out = tmp_path / "reply.wav"
    done = subprocess.run(
        [
            sys.executable, main.__file__, "ask", str(SAMPLES / "who-sent-this.flac"),
            "--text", "Thank you.", "--speak", str(out), "--json",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spoken, typed = (json.loads(line) for line in done.stdout.splitlines())
    wrong, count = word_errors(transcripts()["who-sent-this.flac"], spoken["transcript"])
    assert wrong / count < 0.2
    assert spoken["path"] == "transcript"
    assert len(spoken["reading"]["probabilities"]) == 5
    assert len(spoken["reply"].split()) >= 3
    assert len(typed["reply"].split()) >= 1
    assert all(value > 0 for value in spoken["timings_ms"].values())
    samples, rate = soundfile.read(out)
    assert len(samples) / rate > 1
    assert np.abs(samples).max() > 0.05


def test_a_second_start_opens_no_connection_and_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a connection or a process was opened")

    loader.load("mini", device="cpu")
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(subprocess, "Popen", refused)
    loaded = loader.load("mini", device="cpu")
    assert "".join(Engine(loaded).reply([], Typed("Good morning.")))


def test_our_decode_loop_equals_generate(exact: Checkpoint) -> None:
    model = exact.model.language_model
    prompt = chat_ids(exact.tokenizer, exact.model.config.system_prompt, [], "Tell me about the sea.")
    ids = torch.tensor([prompt])
    stock = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=48, max_new_tokens=48, pad_token_id=0
    )[0, len(prompt) :].tolist()
    cache, decoder = KeyValueCache(model.config.num_hidden_layers), Decoder(model)
    assert decoder.lean is not None
    ends = exact.generation.eos_token_id
    ours: list[int] = []
    with torch.inference_mode():
        logits = model(ids, past_key_values=cache, logits_to_keep=1).logits[0, -1]
        for _ in range(48):
            logits[ends] = -torch.inf  # min_new_tokens keeps generate from ending early
            ours.append(int(logits.argmax()))
            logits = decoder.step(ours[-1], cache)
    assert ours == stock


def test_eight_turns_cached_and_from_scratch(exact: Checkpoint) -> None:
    recordings = [Spoken(read_audio(SAMPLES / name)) for name in list(transcripts())[:4]]
    messages = [
        m for pair in zip(recordings, [Typed(t) for t in ("Why?", "Go on.", "Who?", "Bye.")], strict=True) for m in pair
    ]

    def talk(*, fresh: bool) -> tuple[list[str], list[int]]:
        engine = Engine(exact)
        history: list[Exchange] = []
        prefilled = []
        for number, message in enumerate(messages):
            if fresh:
                engine = Engine(exact)
            text = "".join(engine.reply(history, message))
            prefilled.append(engine.figures.prefilled)
            history.append(Exchange(message, text[: len(text) // 2 + 1] if number == 3 else text))
        return [past.heard for past in history], prefilled

    cached, few = talk(fresh=False)
    scratch, all_of_them = talk(fresh=True)
    assert cached == scratch
    assert all(new < 0.6 * whole for new, whole in zip(few[1:], all_of_them[1:], strict=True))


def test_int8_costs_at_most_one_percent() -> None:
    loaded = loader.load("mini", device="cpu", quantize="none")
    before = likelihood(loaded)
    quantize_int8(loaded.model.language_model)
    assert likelihood(loaded) / before - 1 < 0.01


def test_read_needs_no_language_model_and_reads_as_ask_does(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "whisper-base").symlink_to(fetch.home() / "models" / "whisper-base")
    monkeypatch.setenv("BLSP_HOME", str(tmp_path))
    assert main.main(["read", str(SAMPLES), "--json", "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(list(SAMPLES.glob("*.flac")))
    for line in lines:
        reading = engine.hear(Spoken(read_audio(Path(line["file"])))).reading
        assert reading is not None
        assert line["reading"]["label"] == reading.label
        np.testing.assert_allclose(line["reading"]["contributions"], reading.contributions, atol=1e-5)
