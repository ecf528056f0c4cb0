"""Counts work in place of time, so that a busy machine changes no test's result."""

from __future__ import annotations

from collections.abc import Callable
from cProfile import Profile


class Calls:
    """Counts function calls, Python's and C's, that this thread makes while it is on."""

    def __init__(self) -> None:
        self._profile = Profile(subcalls=False)

    def on(self) -> None:
        """Count from here."""
        self._profile.enable()

    def take(self) -> int:
        """Stop counting; the number of calls since `on`."""
        self._profile.disable()
        count = sum(entry.callcount for entry in self._profile.getstats())
        self._profile.clear()
        return count


def count_calls(act: Callable[[], object]) -> int:
    """The number of function calls that this thread makes while `act` runs."""
    calls = Calls()
    calls.on()
    try:
        act()
    finally:
        count = calls.take()
    return count
