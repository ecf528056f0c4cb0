"""Session summaries and the search."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.sessions.journal import JsonLines
from assistant.sessions.reader import correct
from assistant.sessions.recorder import EVENTS, Recorder
from tests.ui.support.sessions import record
from ui.sessions.formatting import format_day, format_duration, format_emotions, format_start
from ui.sessions.search import search
from ui.sessions.summary import Summary, folded, summarise

TODAY = date(2026, 11, 21)  # a Saturday


def made(text: str = "", day: date | None = TODAY, emotions: tuple[str, ...] = ()) -> Summary:
    started = datetime.combine(day, datetime.min.time()).astimezone() if day else None
    return Summary(Path("x"), started, 0.0, 1, emotions, text, folded(text))


def test_a_summary_tells_what_was_recorded(tmp_path: Path) -> None:
    folder = record(tmp_path, datetime(2026, 11, 20, 14, 2))
    one = summarise(folder)
    assert (one.turns, one.first_words, one.model) == (6, "Something is terribly wrong!", "mini")
    assert one.emotions == ("sad", "unsure", "surprise", "angry", "happy")
    assert (one.started, one.day, one.damaged) == (datetime(2026, 11, 20, 14, 2).astimezone(), date(2026, 11, 20), 0)
    assert "monkeys! that is quite a story" in one.text
    assert not one.running
    correct(folder, 1, "angry")
    lines = JsonLines(folder / EVENTS)
    lines.append({"v": 1, "t": 200.0, "type": "undone", "turn": 3})
    lines.close()
    (folder / "audio" / "0002-user.flac").unlink()
    with (folder / EVENTS).open("ab") as file:
        file.write(b'{"torn')
    changed = summarise(folder)
    assert changed.emotions == ("angry", "unsure", "angry", "happy")
    assert (changed.turns, changed.seconds, changed.damaged) == (5, 200.0, 2)
    assert "monkeys" not in changed.text


def test_a_session_is_running_as_long_as_its_recorder_lives(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, lambda _failed: None)
    assert recorder.folder is not None
    assert summarise(recorder.folder).running
    folder = record(tmp_path, datetime(2026, 1, 1))
    (folder / "in-use.lock").touch()  # left by one that was killed
    assert not summarise(folder).running
    recorder.close()


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "abcde"),
        ("   ", "abcde"),
        ("sad", "ac"),  # felt in a, said in c
        ('"sad"', "c"),
        ("Sadness", "a"),
        ("anger", "b"),
        ("难过", "ae"),
        ("today", "a"),
        ("yesterday", "b"),
        ("friday", "b"),
        ("saturday", "a"),
        ("this week", "ab"),
        ("last week", "c"),
        ("this month", "abc"),
        ("Last Month", "d"),
        ("last year", "e"),
        ("2026-11", "abc"),
        ("2026-11-20", "b"),
        ("2025", "e"),
        ("november", "abc"),
        ("oct", "d"),
        ("2026-13", ""),
        ("naïve", "d"),
        ("NAIVE", "d"),
        ("sad 2026-11", "ac"),
        ("sad yesterday", ""),
        ('"i missed the train"', "a"),
        ('"missed train"', ""),
        ("train missed", "a"),
        ("today train happy", ""),
    ],
)
def test_words_feelings_and_dates_are_found(query: str, found: str) -> None:
    all_of_them = {
        "a": made("I missed the train", TODAY, ("neutral", "sad")),
        "b": made("Who sent this?", TODAY - timedelta(days=1), ("angry",)),
        "c": made("A sad story", date(2026, 11, 10), ("unsure",)),
        "d": made("How naïve", date(2026, 10, 5)),
        "e": made("今天我很难过", date(2025, 12, 31)),
    }
    test = search(query, TODAY)
    assert "".join(name for name, session in all_of_them.items() if test(session)) == found


texts = st.text(st.characters(), max_size=60)


@given(texts, texts, st.dates())
def test_any_query_is_understood(query: str, text: str, today: date) -> None:
    search(query, today)(made(text, TODAY, ("sad",)))


@given(st.lists(st.sampled_from(["sad", "today", "november", "2026", "a", "train", "ü", "不"]), min_size=1), texts)
def test_another_word_never_finds_more(words: list[str], text: str) -> None:
    session = made(text, TODAY, ("sad",))
    found = [search(word, TODAY)(session) for word in words]
    assert search(" ".join(words), TODAY)(session) == all(found)


@given(texts)
def test_every_word_that_was_said_is_found_in_any_case(text: str) -> None:
    session = made(text)
    for word in text.replace('"', " ").split():
        assert search(word, TODAY)(session), word
        if word.isascii():
            assert search(word.swapcase(), TODAY)(session), word


def test_times_in_words() -> None:
    assert [format_day(TODAY - timedelta(days=n), TODAY) for n in (0, 1, 2, 6, 7, 365)] == [
        "Today",
        "Yesterday",
        "Thursday",
        "Sunday",
        "14 November",
        "21 November 2025",
    ]
    assert format_day(TODAY + timedelta(days=3), TODAY) == "24 November"
    assert [format_duration(s) for s in (0, 7.9, 750, 3723)] == ["0:00", "0:07", "12:30", "1:02:03"]
    assert format_start(made(day=None)) == "Date unknown"
    assert format_emotions(("sad", "sad", "happy")) == "1 happy, 2 sad"
