"""Fine-tuning a checkpoint with an adapter: stages 1 and 2 on the user's recordings, by the commands of the recipe.

Each step (label, clean, prepare, train) has its own folder inside the run folder. Its reports and stop requests are
forwarded, so a watcher needs only the run folder.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant.events import EMOTIONS, Spoken
from model.audio.features import encoder_frames
from model.checkpoints import loader
from model.errors import BadInput
from training.data.batches import IGNORED
from training.data.clean import clean
from training.data.eval_cases import Case, evenly_spaced, read_cases
from training.data.label import label
from training.data.manifest import Report
from training.data.prepare import PreparedRows, prepare
from training.evaluation.evaluate import Subject, continuations
from training.finetune.examples import print_dropped, read_examples
from training.finetune.judge import ComparedReading, figures, verdict
from training.finetune.options import TuneOptions
from training.finetune.run_state import MODEL, Clock, StopRequested, finish, stop_if_requested
from training.runs.config import CleanOptions, LabelOptions, PrepareOptions, TrainOptions
from training.runs.run_folder import STOP, ProgressTail, Run, append_lines, request_stop
from training.stages.train import train

_RELAY_SECONDS = 0.3
_LABEL_TOKENS = 48
CASES = 40  # maximum number of held-out recordings that are compared


def stages_of(options: TuneOptions) -> tuple[int, ...]:
    """The stages to train.

    Raises:
        BadInput: the model is shipped with the program, so it is no checkpoint that stages can start from.
    """
    if loader.preset_of(options.model) is not None:
        raise BadInput(
            f"{options.model} is, or was tuned from, a shipped model: only its emotion head can be "
            "tuned (--what head). Or start from a checkpoint of `training init` or a converted BLSP-Emo."
        )
    return {"stage1": (1,), "stage2": (2,), "both": (1, 2)}[options.what]


def tune_stages(options: TuneOptions, run: Run, clock: Clock) -> dict[str, Any]:
    """Train the stages, or resume them.

    Returns:
        The summary.

    Raises:
        StopRequested: the watcher asked for it.
        BadInput: as the commands.
        WeightsMissing: as the commands.
    """
    stages = stages_of(options)
    report = Report(print_dropped)
    examples = read_examples(options, report)
    report.write(run.folder)
    current, trained = options.model, dict[str, Any]()
    for stage in stages:
        data = prepare_stage(options, run.folder, stage, lambda folder: _relayed(run, folder, clock))
        with _relayed(run, run.folder / f"stage-{stage}", clock):
            trained = _completed(train(train_options(options, run.folder, stage, current, data)))
        current = trained["checkpoint"]
    if not Path(current).exists():
        current = str(run.folder / MODEL)  # it was moved there before a kill
    with run.bar("judge", 2 * CASES) as bar:

        def on_done() -> None:
            stop_if_requested(run)
            bar.advance(**clock.figures())

        judged = _judge(options, current, run.folder / f"data-{stages[-1]}", on_done)
    out = run.folder / MODEL
    if Path(current) != out:
        Path(current).rename(out)
    summary = {
        "run": str(options.run),
        "checkpoint": str(out),
        "from": options.model,
        "what": options.what,
        "learnt_from": len(examples),
        "dropped": report.counts(),
        "held_out_by": judged.pop("held_out_by"),
        "training": trained | {"checkpoint": str(out)},
        **judged,
    }
    return finish(options, run, clock, summary)


def train_options(options: TuneOptions, folder: Path, stage: int, model: str, data: Path) -> TrainOptions:
    """The options of `train` for a stage."""
    given = {"data": data, "model": model, "run": folder / f"stage-{stage}", "stage": stage}
    given |= {"max_steps": options.steps, "batch_size": options.batch_size, "rows_at_once": options.rows_at_once}
    given |= {"validate_every": max(1, options.steps // 10), "seed": options.seed, "features": str(folder / "frames")}
    return TrainOptions.of(given | ({"learning_rate": options.learning_rate} if options.learning_rate else {}))


Relay = Callable[[Path], Any]


def prepare_stage(options: TuneOptions, folder: Path, stage: int, relay: Relay) -> Path:
    """Prepare the data set of a stage, with continuations by the language model itself."""
    labels, data, emotion = folder / f"labels-{stage}", folder / f"data-{stage}", {"use_emotion": stage == 2}
    given: dict[str, Any] = {"model": options.model, "manifest": options.manifest, "lab_dir": labels}
    with relay(labels):
        _completed(label(LabelOptions.of(given | {"max_new_tokens": _LABEL_TOKENS} | emotion), notify=print_dropped))
    clean(CleanOptions.of({"input_dir": labels, "output_dir": labels / "clean"}), print_dropped)
    given = {"dataroot": labels / "clean", "save_dir": data, "model": options.model, "seed": options.seed}
    given |= {"audio_root": options.manifest.absolute().parent, "validation": options.validation, "min_duration": 0.3}
    with relay(data):
        _completed(prepare(PrepareOptions.of(given | emotion), print_dropped))
    return data


def _completed(summary: dict[str, Any]) -> dict[str, Any]:
    if summary.get("stopped"):
        raise StopRequested
    return summary


@contextmanager
def _relayed(run: Run, folder: Path, clock: Clock) -> Iterator[None]:
    """While a step works in `folder`, forward its reports to the run, and stop requests to it."""
    stop_if_requested(run)
    tail, over = ProgressTail(folder), threading.Event()
    tail.new()  # those of earlier starts were forwarded

    def forward() -> None:
        if run.stop_requested and folder.is_dir() and not (folder / STOP).exists():
            request_stop(folder)
        append_lines(run.folder / "progress.jsonl", [line | clock.figures() for line in tail.new()])

    def follow() -> None:
        while not over.wait(_RELAY_SECONDS):
            forward()

    thread = threading.Thread(target=follow, name="relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        forward()


# ---- judging


def _judge(options: TuneOptions, trained: str, data: Path, on_done: Callable[[], None]) -> dict[str, Any]:
    """Compare before and after on the validation rows."""
    about = json.loads((data / "prepared.json").read_text("utf-8"))
    if not about["validation"]["rows"]:
        return {
            "verdict": "unclear",
            "why": "Too few recordings: none could be held out, so the result was not evaluated.",
            "held_out_by": about["split_by"],
            "continuation": {},
            "recordings": [],
        }
    sides = []
    for source in (options.model, trained):
        subject = Subject.load(source)
        cases, _ = read_cases(data, subject.writer.chat, limit=CASES)
        sides.append(examine_side(subject, cases, options, on_done))
        del subject
    before, after = sides
    rows = [
        {"audio": str(audio), "text": case.transcript, "emotion": _name(case.ids.emotion)}
        | {"before": _list(b["read"]), "after": _list(a["read"])}
        | ({"reply_before": b["reply"], "reply_after": a["reply"]} if "reply" in a else {})
        for case, audio, b, a in zip(cases, _files(data), before["rows"], after["rows"], strict=False)
    ]
    loss = _losses(before["loss"], after["loss"])
    read: dict[str, Any] = {}
    heard = [
        ComparedReading(Path(row["audio"]), row["text"], EMOTIONS.index(row["emotion"]), b["read"], a["read"])
        for row, b, a in zip(rows, before["rows"], after["rows"], strict=True)
        if row["emotion"] and b["read"] is not None and a["read"] is not None
    ]
    thresholds = (before["threshold"], after["threshold"])
    word, why = _of_loss(loss)
    if heard:
        read = {"reading": figures(heard, thresholds)}
        word, why = verdict(read["reading"], loss)
        why += f" {_of_loss(loss)[1]}" if loss else ""
    return read | {
        "verdict": word,
        "why": why,
        "held_out_by": about["split_by"],
        "thresholds": list(thresholds),
        "continuation": loss,
        "replies_depend_on_reading": False,
        "recordings": rows,
    }


def examine_side(
    subject: Subject, cases: Sequence[Case], options: TuneOptions, on_done: Callable[[], None]
) -> dict[str, Any]:
    """One checkpoint's results on the recordings: readings, some replies, continuation losses."""
    rows, kept, states = list[dict[str, Any]](), list[Case](), list[Tensor]()
    for number, case in enumerate(cases):
        assert case.samples is not None
        message = Spoken(case.samples)
        hearing = subject.engine.hear(message)
        row: dict[str, Any] = {"read": None}
        if hearing.reading is not None:
            row["read"] = torch.from_numpy(hearing.reading.probabilities)
        if number < options.replies:
            row["reply"] = "".join(subject.engine.reply([], message)).strip()
        if case.ids.emotion in (0, IGNORED):
            kept.append(case)
            states.append(hearing.pieces[0][0][0, : encoder_frames(len(case.samples))])
        rows.append(row)
        subject.engine.forget()
        on_done()
    head = subject.checkpoint.model.emotion_head
    loss = continuations(subject, kept, states) if kept else {}
    return {"rows": rows, "loss": loss, "threshold": head.threshold if head is not None else 0.0}


def _losses(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    if not before or not after:
        return {}
    pair = {"before": before["loss_speech"], "after": after["loss_speech"]}
    tokens = int(after["continuation_tokens"])
    return pair | {"tokens": tokens, "ratio": pair["after"] / pair["before"], "text": after["loss_text"]}


def _of_loss(loss: Mapping[str, Any]) -> tuple[str, str]:
    if not loss:
        return "unclear", "No neutral recording was held out, so the replies were not evaluated."
    change = f"{loss['before']:.2f} before, {loss['after']:.2f} after"
    if loss["ratio"] < 1:
        return "better", f"What is examples in neutral speech is understood better: continuation loss {change}."
    return ("worse" if loss["ratio"] > 1 else "unclear"), f"Continuation loss of neutral speech: {change}."


def _files(data: Path) -> list[Path]:
    rows = PreparedRows(data, "validation")
    return [Path(rows[at]["audio"]) for at in evenly_spaced(len(rows), CASES)]


def _name(emotion: int) -> str:
    return EMOTIONS[emotion] if emotion != IGNORED else ""


def _list(read: Tensor | None) -> list[float]:
    return [] if read is None else [float(one) for one in read]
