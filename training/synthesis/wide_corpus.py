"""`python -m training wide-corpus`: synthetic speech of a wide vocabulary, directly into a feature cache.

OUT/manifest.jsonl has one line per clip (key, text, voice, engine, split, ...), OUT/features the encoder's states by
that key, OUT/dropped.jsonl one line per dropped clip with the reason, OUT/card.md the counts. The clips themselves are
not stored: the same seed gives the same clips. An interrupted command is resumed.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from rich.console import Console
from rich.progress import track
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from assistant.events import SAMPLE_RATE, Samples
from model.audio.features import LONGEST_SECONDS
from model.errors import BadInput
from model.files import write_atomically
from training.data.feature_cache import FeatureCache, content_key, states_of
from training.runs.run_folder import append_lines, read_lines, repair
from training.synthesis.expression import analyse, draw_speaker, express, record
from training.synthesis.voices import (
    CALIBRATION_VOICES,
    FLITE,
    KOKORO,
    TEST_VOICES,
    Source,
    _names,
    human_sources,
    speak,
)
from training.synthesis.wide_texts import held_out, texts

_ACCENTS = _names("en-us en en-gb-scotland en-029 en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-us-nyc")
_VARIANTS = _names(
    "Alex Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen Reed "
    "adam anika antonio aunty benjamin boris david ed edward2 f1 f3 f5 grandma grandpa ian iven john klatt klatt2 "
    "klatt3 klatt4 linda m1 m2 m4 m6 m7 m8 marcelo max michel miguel mike2 norbert paul pedro quincy rob robert "
    "sandro shelby steph steph2 steph3 travis victor zac"
)  # without variants of held-out voices, robots and whispers
_CHECKED_EVERY = 25  # one clip of so many is a held-out sentence by a held-out voice
_HELD_OUT = {
    engine: {
        "validation": sorted(v for v in CALIBRATION_VOICES if ("+" in v) == (engine == "espeak")),
        "test": sorted(v for v in TEST_VOICES if ("+" in v) == (engine == "espeak")),
    }
    for engine in ("kokoro", "espeak")
}


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip to synthesise: a source and which of its renditions (0: the unchanged voice)."""

    source: Source
    rendition: int
    kind: str

    @property
    def id(self) -> str:
        """Unique id of the clip."""
        return f"{self.source.id}-{self.rendition}"


def mix_voices(folder: Path, out: Path, count: int, seed: int) -> list[str]:
    """Make `out` a Kokoro folder with all of `folder`'s voices and `count` mixtures of its training voices.

    A mixture's style vectors are a weighted mean of two or three voices of one accent; it sounds like a new speaker.
    Held-out voices are not used.

    Returns:
        The training voices, mixtures included.
    """
    (out / "voices").mkdir(parents=True, exist_ok=True)
    models = sorted(folder.glob("*.onnx"))
    if not models or not (folder / "voices").is_dir():
        raise BadInput(f"no Kokoro model (*.onnx, voices/*.bin) in {folder}: pass --kokoro DIR")
    for path in [models[0], *sorted((folder / "voices").glob("*.bin"))]:
        link = out / path.relative_to(folder)
        if not link.exists():
            link.symlink_to(path.resolve())
    pure = [v for v in KOKORO if v not in CALIBRATION_VOICES | TEST_VOICES]
    mixed = []
    for number in range(count):
        random = np.random.default_rng([seed, 11, number])
        accent = "b" if random.random() < 0.3 else "a"
        group = [v for v in pure if v[0] == accent]
        parts = random.choice(group, random.integers(2, 4), replace=False)
        weights = random.dirichlet(np.full(len(parts), 1.5)).astype(np.float32)
        styles = [np.fromfile(folder / "voices" / f"{part}.bin", np.float32) for part in parts]
        name = f"{accent}x_{number:03d}"
        np.tensordot(weights, np.stack(styles), 1).tofile(out / "voices" / f"{name}.bin")
        mixed.append(name)
    return pure + mixed


def _training_voices(engine: str, kokoro: list[str]) -> list[str]:
    return kokoro if engine == "kokoro" else [f"{a}+{v}" for a in _ACCENTS for v in _VARIANTS]


def clips(
    wordnet: Path, more: Path | None, engine: str, voices: list[str], renditions: int, seed: int, *, checks: bool
) -> Iterator[Clip]:
    """The endless list of an engine's clips; the same arguments give the same list.

    Training clips come in `renditions` of each sentence and voice. Every 25th sentence is a held-out one by a held-out
    voice, once; with `checks`, and for "flite", which is never trained on, all are.
    """
    trained = (pair for pair in texts(wordnet, more, seed) if not held_out(pair[0]))
    checked = (pair for pair in texts(wordnet, None, seed) if held_out(pair[0]))
    for number in range(10**9):
        random = np.random.default_rng([seed, 9, number])
        if checks or engine == "flite" or number % _CHECKED_EVERY == 0:
            half = number if checks else number // _CHECKED_EVERY
            split = "engine" if engine == "flite" else ("validation", "test")[half % 2]
            voice = str(random.choice(FLITE if engine == "flite" else _HELD_OUT[engine][split]))
            text, kind = next(checked)
            yield Clip(Source(f"{engine}-{number:06d}-{voice}", engine, voice, split, text), 0, kind)
            continue
        voice = voices[random.integers(len(voices))]
        text, kind = next(trained)
        source = Source(f"{engine}-{number:06d}-{voice}", engine, voice, "train", text)
        yield from (Clip(source, rendition, kind) for rendition in range(renditions))


def perform(clip: Clip, samples: Samples, seed: int) -> Samples:
    """The clip's audio. Flite and human recordings are unchanged; others get a room and noise at any level.

    In training two of three clips are by changed speakers: one is resampled (pitch, formants and rate together, by up
    to 15 %), one goes through the WORLD vocoder (`expression.draw_speaker`).
    """
    if clip.source.split in ("engine", "human"):
        return samples
    random = np.random.default_rng([seed, 10, *clip.id.encode()])
    change = random.integers(3) if clip.source.split == "train" else 0
    if change == 1:
        samples = soxr.resample(samples, SAMPLE_RATE, SAMPLE_RATE * float(random.uniform(0.87, 1.15)))
    elif change == 2:
        samples = express(analyse(samples), draw_speaker(random), random)
    return record(samples, random)


def build_wide_corpus(
    out: Path,
    encoder: WhisperEncoder,
    extractor: WhisperFeatureExtractor,
    *,
    wordnet: Path,
    engine: str,
    count: int,
    kokoro: Path = Path("kokoro"),
    mixtures: int = 100,
    more: Path | None = None,
    renditions: int = 1,
    seed: int = 0,
    half: bool = False,
    checks: bool = False,
) -> dict[str, Any]:
    """Build or complete an engine's part of the corpus in `out`, up to `count` clips.

    Args:
        out: folder of the corpus.
        encoder: to compute states.
        extractor: of the same model.
        wordnet: folder of WordNet's data files.
        engine: "espeak", "kokoro", "flite" or "human" (the recordings of `voices.human_sources`).
        count: number of clips in total.
        kokoro: folder of the Kokoro model.
        mixtures: number of mixed Kokoro voices.
        more: further sentences, one per line.
        renditions: clips per training sentence.
        seed: of all random numbers.
        half: 16-bit states, computed in bfloat16.
        checks: only held-out sentences by held-out voices.

    Returns:
        Counts.

    Raises:
        BadInput: the engine or WordNet is missing, or no clip could be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    cache = FeatureCache.create(out / "features", encoder, "trimmed", half=half)
    repair(out / "dropped.jsonl")
    found, dropped = (read_lines(out / f"{name}.jsonl")[0] for name in ("manifest", "dropped"))
    rows = [row for row in found if row["key"] in cache]
    write_atomically(out / "manifest.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    reasons = Counter(row["why"] for row in dropped)
    done = {row["id"] for row in rows + dropped}
    if engine == "human":
        wanted: Iterator[Clip] = (Clip(s, 0, "human") for s in human_sources(count))
    else:
        voices = _training_voices(engine, [])
        if engine == "kokoro":
            voices = mix_voices(kokoro, out / "kokoro", mixtures, seed)
            kokoro = out / "kokoro"
        wanted = clips(wordnet, more, engine, voices, renditions, seed, checks=checks)
    spoken: tuple[Source | None, Samples] = (None, np.zeros(0, np.float32))
    try:
        for _, clip in track(
            zip(range(count), wanted, strict=False), "clips", count, console=Console(stderr=True), transient=True
        ):
            if clip.id in done:
                continue
            try:
                if spoken[0] != clip.source:
                    spoken = (clip.source, speak(clip.source, seed, kokoro))
                samples = perform(clip, spoken[1], seed)
                if len(samples) > LONGEST_SECONDS * SAMPLE_RATE:
                    raise BadInput("over 30 s")
            except (BadInput, subprocess.CalledProcessError) as error:
                why = str(error).removeprefix(f"{clip.source.id}: ")
                reasons[why] += 1
                append_lines(out / "dropped.jsonl", [asdict(clip.source) | {"id": clip.id, "why": why}])
                continue
            key = content_key(samples.tobytes())
            cache.add(key, states_of(encoder, extractor, samples, window="trimmed", half=half))
            row = _row(clip, key, len(samples))
            rows.append(row)
            append_lines(out / "manifest.jsonl", [row])
    finally:
        cache.close()
    if not rows:
        raise BadInput(next(iter(reasons), "no recordings are installed: see voices.human_sources"))
    summary = _summary(rows, reasons, seed)
    write_atomically(out / "card.md", _card(rows, summary))
    return summary


def _row(clip: Clip, key: str, samples: int) -> dict[str, Any]:
    source = clip.source
    return {
        "id": clip.id,
        "key": key,
        "text": source.text,
        "emotion": "neutral",
        "voice": source.voice,
        "engine": source.engine,
        "split": source.split,
        "kind": clip.kind,
        "seconds": round(samples / SAMPLE_RATE, 2),
    }


def _summary(rows: list[dict[str, Any]], reasons: Counter[str], seed: int) -> dict[str, Any]:
    return {
        "clips": len(rows),
        "hours": round(sum(row["seconds"] for row in rows) / 3600, 2),
        "sentences": len({row["text"] for row in rows}),
        "words": len({word for row in rows for word in row["text"].lower().strip(".?!").split()}),
        "splits": dict(sorted(Counter(row["split"] for row in rows).items())),
        "dropped": dict(reasons),
        "seed": seed,
    }


def _card(rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    counts = "\n".join(f"- {name}: {value}" for name, value in summary.items())
    kinds = "\n".join(f"- {kind}: {n}" for kind, n in Counter(row["kind"] for row in rows).most_common())
    voices = Counter((row["split"], row["engine"], row["voice"]) for row in rows)
    listed = "\n".join(f"- {split}: {engine} {voice}, {n}" for (split, engine, voice), n in sorted(voices.items()))
    return f"""# Wide-vocabulary speech corpus

{counts}

Sentences, clips of each kind:
{kinds}

"wordnet": the example sentences of WordNet 3.0 (Princeton University; WordNet licence, free for any use with its
notice). "everyday": this project's own frames; their open slots take words of WordNet. "language model": sampled
from SmolLM2-135M-Instruct (Apache-2.0). One sentence in twenty, by its hash, is never trained on.

Voices: espeak-ng (GPL-3, a separate process or library call; its output is free), Kokoro-82M (Apache-2.0) with
mixtures of its training voices, flite (BSD-like; tested on only), people (LibriVox through pocketsphinx-testdata,
BSD; Asterisk prompts by Allison Smith, CC-BY-SA-3.0; tested on only). Of the training clips one in three is as
spoken, one resampled (0.87-1.15), one a made-up speaker by the WORLD vocoder; all have silence around them, half a
room, and noise at 15 to 45 dB. Validation and test clips are held-out sentences by held-out voices.

{listed}
"""
