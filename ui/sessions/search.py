"""What the list knows of a session, and the search over it: words, feelings and dates as one says them.

A session's lines are read without its recordings, so that hundreds are known within seconds.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from assistant.events import EMOTIONS, UNSURE
from assistant.sessions.journal import read_lines
from assistant.sessions.recorder import EVENTS, LOCK
from ui.core.translations import tr
from ui.core.untrusted_text import whole


@dataclass(frozen=True, slots=True)
class Summary:
    """A session in the list.

    Attributes:
        started: local time of its start, None where its first line is lost.
        seconds: from its start to its last line.
        emotions: how its spoken turns sounded, in order, as the user corrected them.
        first_words: of the first turn that has any.
        text: all that was said and answered, folded for the search.
        running: whether it is being recorded now.
        damaged: lines that could not be read, and recordings that are not there.
        lines: how many could; it tells whether anything was added.
    """

    folder: Path
    started: datetime | None
    seconds: float
    turns: int
    emotions: tuple[str, ...]
    first_words: str
    text: str
    model: str = ""
    running: bool = False
    damaged: int = 0
    lines: int = 0

    @property
    def day(self) -> date | None:
        """The day it began."""
        return self.started.date() if self.started else None


_KNOWN = (*EMOTIONS, UNSURE)
_LATER = ("correction", "utterance_recovered")
"""Lines that can be added long after the session has ended."""


def summarise(folder: Path) -> Summary:
    """What a session's lines tell of it.

    Raises:
        OSError: they cannot be read.
    """
    lines, damaged = read_lines(folder / EVENTS)
    about: Mapping[str, Any] = {}
    words: dict[int, str] = {}
    replies: dict[int, str] = {}
    sounded: dict[int, str] = {}
    corrected: dict[int, str] = {}
    for line in lines:
        kind, turn = line.get("type"), line.get("turn")
        if kind == "session_started":
            about = line
        elif not isinstance(turn, int):
            continue
        elif kind in ("utterance", "utterance_recovered", "typed"):
            words[turn] = str(line.get("text") or "")
        elif kind == "turn_ended":
            words[turn] = str(line.get("transcript") or words.get(turn, ""))
            replies[turn] = str(line.get("reply") or "")
            if isinstance(reading := line.get("reading"), dict):
                sounded[turn] = str(reading.get("label"))
        elif kind == "transcribed":
            words[turn] = words.get(turn) or str(line.get("text") or "")
        elif kind == "correction":
            corrected[turn] = str(line.get("emotion") or "")
        elif kind == "undone":
            for known in (words, replies, sounded):
                known.pop(turn, None)
    recordings = [name for line in lines if isinstance(name := line.get("audio"), str)]
    return Summary(
        folder=folder,
        started=_time(about.get("started")),
        seconds=max(
            (float(line["t"]) for line in lines if line.get("type") not in _LATER and "t" in line), default=0.0
        ),
        turns=len(words),
        emotions=tuple(felt for turn in words if (felt := corrected.get(turn) or sounded.get(turn)) in _KNOWN),
        first_words=whole(next((text for text in words.values() if text), "")[:500]),
        text=folded("\n".join((*words.values(), *replies.values()))),
        model=whole(str(about.get("model") or "")[:100]),
        running=_in_use(folder / LOCK),
        damaged=damaged + sum(not (folder / "audio" / Path(name).name).is_file() for name in recordings),
        lines=len(lines),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else 0.0


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)).astimezone()
    except (ValueError, OverflowError):
        return None


def _in_use(lock: Path) -> bool:
    """Whether a living program holds the lock; one that was killed leaves the file alone."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, mode=0o600, timeout=0):
            return False
    except Timeout:
        return True


# ---- the search

_FEELINGS = {
    "neutral": "neutral calm 平静 中性",
    "happy": "happy happiness joy joyful glad cheerful 高兴 开心 快乐",
    "angry": "angry anger annoyed furious 生气 愤怒",
    "sad": "sad sadness unhappy 难过 悲伤 伤心",
    "surprise": "surprise surprised astonished 惊讶 吃惊",
    UNSURE: "unsure uncertain 不确定",
}
FEELINGS = {word: label for label, words in _FEELINGS.items() for word in words.split()}
_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_CHINESE = {
    "今天": "today", "昨天": "yesterday", "上周": "last week", "本周": "this week", "这周": "this week",
    "上个月": "last month", "上月": "last month", "本月": "this month", "这个月": "this month",
    "去年": "last year", "今年": "this year",
    **{week + day: _DAYS[at] for week in ("星期", "周", "礼拜") for at, day in enumerate("一二三四五六日")},
    "星期天": "sunday", "周天": "sunday", "礼拜天": "sunday",
}  # fmt: skip
_TERM = re.compile(r'"([^"]*)"?|((?:last|this)\s+(?:week|month|year)(?!\S))|(\S+)', re.IGNORECASE)
_ISO = re.compile(r"(\d{4})(?:[-年](\d{1,2})(?:[-月](\d{1,2})日?|月)?|年)?", re.ASCII)
_MONTH = re.compile(r"(\d{1,2})月(?:(\d{1,2})日)?", re.ASCII)


def folded(text: str) -> str:
    """Text as it is compared: without case, accents and forms of width."""
    if text.isascii():
        return text.casefold()
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.casefold()


def search(query: str, today: date) -> Callable[[Summary], bool]:
    """A test for sessions in which every term of a query is found.

    A term is a word or a "phrase" of what was said or answered; a feeling ("sad", "anger"); a day ("today", "monday",
    "2026-11-21"), a month ("november", "2026-11", "this month"), a week or a year. Quoted, it is text alone. Feelings
    and dates may be said in either language of the window, whichever is in force.
    """
    tests: list[Callable[[Summary], bool]] = []
    for phrase, span, word in _TERM.findall(query):
        text = folded(phrase or span or word)
        plain = _has_text(text)
        tests.append(plain if phrase else _either(plain, _has_feeling(text), _has_date(" ".join(text.split()), today)))
    return lambda session: all(test(session) for test in tests)


def _has_text(text: str) -> Callable[[Summary], bool]:
    return lambda session: text in session.text


def _has_feeling(text: str) -> Callable[[Summary], bool] | None:
    label = FEELINGS.get(text)
    return (lambda session: label in session.emotions) if label else None


def _has_date(text: str, today: date) -> Callable[[Summary], bool] | None:
    span = _span(text, today)
    if span is not None:
        first, last = span
        return lambda session: session.day is not None and first <= session.day <= last
    month, day = next(((n, 0) for n, name in enumerate(_MONTHS, 1) if len(text) >= 3 and name.startswith(text)), (0, 0))
    if (chinese := _MONTH.fullmatch(text)) is not None:
        month, day = (int(number or 0) for number in chinese.groups())
    if not month:
        return None
    return lambda session: session.day is not None and session.day.month == month and day in (0, session.day.day)


def _span(text: str, today: date) -> tuple[date, date] | None:
    """First and last day of a date in words."""
    text = _CHINESE.get(text, text)
    if text == "today":
        return today, today
    if text == "yesterday":
        return today - timedelta(days=1), today - timedelta(days=1)
    if text in _DAYS:
        day = today - timedelta(days=(today.weekday() - _DAYS.index(text)) % 7)
        return day, day
    if (iso := _ISO.fullmatch(text)) is not None:
        return _iso_span(*iso.groups())
    if not text.startswith(("this ", "last ")):
        return None
    back, unit = text.startswith("last"), text[5:]
    if unit == "week":
        first = today - timedelta(days=today.weekday() + 7 * back)
        return first, first + timedelta(days=6)
    if unit == "month":
        last = today.replace(day=1) - timedelta(days=1)
        return (last.replace(day=1), last) if back else (today.replace(day=1), today)
    return date(today.year - back, 1, 1), date(today.year - back, 12, 31)


def _iso_span(year: str, month: str | None, day: str | None) -> tuple[date, date] | None:
    try:
        first = date(int(year), int(month or 1), int(day or 1))
        if day:
            return first, first
        if month:
            return first, (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
        return first, date(first.year, 12, 31)
    except (ValueError, OverflowError):
        return None


def _either(*tests: Callable[[Summary], bool] | None) -> Callable[[Summary], bool]:
    known = [test for test in tests if test is not None]
    return lambda session: any(test(session) for test in known)


# ---- in words


def day_in_words(day: date, today: date) -> str:
    """ "Today", "Yesterday", the weekday within a week, or the date; the year where it is another."""
    days = (today - day).days
    if days in (0, 1):
        return (tr("Today"), tr("Yesterday"))[days]
    if 1 < days < 7:
        return _weekdays()[day.weekday()]
    words = tr("{day} {month}") if day.year == today.year else tr("{day} {month} {year}")
    return words.format(day=day.day, month=_months()[day.month - 1], year=day.year)


def _weekdays() -> tuple[str, ...]:
    return (
        tr("Monday"), tr("Tuesday"), tr("Wednesday"), tr("Thursday"), tr("Friday"), tr("Saturday"), tr("Sunday"),
    )  # fmt: skip


def _months() -> tuple[str, ...]:
    return (
        tr("January"), tr("February"), tr("March"), tr("April"), tr("May"), tr("June"),
        tr("July"), tr("August"), tr("September"), tr("October"), tr("November"), tr("December"),
    )  # fmt: skip


def when_in_words(summary: Summary) -> str:
    """Day and time of a session's start."""
    if summary.started is None:
        return tr("Date unknown")
    day = day_in_words(summary.started.date(), date.today())
    return tr("{day}, {time}").format(day=day, time=f"{summary.started:%H:%M}")


def turns_in_words(count: int) -> str:
    """ "1 turn", "6 turns"."""
    return tr("1 turn") if count == 1 else tr("{} turns").format(count)


def clock(seconds: float) -> str:
    """Minutes and seconds as a player shows them: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def mood_in_words(emotions: tuple[str, ...]) -> str:
    """How often each emotion was heard, for a screen reader."""
    counts = Counter(emotions)
    heard = [name for name in (*EMOTIONS, UNSURE) if counts[name]]
    said = (tr("{count} {emotion}").format(count=counts[name], emotion=tr(name)) for name in heard)
    return tr(", ").join(said) or tr("no readings")
