"""Waveforms: colours, seeking by click and key, and cost independent of length."""

from __future__ import annotations

import numpy as np
import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from assistant.events import EMOTIONS
from tests.support.work import count_calls
from tests.ui.support.readings import FRAME_SECONDS, RATE, reading, sound
from ui.core import theme
from ui.widgets.waveform import Clip, Waveform, dominant_emotions, segments


@pytest.fixture
def waveform(qapp: QApplication, qtbot: QtBot) -> Waveform:
    theme.apply(qapp, "light")
    made = Waveform()
    qtbot.addWidget(made)
    made.resize(300, 90)
    made.show()
    return made


def test_leanings_follow_the_contributions_and_the_offset() -> None:
    read = reading("sad")
    best, clear = dominant_emotions(read)
    half = len(best) // 2
    assert set(best[:half]) == {EMOTIONS.index("surprise")}
    assert set(best[half:]) == {EMOTIONS.index("sad")}
    assert clear.max() == 1.0
    assert 0 <= clear.min() < 1
    read.offset[EMOTIONS.index("happy")] += 100
    assert set(dominant_emotions(read)[0]) == {EMOTIONS.index("happy")}


def test_stretches_cover_the_utterance_without_gaps() -> None:
    clip = Clip(5.0, sound(2.0), RATE, reading("sad"))
    found = segments(clip)
    assert [one.emotion for one in found] == ["surprise", "sad"]
    assert found[0].start == 5.0
    assert found[0].end == found[1].start
    assert abs(found[1].end - 7.0) < FRAME_SECONDS
    assert segments(Clip(0.0, sound(), RATE)) == []


def test_a_click_and_keys_seek(waveform: Waveform, qtbot: QtBot) -> None:
    waveform.show(sound(3.0), RATE, reading("sad", 3.0))
    seek_requested: list[float] = []
    waveform.seek_requested.connect(seek_requested.append)
    qtbot.mouseClick(waveform, Qt.MouseButton.LeftButton, pos=QPoint(100, 30))
    assert seek_requested == [pytest.approx(1.0)]
    for key in (Qt.Key.Key_Right, Qt.Key.Key_Left, Qt.Key.Key_End, Qt.Key.Key_Right, Qt.Key.Key_Home, Qt.Key.Key_Space):
        qtbot.keyClick(waveform, key)
    assert seek_requested[1:] == pytest.approx([1.25, 1.0, 3.0, 3.0, 0.0, 0.0])
    waveform.clear()
    qtbot.mouseClick(waveform, Qt.MouseButton.LeftButton)
    assert len(seek_requested) == 7


def test_it_says_what_it_shows(waveform: Waveform) -> None:
    waveform.show(sound(2.0), RATE, reading("sad"))
    assert waveform.accessibleName() == "Waveform, 2.0 s"
    assert waveform.accessibleDescription() == "surprise from 0.0 s, sad from 0.8 s"
    assert waveform.tooltip(1.5) == "1.50 s: sad (strong)"


def test_a_reading_and_the_playhead_are_seen(waveform: Waveform) -> None:
    waveform.show(sound(2.0), RATE)
    plain = waveform.grab().toImage()
    waveform.show(sound(2.0), RATE, reading("sad"))
    tinted = waveform.grab().toImage()
    hue = theme.colours().emotion("sad")
    colours = {tinted.pixelColor(x, 35).name() for x in range(150, 300)}
    assert hue.name() in colours
    waveform.set_position(1.0)
    assert len({bytes(image.constBits()) for image in (plain, tinted, waveform.grab().toImage())}) == 3


def test_every_sample_counts_for_the_height(waveform: Waveform) -> None:
    samples = np.zeros(RATE * 60, np.float32)
    samples[RATE * 30] = 0.9
    waveform.show(samples, RATE)
    heights = [height for height, _, _ in waveform.bars()]
    assert max(heights) == pytest.approx(1.0)
    assert sum(height > 0.5 for height in heights) == 1


def test_a_lane_of_an_hour_is_as_little_work_as_its_bars_and_clips(waveform: Waveform) -> None:
    def painting(count: int, seconds: float) -> int:
        """Calls that paint so many recordings of so many seconds."""
        clips = [Clip(20.0 * at, sound(seconds, at), RATE, reading("happy", seconds)) for at in range(count)]
        waveform.show_lane(clips, 20.0 * count)
        return count_calls(waveform.grab)

    few, longer, many = painting(9, 2.0), painting(9, 16.0), painting(180, 2.0)
    assert longer < 2 * few  # eight times as long; only more of the bars are tinted
    assert many < 20 * few
    assert count_calls(waveform.grab) < few / 5  # what stands still is painted once
    assert waveform.duration == 3600.0
    assert sum(height > 0 for height, _, _ in waveform.bars()) > 50


def test_nothing_and_too_little_are_drawn(waveform: Waveform) -> None:
    for samples in (np.zeros(0, np.float32), np.zeros(1, np.float32), np.zeros(5000, np.float32)):
        waveform.show(samples, RATE, reading("sad", 0.08))
        assert not waveform.grab().isNull()
