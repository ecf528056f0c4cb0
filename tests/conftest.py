"""What every test runs under: one compute thread (tiny models lose time to more), no display, and two processes.

The whole suite is divided among processes file by file (`-n auto --dist loadfile` in pyproject.toml); a part of it
runs in one. `-n 0` runs everything in one, for a debugger or for output that is printed at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

MOST_PROCESSES = 4
"""Each takes up to 2 GB of memory."""
# The files that take longest begin first, so that no process ends long after the others.
LONGEST = (
    "system/test_talk.py",
    "ui/test_window_real.py",
    "training/finetune/test_tune_real.py",
    "ui/finetune/test_wizard_real.py",
    "assistant/cli/test_bench.py",
    "system/test_mini.py",
)

# `HYPOTHESIS_PROFILE=thorough` looks for counterexamples ten times as long.
hypothesis.settings.register_profile("usual", deadline=None, max_examples=30)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The number of processes for `-n auto`."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0))) if whole else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; everything else in its order."""

    def place(item: pytest.Item) -> int:
        name = item.path.as_posix()
        return next((at for at, one in enumerate(LONGEST) if name.endswith(f"tests/{one}")), len(LONGEST))

    items.sort(key=place)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Call it with a line that is to be read at the end of the run: what a test measured."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures."""
    lines = [
        f"{report.nodeid.partition('::')[2]}: {text}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, text in report.user_properties
        if name == "figure"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
