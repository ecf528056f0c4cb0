"""What a reading shows, and the speaker's normal voice in its offset."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assistant.events import UNSURE
from model.nn.emotion import EmotionHead


def random_head(seed, **settings):
    torch.manual_seed(seed)
    head = EmotionHead(16, **settings)
    head.load_state_dict({name: torch.randn(value.shape) for name, value in head.state_dict().items()})
    head.temperature.fill_(1.7)
    return head


@given(
    seed=st.integers(0, 2**16),
    count=st.integers(1, 60),
    hidden=st.sampled_from([0, 6]),
    known=st.booleans(),
    group=st.integers(1, 5),
)
def test_the_split_is_exact_with_a_baseline_and_silent_frames(seed, count, hidden, known, group):
    head = random_head(seed, hidden=hidden, baseline=True, group=group)
    frames = torch.randn(count, 16)
    voiced = torch.rand(count) > 0.5
    voiced[0] = True
    frames[~voiced] = frames[voiced].mean(0)
    baseline = torch.randn(16) if known else None
    reading = head.read(frames, voiced=voiced, baseline=baseline)
    logits = head.of_means(frames.mean(0)[None], baseline)[0].numpy()
    np.testing.assert_allclose(reading.contributions.sum(0) + reading.offset, logits, atol=1e-5, rtol=1e-5)
    silent = [not voiced[start : start + group].any() for start in range(0, count, group)]
    assert np.all(reading.contributions[silent] == 0)


def test_a_baseline_moves_the_offset_alone():
    head = random_head(3, baseline=True)
    frames = torch.randn(20, 16)
    plain, moved = head.read(frames), head.read(frames, baseline=torch.randn(16))
    np.testing.assert_array_equal(plain.contributions, moved.contributions)
    assert np.abs(plain.offset - moved.offset).max() > 0.01
    same = head.read(frames, baseline=head.normal)
    np.testing.assert_allclose(same.offset, plain.offset, atol=1e-6)


def test_in_a_head_that_was_not_fitted_for_a_baseline_it_takes_the_place_of_the_centre():
    head = random_head(3)
    frames, baseline = torch.randn(20, 16), torch.randn(16)
    compared = head.read(frames, baseline=baseline)
    head.centre.copy_(baseline)
    np.testing.assert_allclose(compared.probabilities, head.read(frames).probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "shown"),
    [
        ((0.1, 0.6, 0.1, 0.1, 0.1), ("happy",)),
        ((0.85, 0.05, 0.0, 0.1, 0.0), ("neutral", "sad")),
        ((0.95, 0.05, 0.0, 0.0, 0.0), ("neutral",)),
        ((0.4, 0.0, 0.0, 0.45, 0.15), ("sad", "neutral")),
        ((0.2, 0.2, 0.2, 0.2, 0.2), ()),
    ],
)
def test_one_label_two_candidates_or_unsure(probabilities, shown):
    head = EmotionHead(4, threshold=0.55, neutral_threshold=0.9, pair_threshold=0.8)
    with torch.no_grad():
        head.offset.copy_(torch.log(torch.tensor(probabilities) + 1e-6))
    reading = head.read(torch.zeros(3, 4))
    assert reading.candidates == shown
    assert reading.label == (shown[0] if len(shown) == 1 else UNSURE)
    assert reading.as_dict()["candidates"] == (list(shown) or UNSURE)
