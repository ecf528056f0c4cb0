"""The corpus' rules and the fitting of the head, on scripted voices: no synthesis engine, no downloaded weights."""

import json

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from assistant.events import EMOTIONS
from model.errors import BadInput
from model.nn.emotion import EmotionHead
from training.__main__ import main
from training.emotion import fit_head as fit_head_module
from training.emotion.fit_head import (
    coverage_curve,
    fit_head,
    fit_logistic,
    fit_together,
    measure,
    temperature_of,
    threshold_of,
)
from training.synthesis.corpus import build_corpus
from training.synthesis.expression import CUES, draw_cues, record
from training.synthesis.voices import CALIBRATION_VOICES, ESPEAK, KOKORO, TEST_VOICES, synthetic_sources

RATE = 16_000
PITCH = dict(zip(EMOTIONS, (120, 180, 160, 90, 260), strict=True))


@given(emotion=st.sampled_from(EMOTIONS), seed=st.integers(0, 2**32))
def test_every_cue_stays_inside_its_published_bounds(emotion, seed):
    cues = draw_cues(emotion, np.random.default_rng(seed))
    assert cues.keys() == CUES.keys()
    assert all(CUES[name][0][0] <= value <= CUES[name][0][1] for name, value in cues.items())
    assert abs(cues["f0_shift_semitones"]) <= 6
    assert 0.75 <= cues["rate_factor"] <= 1.3


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_recorded_clip_is_longer_finite_and_never_clipped(seed):
    clip = np.sin(np.arange(RATE) / 20).astype(np.float32)
    heard = record(clip, np.random.default_rng(seed))
    assert len(heard) >= len(clip) + RATE // 10
    assert np.isfinite(heard).all()
    assert np.abs(heard).max() < 1


def test_splits_share_no_voice_and_sentences_follow_the_seed():
    sources = synthetic_sources(300, 7)
    assert sources == synthetic_sources(300, 7)
    assert [s.text for s in sources] != [s.text for s in synthetic_sources(300, 8)]
    voices = {split: {s.voice for s in sources if s.split == split} for split in ("train", "calibrate", "test")}
    assert not voices["train"] & (voices["calibrate"] | voices["test"])
    assert not voices["calibrate"] & voices["test"]
    assert {*CALIBRATION_VOICES, *TEST_VOICES} <= {*KOKORO, *ESPEAK}
    assert {s.engine for s in sources if s.split == "engine"} == {"flite"}


def test_more_sentences_for_training_change_nothing_else():
    few, more = synthetic_sources(300, 7), synthetic_sources(300, 7, 500)
    assert [source for source in more if source in set(few)] == few
    added = [source for source in more if source not in set(few)]
    assert {source.split for source in added} == {"train"}
    assert set(added) <= set(synthetic_sources(500, 7))
    assert len(added) == sum(source.split == "train" for source in synthetic_sources(500, 7)) - sum(
        source.split == "train" for source in few
    )


def test_logistic_regression_finds_the_classes_and_the_temperature_undoes_a_scale():
    torch.manual_seed(0)
    labels = torch.arange(5).repeat(80)
    features = torch.eye(5)[labels] * 2 + torch.randn(400, 5) + 7
    fit = fit_logistic(features, labels, torch.full((5,), 0.001), steps=60)
    logits = fit(features)
    assert float((logits.argmax(1) == labels).float().mean()) > 0.7
    scaled = temperature_of(3 * logits, labels) / temperature_of(logits, labels)
    assert scaled == pytest.approx(3, rel=0.02)


def test_the_head_learns_what_no_linear_one_can():
    random = torch.Generator().manual_seed(0)
    features = 3 * torch.randn(2400, 3, generator=random) + torch.tensor([40.0, 0.0, -2.0])
    labels = torch.where((features[:, 0] - 40).abs() > 2, 1, 4)
    head = fit_together(features, labels, torch.zeros(3))
    linear = fit_logistic(features, labels, torch.zeros(3), steps=60)
    scores = [(logits.argmax(1) == labels).float().mean() for logits in (head.of_means(features), linear(features))]
    assert scores[0] > 0.85, scores
    assert scores[1] < 0.7, scores
    assert all(torch.equal(value, value.half().float()) for value in head.state_dict().values())


@given(seed=st.integers(0, 2**16), count=st.integers(20, 300))
@settings(deadline=None)
def test_the_threshold_keeps_its_promise(seed, count):
    torch.manual_seed(seed)
    labels = torch.randint(5, (count,))
    probabilities = torch.softmax(2 * torch.nn.functional.one_hot(labels, 5) + 2 * torch.randn(count, 5), 1)
    figures = measure(probabilities, labels, threshold_of(probabilities, labels))
    assert figures["coverage"] >= 0.5 - 1 / count
    best = min(error for _, coverage, error in coverage_curve(probabilities, labels) if coverage >= 0.5)
    if best <= 0.2:
        assert figures["error_when_sure"] <= 0.2 + 1e-6
    assert sum(map(sum, figures["confusion"])) == count


@pytest.fixture(autouse=True)
def few_choices(monkeypatch):
    monkeypatch.setattr(fit_head_module, "LAYER_CHOICES", ((1,), (2, 3)))


@pytest.fixture(scope="module")
def tiny_corpus(tmp_path_factory):
    """A buzz per emotion's pitch: a corpus whose answer is known."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "audio").mkdir()
    random = np.random.default_rng(0)
    rows = []
    for split, voices in {"train": 8, "calibrate": 4, "test": 4}.items():
        for voice in range(voices):
            for emotion in EMOTIONS:
                phase = 2 * np.pi * np.cumsum(np.full(RATE, PITCH[emotion] * random.uniform(0.96, 1.04))) / RATE
                wave = 0.1 * sum(np.sin(k * phase) / k for k in range(1, 9)) + 0.001 * random.normal(size=RATE)
                name = f"audio/{split}-{voice}-{emotion}.flac"
                soundfile.write(folder / name, wave, RATE)
                row = {"audio": name, "text": "a", "emotion": emotion, "rendition": emotion, "split": split}
                rows.append(row | {"voice": f"{split}{voice}", "engine": "buzz", "source": f"{split}{voice}"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_fit_head_learns_calibrates_and_writes_what_the_model_loads(tiny_corpus, tiny_whisper, tmp_path, capsys):
    assert main(["fit-head", str(tiny_corpus), str(tmp_path), "--whisper", str(tiny_whisper), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["test"]["accuracy"] > 0.7
    assert figures["test"]["n"] == 20
    reading = json.loads((tmp_path / "reading.json").read_text())
    head = EmotionHead(16 + len(reading["features"]), hidden=reading["hidden"])
    head.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert float(head.temperature) == pytest.approx(figures["temperature"])
    card = (tmp_path / "CARD.md").read_text()
    assert f"{100 * figures['test']['accuracy']:.1f} %" in card
    assert "No person's emotional speech was used" in card


def test_a_second_fit_reads_the_kept_frames_and_gives_the_same_head(tiny_corpus, tiny_whisper, tmp_path):
    fit_head(tiny_corpus, tmp_path / "a", whisper=tiny_whisper)
    fit_head(tiny_corpus, tmp_path / "b", whisper=tmp_path / "no whisper is needed now")
    first, second = (load_file(tmp_path / n / "head.safetensors") for n in "ab")
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name])


def test_what_is_missing_is_named_in_one_line(tmp_path, capsys):
    arguments = ["fit-head", str(tmp_path), str(tmp_path / "out"), "--whisper", str(tmp_path)]
    assert main(arguments) == 2
    assert "manifest.jsonl" in capsys.readouterr().err
    (tmp_path / "manifest.jsonl").write_text('{"audio": "a.flac", "emotion": "neutral"}\n')
    assert main(arguments) == 3
    assert "--whisper" in capsys.readouterr().err
    (tmp_path / "manifest.jsonl").write_text('{"audio": "a.flac", "emotion": "bored"}\n')
    assert main(arguments) == 2
    assert "manifest.jsonl:1: unknown emotion 'bored'" in capsys.readouterr().err


def test_a_corpus_of_no_usable_source_says_why(tmp_path):
    with pytest.raises(BadInput, match="--engines"):
        build_corpus(tmp_path, clips=4, prompts=1, seed=0, kokoro=tmp_path, engines=frozenset({"none"}), workers=1)


def test_espeak_sentences_become_all_renditions_and_a_second_run_adds_none(tmp_path):
    settings_ = {"clips": 4, "prompts": 0, "seed": 0, "kokoro": tmp_path, "engines": frozenset({"espeak"})}
    summary = build_corpus(tmp_path, workers=1, **settings_)
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert summary["clips"] == len(lines) == len(EMOTIONS) + 1
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines[:3]) + '\n{"torn')
    again = build_corpus(tmp_path, workers=1, **settings_)
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert again["clips"] == len(rows) == len(lines)
    assert len({row["audio"] for row in rows}) == len(rows)
