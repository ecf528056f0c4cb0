"""`python -m training tune RUN`: fine-tune a checkpoint on the user's recordings, and compare on held-out ones.

The run folder (`training.runs.run_folder`) contains everything: the manifest's recordings are encoded once (features/),
the head is fitted or the stages are trained (stage-1/, stage-2/), before and after are compared, and the tuned
checkpoint is model/. summary.json is written last; started again, a run is resumed.
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
from training.finetune.head import Rows, Tuned, assign_folds, tune_head
from training.finetune.judge import (
    ComparedReading,
    FixedReadingEngine,
    choose_replies,
    compare_replies,
    figures,
    neutral_losses,
    verdict,
)
from training.finetune.options import TuneOptions
from training.finetune.run_state import MODEL, SUMMARY, Clock, StopRequested, finish, stop_if_requested
from training.runs.run_folder import Run, open_run
from training.stages.student import write_checkpoint

FEATURES = "features"
_CHANGEABLE = ("rows_at_once", "run", "manifest")  # a folder may have moved


def tune(options: TuneOptions) -> dict[str, Any]:
    """Fine-tune, or resume it.

    Args:
        options: of the command.

    Returns:
        The summary, or "stopped".

    Raises:
        BadInput: there is nothing to learn from, or options and checkpoint do not fit together.
        WeightsMissing: the checkpoint is missing, or the disk is full.
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
                f"{where} cannot be written ({error.strerror}): make room and try again; the run is resumed."
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
    folds, basis = assign_folds(names, [one.speaker for one in examples], texts, options.folds)
    rows = Rows(frames, torch.tensor([one.label for one in examples]), np.array(folds))
    result = fit(head, prosody_size(loaded), rows, options, run, clock)
    thresholds = (head.threshold, result.threshold)
    before = torch.softmax(head.of_means(frames), 1)
    heard = [
        ComparedReading(one.audio, text, one.label, *pair)
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


# ---- encoding


def hear_all(loaded: Checkpoint, examples: list[Example], run: Run, clock: Clock) -> Tensor:
    """Mean frames [n, D] of the emotion head's input for all recordings; each is stored in features/ at once.

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
    """Train the head; every step is reported with its held-out loss and accuracy."""
    run.report("choose", 0, 1, **clock.figures())
    with run.bar("fit", options.steps, unit="steps") as bar:

        def watch(step: int, loss: float, validation: float, right: float) -> None:
            bar.set(step, loss=loss, validation=validation, validation_accuracy=right, **clock.figures())
            bar.flush()

        return tune_head(head, head.threshold, rows, prosody, options.steps, watch)


def write_tuned(source: str, loaded: Checkpoint, result: Tuned, out: Path) -> None:
    """Write the tuned checkpoint: the head alone for a preset, otherwise the whole folder with the new head."""
    preset, config = loader.preset_of(source), loaded.model.config
    if preset is not None:
        reading = {
            "layers": list(config.emotion_layers),
            "features": list(PROSODY_FEATURES),
            "hidden": config.emotion_hidden,
            "temperature": float(result.head["temperature"]),
            "threshold": result.threshold,
            "frame_group": config.emotion_frame_group,
            "stacked": config.emotion_stacked,
            "frames": config.emotion_frames,
            "neutral_threshold": 0.0,  # the recordings set one threshold for all
            "pair_threshold": config.emotion_pair_threshold,
            "baseline": config.emotion_baseline,
            "voice": config.emotion_voice,
        }
        name = preset.get("preset", source)
        tuned.save(out, name, loader.presets()[name], result.head, reading)
        return
    learnt = ("weight", "centre", "offset", "temperature")  # hidden units are unchanged
    write_checkpoint(Path(source), {f"emotion_head.{name}": result.head[name] for name in learnt}, out)
    settings = json.loads((out / "config.json").read_text("utf-8"))
    write_atomically(
        out / "config.json", json.dumps(settings | {"emotion_threshold": result.threshold}, indent=2) + "\n"
    )


# ---- comparison


def judge(
    engine: Engine,
    heard: list[ComparedReading],
    thresholds: tuple[float, float],
    options: TuneOptions,
    run: Run,
    clock: Clock,
) -> dict[str, Any]:
    """Readings, continuation loss and replies before and after, and a verdict; all recordings with their figures."""
    read = figures(heard, thresholds)
    neutral = [row for row in heard if row.emotion == 0][: options.judged]
    chosen = choose_replies(heard, thresholds, options.replies)
    reads_matter = engine.model.config.tells_tone
    neutral, chosen = (neutral, chosen) if reads_matter else ([], [])
    stop_if_requested(run)
    with run.bar("judge", len(neutral) + len(chosen)) as bar:
        listener = FixedReadingEngine(engine)

        def on_done() -> None:
            stop_if_requested(run)
            bar.advance(**clock.figures())

        losses = neutral_losses(listener, neutral, thresholds, on_done)
        replies = compare_replies(listener, [heard[at] for at in chosen], thresholds, on_done)
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
