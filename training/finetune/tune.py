"""`python -m training tune RUN`: a checkpoint learns from one's own recordings, and is judged on what it did not hear.

A run folder, as `training.runs.run_folder` says, with everything in it: the manifest's recordings are heard once
(features/), the head is fitted or the stages are trained (stage-1/, stage-2/), before and after are compared, and the
tuned checkpoint is model/. summary.json is written last; started again, a run goes on where it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assistant.events import EMOTIONS
from model.audio.prosody import PROSODY_FEATURES
from model.checkpoints import loader, tuned
from model.checkpoints.loader import Checkpoint
from model.errors import WeightsMissing
from model.files import replacing, write_atomically
from model.inference.engine import Engine
from model.nn.emotion import EmotionHead
from training.data.manifest import Report, read_clip
from training.data.sources import fetching
from training.finetune.examples import Example, print_dropped, read_examples
from training.finetune.features import copy_head, mean_frame, prosody_size
from training.finetune.head import Rows, Tuned, divide, tune_head
from training.finetune.judge import Heard, Listener, choose_replies, figures, neutral_losses, replies_beside, verdict
from training.finetune.options import TuneOptions
from training.finetune.run_state import MODEL, SUMMARY, Clock, StopRequested, finish, stop_if_requested
from training.runs.run_folder import Run, open_run
from training.stages.student import write_checkpoint

FEATURES = "features"
_CHANGEABLE = ("rows_at_once", "run", "manifest")  # a folder may have moved


def tune(options: TuneOptions) -> dict[str, Any]:
    """Tune, or go on with it; the summary, or "stopped".

    Raises:
        BadInput: nothing can be learnt from the manifest, or options and checkpoint do not go together.
        WeightsMissing: the checkpoint is not there, or the disk is full.
    """
    with open_run(options.run, options.plain(), changeable=_CHANGEABLE) as run:
        if (run.folder / SUMMARY).exists():
            return dict(json.loads((run.folder / SUMMARY).read_text("utf-8")))
        try:
            if options.what != "head":
                from training.finetune.stages import tune_stages

                return tune_stages(options, run, Clock(run))
            return _tune_head(options, run, Clock(run))
        except StopRequested:
            return {"stopped": True, "run": str(options.run)}
        except OSError as error:
            where = error.filename or options.run
            raise WeightsMissing(
                f"{where} cannot be written ({error.strerror}): make room and start again, it goes on where it was."
            ) from error


def _tune_head(options: TuneOptions, run: Run, clock: Clock) -> dict[str, Any]:
    run.report("prepare", 0, 1, **clock.figures())
    report = Report(print_dropped)
    examples = read_examples(options, report)
    report.write(run.folder)
    with fetching(run) as progress:
        loaded = loader.load(options.model, progress=progress)
    head, engine = copy_head(loaded), Engine(loaded)
    frames = hear_all(loaded, examples, run, clock)
    texts = [str(one.row.data.get("text") or "") for one in examples]
    names = [EMOTIONS[one.label] for one in examples]
    folds, basis = divide(names, [one.speaker for one in examples], texts, options.folds)
    rows = Rows(frames, torch.tensor([one.label for one in examples]), np.array(folds))
    result = fit(head, prosody_size(loaded), rows, options, run, clock)
    thresholds = (head.threshold, result.threshold)
    before = torch.softmax(head.of_means(frames), 1)
    heard = [
        Heard(one.audio, text, one.label, *pair)
        for one, text, *pair in zip(examples, texts, before, result.held_out, strict=True)
    ]
    judged = judge(engine, heard, thresholds, options, run, clock)
    write_tuned(options.model, loaded, result, run.folder / MODEL)
    summary = {
        "run": str(options.run),
        "checkpoint": str(run.folder / MODEL),
        "from": options.model,
        "what": options.what,
        "learnt_from": len(examples),
        "dropped": report.counts(),
        "held_out_by": basis,
        "penalty": result.penalty,
        "penalties": result.losses,
        **judged,
    }
    return finish(options, run, clock, summary)


# ---- hearing


def hear_all(loaded: Checkpoint, examples: list[Example], run: Run, clock: Clock) -> Tensor:
    """The mean frames [n, D] that the head averages, of all recordings; each is kept in features/ when it is known.

    Raises:
        StopRequested: after the recording at which the watcher asked for it.
    """
    kept = run.folder / FEATURES
    kept.mkdir(exist_ok=True)
    missing = [one for one in examples if not (kept / f"{one.found.key}.npy").exists()]
    with run.bar("listen", len(examples), len(examples) - len(missing)) as bar:
        for one in missing:
            stop_if_requested(run)
            assert one.found.clip is not None
            frame = mean_frame(loaded, read_clip(one.found.clip))
            with replacing(kept / f"{one.found.key}.npy") as partial, partial.open("wb") as file:
                np.save(file, frame.numpy())
            bar.advance(**clock.figures())
    return torch.from_numpy(np.stack([np.load(kept / f"{one.found.key}.npy") for one in examples]))


# ---- fitting


def fit(head: EmotionHead, prosody: int, rows: Rows, options: TuneOptions, run: Run, clock: Clock) -> Tuned:
    """Let the head learn; every step is reported with its held-out loss and accuracy."""
    run.report("choose", 0, 1, **clock.figures())
    with run.bar("fit", options.steps, unit="steps") as bar:

        def watch(step: int, loss: float, validation: float, right: float) -> None:
            bar.set(step, loss=loss, validation=validation, validation_accuracy=right, **clock.figures())
            bar.flush()

        return tune_head(head, head.threshold, rows, prosody, options.steps, watch)


def write_tuned(source: str, loaded: Checkpoint, result: Tuned, out: Path) -> None:
    """Write the tuned checkpoint: the head alone where it stands on a preset, else the whole folder with that head."""
    preset, config = loader.preset_of(source), loaded.model.config
    if preset is not None:
        reading = {
            "layers": list(config.emotion_layers),
            "features": list(PROSODY_FEATURES),
            "hidden": config.emotion_hidden,
            "temperature": float(result.head["temperature"]),
            "threshold": result.threshold,
            "frame_group": config.emotion_frame_group,
        }
        name = preset.get("preset", source)
        tuned.save(out, name, loader.presets()[name], result.head, reading)
        return
    learnt = ("weight", "centre", "offset", "temperature")  # hidden units keep their bytes
    write_checkpoint(Path(source), {f"emotion_head.{name}": result.head[name] for name in learnt}, out)
    settings = json.loads((out / "config.json").read_text("utf-8"))
    write_atomically(
        out / "config.json", json.dumps(settings | {"emotion_threshold": result.threshold}, indent=2) + "\n"
    )


# ---- judging


def judge(
    engine: Engine, heard: list[Heard], thresholds: tuple[float, float], options: TuneOptions, run: Run, clock: Clock
) -> dict[str, Any]:
    """Readings, continuation loss and replies before and after, and a verdict; every recording with its figures."""
    read = figures(heard, thresholds)
    neutral = [row for row in heard if row.emotion == 0][: options.judged]
    chosen = choose_replies(heard, thresholds, options.replies)
    reads_matter = engine.model.config.tells_tone
    neutral, chosen = (neutral, chosen) if reads_matter else ([], [])
    stop_if_requested(run)
    with run.bar("judge", len(neutral) + len(chosen)) as bar:
        listener = Listener(engine)

        def notified() -> None:
            stop_if_requested(run)
            bar.advance(**clock.figures())

        losses = neutral_losses(listener, neutral, thresholds, notified)
        replies = replies_beside(listener, [heard[at] for at in chosen], thresholds, notified)
    rows = [
        {"audio": str(row.audio), "text": row.text, "emotion": EMOTIONS[row.emotion]}
        | {"before": row.before.tolist(), "after": row.after.tolist()}
        for row in heard
    ]
    for at, pair in zip(chosen, replies, strict=True):
        rows[at] |= pair
    word, why = verdict(read, losses)
    return {
        "verdict": word,
        "why": why,
        "thresholds": list(thresholds),
        "reading": read,
        "continuation": losses,
        "replies_depend_on_reading": reads_matter,
        "recordings": rows,
    }
