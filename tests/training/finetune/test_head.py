"""The emotion head learns a speaker: what it gains, what it leaves alone, and that the judging is honest."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from assistant.events import EMOTIONS
from model.inference.engine import Engine
from model.nn.emotion import EmotionHead
from tests.support.tiny import tiny_checkpoint
from training.finetune.head import HeadFit, Rows, Tuned, assign_folds, choose_penalty, tune_head
from training.finetune.judge import (
    ComparedReading,
    FixedReadingEngine,
    choose_replies,
    figures,
    label_of,
    neutral_losses,
    verdict,
)

SIZE, PROSODY = 12, 4


@pytest.fixture(params=[0, 6], ids=["linear", "hidden"])
def head(request: pytest.FixtureRequest) -> EmotionHead:
    """Reads the first five features, with hidden units a little otherwise."""
    torch.manual_seed(0)
    made = EmotionHead(SIZE, hidden=request.param, threshold=0.5)
    with torch.no_grad():
        made.weight[:, :5] = 2 * torch.eye(5)
        made.centre.fill_(0.3)
        made.offset.copy_(torch.tensor([0.2, 0.0, -0.1, 0.0, 0.1]))
        made.temperature.fill_(1.4)
    return made


def joined(head: EmotionHead, tuned: Tuned) -> EmotionHead:
    new = copy.deepcopy(head)
    new.load_state_dict(tuned.head)
    return new


def speaker(count: int, seed: int, shift: float = 0.0) -> Rows:
    """Recordings of a speaker whose first features are turned by `shift`, and whose others say it as well."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 5
    frames = 0.3 + 0.4 * torch.randn(count, SIZE, generator=random)
    hot = torch.nn.functional.one_hot(labels, 5).float()
    frames[:, :5] += (1 - shift) * hot + shift * hot.roll(1, 1)
    frames[:, 5:10] += hot
    folds, _ = assign_folds([EMOTIONS[at] for at in labels], [""] * count, [""] * count, 5)
    return Rows(frames, labels, np.array(folds))


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


def test_it_learns_a_speaker_and_the_held_out_figure_tells_the_truth(head: EmotionHead) -> None:
    rows, others = speaker(40, 1, shift=0.8), speaker(400, 2, shift=0.8)
    told: list[tuple[int, float, float, float]] = []
    tuned = tune_head(head, 0.5, rows, PROSODY, 60, lambda *line: told.append(line))
    new = joined(head, tuned)
    before, after = (accuracy(one.of_means(others.frames), others.labels) for one in (head, new))
    assert before < 0.4
    assert after > 0.7
    held_out = accuracy(tuned.held_out, rows.labels)
    assert abs(held_out - after) < 0.2
    assert [line[0] for line in told] == list(range(1, len(told) + 1))
    assert told[-1][1] < told[0][1]


def test_from_chance_it_learns_next_to_nothing(head: EmotionHead) -> None:
    rows = speaker(60, 3)
    shuffled = Rows(
        rows.frames, rows.labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))], rows.folds
    )
    tuned = tune_head(head, 0.5, shuffled, PROSODY, 60)
    # Labels that mean nothing cannot be read in what was held out.
    assert accuracy(tuned.held_out, shuffled.labels) < 0.45
    known = speaker(200, 4)
    new = joined(head, tuned)
    assert accuracy(new.of_means(known.frames), known.labels) > 0.6  # and what it knew, it knows


def test_who_is_read_well_already_stays(head: EmotionHead) -> None:
    rows = speaker(40, 5)
    with torch.no_grad():
        head.weight.mul_(4)
    penalty, losses = choose_penalty(rows, head.of_means(rows.frames), PROSODY, 30)
    assert next(iter(losses)) == "not at all"
    assert penalty is None or penalty >= 0.1


def test_the_joined_head_is_the_old_one_plus_what_was_learnt(head: EmotionHead) -> None:
    rows = speaker(40, 6, shift=0.5)
    tuned = tune_head(head, 0.5, rows, PROSODY, 40)
    anchor = head.of_means(rows.frames)
    addition = HeadFit(rows, anchor, tuned.penalty, PROSODY).run(40)
    new = joined(head, tuned)
    ratio = tuned.head["temperature"] / head.temperature
    torch.testing.assert_close(new.of_means(rows.frames) * ratio, anchor + addition(rows.frames), atol=2e-3, rtol=1e-2)
    reading = new.read(rows.frames[:1].repeat(7, 1))
    logits = torch.from_numpy(reading.contributions.sum(0) + reading.offset)
    torch.testing.assert_close(logits, new.of_means(rows.frames[:1])[0], atol=1e-4, rtol=1e-4)
    for name, value in head.named_parameters():
        assert (name == "weight") != torch.equal(tuned.head[name], value)


def test_the_same_recordings_give_the_same_head(head: EmotionHead) -> None:
    one, other = (tune_head(head, 0.5, speaker(30, 7, shift=0.5), PROSODY, 30) for _ in range(2))
    assert all(torch.equal(one.head[name], other.head[name]) for name in one.head)
    assert torch.equal(one.held_out, other.held_out)


def test_few_recordings_leave_the_calibration_alone(head: EmotionHead) -> None:
    tuned = tune_head(head, 0.5, speaker(10, 8, shift=0.8), PROSODY, 30)
    assert tuned.threshold == 0.5
    assert float(tuned.head["temperature"]) == pytest.approx(float(head.temperature))


def test_an_emotion_without_recordings_costs_nothing(head: EmotionHead) -> None:
    rows = speaker(50, 9, shift=0.3)
    present = rows.part((rows.labels != 4).numpy())
    tuned = tune_head(head, 0.5, present, PROSODY, 30)
    assert all(bool(value.isfinite().all()) for value in tuned.head.values())


# ---- who judges


def test_folds_share_no_speaker_no_sentence_and_balance_the_emotions() -> None:
    emotions = list(EMOTIONS) * 8
    people = [f"p{at // 10}" for at in range(40)]
    folds, basis = assign_folds(emotions, people, [""] * 40, 5)
    assert basis == "speaker"
    assert all(len({fold for fold, who in zip(folds, people, strict=True) if who == one}) == 1 for one in set(people))
    texts = [f"Sentence {at // 5}!" for at in range(40)]
    folds, basis = assign_folds(emotions, ["me"] * 40, texts, 5)
    assert basis == "sentence"
    assert all(len({fold for fold, said in zip(folds, texts, strict=True) if said == one}) == 1 for one in set(texts))
    folds, basis = assign_folds(emotions, ["me"] * 40, [""] * 40, 5)
    assert basis == "recording"
    counts = [
        [sum(at == fold and e == name for e, at in zip(emotions, folds, strict=True)) for name in EMOTIONS]
        for fold in range(5)
    ]
    assert max(max(row) for row in counts) - min(min(row) for row in counts) <= 1
    assert set(assign_folds(["sad", "happy"], ["", ""], ["", ""], 5)[0]) == {0, 1}


def heard(emotion: int, before: int, after: int, sure: float = 0.8) -> ComparedReading:
    from pathlib import Path

    def read(at: int) -> torch.Tensor:
        return torch.full((5,), (1 - sure) / 4).index_fill(0, torch.tensor([at]), sure)

    return ComparedReading(Path("a.wav"), "", emotion, read(before), read(after))


def test_the_verdict_follows_the_figures() -> None:
    better = [heard(0, 1, 0)] * 12 + [heard(1, 1, 1)] * 12
    worse = [heard(0, 0, 1)] * 3 + [heard(1, 1, 1)] * 12
    same = [heard(0, 0, 0)] * 12 + [heard(1, 0, 0)]
    little = [heard(0, 1, 0)] + [heard(1, 1, 1)] * 12 + [heard(2, 2, 1), heard(2, 1, 2), heard(3, 2, 3), heard(3, 3, 4)]
    for rows, word in ((better, "better"), (worse, "worse"), (same, "unclear"), (little, "unclear")):
        read = figures(rows, (0.5, 0.5))
        assert verdict(read, {})[0] == word, rows
    read = figures(better, (0.5, 0.5))
    assert read["difference"]["accuracy"] == pytest.approx(0.5)
    assert read["before"]["confusion"][0][1] == 12
    assert read["difference"]["interval_95"][0] > 0.2
    assert verdict(read, {"ratio": 1.06})[0] == "worse"
    assert "6%" in verdict(read, {"ratio": 1.06})[1]
    assert verdict(read, {"ratio": 1.04})[0] == "better"
    assert "Too few" in verdict(figures(better[:3] + better[-3:], (0.5, 0.5)), {})[1]


def test_replies_are_compared_where_the_reading_changed() -> None:
    rows = [heard(0, 0, 0), heard(0, 1, 0), heard(1, 1, 1), heard(2, 3, 2)]
    assert choose_replies(rows, (0.5, 0.5), 3) == [1, 3, 2]
    assert len(choose_replies(rows, (0.5, 0.5), 9)) == 4
    assert label_of(rows[0].before, 0.9) == "unsure"


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_listener_reads_what_it_is_told(tmp_path: Path, hidden: int) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(20_000), 16_000)
    engine = Engine(tiny_checkpoint(emotion_hidden=hidden))
    head = engine.model.emotion_head
    assert head is not None
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    listener = FixedReadingEngine(engine)
    told = torch.tensor([0.02, 0.02, 0.02, 0.92, 0.02])
    for probabilities in (told, told.flip(0)):
        listener.set_reading(probabilities, 0.5)
        reading = engine.hear(listener.spoken(tmp_path / "a.wav")).reading
        np.testing.assert_allclose(reading.probabilities, probabilities, atol=1e-6)


def test_what_replies_lose_by_a_reading_is_measured_where_an_adapter_spells(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(20_000), 16_000)
    calm, sad = torch.tensor([0.96, 0.01, 0.01, 0.01, 0.01]), torch.tensor([0.01, 0.01, 0.01, 0.96, 0.01])
    listener = FixedReadingEngine(Engine(tiny_checkpoint(adapter_type="spelling")))
    same, other = (
        neutral_losses(
            listener, [ComparedReading(tmp_path / "a.wav", "the sea", 0, calm, after)], (0.5, 0.5), lambda: None
        )
        for after in (calm, sad)
    )
    assert same["before"] == same["after"] == other["before"]
    assert other["after"] != other["before"]
