"""The model process: crash, hang, slow load and failure told apart; the conversation survives them all."""

from __future__ import annotations

import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from assistant.backend.model_process import Ceilings, ModelProcess
from assistant.backend.protocol import ModelChoice, Ready
from assistant.events import Exchange, ModelStatus, Spoken, Typed
from assistant.messages import Ask, ModelDone, ModelFailed, ModelText, Prepare
from tests.support.fakes import HANG_SECONDS, Clock

SCRIPTED = "tests.support.scripted_server"
CEILINGS = Ceilings()


class Watched:
    """A model process and what it reported; `until` waits for a report that fits."""

    def __init__(self, source: str) -> None:
        self.seen: list[Any] = []
        self.clock = Clock()
        self._reports: queue.Queue[Any] = queue.Queue()
        self.model = ModelProcess(ModelChoice(source), self._reports.put, server=SCRIPTED, clock=self.clock)

    def until(self, fits: Callable[[Any], bool]) -> Any:
        while True:
            self.seen.append(self._reports.get(timeout=HANG_SECONDS))
            if fits(self.seen[-1]):
                return self.seen[-1]

    def status(self, wanted: str) -> str:
        return self.until(lambda report: isinstance(report, ModelStatus) and report.status == wanted).text

    def ask(self, number: int, text: str) -> None:
        self.model.ask(Ask(number, (), Typed(text), True))


@pytest.fixture
def watched() -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(source: str = "fine") -> Watched:
        made.append(Watched(source))
        return made[-1]

    yield make
    for one in made:
        one.model.close()


def is_(kind: type) -> Callable[[Any], bool]:
    return lambda report: isinstance(report, kind)


def test_it_answers_even_what_was_asked_while_loading(watched) -> None:
    one = watched()
    one.ask(1, "hello")
    assert one.until(is_(Ready)).about["torch"] is False
    assert one.until(is_(ModelText)).text == "you said hello"
    assert one.until(is_(ModelDone)).ask == 1
    one.model.prepare(Prepare((), True))
    assert one.until(is_(ModelText)).text == "prepared 0"


def test_a_cancel_ends_an_endless_answer(watched) -> None:
    one = watched()
    one.ask(1, "endless")
    one.until(is_(ModelText))
    one.model.cancel(1)
    one.ask(2, "well")
    assert one.until(is_(ModelDone)).ask == 2


def test_a_crash_costs_one_turn_and_is_repaired_once(watched) -> None:
    one = watched()
    one.until(is_(Ready))
    one.ask(1, "crash")
    broke = one.until(is_(ModelFailed))
    assert broke.ask == 1
    assert "crashed while answering (signal 11)" in broke.message
    one.until(is_(Ready))
    one.ask(2, "hello")
    assert one.until(is_(ModelDone)).ask == 2
    one.ask(3, "crash")
    one.until(is_(Ready))
    one.ask(4, "crash")  # no answer in between: it is not started a third time
    assert "Choose a smaller model" in one.status("failed")
    one.until(lambda report: isinstance(report, ModelFailed) and report.ask == 4)
    one.ask(5, "hello")
    assert "No model is loaded" in one.until(lambda report: isinstance(report, ModelFailed) and report.ask == 5).message
    one.model.replace(ModelChoice("other"))
    one.ask(6, "hello")
    assert one.until(is_(Ready)).about["name"] == "other"
    assert one.until(is_(ModelDone)).ask == 6


def test_a_hang_is_ended(watched) -> None:
    one = watched()
    one.until(is_(Ready))
    one.ask(1, "hang")
    one.clock.now += CEILINGS.answer + 1
    assert "stopped responding while answering" in one.until(is_(ModelFailed)).message
    one.until(is_(Ready))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("missing", "add it first"),
        ("heavy", "memory ran out"),
        ("slow", "stopped responding while loading"),
    ],
)
def test_a_load_that_fails_says_how(watched, source: str, says: str) -> None:
    one = watched(source)
    one.ask(1, "hello")
    if source == "slow":
        one.status("loading")
        one.clock.now += CEILINGS.load + 1
    assert says in one.status("failed")
    assert says in one.until(is_(ModelFailed)).message


def test_out_of_memory_leaves_it_running(watched) -> None:
    one = watched()
    one.ask(1, "memory")
    assert "new conversation" in one.until(is_(ModelFailed)).message
    one.ask(2, "hello")
    assert one.until(is_(ModelDone)).ask == 2


def test_a_child_that_does_not_listen_keeps_nobody_waiting(watched) -> None:
    """A long history does not fit into the pipe: the hang is noticed all the same, and the next ask is answered."""
    one = watched()
    one.until(is_(Ready))
    one.ask(1, "hang")
    history = tuple(Exchange(Spoken(np.zeros(480_000, np.float32)), "Yes.") for _ in range(4))
    one.model.ask(Ask(2, history, Typed("hello"), True))  # does not return where it waits for the child
    one.clock.now += CEILINGS.answer + 1
    assert "stopped responding" in one.until(is_(ModelFailed)).message
    one.until(is_(Ready))
    one.model.ask(Ask(3, history, Typed("hello"), True))
    assert one.until(is_(ModelDone)).ask == 3


def test_a_child_killed_at_any_instant_leaves_cancelling_free(watched) -> None:
    """The number that cancels is read by the child all the time; no lock of it may die with the child."""
    one = watched()
    one.until(is_(Ready))
    assert not hasattr(one.model._cancelled, "get_lock")


def test_this_side_holds_no_torch() -> None:
    code = "import sys, assistant.backend.model_process, assistant.turns.conversation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_released_in_mid_answer_costs_that_turn_and_comes_back(watched) -> None:
    one = watched()
    one.until(is_(Ready))
    one.ask(1, "endless")
    one.until(is_(ModelText))
    one.model.close()
    assert "was released" in one.until(is_(ModelFailed)).message
    one.status("stopped")
    one.ask(2, "hello")
    assert "No model is loaded" in one.until(is_(ModelFailed)).message
    one.model.replace(ModelChoice("other"))
    one.until(is_(Ready))
    one.ask(3, "hello")
    assert one.until(is_(ModelDone)).ask == 3


def test_one_that_never_ends_loading_is_replaced_at_once(watched) -> None:
    one = watched("slow")
    one.ask(1, "hello")
    one.status("loading")
    one.model.replace(ModelChoice("other"))
    assert one.until(is_(Ready)).about["name"] == "other"
    assert one.until(is_(ModelDone)).ask == 1
    assert not [report for report in one.seen if isinstance(report, ModelFailed)]
