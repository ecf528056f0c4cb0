"""Random and fixed channels: levelled, finite, and the same for all clips of a speaker."""

import numpy as np
import pytest
import soundfile

from model.audio.voice import levelled
from tests import ROOT
from training.emotion.channels import CODECS, apply, draw, trimmed, vocoded
from training.emotion.unseen_channels import CHANNELS, shoebox, through

CLIP = levelled(soundfile.read(ROOT / "resources" / "samples" / "weasels.flac", dtype="float32")[0])


@pytest.mark.parametrize("seed", range(8))
def test_a_draw_gives_a_levelled_clip_and_the_same_twice(seed):
    chosen = draw(np.random.default_rng(seed), [])
    one, two = (apply(chosen, CLIP, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(one).all()
    assert 0.7 * len(CLIP) < len(one) < 1.4 * len(CLIP)
    np.testing.assert_allclose(levelled(one), one, rtol=1e-3, atol=1e-5)


def test_the_vocoder_changes_the_tempo_alone():
    slower = vocoded(CLIP, 1.0, 1.0, 0.8)
    assert len(slower) == pytest.approx(len(CLIP) / 0.8, rel=0.02)


@pytest.mark.parametrize("name", CHANNELS)
def test_every_unseen_channel_changes_the_clip_and_keeps_its_level(name):
    heard = through(name, CLIP, 3)
    assert np.isfinite(heard).all()
    size = min(len(heard), len(CLIP))
    assert not np.allclose(heard[:size], CLIP[:size], atol=1e-3)
    np.testing.assert_array_equal(heard, through(name, CLIP, 3))


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_keeps_the_clips_length(name):
    assert len(CODECS[name](CLIP)) == pytest.approx(len(CLIP), abs=3000)


def test_a_room_dies_away_and_trimming_keeps_the_speech():
    response = shoebox((4.2, 3.4, 2.6), 0.7, 0.35)
    assert (response[:1600] ** 2).sum() > 20 * (response[-1600:] ** 2).sum()
    quiet = np.concatenate([np.zeros(16_000, np.float32), CLIP, np.zeros(16_000, np.float32)])
    assert len(CLIP) - 8000 < len(trimmed(quiet)) < len(CLIP) + 9000
