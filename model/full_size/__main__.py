"""`python -m model.full_size`: the full-size model on this machine's GPU, with random weights and no download.

Builds a checkpoint of the original's sizes, loads it in 4 bits, saves it and loads it again, compares it with 16 bits,
decodes, trains for 50 steps, and writes the measurements to a page named after the date and the hardware. Sections are
independent: a failed one is on the page with its traceback. With random weights, times and sizes are real, texts and
losses are not.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

from model.checkpoints.loader import RESOURCES
from model.commands.options import quiet_libraries
from model.errors import ModelError, WeightsMissing
from model.files import write_atomically
from model.full_size.decoding import attention, decode, memory, profile, prompt_times
from model.full_size.run import SIZES, Figures, Run, bandwidth
from model.full_size.training import train
from model.full_size.weights import build, compare, quantize, reload, require_room

Section = tuple[str, Callable[[Run], Figures]]

SECTIONS: list[Section] = [
    ("Memory bandwidth", bandwidth),
    ("Building in 16 bits", build),
    ("Quantizing", quantize),
    ("4 bits against 16", compare),
    ("Loading 4 bits", reload),
    ("First token", prompt_times),
    ("Decoding", decode),
    ("Memory against the plan", memory),
    ("Attention of one query", attention),
    ("Profile", profile),
    ("Training", train),
]

CHECKS = ("reloaded_logits_identical", "loss_went_down")


def measure(run: Run, sections: Sequence[Section] = tuple(SECTIONS)) -> dict[str, str]:
    """Run the sections independently; fills `run.figures` and returns the tracebacks of those that failed."""
    failures = {}
    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(sections))
        for name, section in sections:
            bar.update(task, description=name)
            try:
                started = run.now()
                run.figures |= section(run)
                run.figures[f"{section.__name__}_section_seconds"] = run.now() - started
            except Exception:  # noqa: BLE001  (any failure is on the page, and the other sections still run)
                failures[name] = _without_paths(traceback.format_exc(), run.work)
            bar.advance(task)
    return failures


def _without_paths(text: str, work: Path) -> str:
    """A traceback without paths of this machine."""
    text = text.replace(f"{work}", "WORK").replace(f"{RESOURCES.parent}/", "")
    return re.sub(r'"[^"]*/(?:site-packages|python3\.\d+)/', '"', text)


def hardware(device: str) -> str:
    """The name of the GPU or the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text("utf-8")) if cpuinfo.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def about(run: Run, size: str, command: str) -> Figures:
    """What was measured, where and with which versions."""
    figures: Figures = {"command": command, "date": date.today().isoformat(), "size": size, "device": run.device}
    figures["hardware"] = hardware(run.device)
    figures["machine"] = f"{platform.system()} {platform.machine()}, {hardware('cpu')}"
    if run.cuda:
        figures["card_memory_gb"] = torch.cuda.mem_get_info()[1] / 1e9
        figures["compute_capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        figures["cuda"] = torch.version.cuda
    names = ("torch", "transformers", "bitsandbytes", "safetensors")
    return figures | {"python": platform.python_version()} | {name: version(name) for name in names}


def page(facts: Figures, run: Run, failures: dict[str, str]) -> str:
    """The Markdown page of a run."""
    lines = [f"# The full-size model on {facts['hardware']}, {facts['date']}", ""]
    if facts["size"] != "full":
        lines += ["**A tiny model, to try the script: none of these figures says anything about the full size.**", ""]
    lines += [
        f"`{facts['command']}`",
        "",
        "Random weights: times and sizes are real, texts and losses mean nothing.",
        "",
    ]
    for title, figures in (("Where", facts), ("Figures", run.figures)):
        lines += [f"## {title}", "", "| what | value |", "|---|---|"]
        lines += [f"| {name} | {_shown(value)} |" for name, value in figures.items() if name != "command"]
        lines += [""]
    for name, text in failures.items():
        lines += [f"## Failed: {name}", "", "```", text.strip(), "```", ""]
    if run.profile:
        lines += ["## Profile of ten tokens", "", "```", run.profile.strip(), "```", ""]
    return "\n".join(lines)


def _shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the page and print it, or with --json one flat object; 1 if a section or a check failed."""
    parser = argparse.ArgumentParser(prog="python -m model.full_size", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="tiny: tries the script, on any machine")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="folder of the page; resources/figures for the full size")
    parser.add_argument("--work", type=Path, help="folder for 30 GB of weights, removed afterwards")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    words = sys.argv[1:] if arguments is None else arguments
    command = f"python -m model.full_size {shlex.join(words)}".strip()
    out = options.out or (RESOURCES / "figures" if options.size == "full" else None)
    try:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise WeightsMissing("No CUDA device is available: see `doctor` for why, or try --size tiny --device cpu.")
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            run = Run(SIZES[options.size], options.device, Path(folder))
            require_room(run)
            facts = about(run, options.size, command)
            failures = measure(run)
    except ModelError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    text = page(facts, run, failures)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", str(facts["hardware"]).lower()).strip("-")
        write_atomically(out / f"{facts['date']}-{name}.md", text)
    sys.stdout.write(json.dumps(facts | run.figures | {"failures": failures}) + "\n" if options.json else text)
    return 1 if failures or False in (run.figures.get(check) for check in CHECKS) else 0


if __name__ == "__main__":
    sys.exit(main())
