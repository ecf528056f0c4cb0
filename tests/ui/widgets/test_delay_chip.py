"""The delay's stages: only measured ones, at their place in time."""

from __future__ import annotations

import pytest
from pytestqt.qtbot import QtBot

from tests.ui.support.turns import FIGURES, MARKS
from ui.widgets.delay_chip import DelayChip, Stage, Waterfall, delay, stages


def test_the_stages_lie_where_they_were_measured() -> None:
    assert delay(MARKS) == ("first sound", pytest.approx(0.7))
    found = {stage.name: stage for stage in stages(MARKS, FIGURES)}
    wanted = {
        "end of turn": (-0.3, 0.3),
        "waiting for the model": (-0.3, 0.01),
        "encode": (-0.29, 0.15),
        "prefill": (-0.025, 0.31),
        "first word": (0.285, 0.035),
        "first sentence": (0.32, 0.13),
        "synthesis": (0.45, 0.16),
        "playback": (0.61, 0.09),
    }
    assert {name: (stage.start, stage.seconds) for name, stage in found.items()} == {
        name: pytest.approx(place) for name, place in wanted.items()
    }


def test_what_was_not_measured_is_not_shown() -> None:
    assert delay({}) is None
    assert stages({}, FIGURES) == []
    typed = {"asked": 3.0, "ended": 3.0, "first_text": 3.4}
    assert delay(typed) == ("first words", pytest.approx(0.4))
    assert stages(typed, {}) == []
    figures = {"encode_ms": 0.0, "prefill_ms": 200.0, "first_token_ms": 250.0}
    assert [stage.name for stage in stages(typed, figures)] == ["waiting for the model", "prefill", "first word"]
    assert [stage.name for stage in stages(typed, {"prefill_ms": 400.0, "first_token_ms": 400.4})] == ["prefill"]
    assert delay({"asked": 1.0, "ended": 2.0}) is None


def test_speech_that_was_ready_early_waits_for_the_end_of_the_turn() -> None:
    early = {
        "asked": 1.0,
        "first_text": 1.1,
        "first_sentence": 1.2,
        "first_speech": 1.3,
        "ended": 1.4,
        "first_sound": 1.45,
    }
    assert delay(early) == ("first sound", pytest.approx(0.05))
    assert stages(early, {})[-1] == Stage("playback", 0.0, pytest.approx(0.05))


def test_chip_and_waterfall_say_what_they_show(qtbot: QtBot) -> None:
    chip, waterfall = DelayChip(), Waterfall()
    qtbot.addWidget(chip)
    qtbot.addWidget(waterfall)
    chip.show_delay(MARKS)
    assert chip.text() == "first sound 0.7 s"
    assert not chip.isHidden()
    waterfall.show_stages(MARKS, FIGURES)
    assert "prefill 310 ms" in waterfall.accessibleName()
    empty = waterfall.grab().toImage()
    waterfall.show_stages(MARKS, {})
    assert waterfall.grab().toImage() != empty
    chip.show_delay({})
    assert chip.isHidden()
