"""Whether conversations are kept: a choice, asked for in the terminal where nobody has made it yet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from assistant.errors import AssistantError
from assistant.settings import MOST_DAYS, RecordingSection, load, save


def in_terminal(*, as_json: bool) -> bool:
    """Whether there is somebody to be asked, and to be shown a screen."""
    return not as_json and sys.stdin.isatty() and sys.stdout.isatty()


def recording_choice(path: Path, *, ask: bool) -> RecordingSection:
    """Whether conversations are to be kept, by the settings in `path`.

    Args:
        ask: ask the user in this terminal, if nobody has asked them yet, and remember the answer.
    """
    settings, trouble = load(path)
    if trouble:
        sys.stderr.write(f"{trouble}\n")
    if not ask or settings.started or settings.recording.asked:
        return settings.recording
    _report("May your conversations be kept on this machine, to be heard again? They never leave it.\n")
    chosen: dict[str, Any] | None = None
    while chosen is None:
        try:
            _report("For how many days? Enter: not at all; keep: for good. ")
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
