"""Dates, durations and counts of sessions as text."""

from __future__ import annotations

from collections import Counter
from datetime import date

from assistant.events import EMOTIONS, UNSURE
from ui.core.translations import tr
from ui.sessions.summary import Summary


def format_day(day: date, today: date) -> str:
    """Format a day: "Today", "Yesterday", the weekday within a week, or the date."""
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


def format_start(summary: Summary) -> str:
    """Format day and time of a session's start."""
    if summary.started is None:
        return tr("Date unknown")
    day = format_day(summary.started.date(), date.today())
    return tr("{day}, {time}").format(day=day, time=f"{summary.started:%H:%M}")


def format_turns(count: int) -> str:
    """Format a number of turns: "1 turn", "6 turns"."""
    return tr("1 turn") if count == 1 else tr("{} turns").format(count)


def format_duration(seconds: float) -> str:
    """Format seconds as a player does: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_emotions(emotions: tuple[str, ...]) -> str:
    """Count the emotions for a screen reader."""
    counts = Counter(emotions)
    heard = [name for name in (*EMOTIONS, UNSURE) if counts[name]]
    description = (tr("{count} {emotion}").format(count=counts[name], emotion=tr(name)) for name in heard)
    return tr(", ").join(description) or tr("no emotions")
