import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assistant.events import Samples
from model.audio import files
from model.audio.files import SILENCE_PEAK, read_audio, split_at_pauses
from model.errors import BadInput

ENCODINGS = [  # container, coding, allowed error of the level
    ("WAV", "PCM_16", 0.01),
    ("WAV", "PCM_U8", 0.02),
    ("WAV", "FLOAT", 0.01),
    ("WAV", "ULAW", 0.03),
    ("RF64", "PCM_24", 0.01),
    ("FLAC", "PCM_16", 0.01),
    ("OGG", "VORBIS", 0.05),
    ("OGG", "OPUS", 0.08),
]


def tone(seconds: float, rate: int, channels: int = 1, level: float = 0.3) -> np.ndarray:
    wave = level * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return np.tile(wave[:, None], channels).astype(np.float32)


def write(folder: Path, samples: np.ndarray, rate: int, container: str, coding: str) -> Path:
    path = folder / f"clip.{container.lower()}"
    soundfile.write(path, samples, rate, format=container, subtype=coding)
    return path


def level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))


def assert_one_line(error: BadInput, path: Path) -> None:
    assert str(error).isprintable(), "one line"
    assert ": " in str(error)
    assert path.name in str(error) or not path.name.isprintable()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write(tmp_path, tone(1.0, 16_000), 16_000, "WAV", "PCM_16")


@settings(max_examples=60, deadline=None)
@given(
    encoding=st.sampled_from(ENCODINGS),
    rate=st.sampled_from([8_000, 16_000, 24_000, 48_000]),
    channels=st.integers(1, 6),
    seconds=st.floats(0.2, 1.5),
    wanted=st.sampled_from([16_000, 22_050]),
)
def test_every_format_keeps_duration_and_level(tmp_path_factory, encoding, rate, channels, seconds, wanted):
    container, coding, tolerance = encoding
    if container == "OGG":
        channels = min(channels, 2)  # of more channels one is the subwoofer's, and the codec takes its highs away
    original = tone(seconds, rate, channels)
    path = write(tmp_path_factory.mktemp("audio"), original, rate, container, coding)

    samples = read_audio(path, wanted)

    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) / wanted == pytest.approx(len(original) / rate, abs=0.002)
    inner = samples[len(samples) // 4 : -len(samples) // 4]
    assert level(inner) == pytest.approx(0.3 / np.sqrt(2), rel=tolerance)


@pytest.mark.parametrize(("rate", "channels", "bitrate"), [(16_000, 1, "VARIABLE"), (44_100, 2, "CONSTANT")])
def test_mp3_keeps_duration_and_level(tmp_path, capfd, rate, channels, bitrate):
    path = tmp_path / "clip.mp3"
    original = tone(1.5, rate, channels)
    soundfile.write(path, original, rate, bitrate_mode=bitrate, compression_level=0.5)

    samples = read_audio(path)

    assert len(samples) == pytest.approx(24_000, abs=2)
    assert level(samples) == pytest.approx(0.3 / np.sqrt(2), rel=0.08)  # the encoder takes 5 %
    assert capfd.readouterr() == ("", "")


def test_sixteen_bit_samples_arrive_exactly(tmp_path):
    integers = np.random.default_rng(1).integers(-32768, 32767, 20_000, dtype=np.int16)
    path = write(tmp_path, integers, 16_000, "FLAC", "PCM_16")
    assert np.array_equal(read_audio(path), integers.astype(np.float32) / 32768)


def test_blocks_join_without_a_seam(tmp_path, monkeypatch):
    path = write(tmp_path, tone(1.0, 44_100, 2), 44_100, "OGG", "VORBIS")
    at_once = read_audio(path)
    monkeypatch.setattr(files, "_BLOCK_SAMPLES", 2_000)
    np.testing.assert_allclose(read_audio(path), at_once, atol=1e-6)


def test_channels_are_averaged(tmp_path):
    stereo = tone(0.5, 16_000, 2)
    stereo[:, 1] *= -0.5
    samples = read_audio(write(tmp_path, stereo, 16_000, "WAV", "FLOAT"))
    np.testing.assert_allclose(samples, stereo[:, 0] * 0.25, atol=1e-6)


def test_floats_beyond_full_scale_keep_their_waveform(tmp_path):
    loud = tone(0.5, 16_000, level=1.0) * 32_768
    samples = read_audio(write(tmp_path, loud, 16_000, "WAV", "FLOAT"))
    assert np.abs(samples).max() == 1
    np.testing.assert_allclose(samples, loud[:, 0] / np.abs(loud).max(), atol=1e-5)


def test_the_content_decides_and_not_the_name(clip):
    for name in ("clip.raw", "clip.sd2", "clip", "clip.mp3", "-clip.wav", "ÿ\n.wav"):
        assert len(read_audio(clip.rename(clip.with_name(name)))) == 16_000
        clip.with_name(name).rename(clip)


def test_relative_mp3_paths_are_found(tmp_path, monkeypatch):
    write(tmp_path, tone(0.5, 16_000), 16_000, "MP3", "MPEG_LAYER_III")
    monkeypatch.chdir(tmp_path)
    assert len(read_audio(Path("clip.mp3"))) == 8_000


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    """A float WAV of exactly these samples; soundfile refuses to write some of them."""
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, rate, 4 * rate, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def with_value(value: float) -> bytes:
    samples = tone(0.5, 16_000)
    samples[4_000] = value
    return wav(samples)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is not audio at all", "not WAV, FLAC, OGG or MP3"),
    "another kind of file": (b"\x89PNG\r\n\x1a\n" + bytes(200), "not WAV, FLAC, OGG or MP3"),
    "only a header": (b"RIFF\x24\x00\x00\x00WAVE", "damaged"),
    "only an MP3 tag": (b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(300), "damaged"),
    "no frames": (wav(np.zeros(0)), "holds no audio"),
    "too short": (wav(tone(0.05, 16_000)), "0.05 s long: record at least 0.1 s"),
    "digital silence": (wav(np.zeros(16_000)), "silent"),
    "faint hiss": (wav(np.random.default_rng(0).uniform(-0.9, 0.9, 16_000) * SILENCE_PEAK), "silent"),
    "silence with an offset": (wav(np.full(16_000, 0.2)), "silent"),
    "NaN": (with_value(np.nan), "NaN or infinite"),
    "infinity": (with_value(-np.inf), "NaN or infinite"),
    "absurd values": (with_value(1e30), "NaN or infinite"),
    "absurd rate": (wav(tone(0.5, 16_000), rate=1), "odd audio"),
    "too long": (wav(np.tile(tone(1.0, 2_000), (3_601, 1)), rate=2_000), "longer than 1 h"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_one_line(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as refused:
        read_audio(path)
    assert_one_line(refused.value, path)


@pytest.mark.parametrize(("container", "coding"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_files_cut_short_are_refused(tmp_path, container, coding):
    path = write(tmp_path, tone(3.0, 16_000), 16_000, container, coding)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match="copy"):
        read_audio(path)


def test_recorders_that_write_to_a_pipe_leave_the_length_open(clip):
    content = bytearray(clip.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = b"\xff\xff\xff\xff"
    clip.write_bytes(content)
    assert len(read_audio(clip)) == 16_000


def test_a_flac_stream_may_leave_its_length_open(tmp_path):
    path = write(tmp_path, tone(1.0, 16_000), 16_000, "FLAC", "PCM_16")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert len(read_audio(path)) == 16_000


def test_a_header_that_claims_hours_is_not_believed(tmp_path):
    path = write(tmp_path, tone(1.0, 16_000), 16_000, "FLAC", "PCM_16")
    content = bytearray(path.read_bytes())
    content[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"ends after 1\.0 of 268435\.5 s"):
        read_audio(path)


def test_paths_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        read_audio(tmp_path / "nothing.wav")
    with pytest.raises(BadInput, match="is a folder"):
        read_audio(tmp_path)
    with pytest.raises(BadInput, match="cannot be opened"):
        read_audio(tmp_path / "nul\0.wav")
    with pytest.raises(BadInput, match="cannot be opened"):
        read_audio(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="not a regular file"):
        read_audio(tmp_path / "pipe")


def test_an_unreadable_file_is_refused(clip):
    clip.chmod(0)
    is_root = os.geteuid() == 0  # root reads everything: be somebody else for a moment
    if is_root:
        os.seteuid(65_534)
    try:
        with pytest.raises(BadInput, match="may not be read"):
            read_audio(clip)
    finally:
        if is_root:
            os.seteuid(0)


def attempt(path: Path, reader: Callable[[Path], Samples] = read_audio) -> None:
    """Reading ends in usable samples or in one line; anything else fails the test."""
    try:
        samples = reader(path)
    except BadInput as error:
        assert_one_line(error, path)
    else:
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
magics = st.sampled_from([b"", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"RIFX", b"RF64", b"fLaC\0\0\0\x22", b"OggS\0\x02"])


@settings(max_examples=150, deadline=None)
@given(magic=magics, content=st.binary(max_size=400), suffix=names)
def test_arbitrary_bytes_raise_nothing_but_bad_input(tmp_path_factory, magic, content, suffix):
    path = tmp_path_factory.mktemp("audio") / f"clip.{suffix}"
    path.write_bytes(magic + content)
    attempt(path)


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Bytes flipped or overwritten, most of them near the start where the headers are, and perhaps the end cut off."""
    places = draw(st.lists(st.tuples(st.one_of(st.integers(0, 120), st.integers(0)), st.integers(0, 255)), max_size=8))
    kept = draw(st.one_of(st.just(1.0), st.floats(0, 1)))

    def apply(content: bytes) -> bytes:
        damaged = bytearray(content)
        for place, value in places:
            damaged[place % len(damaged)] = value
        return bytes(damaged[: int(kept * len(damaged))])

    return apply


@pytest.fixture(scope="session")
def intact(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("intact")
    clips = [(entry, channels) for entry in ENCODINGS for channels in (1, 2)]
    return [write(folder, tone(0.4, 16_000, n), 16_000, *entry[:2]).read_bytes() for entry, n in clips]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), harm=damage())
def test_damaged_files_raise_nothing_but_bad_input(tmp_path_factory, intact, data, harm):
    path = tmp_path_factory.mktemp("audio") / "clip"
    path.write_bytes(harm(data.draw(st.sampled_from(intact))))
    attempt(path)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(harm=damage())
def test_damaged_mp3_raises_nothing_but_bad_input_and_is_quiet(tmp_path_factory, capfd, harm):
    folder = tmp_path_factory.mktemp("audio")
    path = write(folder, tone(0.4, 16_000), 16_000, "MP3", "MPEG_LAYER_III")
    path.write_bytes(harm(path.read_bytes()))
    attempt(path)
    assert capfd.readouterr() == ("", "")


def test_a_crash_of_the_decoder_is_only_a_damaged_file(tmp_path, monkeypatch):
    path = write(tmp_path, tone(0.4, 16_000), 16_000, "MP3", "MPEG_LAYER_III")
    aborting = tmp_path / "python"
    aborting.write_text("#!/bin/sh\nkill -ABRT $$\n")
    aborting.chmod(0o755)
    monkeypatch.setattr(files.sys, "executable", str(aborting))
    with pytest.raises(BadInput, match="damaged"):
        read_audio(path)


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(0, 5_000),
    rate=st.integers(1, 200),
    longest=st.floats(0.01, 30),
    seed=st.integers(0, 99),
    loudness=st.sampled_from([0.0, 1e-20, 0.5]),
)
def test_pieces_cover_everything_in_order(length, rate, longest, seed, loudness):
    samples = (loudness * np.random.default_rng(seed).standard_normal(length)).astype(np.float32)
    ceiling = int(longest * rate)
    if ceiling < 1:
        with suppress(ValueError):
            split_at_pauses(samples, rate, longest)
            raise AssertionError("no piece can be that short")
        return
    pieces = split_at_pauses(samples, rate, longest)
    assert [i for piece in pieces for i in range(length)[piece]] == list(range(length))
    assert all(0 < piece.stop - piece.start <= ceiling for piece in pieces)
    if len(pieces) > 1:
        assert min(piece.stop - piece.start for piece in pieces) >= ceiling // 6


def speech_like(seconds: float, pauses: dict[float, float], rate: int = 16_000) -> Samples:
    """Noise with quiet stretches: start and length in seconds."""
    noise = np.random.default_rng(3)
    samples = 0.2 * noise.standard_normal(int(seconds * rate))
    for start, length in pauses.items():
        samples[int(start * rate) : int((start + length) * rate)] *= 0.01
    return samples.astype(np.float32)


def test_the_longest_pause_before_the_ceiling_is_chosen():
    gaps = {second + 0.5: 0.06 for second in range(45)}
    pieces = split_at_pauses(speech_like(45, gaps | {20.0: 0.8, 27.0: 0.3}))
    assert [20.0 < piece.start / 16_000 < 20.8 for piece in pieces[1:]] == [True]


def test_a_deep_gap_does_not_beat_a_long_pause():
    samples = speech_like(40, {22.0: 0.7})
    samples[int(25.0 * 16_000) : int(25.05 * 16_000)] = 0
    assert 22.0 < split_at_pauses(samples)[1].start / 16_000 < 22.7


def test_no_tiny_remnant_is_left():
    pieces = split_at_pauses(speech_like(31, {25.5: 1.0, 29.0: 1.5, 18.0: 0.3}))
    assert [18.0 < piece.start / 16_000 < 18.3 for piece in pieces[1:]] == [False]
    assert min(piece.stop - piece.start for piece in pieces) >= 5 * 16_000


def test_an_hour_is_split_in_seconds():
    pieces = split_at_pauses(np.zeros(3_600 * 16_000, np.float32))
    assert len(pieces) == 121
