"""The wide corpus' sentences and its building, on a small WordNet and a scripted voice."""

import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model.errors import BadInput
from tests.training.support.wordnet import NOUNS, make_wordnet
from training.data.feature_cache import FeatureCache
from training.synthesis import wide_corpus
from training.synthesis.voices import CALIBRATION_VOICES, TEST_VOICES, human_sources
from training.synthesis.wide_corpus import build_wide_corpus, clips, mix_voices
from training.synthesis.wide_texts import everyday, everyday_words, held_out, texts, tidy, wordnet_examples

RATE = 16_000


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    return make_wordnet(tmp_path_factory.mktemp("wordnet"))


@pytest.fixture(scope="module")
def listener():
    torch.manual_seed(0)
    config = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32)
    return WhisperEncoder(config).eval(), WhisperFeatureExtractor()


def tone(source, seed, _kokoro):
    if "three" in source.text:
        raise BadInput(f"{source.id}: under 0.6 s of speech")
    hertz = 100 + len(source.text)
    return np.sin(np.arange(RATE) * hertz / RATE * 2 * np.pi).astype(np.float32) * 0.7


def test_examples_are_whole_sentences_without_digits(wordnet):
    found = wordnet_examples(wordnet)
    assert len(found) == 200
    assert "The noun apple was two times here." in found
    assert not any("1990" in sentence for sentence in found)
    with pytest.raises(BadInput, match=r"data\.noun"):
        wordnet_examples(wordnet / "nowhere")


@given(st.text())
def test_tidied_text_is_a_sentence_or_nothing(text):
    tidied = tidy(text)
    assert tidied == "" or re.fullmatch(r"[A-Z].*[.?!]", tidied)
    assert not re.search(r"\d", tidied)
    assert tidy(tidied) == tidied


@given(st.integers(0, 2**32))
def test_everyday_lines_are_tidy_and_leave_no_slot(seed):
    words = dict.fromkeys(("noun", "verb", "adjective", "adverb"), NOUNS)
    line = everyday(words, np.random.default_rng(seed))
    assert tidy(line) == line


def test_words_are_those_that_texts_use(wordnet):
    assert everyday_words(wordnet) == dict.fromkeys(("noun", "verb", "adjective", "adverb"), NOUNS)


def test_every_example_comes_once_a_round_and_the_seed_fixes_all(wordnet):
    first = [t for t, kind in islice(texts(wordnet, None, 3), 800) if kind == "wordnet"]
    assert len(first) > 400
    assert len(set(first[:200])) == len(set(first[200:400])) == 200
    assert first[:200] != first[200:400]
    assert list(islice(texts(wordnet, None, 3), 50)) == list(islice(texts(wordnet, None, 3), 50))
    assert list(islice(texts(wordnet, None, 4), 50)) != list(islice(texts(wordnet, None, 3), 50))


def test_no_held_out_sentence_or_voice_is_trained_on(wordnet):
    for engine, voices in (("espeak", ["en-us+m1"]), ("kokoro", ["af_bella"])):
        found = list(islice(clips(wordnet, None, engine, voices, 2, 0, checks=False), 600))
        for clip in found:
            trained = clip.source.split == "train"
            assert held_out(clip.source.text) != trained
            assert (clip.source.voice in CALIBRATION_VOICES | TEST_VOICES) != trained
        assert {clip.source.split for clip in found} == {"train", "validation", "test"}
    for clip in islice(clips(wordnet, None, "flite", [], 1, 0, checks=False), 50):
        assert clip.source.split == "engine"
        assert held_out(clip.source.text)


def build(out, wordnet, listener, count=40, **options):
    return build_wide_corpus(out, *listener, wordnet=wordnet, engine="espeak", count=count, **options)


def test_a_killed_build_goes_on_to_the_same_corpus(tmp_path, wordnet, listener, monkeypatch):
    monkeypatch.setattr(wide_corpus, "speak", tone)
    summary = build(tmp_path / "whole", wordnet, listener)
    build(tmp_path / "parts", wordnet, listener, count=15)
    manifest = tmp_path / "parts" / "manifest.jsonl"
    manifest.write_text(manifest.read_text()[:-30])  # killed while it wrote the last line
    assert build(tmp_path / "parts", wordnet, listener) == summary
    rows = [sorted((tmp_path / n / "manifest.jsonl").read_text().splitlines()) for n in ("whole", "parts")]
    assert rows[0] == rows[1]
    cache = FeatureCache.open(tmp_path / "parts" / "features")
    assert all(json.loads(row)["key"] in cache for row in rows[0])
    dropped = [json.loads(line) for line in (tmp_path / "whole" / "dropped.jsonl").read_text().splitlines()]
    assert {row["why"] for row in dropped} == {"under 0.6 s of speech"}
    assert summary["clips"] + len(dropped) == 40
    assert summary["dropped"] == {"under 0.6 s of speech": len(dropped)}
    assert "WordNet licence" in (tmp_path / "whole" / "card.md").read_text()


def test_mixed_voices_lie_between_training_voices(tmp_path):
    (tmp_path / "kokoro" / "voices").mkdir(parents=True)
    (tmp_path / "kokoro" / "model.onnx").write_bytes(b"")
    for number, voice in enumerate(wide_corpus.KOKORO):
        held = voice in CALIBRATION_VOICES | TEST_VOICES
        np.full(512, 1000.0 if held else number, np.float32).tofile(tmp_path / "kokoro" / "voices" / f"{voice}.bin")
    voices = mix_voices(tmp_path / "kokoro", tmp_path / "mixed", 12, 0)
    assert len(voices) == len(wide_corpus.KOKORO) - 12 + 12
    for voice in voices:
        style = np.fromfile(tmp_path / "mixed" / "voices" / f"{voice}.bin", np.float32)
        assert style.max() < len(wide_corpus.KOKORO)
    assert mix_voices(tmp_path / "kokoro", tmp_path / "mixed", 12, 0) == voices
    with pytest.raises(BadInput, match="--kokoro"):
        mix_voices(Path("nowhere"), tmp_path / "none", 1, 0)


def test_people_are_never_in_training():
    assert {source.split for source in human_sources(20)} <= {"human"}
