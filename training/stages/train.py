"""`python -m training train`: one stage of the recipe, by transformers' Trainer over `RecipeLosses`.

A step's rows depend on the seed only; every loss is divided by the step's own counts over all its batches and
processes; and a checkpoint stores weights, optimiser, schedule and random states. So a run that was killed, one that
was paused, and one over several processes (`accelerate launch`) have the same losses.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from model.errors import BadInput
from model.files import write_atomically
from training.data.dataset import SpeechRows, StepOrder, divide_step, fill_cache, open_caches, read_encoder
from training.data.prepare import PreparedRows
from training.data.sources import fetching, model_folder
from training.runs import checkpoints
from training.runs.config import TrainOptions
from training.runs.run_folder import Run, open_run, read_progress
from training.stages.footprint import footprint
from training.stages.student import Student, load_student, write_checkpoint
from training.stages.trainer import RecipeTrainer, Reporter, Steps, is_over, room_for
from training.stages.training_card import training_card

MODEL, SUMMARY = "model", "summary.json"
_PATIENCE_SECONDS = 30 * 24 * 3600  # how long processes wait for each other
_CHANGEABLE = ("rows_at_once", "gradient_checkpointing", "keep")


def plan_steps(options: TrainOptions, rows: int, processes: int) -> Steps:
    """The steps over `rows` training rows.

    The recipe's warm-up is meant for a million rows; by default it takes at most a tenth of the steps.
    """
    recipe = options.recipe()
    size = int(recipe["batch_size"])
    at_once, times = divide_step(size, processes, options.rows_at_once)
    count = options.max_steps or math.ceil(recipe["epochs"] * rows / size)
    warm_up = int(recipe["warmup_steps"])
    if options.warmup_steps is None:
        warm_up = min(warm_up, count // 10)
    return Steps(size, at_once, times, count, warm_up)


def train(options: TrainOptions) -> dict[str, Any]:
    """Train one stage, or resume it. In a process of `accelerate launch`, its share.

    Args:
        options: of the command.

    Returns:
        The summary, or "stopped"; empty in all but the first process.

    Raises:
        BadInput: options, data and checkpoint do not fit together, or the loss is not finite.
        WeightsMissing: the checkpoint is missing, or the disk is full.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    prepared = PreparedRows(options.data, "train")
    if not len(prepared):
        raise BadInput(f"{options.data} has no training rows: prepare it with a smaller --validation.")
    steps = plan_steps(options, len(prepared), processes)
    arguments = training_arguments(options, steps)
    with _first(arguments, options) as run:
        if (options.run / SUMMARY).exists():
            return dict(json.loads((options.run / SUMMARY).read_text("utf-8"))) if run else {}
        with fetching(run) if run else ExitStack():
            folder = model_folder(options.model)
        arguments.distributed_state.wait_for_everyone()
        student = load_student(options, folder, _device(arguments))
        splits = speech_rows(options, student, prepared, arguments, run)
        _use_checkpointing(options, student, splits[0], steps.rows)
        return _train(options, student, splits, steps, arguments, run)


def _device(arguments: TrainingArguments) -> str:
    """Where the model is loaded: sharded models are moved to their devices later."""
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true" or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    return "cpu" if sharded else arguments.device.type


def training_arguments(options: TrainOptions, steps: Steps) -> TrainingArguments:
    """The Trainer's arguments. Creating them starts the process group."""
    recipe = options.recipe()
    cuda = torch.cuda.is_available()
    half = options.precision == "bf16" or (options.precision == "auto" and cuda and torch.cuda.is_bf16_supported())
    arguments = TrainingArguments(
        output_dir=str(options.run),
        per_device_train_batch_size=steps.rows,
        per_device_eval_batch_size=steps.rows,
        gradient_accumulation_steps=steps.times,
        max_steps=steps.count,
        learning_rate=recipe["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=steps.warm_up,
        weight_decay=options.weight_decay,
        max_grad_norm=options.clip,
        bf16=half,
        use_cpu=not cuda,
        seed=options.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=options.validate_every,
        save_strategy="steps",
        save_steps=options.validate_every,
        metric_for_best_model="loss",
        greater_is_better=False,
        remove_unused_columns=False,
        label_names=[],
        dataloader_num_workers=min(4, (os.cpu_count() or 1) - 1) if cuda else 0,
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=False,
        ddp_timeout=_PATIENCE_SECONDS,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
        log_level_replica="error",
    )
    arguments.device  # noqa: B018  (initialises the devices)
    arguments._n_gpu = min(arguments._n_gpu, 1)  # several GPUs in one process would be DataParallel
    return arguments


@contextmanager
def _first(arguments: TrainingArguments, options: TrainOptions) -> Iterator[Run | None]:
    """The first process locks the run folder; the others get None."""
    if arguments.process_index:
        yield None
        return
    with open_run(options.run, options.plain(), changeable=_CHANGEABLE) as run:
        yield run


def speech_rows(
    options: TrainOptions,
    student: Student,
    prepared: PreparedRows,
    arguments: TrainingArguments | None = None,
    run: Run | None = None,
) -> tuple[SpeechRows, SpeechRows]:
    """Open the rows for training and validation; the first feature cache is created or completed before.

    Args:
        options: of the command.
        student: for its encoder and window.
        prepared: the training split.
        arguments: the Trainer's; None outside a training run.
        run: where progress is reported, or None.

    Returns:
        Training rows and validation rows.
    """
    splits = (prepared, PreparedRows(options.data, "validation"))
    caches = []
    if options.features:
        encoder = read_encoder(student.folder, student.config)
        window = student.config.window
        if arguments is None or not arguments.process_index:
            others = open_caches(options.features[1:], encoder, window)
            fill_cache(Path(options.features[0]), splits, others, encoder, student.extractor, window, run)
        if arguments is not None:
            arguments.distributed_state.wait_for_everyone()
        caches = open_caches(options.features, encoder, window)
    training, validation = (SpeechRows(one, caches, student.extractor, student.config.window) for one in splits)
    return training, validation


def _use_checkpointing(options: TrainOptions, student: Student, rows: SpeechRows, at_once: int) -> None:
    """Switch gradient checkpointing on if requested, or if a GPU could not hold the longest rows without it."""
    device = student.recipe.model.device.type
    if options.gradient_checkpointing == "auto" and device == "cuda":
        longest = sorted(range(len(rows)), key=lambda number: rows.lengths[number])[-at_once:]
        footprint(options, student, [rows[number] for number in longest], device)
    elif options.gradient_checkpointing == "on":
        student.recipe.model.activation_checkpointing_enable()


def _train(
    options: TrainOptions,
    student: Student,
    splits: tuple[SpeechRows, SpeechRows],
    steps: Steps,
    arguments: TrainingArguments,
    run: Run | None,
) -> dict[str, Any]:
    start, problems = checkpoints.newest(options.run)
    sys.stderr.writelines(f"{problem}\n" for problem in problems if run)
    order = StepOrder(splits[0].lengths, steps.size, steps.count, options.seed)
    with ExitStack() as stack:
        state = checkpoints.read_state(start) if start else {}
        done = int(state.get("global_step", 0))
        stage = "head" if options.only else f"stage {options.stage}"
        bar = stack.enter_context(run.bar(stage, steps.count, done, unit="steps")) if run else None
        report = Reporter(bar, options, steps, done)
        trainer = RecipeTrainer(student.recipe, arguments, splits, order, options, report)
        if not is_over(state, options, steps):
            trainer.train(resume_from_checkpoint=str(start) if start else None)
    arguments.distributed_state.wait_for_everyone()
    if run is None:
        return {}
    last, _ = checkpoints.newest(options.run)
    assert last is not None, "a run that ends has a checkpoint"
    state = checkpoints.read_state(last)
    if not is_over(state, options, steps):
        return {"stopped": True, "step": state["global_step"], "of": steps.count, "run": str(options.run)}
    return _finish(options, student, steps, run, last, state)


def _finish(
    options: TrainOptions, student: Student, steps: Steps, run: Run, last: Path, state: dict[str, Any]
) -> dict[str, Any]:
    """Write the checkpoint with the best weights, the card and the summary."""
    best = run.folder / f"checkpoint-{state.get('best_global_step') or state['global_step']}"
    if best != last and checkpoints.damage_in(best) is not None:
        sys.stderr.write(f"{best}, the best by validation, cannot be read; the last one is used.\n")
        best = last
    weights = load_file(best / checkpoints.WEIGHTS)
    with room_for(run.folder / MODEL, last):
        write_checkpoint(student.folder, weights, run.folder / MODEL)
    progress = read_progress(run.folder)
    validations = [line for line in progress if line.get("validation") is not None]
    chosen = int(best.name.removeprefix("checkpoint-"))
    summary: dict[str, Any] = {
        "run": str(options.run),
        "checkpoint": str(run.folder / MODEL),
        "steps": state["global_step"],
        "of": steps.count,
        "chosen_step": chosen,
        "loss": next((line["loss"] for line in reversed(progress) if line.get("loss") is not None), None),
        "validation": next((v["validation"] for v in reversed(validations) if v["step"] == chosen), None),
        "trained_parameters": sum(value.numel() for value in weights.values()),
        "seconds": next((line["seconds"] for line in reversed(progress) if "seconds" in line), 0.0),
    }
    run.write_card(training_card(options, student, summary, validations))
    write_atomically(run.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary
