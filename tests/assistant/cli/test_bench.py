"""The measurement of the delay: its arithmetic, and one short run on the real parts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from assistant.cli.bench import SAMPLES, STAGES, figures, question, waterfall
from assistant.events import Spoken, Turn

QUICK = {
    "asked": 1.2, "read": 1.25, "first_text": 1.3, "first_sentence": 1.4, "first_speech": 1.45, "ended": 1.6,
    "first_sound": 1.62,
}  # fmt: skip
SLOW = QUICK | {"first_sentence": 2.0, "first_speech": 2.1, "first_sound": 2.15}


def turn(marks: dict[str, float], serial_ms: float = 1000.0) -> tuple[Turn, float, float]:
    return Turn(1, Spoken(np.zeros(160, np.float32)), marks=marks), 1.0, serial_ms


def test_the_stages_add_up_to_the_delay() -> None:
    quick, slow = waterfall(QUICK, 1.0), waterfall(SLOW, 1.0)
    assert list(quick) == list(STAGES)
    assert sum(quick.values()) == pytest.approx(620)
    assert (quick["wait"], slow["wait"]) == (pytest.approx(150), 0)
    assert sum(slow.values()) == pytest.approx(1150)


def test_each_turn_is_held_to_its_own_bound() -> None:
    found = figures([turn(QUICK), turn(SLOW, 3000.0)])
    assert found["turns_within_bound"] == 2
    assert found["over_bound_worst_ms"] == pytest.approx(550 - 500 - 100)
    assert found["delay_p50_ms"] == pytest.approx((620 + 1150) / 2)
    assert found["serial_delay_p50_ms"] == pytest.approx(2600)
    late = figures([turn(QUICK), turn(SLOW | {"first_sound": 2.4})])
    assert late["turns_within_bound"] == 1
    assert late["over_bound_worst_ms"] == pytest.approx(800 - 500 - 100)


def test_a_question_begins_and_ends_with_its_words() -> None:
    samples = question(SAMPLES / "go-forward.flac")
    assert abs(samples[-1]) > 0.03 * np.abs(samples).max()
    assert len(samples) > 16_000


@pytest.mark.real
def test_a_run_measures_every_stage_and_holds_no_torch(figure: Callable[[str], None]) -> None:
    """How long the stages take is for the command to say, not for a test to judge."""
    code = (
        "import sys; from assistant.cli.bench import main; code = main(['--turns', '2', '--json']); "
        "sys.exit(code or 10 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    figure(f"{found['serial_ratio_p50']} times shorter than serially")
    assert found["turns"] == 2
    assert found["serial_delay_p50_ms"] > 0
    # Of two values the median is the mean: the stages add up.
    assert sum(found[f"{stage}_p50_ms"] for stage in STAGES) == pytest.approx(found["delay_p50_ms"], abs=0.1)
    assert all(found[f"{stage}_p50_ms"] >= 0 for stage in STAGES if stage not in ("endpointing", "output"))
    assert all(isinstance(value, int | float | str) for value in found.values())
