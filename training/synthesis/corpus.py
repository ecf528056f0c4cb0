"""`python -m training corpus`: a corpus of synthetic emotional prosody, from synthesis engines and rules.

OUT/manifest.jsonl has one line per clip (audio, text, emotion, voice, engine, split, rendition), OUT/dropped.jsonl one
line per dropped source with the reason, OUT/card.md the ranges and the counts. The same seed gives the same clips; an
interrupted command is resumed.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.progress import track

from assistant.events import EMOTIONS, SAMPLE_RATE
from model.errors import BadInput
from model.files import write_atomically
from training.runs.run_folder import append_lines, read_lines
from training.synthesis.expression import CUES, renditions
from training.synthesis.voices import Source, human_sources, speak, synthetic_sources


@dataclass(frozen=True, slots=True)
class Job:
    """One source to turn into clips below `folder`."""

    source: Source
    folder: Path
    kokoro: Path
    seed: int


def make_clips(job: Job) -> list[dict[str, Any]]:
    """Synthesise, express and write one source; returns its manifest rows.

    Raises:
        BadInput: the source cannot be used; the message says why.
    """
    source = job.source
    random = np.random.default_rng([job.seed, 1, *source.id.encode()])
    rows = []
    for name, samples in renditions(speak(source, job.seed, job.kokoro), source.split, random).items():
        audio = f"audio/{source.id}-{name}.flac"
        soundfile.write(job.folder / audio, samples, SAMPLE_RATE)
        emotion = name if name in EMOTIONS else "neutral"
        row = {
            "audio": audio,
            "text": source.text,
            "emotion": emotion,
            "rendition": name,
            "source": source.id,
        }
        rows.append(row | {"voice": source.voice, "engine": source.engine, "split": source.split})
    return rows


def build_corpus(
    out: Path,
    *,
    clips: int,
    training_clips: int = 0,
    prompts: int,
    seed: int,
    kokoro: Path,
    engines: frozenset[str],
    workers: int,
) -> dict[str, Any]:
    """Build or complete the corpus in `out`.

    Args:
        out: folder of the corpus.
        clips: number of synthetic sentences.
        training_clips: for training voices, as many sentences as in a corpus of this size, if that is more.
        prompts: number of human prompts, if installed.
        seed: of all random numbers.
        kokoro: folder of the Kokoro model.
        engines: of "kokoro", "espeak", "flite" and "human".
        workers: number of processes.

    Returns:
        Counts of clips by split and of dropped sources by reason.

    Raises:
        BadInput: no source of these engines could be used; the message is the first reason.
    """
    (out / "audio").mkdir(parents=True, exist_ok=True)
    manifest, dropped = out / "manifest.jsonl", out / "dropped.jsonl"
    sources = [
        s for s in synthetic_sources(clips, seed, training_clips) + human_sources(prompts) if s.engine in engines
    ]
    rows, _ = read_lines(manifest)
    counts = Counter(row["source"] for row in rows)
    whole = {s.id for s in sources if counts[s.id] == len(EMOTIONS) + 1}
    rows = [row for row in rows if row["source"] in whole]
    write_atomically(manifest, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    dropped.unlink(missing_ok=True)
    jobs = [Job(s, out, kokoro, seed) for s in sources if s.id not in whole]
    reasons: Counter[str] = Counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(make_clips, job): job.source for job in jobs}
        finished = as_completed(running)
        for done in track(finished, "corpus", len(running), console=Console(stderr=True), transient=True):
            source = running[done]
            try:
                new = done.result()
            except BadInput as error:
                reasons[str(error).removeprefix(f"{source.id}: ")] += 1
                append_lines(dropped, [asdict(source) | {"why": str(error)}])
            else:
                append_lines(manifest, new)
                rows += new
    if not rows:
        raise BadInput(next(iter(reasons), "no source for these engines: see --engines"))
    splits = dict(sorted(Counter(row["split"] for row in rows).items()))
    summary = {"clips": len(rows), "splits": splits, "dropped": dict(reasons), "seed": seed}
    write_atomically(out / "card.md", _card(rows, summary))
    return summary


def _card(rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    ranges = "\n".join(
        f"| {cue} | {low} to {high} | " + " | ".join(f"{m} ± {s}" for m, s in (table[e] for e in EMOTIONS)) + " |"
        for cue, ((low, high), table) in CUES.items()
    )
    voices = sorted({(row["split"], row["engine"], row["voice"]) for row in rows})
    listed = "\n".join(f"- {split}: {engine} {voice}" for split, engine, voice in voices)
    return f"""# Synthetic prosody corpus

{summary["clips"]} clips ({summary["splits"]}), seed {summary["seed"]}; dropped: {summary["dropped"] or "none"}.
No clip is a person's emotional speech. Every sentence comes in all five emotions by the rules below (WORLD
vocoder, directions after Scherer 2003 and Juslin & Laukka 2003, sizes our own), and untouched, which counts as
neutral like the vocoder's neutral copy.
Training sentences are spoken by made-up speakers (pitch, range, rate, tilt and formants changed alike for all
emotions). All clips but untouched human speech get silence around them, a room (half of them), a colour,
noise at 15 to 45 dB and any gain.
flite and the human recordings (LibriVox through pocketsphinx-testdata, BSD; Asterisk prompts by Allison Smith,
CC-BY-SA-3.0) are tested on only. Kokoro-82M: Apache-2.0. espeak-ng: GPL-3 (a separate process; its output is free).

| cue | bounds | {" | ".join(EMOTIONS)} |
|---|---|{"---|" * len(EMOTIONS)}
{ranges}

{listed}
"""
