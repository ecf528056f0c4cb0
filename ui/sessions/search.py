"""The search over sessions: text, emotions and dates."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta

from assistant.events import UNSURE
from ui.sessions.summary import Summary, folded

_EMOTION_WORDS = {
    "neutral": "neutral calm 平静 中性",
    "happy": "happy happiness joy joyful glad cheerful 高兴 开心 快乐",
    "angry": "angry anger annoyed furious 生气 愤怒",
    "sad": "sad sadness unhappy 难过 悲伤 伤心",
    "surprise": "surprise surprised astonished 惊讶 吃惊",
    UNSURE: "unsure uncertain 不确定",
}
EMOTION_WORDS = {word: label for label, words in _EMOTION_WORDS.items() for word in words.split()}
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


def search(query: str, today: date) -> Callable[[Summary], bool]:
    """Return a test that accepts sessions matching every term of a query.

    A term is a word or a "phrase" of the conversation, an emotion ("sad", "anger"), a day ("today", "monday",
    "2026-11-21"), a month ("november", "2026-11", "this month"), a week or a year. A quoted term is text only. Emotions
    and dates work in English and Chinese, whatever the window's language.
    """
    tests: list[Callable[[Summary], bool]] = []
    for phrase, span, word in _TERM.findall(query):
        text = folded(phrase or span or word)
        plain = _has_text(text)
        tests.append(plain if phrase else _either(plain, _has_emotion(text), _has_date(" ".join(text.split()), today)))
    return lambda session: all(test(session) for test in tests)


def _has_text(text: str) -> Callable[[Summary], bool]:
    return lambda session: text in session.text


def _has_emotion(text: str) -> Callable[[Summary], bool] | None:
    label = EMOTION_WORDS.get(text)
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
    """Return the first and the last day of a date in words."""
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
