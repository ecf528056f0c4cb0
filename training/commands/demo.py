"""`python -m training demo OUT`: the whole pipeline on a corpus of a few dozen clips, with real weights.

Synthesis, an initial checkpoint, labels, cleaning, two prepared data sets, stages 1 and 2, and the evaluation of the
result against the initial checkpoint. Every step is the command of the same name and can be killed: started again, the
demo is resumed. It shows that everything works, not what training can achieve, which takes hours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from assistant.events import EMOTIONS
from model.errors import BadInput
from model.files import write_atomically
from training.data.clean import clean
from training.data.label import label
from training.data.prepare import prepare
from training.runs.config import CleanOptions, InitOptions, LabelOptions, PrepareOptions, TrainOptions
from training.stages.init import init
from training.stages.train import train
from training.synthesis.corpus import build_corpus

_ESPEAK = 0.28  # of the corpus's sentences


def demo(
    out: Path, *, sentences: int, steps: int, speech: str = "whisper-base", text: str = "smollm2-135m-instruct"
) -> dict[str, Any]:
    """Run the pipeline in `out`, or resume it.

    Args:
        out: folder of everything.
        sentences: approximate number, each in two renditions.
        steps: of each stage.
        speech: the encoder: a name of weights.toml, or a folder.
        text: the language model: a name of weights.toml, or a folder.

    Returns:
        Seconds of every step and the evaluation's figures.

    Raises:
        BadInput: as the commands.
        WeightsMissing: as the commands.
    """
    corpus, start = out / "corpus", out / "start"
    seconds: dict[str, float] = {}

    def run(name: str, work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
        Console(stderr=True).print(f"demo: {name}")
        began = time.monotonic()
        found = work(*given)
        seconds[name] = round(time.monotonic() - began, 1)
        if found.get("stopped"):
            raise BadInput(f"{name} was stopped: start the demo again to resume.")
        return found

    run("corpus", _corpus, corpus, sentences)
    if not start.exists():
        run("init", init, InitOptions.of({"out": start, "speech": speech, "text": text, "window": "trimmed"}))
    trained = start
    for stage in (1, 2):
        labels, data, emotion = out / f"labels-{stage}", out / f"data-{stage}", {"use_emotion": stage == 2}
        given = {"model": str(start), "manifest": corpus / "kept.jsonl", "lab_dir": labels, "max_new_tokens": 24}
        run(f"label {stage}", label, LabelOptions.of(given | emotion))
        run(f"clean {stage}", clean, CleanOptions.of({"input_dir": labels, "output_dir": labels / "clean"}))
        given = {"dataroot": labels / "clean", "save_dir": data, "model": str(start), "audio_root": corpus}
        given |= {"validation": 0.2, "speaker_field": "voice"}
        run(f"prepare {stage}", prepare, PrepareOptions.of(given | emotion))
        given = {"data": data, "model": str(trained), "run": out / f"stage-{stage}", "stage": stage}
        given |= {"max_steps": steps, "validate_every": steps, "batch_size": 8, "learning_rate": 1e-3 / stage}
        run(f"train {stage}", train, TrainOptions.of(given | {"features": str(out / "features")}))
        trained = out / f"stage-{stage}" / "model"
    figures = run("evaluate", _evaluation, trained, start, out / "data-2")
    return {"checkpoint": str(trained), "seconds": seconds, "seconds_in_all": sum(seconds.values()), **figures}


def _corpus(folder: Path, sentences: int) -> dict[str, Any]:
    """A corpus by espeak alone; kept.jsonl has two renditions of each sentence, all five emotions in turn."""
    kept = folder / "kept.jsonl"
    if kept.exists():
        return {}
    clips = round(sentences / _ESPEAK)
    counts = build_corpus(
        folder, clips=clips, prompts=0, seed=0, kokoro=Path(), engines=frozenset({"espeak"}), workers=2
    )
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    place = {source: at for at, source in enumerate(sorted({row["source"] for row in rows}))}
    chosen = [
        row
        for row in rows
        if row["rendition"] in (EMOTIONS[place[row["source"]] % 5], EMOTIONS[(place[row["source"]] + 2) % 5])
    ]
    write_atomically(kept, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen))
    return counts


def _evaluation(trained: Path, start: Path, data: Path) -> dict[str, Any]:
    from training.data.eval_cases import read_cases
    from training.evaluation.evaluate import Subject, examine

    found = {}
    for name, folder in (("before", start), ("after", trained)):
        subject = Subject.load(str(folder))
        cases, _ = read_cases(data, subject.writer.chat, limit=20)
        found[name], _ = examine(subject, cases, 3, name)
    return found
