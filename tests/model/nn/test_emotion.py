"""The emotion head: exact shares, rows that do not depend on their neighbours, the shipped head."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from assistant.events import EMOTIONS, UNSURE
from model.audio.prosody import PROSODY_FEATURES
from model.nn.emotion import EmotionHead
from tests import ROOT

MINI = ROOT / "resources" / "mini"


def random_head(seed, size=16, **settings):
    torch.manual_seed(seed)
    head = EmotionHead(size, **settings)
    head.load_state_dict(
        {name: torch.randn(value.shape) for name, value in head.state_dict().items()}
        | {"centre": torch.randn(size) * 3, "temperature": torch.tensor(1.7)}
    )
    return head


@given(seed=st.integers(0, 2**16), count=st.integers(1, 70), group=st.integers(1, 9), hidden=st.sampled_from([0, 6]))
def test_contributions_and_offset_sum_to_the_logits(seed, count, group, hidden):
    head = random_head(seed, group=group, hidden=hidden)
    frames = torch.randn(count, 16) * 2 + 1
    reading = head.read(frames)
    logits = head(frames[None], torch.ones(1, count, dtype=torch.bool))[0].detach().numpy()
    assert reading.contributions.shape == (-(-count // group), 5)
    np.testing.assert_allclose(reading.contributions.sum(0) + reading.offset, logits, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(reading.probabilities.sum(), 1, atol=1e-6)
    assert reading.frame_seconds == pytest.approx(0.02 * group)


@given(
    seed=st.integers(0, 2**16),
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    hidden=st.sampled_from([0, 6]),
)
def test_a_row_is_the_same_alone_and_in_a_padded_batch(seed, counts, hidden):
    head = random_head(seed, hidden=hidden)
    rows = [torch.randn(count, 16) for count in counts]
    batch = torch.full((len(rows), max(counts), 16), float("nan"))
    mask = torch.zeros(batch.shape[:2], dtype=torch.bool)
    for i, row in enumerate(rows):
        batch[i, : len(row)], mask[i, : len(row)] = row, True
    alone = torch.cat([head(row[None], torch.ones(1, len(row), dtype=torch.bool)) for row in rows])
    torch.testing.assert_close(head(batch, mask), alone, atol=1e-4, rtol=0)


def test_it_starts_as_the_originals_head():
    head = EmotionHead(8)
    torch.nn.init.normal_(head.weight)
    frames = torch.randn(1, 9, 8)
    expected = torch.nn.functional.linear(frames.mean(1), head.weight)
    torch.testing.assert_close(head(frames, torch.ones(1, 9, dtype=torch.bool)), expected)


def test_hidden_units_read_what_no_linear_head_can():
    head = EmotionHead(1, hidden=2)
    with torch.no_grad():
        head.inner.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        head.inner.bias.zero_()
        head.outer.weight[:, :] = 0
        head.outer.weight[4, :] = 1  # surprise by the distance from the centre
    for distance in (-2.0, 3.0):
        reading = head.read(torch.full((4, 1), distance))
        assert np.log(reading.probabilities[4] / reading.probabilities[0]) == pytest.approx(abs(distance), abs=1e-5)
        np.testing.assert_allclose(reading.contributions[:, 4], abs(distance) / 4, atol=1e-6)


def test_below_the_threshold_it_is_unsure():
    head = random_head(3)
    frames = torch.randn(20, 16)
    sure = head.read(frames)
    head.threshold = sure.confidence + 1e-3
    assert sure.label == sure.strongest
    assert head.read(frames).label == UNSURE


def test_the_buffers_are_not_trained():
    assert [name for name, _ in EmotionHead(4).named_parameters()] == ["weight"]


@pytest.mark.parametrize("name", ["people", "free"])
def test_a_shipped_head_fits_its_settings_and_names_its_licence(name):
    folder = MINI / name
    settings = json.loads((folder / "reading.json").read_text())
    size = 512 * len(settings["layers"]) + len(PROSODY_FEATURES)
    head = EmotionHead(size, baseline=settings["baseline"], voice=settings["voice"])
    head.load_state_dict(load_file(folder / "head.safetensors"))
    assert settings["features"] == list(PROSODY_FEATURES)
    assert float(head.temperature) == pytest.approx(settings["temperature"], rel=1e-3)
    assert 1 / len(EMOTIONS) < settings["threshold"] < 1
    assert (folder / "head.safetensors").stat().st_size < 100_000
    assert f"**Licence of the weights: {settings['licence']}**" in (folder / "CARD.md").read_text()
    assert (settings["licence"] == "CC-BY-NC-SA-4.0") == (name == "people")


def test_all_that_comes_with_the_program_is_small():
    assert sum(file.stat().st_size for file in MINI.rglob("*") if file.is_file()) < 40_000_000


def test_the_free_head_heard_nothing_that_forbids_commercial_use():
    card = (MINI / "free" / "CARD.md").read_text()
    fitted_on = card.partition("## Fitted on")[2].partition("\n## ")[0]
    assert "| emodb |" in fitted_on
    assert not [word for word in ("NC", "ravdess", "nemo", "indowave") if word in fitted_on]
