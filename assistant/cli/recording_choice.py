"""The recording choice: asked once, in the terminal, if the user has not made it yet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from assistant.errors import AssistantError
from assistant.settings import MOST_DAYS, RecordingSection, load, save


def in_terminal(*, as_json: bool) -> bool:
    """Whether a user sits at a terminal."""
    return not as_json and sys.stdin.isatty() and sys.stdout.isatty()


def recording_choice(path: Path, *, ask: bool) -> RecordingSection:
    """The recording choice in the settings in `path`.

    Args:
        ask: ask the user in this terminal, if they were not asked yet, and save the answer.
    """
    settings, trouble = load(path)
    if trouble:
        sys.stderr.write(f"{trouble}\n")
    if not ask or settings.started or settings.recording.asked:
        return settings.recording
    _report("Record your conversations on this machine? They never leave it.\n")
    chosen: dict[str, Any] | None = None
    while chosen is None:
        try:
            _report("For how many days? Enter: do not record; keep: forever. ")
            chosen = _as_choice(input())
        except EOFError:
            return settings.recording
    settings = settings.changed("recording", asked=True, **chosen)
    try:
        save(path, settings)
    except AssistantError as error:
        sys.stderr.write(f"{error}\n")
    return settings.recording


def _report(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _as_choice(answer: str) -> dict[str, Any] | None:
    """An answer in words as values of the settings; None: it cannot be understood."""
    word = answer.strip().lower()
    if word in ("", "0", "n", "no", "off"):
        return {"mode": "off"}
    if word in ("k", "keep"):
        return {"mode": "keep"}
    days = int(word) if word.isascii() and word.isdecimal() else 0
    return {"mode": "days", "days": days} if 1 <= days <= MOST_DAYS else None
