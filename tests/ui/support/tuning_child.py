"""A scripted training process, and the fine-tuning page in front of it."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QApplication, QScrollArea
from pytestqt.qtbot import QtBot

from assistant.events import EMOTIONS
from assistant.finetune.run_watcher import TuningRun
from assistant.finetune.tuning_data import Recording
from ui.core import theme
from ui.core.app import App, Services
from ui.finetune.wizard import FineTunePage

TRAINING = """
import json, os, pathlib, sys, time
words = sys.argv[1:]
assert words[:2] == ["-m", "training"], words
command, script = words[2], json.loads(pathlib.Path(os.environ["SCRIPT"]).read_text())
with open(script["log"], "a") as log:
    log.write(json.dumps(words[2:]) + "\\n")
def say(value):
    print(json.dumps(value), flush=True)
if command == "check":
    for row in script["rows"]:
        say({"recording": row})
    say({"recordings": len(script["rows"])})
elif command == "transcribe":
    for file in words[4:]:
        say({"audio": file, "text": "heard words", "error": None})
elif "--plan" in words:
    say(script["plan"])
    sys.exit(script.get("plan_code", 0))
else:
    run = pathlib.Path(words[3])
    (run / "run.toml").write_text('model = "mini"\\nwhat = "head"\\n')
    (run / "stop").unlink(missing_ok=True)
    progress = run / "progress.jsonl"
    for number, line in enumerate(script["lines"]):
        if progress.exists() and len(progress.read_text().splitlines()) > number:
            continue
        with progress.open("a") as file:
            file.write(json.dumps(line) + "\\n")
        while line.get("wait") and not (run / "stop").exists() and not (run / "go").exists():
            time.sleep(0.01)
        if (run / "stop").exists():
            say({"stopped": True})
            sys.exit(0)
    if script.get("report"):
        sys.stderr.write(script["report"] + "\\n")
        sys.exit(script["code"])
    (run / "model").mkdir(exist_ok=True)
    (run / "model" / "config.json").write_text("{}")
    (run / "summary.json").write_text(json.dumps(script["summary"]))
    say(script["summary"])
"""
LINES = [
    {"stage": "prepare", "step": 0, "of": 1, "loss": None, "seconds": 2.0, "memory_bytes": 5e8},
    {
        "stage": "listen",
        "step": 3,
        "of": 9,
        "loss": None,
        "samples_per_second": 4.0,
        "eta_seconds": 2.0,
        "seconds": 3.0,
        "wait": True,
    },
    {"stage": "fit", "step": 1, "of": 60, "loss": 0.9, "validation": 1.1, "validation_accuracy": 0.5, "seconds": 4.0},
    {"stage": "fit", "step": 2, "of": 60, "loss": 0.6, "validation": 0.9, "validation_accuracy": 0.7, "seconds": 5.0},
    {"stage": "judge", "step": 1, "of": 4, "loss": None, "seconds": 6.0},
]
PLAN = {
    "peak_bytes": 1.5e9, "free_bytes": 8e9, "disk_bytes": 4e5, "free_disk_bytes": 5e10, "seconds": 42.0,
    "parts": {"load": 5.0, "listen": 3.0, "fit": 4.0, "judge": 30.0}, "device": "cpu", "fits": True, "remedies": [],
}  # fmt: skip


def measured(accuracy: float) -> dict[str, Any]:
    table = [[4 if row == column else 1 for column in range(5)] for row in range(5)]
    return {"n": 40, "accuracy": accuracy, "interval_95": [0.5, 0.9], "confusion": table}


def summary(
    verdict: str = "better", why: str = "It reads more recordings rightly: 60% before, 80% after."
) -> dict[str, Any]:
    rows = [
        {"audio": f"/r/{at}.wav", "text": "words", "emotion": EMOTIONS[at % 5], "before": [0.2] * 5,
         "after": [0.05 + 0.8 * (place == at % 4) for place in range(5)]}
        for at in range(10)
    ]  # fmt: skip
    rows[0] |= {"heard": "<b>words</b>", "reply_before": "One.", "reply_after": "<i>Two</i>."}
    difference = {"accuracy": 0.2, "interval_95": [0.05, 0.35], "loss": -0.1, "loss_interval_95": [-0.2, -0.01]}
    read = {"before": measured(0.6), "after": measured(0.8), "difference": difference}
    loss = {"recordings": 8, "tokens": 100, "before": 1.5, "after": 1.52, "ratio": 1.013}
    return {
        "verdict": verdict, "why": why, "what": "head", "held_out_by": "sentence", "thresholds": [0.5, 0.5],
        "reading": read, "continuation": loss, "recordings": rows,
    }  # fmt: skip


class Child:
    """What the scripted training does, and the arguments it received."""

    def __init__(self, folder: Path) -> None:
        self._path, self._log = folder / "script.json", folder / "log.jsonl"
        self.script: dict[str, Any] = {"log": str(self._log), "plan": PLAN, "lines": LINES, "summary": summary()}
        self.script["rows"] = [
            Recording(f"/r/{at}.wav", "words", EMOTIONS[at % 5], seconds=2.0).as_dict() for at in range(20)
        ]
        self.write()

    def write(self, **changes: Any) -> None:
        self.script |= changes
        self._path.write_text(json.dumps(self.script))

    @property
    def emitted(self) -> list[list[str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    monkeypatch.setenv("SCRIPT", str(tmp_path / "script.json"))
    (tmp_path / "training.py").write_text(textwrap.dedent(TRAINING))
    return Child(tmp_path)


@pytest.fixture
def tuning(qapp: QApplication, services: Services, tmp_path: Path, child: Child) -> Iterator[App]:
    theme.apply(qapp, "light")
    home = tmp_path / "home"
    home.mkdir()
    made = App(replace(services, home=home, python=(sys.executable, str(tmp_path / "training.py"))))
    made.start()
    made.finish_first_run()
    yield made
    made.close()


def shown(app: App, qtbot: QtBot) -> FineTunePage:
    """The page in a window of fixed size."""
    frame = QScrollArea()
    qtbot.addWidget(frame)
    made = FineTunePage(app)
    frame.setWidget(made)
    made.resize(1000, 700)
    frame.resize(1010, 710)
    frame.show()
    made.frame = frame  # type: ignore[attr-defined]  # qtbot holds it weakly
    return made


@pytest.fixture
def page(tuning: App, qtbot: QtBot) -> FineTunePage:
    return shown(tuning, qtbot)


def check(page: FineTunePage, qtbot: QtBot) -> None:
    page.choose("/r/folder")
    qtbot.waitUntil(lambda: not page.recordings.progress.running)


def plan(page: FineTunePage, qtbot: QtBot) -> None:
    check(page, qtbot)
    page.recordings.next.click()
    qtbot.waitUntil(lambda: page.plan.plan is not None or page.plan.message.isVisible())


def run_of(page: FineTunePage) -> TuningRun:
    assert page.training.run is not None
    return page.training.run
