"""card.md of a training run: what was trained, on which data, and the result, all from the run itself."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from training.data.prepare import DONE
from training.runs.config import TrainOptions
from training.stages.student import Student


def training_card(
    options: TrainOptions, student: Student, summary: dict[str, Any], validations: list[dict[str, Any]]
) -> str:
    """The card as Markdown.

    Args:
        options: of the run.
        student: what was trained.
        summary: what `train` returns.
        validations: the lines of progress.jsonl with a validation.
    """
    data = json.loads((options.data / DONE).read_text("utf-8"))
    recipe = options.recipe() | {"losses": ", ".join(student.recipe.names)}
    settings = "\n".join(f"| {name} | {value} |" for name, value in recipe.items())
    trains = {name.split(".")[0] if ".lora_" not in name else "LoRA" for name in student.recipe.trained()}
    return f"""# {"The emotion head" if options.only else f"Stage {options.stage}"}: a training run

{summary["steps"]} of {summary["of"]} steps, {summary["seconds"] / 3600:.2f} hours on {_machine()}, computed in
{"bfloat16" if student.half else "float32"}. Trained from `{Path(options.model).name}`: {", ".join(sorted(trains))},
{summary["trained_parameters"]:,} numbers. The weights are those of step {summary["chosen_step"]}, {_why(validations)}.

| | |
|---|---|
{settings}
| window of the encoder | {student.config.window} |
| quantized while training | {options.quantize} |
| seed | {options.seed} |

## Data

Training: {_split(data["train"])}. Validation: {_split(data["validation"])}, divided by {data["split_by"]}.
Dropped while preparing: {sum(n for reasons in data["dropped"].values() for n in reasons.values())} rows.

## Losses

{_losses(validations)}

The last training loss is {_number(summary["loss"])}. To measure what the checkpoint understands, run
`python -m training evaluate`.
"""


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}, {torch.get_num_threads()} threads)"


def _why(validations: list[dict[str, Any]]) -> str:
    return "the best by validation" if validations else "the last ones: there were no rows to validate with"


def _split(about: dict[str, Any]) -> str:
    emotions = ", ".join(f"{name} {count}" for name, count in sorted(about["emotions"].items()))
    return f"{about['rows']} rows, {about['hours']} hours ({emotions or 'none'})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _losses(validations: list[dict[str, Any]]) -> str:
    if not validations:
        return "No validation rows."
    columns = [name for name in validations[-1] if name.startswith("validation")]
    lines = [
        "| step | training loss | " + " | ".join(name.replace("_", " ") for name in columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    shown = validations[:: max(1, len(validations) // 20)]
    for line in [*shown, *(validations[-1:] if shown[-1] is not validations[-1] else [])]:
        values = [line.get("loss"), *(line.get(name) for name in columns)]
        lines.append(f"| {line['step']} | " + " | ".join(map(_number, values)) + " |")
    return "\n".join(lines)
