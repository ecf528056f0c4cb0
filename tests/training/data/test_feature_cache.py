"""The feature cache: same states as uncached, safe to kill, damage noticed."""

import json
import zlib

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model.audio.features import encode, encoder_frames, log_mel
from model.errors import BadInput
from training.data.feature_cache import FeatureCache, build_cache, content_key, states_of

RATE = 16_000
CONFIG = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return WhisperEncoder(CONFIG).eval()


@pytest.fixture(scope="module")
def extractor():
    return WhisperFeatureExtractor()


@pytest.fixture
def recordings(tmp_path):
    rows = []
    for number, seconds in enumerate((0.4, 1.1, 0.7)):
        samples = np.random.default_rng(number).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE, subtype="FLOAT")
        rows.append({"audio": f"{number}.wav", "text": str(number)})
    return tmp_path, rows


def build(recordings, encoder, extractor, **options):
    base, rows = recordings
    return build_cache(rows, base / "cache", encoder, extractor, base=base, progress=False, **options)


@pytest.mark.parametrize("window", ["trimmed", "full"])
def test_cached_states_are_the_encoders_own_bit_for_bit(recordings, encoder, extractor, window):
    _, rows, dropped = build(recordings, encoder, extractor, window=window)
    cache = FeatureCache.open(recordings[0] / "cache")
    assert not dropped
    for row in rows:
        samples, _ = soundfile.read(recordings[0] / row["audio"], dtype="float32")
        with torch.inference_mode():
            whole = encode(encoder, log_mel(extractor, samples, trimmed=window == "trimmed"))[-1][0]
        expected = whole[: encoder_frames(len(samples))]
        assert torch.equal(cache[row["key"]], expected)
        assert cache.frames(row["key"]) == len(expected)


def test_half_states_are_close_and_half_the_size(recordings, encoder, extractor):
    whole, rows, _ = build(recordings, encoder, extractor)
    size = (recordings[0] / "cache" / "states.bin").stat().st_size
    (recordings[0] / "cache").rename(recordings[0] / "whole")
    whole = FeatureCache.open(recordings[0] / "whole")
    half, _, _ = build(recordings, encoder, extractor, dtype=torch.float16)
    assert (recordings[0] / "cache" / "states.bin").stat().st_size == size // 2
    for row in rows:
        torch.testing.assert_close(half[row["key"]], whole[row["key"]], atol=0.05, rtol=0.05)


def test_a_second_run_computes_nothing_again(recordings, encoder, extractor):
    build(recordings, encoder, extractor)

    def refuses(*_):
        raise AssertionError("the encoder ran again")

    handle = encoder.register_forward_hook(refuses)
    layer = encoder.layers[0].register_forward_hook(refuses)
    try:
        cache, kept, _ = build(recordings, encoder, extractor)
    finally:
        handle.remove()
        layer.remove()
    assert (len(cache), len(kept), cache.damaged) == (3, 3, 0)


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_whatever_byte_is_lost_or_changed_the_states_come_back(tmp_path_factory, encoder, extractor, data):
    folder = tmp_path_factory.mktemp("cache")
    samples = np.random.default_rng(0).normal(0, 0.1, (3, RATE // 2)).astype(np.float32)
    states = {content_key(s.tobytes()): states_of(encoder, extractor, s, window="trimmed") for s in samples}
    cache = FeatureCache.create(folder, encoder, "trimmed")
    for key, value in states.items():
        cache.add(key, value)
    cache.close()
    path = folder / data.draw(st.sampled_from(["states.bin", "index.jsonl"]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)

    cache = FeatureCache.create(folder, encoder, "trimmed")
    cache.check(list(states))
    for key in states:
        cache.add(key, states[key])
    cache.close()
    again = FeatureCache.open(folder)
    assert all(torch.equal(again[key], value) for key, value in states.items())


def test_a_reader_sees_what_a_writer_adds(tmp_path, encoder):
    writer = FeatureCache.create(tmp_path, encoder, "trimmed")
    reader = FeatureCache.open(tmp_path)
    writer.add("a", torch.ones(3, 16))
    assert "a" not in reader
    reader.refresh()
    assert torch.equal(reader["a"], torch.ones(3, 16))
    with (tmp_path / "index.jsonl").open("a") as index:
        index.write('{"key": "b", "off')  # a line being written
    reader.refresh()
    writer.add("a", torch.zeros(3, 16))
    assert len(reader) == 1
    assert torch.equal(writer["a"], torch.ones(3, 16))


def test_two_writers_and_foreign_states_are_refused(tmp_path, encoder):
    first = FeatureCache.create(tmp_path, encoder, "trimmed")
    with pytest.raises(BadInput, match="another process is adding"):
        FeatureCache.create(tmp_path, encoder, "trimmed")
    first.close()
    torch.manual_seed(1)
    for other, window in ((WhisperEncoder(CONFIG), "trimmed"), (encoder, "full")):
        with pytest.raises(BadInput, match="choose another folder"):
            FeatureCache.create(tmp_path, other, window)
    with pytest.raises(BadInput, match="training cache"):
        FeatureCache.open(tmp_path / "nowhere")


def test_bad_recordings_are_named_and_the_others_go_on(recordings, encoder, extractor):
    base, rows = recordings
    (base / "broken.wav").write_bytes(b"RIFF....")
    soundfile.write(base / "long.wav", np.random.default_rng(0).normal(0, 0.1, 31 * RATE), RATE)
    bad = [{"audio": name} for name in ("missing.wav", "broken.wav", "long.wav")] + [{"key": "0" * 64}]
    cache, kept, dropped = build((base, [*bad, *rows]), encoder, extractor)
    assert (len(cache), len(kept), len(dropped)) == (3, 3, 4)
    for row, word in zip(dropped, ("missing.wav", "broken.wav", "31.0 s", "not in the cache"), strict=True):
        assert word in row["why"]


def test_the_index_holds_what_it_says(recordings, encoder, extractor):
    build(recordings, encoder, extractor)
    folder = recordings[0] / "cache"
    data = (folder / "states.bin").read_bytes()
    for line in (folder / "index.jsonl").read_text().splitlines():
        entry = json.loads(line)
        record = data[entry["offset"] : entry["offset"] + entry["frames"] * 16 * 4]
        assert zlib.crc32(record) == entry["crc"]
