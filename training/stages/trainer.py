"""transformers' Trainer with the recipe's losses, order of rows, validation and checkpoints; its reports."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from assistant.events import EMOTIONS
from model.errors import BadInput, WeightsMissing
from training.data.batches import IGNORED, Batch, TrainingRow, collate
from training.data.dataset import SpeechRows, StepOrder
from training.metrics.predictions import Scores
from training.runs import checkpoints
from training.runs.config import TrainOptions
from training.runs.run_folder import STOP, Bar, read_progress
from training.stages.losses import LOSSES, loss_counts
from training.stages.student import Recipe, apply_trained

_FLAG = len(LOSSES)  # index after the counts: whether to stop


@dataclass(frozen=True, slots=True)
class Steps:
    """How a run divides its rows.

    Attributes:
        size: rows per step.
        rows: rows per process and pass.
        times: passes per step of each process.
        count: number of steps.
        warm_up: steps with rising learning rate.
    """

    size: int
    rows: int
    times: int
    count: int
    warm_up: int


def is_over(state: Mapping[str, Any], options: TrainOptions, steps: Steps) -> bool:
    """Whether a run in this state is finished, or has run out of patience with the validation loss."""
    step, best = int(state.get("global_step", 0)), state.get("best_global_step")
    waited = options.patience and best and step - int(best) >= options.patience * options.validate_every
    return step >= steps.count or bool(waited)


@contextmanager
def room_for(target: Path, last: Path | None) -> Iterator[None]:
    """Explain a full disk, and remove a partial `target`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(target, ignore_errors=True)
        reason = str(error).strip().splitlines()[0]
        on = f"it resumes from {last.name}" if last else "it starts over"
        raise WeightsMissing(f"{target} cannot be written ({reason}): make room and try again; {on}.") from error


class Reporter(TrainerCallback):
    """Reports every step and validation, and stops the training when it is time.

    Args:
        bar: of the first process.
        options: of the command.
        steps: of the run.
        done: steps of earlier starts.
    """

    def __init__(self, bar: Bar | None, options: TrainOptions, steps: Steps, done: int) -> None:
        self.bar, self.options, self.steps, self.first = bar, options, steps, done
        self.stop = False
        self.began = time.monotonic()
        earlier = read_progress(options.run) if bar else []
        self.seconds = max((line.get("seconds", 0.0) for line in earlier), default=0.0)
        self._known: dict[str, Any] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Report a step.

        Raises:
            BadInput: its loss or its gradient is not finite.
        """
        state.log_history.clear()  # progress.jsonl has everything
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):
            raise BadInput(
                f"The loss is not finite at step {state.global_step}: "
                "use another run folder with a smaller --learning-rate, or fp32."
            )
        taken = time.monotonic() - self.began
        rate = (state.global_step - self.first) * self.steps.size / taken
        self._known = {
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "samples_per_second": round(rate, 3),
            "gradient_norm": logs["grad_norm"],
            "seconds": round(self.seconds + taken, 2),
        }
        self._notify(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        """Report a validation."""
        figures = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        self._notify(
            state.global_step, validation=figures.pop("loss"), **{f"validation_{n}": v for n, v in figures.items()}
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop if the watcher has asked for it."""
        if self.stop:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop if the validation loss has not improved for long enough."""
        about = {"global_step": state.global_step, "best_global_step": state.best_global_step}
        if is_over(about, self.options, self.steps):
            control.should_training_stop = True

    def _notify(self, step: int, **figures: Any) -> None:
        if self.bar is not None:
            self.bar.set(step, **self._known, **figures)
            if self.bar.news:
                self.bar.flush()


class RecipeTrainer(Trainer):
    """transformers' Trainer with the recipe's losses, order of rows, validation and checkpoints."""

    loss_is_scaled_for_ga = True  # by the counts

    def __init__(
        self,
        recipe: Recipe,
        arguments: TrainingArguments,
        splits: tuple[SpeechRows, SpeechRows],
        order: StepOrder,
        options: TrainOptions,
        report: Reporter,
    ) -> None:
        self.rows, self.validation = splits
        if not len(self.validation):
            arguments.eval_strategy = "no"
        super().__init__(
            model=recipe,
            args=arguments,
            data_collator=collate,  # type: ignore[arg-type]  # the type is for rows that are dictionaries
            train_dataset=self.rows,
            eval_dataset=self.validation if len(self.validation) else None,
            callbacks=[report],
        )
        self.remove_callback(PrinterCallback)
        self.recipe, self.order, self.options, self.report = recipe, order, options, report

    # ---- steps

    def get_train_dataloader(self) -> DataLoader[TrainingRow]:
        """Batches in the order of the steps."""
        loader = DataLoader(
            self.rows,
            batch_size=self.args.per_device_train_batch_size,
            sampler=self.order,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # does not change the random state of dropout
        )
        prepared: DataLoader[TrainingRow] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Batch], Any]:
        """The batches of a step, and the denominators of its losses over all of them and all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        totals = torch.zeros(_FLAG + 1, dtype=torch.float64)
        for batch in batches:
            totals[:_FLAG] += torch.stack([loss_counts(batch)[name] for name in LOSSES]).cpu()
        totals[_FLAG] = self.report.bar is not None and (self.options.run / STOP).exists()
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals.to(device), "sum")
        self.report.stop = bool(totals[_FLAG])
        return batches, {name: total.to(device) for name, total in zip(LOSSES, totals.float(), strict=False)}

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's part of the step's loss, times the number of processes, because they average their gradients."""
        losses = model(inputs, num_items_in_batch)
        loss = losses["loss"] * self.args.world_size
        return (loss, losses) if return_outputs else loss

    # ---- validation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Each loss, their sum, and emotion recognition where the emotion loss is trained, over the validation rows."""
        rows = self.validation if eval_dataset is None else eval_dataset
        self.recipe.eval()
        assert isinstance(self.model, nn.Module)
        sums, scores = validate(self.model, self.recipe, rows, self.args, self.accelerator)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in sums.items()}
        metrics[f"{metric_key_prefix}_loss"] = sum(sums.values())
        if sum(scores.counts):
            figures = scores.figures()
            metrics |= {f"{metric_key_prefix}_{name}": figures[name] for name in ("accuracy", "unweighted_recall")}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint with checksums, and only then remove old ones."""
        target = self.options.run / f"checkpoint-{self.state.global_step}"
        last, _ = checkpoints.newest(self.options.run) if self.args.should_save else (None, [])
        if self.args.should_save:
            shutil.rmtree(target, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with room_for(target, last if last != target else None):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.write_checksums(target)
        if self.args.should_save:
            best = self.options.run / f"checkpoint-{self.state.best_global_step}"
            checkpoints.prune(self.options.run, self.options.keep, {best})

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save only the trained weights."""
        if not self.args.should_save or output_dir is None:
            return
        names = self.recipe.trained()
        if state_dict is None:
            weights: Mapping[str, Tensor] = names
        else:  # gathered from its shards
            weights = {name: state_dict[f"model.{name}"] for name in names}
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        full = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(full, Path(output_dir) / checkpoints.WEIGHTS, {"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        apply_trained(self.recipe.model, load_file(Path(resume_from_checkpoint) / checkpoints.WEIGHTS))


@torch.no_grad()
def validate(
    model: nn.Module, recipe: Recipe, rows: SpeechRows, arguments: TrainingArguments, accelerator: Any
) -> tuple[dict[str, float], Scores]:
    """Each loss over all rows, divided among the processes, and the emotion head's scores.

    Args:
        model: `recipe`, or its wrapper, in evaluation mode.
        recipe: model and losses.
        rows: to validate on.
        arguments: the Trainer's.
        accelerator: the Trainer's.
    """
    size, names = arguments.per_device_eval_batch_size, recipe.names
    order = sorted(range(len(rows)), key=lambda number: -rows.lengths[number])
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    ones = dict.fromkeys(LOSSES, torch.ones((), device=arguments.device))
    totals = torch.zeros(2 * len(names) + len(EMOTIONS) ** 2, dtype=torch.float64, device=arguments.device)
    seen: list[Tensor] = []
    head = recipe.model.emotion_head
    hook = head.register_forward_hook(lambda _, __, logits: seen.append(logits)) if head is not None else None
    # Sharded models need every process in every pass: a process without a batch repeats one, which is not counted.
    for turn in range(-(-len(parts) // arguments.world_size)):
        place = turn * arguments.world_size + arguments.process_index
        batch = to_device(collate([rows[number] for number in parts[place % len(parts)]]), arguments.device)
        seen.clear()
        losses = model(batch, ones)
        if place >= len(parts):
            continue
        counts = loss_counts(batch)
        found = [losses[name] for name in names] + [counts[name] for name in names]
        totals[: 2 * len(names)] += torch.stack([value.double() for value in found])
        if seen:
            labelled = batch["emotion"] != IGNORED
            cells = batch["emotion"][labelled] * len(EMOTIONS) + seen[0].argmax(1)[labelled]
            totals[2 * len(names) :] += torch.bincount(cells, minlength=len(EMOTIONS) ** 2)
    if hook is not None:
        hook.remove()
    if arguments.world_size > 1:
        totals = accelerator.reduce(totals, "sum")
    sums, counted, confusion = totals.cpu().tensor_split([len(names), 2 * len(names)])
    means = {name: float(total / max(count, 1)) for name, total, count in zip(names, sums, counted, strict=True)}
    table = confusion.long().reshape(len(EMOTIONS), -1).tolist()
    return means, Scores([[*row, 0] for row in table])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to a device.

    Args:
        batch: of `collate`.
        device: target.

    Returns:
        The batch there.
    """
    moved: Batch = send_to_device(batch, device)
    return moved
