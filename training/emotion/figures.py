"""What is measured of readings: recall, sureness, candidates and calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from assistant.events import EMOTIONS
from training.emotion.recipe import Display, Held

_CURVE = range(10, 101, 10)


def figures_of(held: Held, display: Display) -> dict[str, Any]:
    """Figures of readings that knew neither clip nor speaker.

    Returns:
        `n`, `accuracy`, `unweighted_recall` (over the emotions that occur), `calibration_error` (ten bins),
        `neutral` (share), `sure` (share), `wrong_when_sure`, `sure_of_another` (share of all that are surely read as an
        emotion), `neutral_or_unsure`, `pairs` (share shown as two candidates), `truth_in_pair`, `truth_in_two` (of all
        clips, the two likeliest), `confusion` (rows: spoken), `curve` [[coverage, error, confidence], ...].
    """
    probabilities = torch.softmax(held.logits / display.temperature, 1).numpy()
    return figures_from(probabilities, held.labels, display)


def figures_from(probabilities: Any, labels: Any, display: Display) -> dict[str, Any]:
    """As `figures_of`, from probabilities [n, 5] and labels [n]."""
    best, confidence = probabilities.argmax(1), probabilities.max(1)
    right = best == labels
    sure, paired = display.sure(probabilities), display.paired(probabilities)
    in_two = (np.argsort(-probabilities, 1)[:, :2] == labels[:, None]).any(1)
    confusion = np.zeros((len(EMOTIONS), len(EMOTIONS)), int)
    np.add.at(confusion, (labels, best), 1)
    spoken = confusion.sum(1)
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs((confidence - right)[bins == b].sum()) for b in range(10)]
    order = np.argsort(-confidence)
    counts = [max(1, round(len(labels) * share / 100)) for share in _CURVE]
    return {
        "n": len(labels),
        "accuracy": float(right.mean()),
        "unweighted_recall": float((confusion.diagonal() / np.maximum(spoken, 1))[spoken > 0].mean()),
        "calibration_error": float(sum(gaps) / len(labels)),
        "neutral": float((best == 0).mean()),
        "sure": float(sure.mean()),
        "wrong_when_sure": float((~right)[sure].mean()) if sure.any() else None,
        "sure_of_another": float((sure & (best > 0)).mean()),
        "neutral_or_unsure": float(((best == 0) | ~sure).mean()),
        "pairs": float(paired.mean()),
        "truth_in_pair": float(in_two[paired].mean()) if paired.any() else None,
        "truth_in_two": float(in_two.mean()),
        "confusion": confusion.tolist(),
        "curve": [
            [n / len(labels), float((~right)[order[:n]].mean()), float(confidence[order[n - 1]])] for n in counts
        ],
    }
