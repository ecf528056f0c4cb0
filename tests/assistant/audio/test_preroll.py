from __future__ import annotations

import numpy as np

from assistant.audio.preroll import PreRollBuffer
from assistant.events import SAMPLE_RATE, Samples


def test_a_turn_begins_in_the_past() -> None:
    """An utterance without a pause is cut up to three seconds ago: what follows the cut is kept from there on."""
    pre_roll, taken = PreRollBuffer(), list[Samples]()
    pre_roll.record = lambda _turn, samples: taken.append(samples)
    for number in range(300):
        pre_roll.feed(np.full(320, number, np.float32))
    pre_roll.begin(2, 3.5)
    assert len(taken[0]) == 3.5 * SAMPLE_RATE
    assert taken[0][0] == 300 - 3.5 * 50


def test_only_the_turn_in_progress_is_recorded() -> None:
    pre_roll, taken = PreRollBuffer(), list[tuple[int, int]]()
    pre_roll.record = lambda turn, samples: taken.append((turn, len(samples)))
    pre_roll.feed(np.zeros(320, np.float32))
    pre_roll.begin(7, 0.01)
    pre_roll.feed(np.zeros(100, np.float32))
    pre_roll.end()
    pre_roll.feed(np.zeros(100, np.float32))
    assert taken == [(7, 160), (7, 100)]
