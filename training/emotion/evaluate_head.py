"""`python -m training evaluate-head MANIFEST...`: a head's readings of people whom it never heard.

Clips go the way of the product: whole recordings through the loaded encoder, the gate for voices and the head. What is
measured: recall, sureness, candidates and calibration; the same with a baseline of the speaker's own voice; through
ten simulated channels (`training.emotion.unseen_channels`); sounds without a voice; and the time of a reading.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from assistant.events import SAMPLE_RATE, Samples
from model.audio.features import encode, log_mel
from model.audio.files import read_audio
from model.audio.voice import levelled
from model.checkpoints.emotion_loader import load_emotion
from model.errors import BadInput
from model.inference.emotion_reader import EmotionReader
from training.emotion.corpora import UNACTED, Clip, read_manifest
from training.emotion.figures import figures_from
from training.emotion.people_card import calm_table, table
from training.emotion.recipe import Display
from training.emotion.unseen_channels import CHANNELS, through
from training.emotion.voiceless import SOUNDS, voiceless

_REPEATS = 15
_UNSEEN_SEED = 10_000  # training takes the sounds of seeds below it


def evaluate_head(given: argparse.Namespace) -> dict[str, Any]:
    """Measure a head as the command line says.

    Args:
        given: the parsed options.

    Returns:
        The figures by corpus, ordinary speech as "unacted".

    Raises:
        BadInput: a manifest or recording cannot be used, or there is nothing to measure.
        WeightsMissing: as the loader says.
    """
    if not given.manifests and given.voiceless is None and not given.timing:
        raise BadInput("Name manifests to measure, --voiceless or --timing.")
    torch.set_num_threads(1)
    loaded = load_emotion(given.model, reading=given.reading)
    reader = EmotionReader(loaded.model, loaded.extractor)
    clips = [clip for path in given.manifests for clip in _evenly(read_manifest(path), given.limit)]
    figures: dict[str, Any] = {"model": given.model, "reading": given.reading or "people", "quantize": loaded.quantize}
    if clips:
        figures["as_recorded"] = _measured(reader, clips, read_audio_of)
        if given.baseline:
            figures["with_baseline"] = _with_baseline(reader, clips, given.baseline)
        if given.channels:
            figures["channels"] = {
                name: _measured(reader, clips, lambda clip, name=name: _heard_through(name, clip))  # type: ignore[misc]
                for name in CHANNELS
            }
    if given.voiceless is not None:
        figures["voiceless"] = _voiceless(reader, given.voiceless)
    if given.timing:
        figures["milliseconds"] = _timing(reader)
    if given.card is not None:
        with given.card.open("a", encoding="utf-8") as card:
            card.write(_section(given.title, figures))
    return figures


def _section(title: str, figures: Mapping[str, Any]) -> str:
    """The figures as a section of a card."""
    parts = [f"## {title}", "By `undertone train evaluate-head`, through the program's own encoder in 8 bits."]
    kinds = {"as recorded": figures.get("as_recorded", {}), "with a baseline": figures.get("with_baseline", {})}
    kinds |= {f"{name} (simulated)": found for name, found in figures.get("channels", {}).items()}
    for key, of_table in ((False, table), (True, calm_table)):
        rows = {
            f"{source}, {kind}": found
            for kind, sources in kinds.items()
            for source, found in sources.items()
            if (source == UNACTED) is key and found["n"]
        }
        if rows:
            parts.append(of_table("clips", rows))
    if told := figures.get("voiceless"):
        unread = sum(why is not None and not why.startswith("read as") for why in told.values())
        parts.append(f"{unread} of {len(told)} sounds without a voice got no reading.")
    if spent := figures.get("milliseconds"):
        parts.append(f"A reading of 3 s costs {spent['beyond_encoder']:.0f} ms beyond the encoder, on one thread.")
    return "\n" + "\n\n".join(parts) + "\n"


def read_audio_of(clip: Clip) -> Samples:
    """The clip's samples at 16 kHz."""
    return read_audio(clip.audio)


def display_of(reader: EmotionReader) -> Display:
    """The thresholds of the head; its temperature is in its probabilities."""
    head = reader.model.emotion_head
    assert head is not None, "it has an emotion head"
    return Display(1.0, head.threshold, head.neutral_threshold, head.pair_threshold)


def _evenly(clips: list[Clip], limit: int | None) -> list[Clip]:
    if limit is None or limit >= len(clips):
        return clips
    return [clips[at] for at in np.linspace(0, len(clips) - 1, limit).round().astype(int)]


def _heard_through(name: str, clip: Clip) -> Samples:
    seed = int.from_bytes(clip.audio.name.encode()) % 2**31
    return through(name, levelled(read_audio(clip.audio)), seed)


def _measured(reader: EmotionReader, clips: Sequence[Clip], sound: Callable[[Clip], Samples]) -> dict[str, Any]:
    """Figures by corpus; `unread`: clips in which no voice was heard."""
    read = [
        reader.read(sound(clip))[0] for clip in track(clips, "readings", console=Console(stderr=True), transient=True)
    ]
    figures = {}
    for source in dict.fromkeys(clip.source for clip in clips):
        own = [(clip, one) for clip, one in zip(clips, read, strict=True) if clip.source == source]
        known = [(clip.emotion, one.probabilities) for clip, one in own if one is not None]
        figures[source] = _figures(reader, known) | {"unread": len(own) - len(known)}
    acted = [(c.emotion, one.probabilities) for c, one in zip(clips, read, strict=True) if c.acted and one is not None]
    if len(figures) > 1 and acted:
        figures["all acted"] = _figures(reader, acted)
    return figures


def _figures(reader: EmotionReader, known: Sequence[tuple[int, NDArray[np.float32]]]) -> dict[str, Any]:
    if not known:
        return {"n": 0}
    labels, probabilities = zip(*known, strict=True)
    return figures_from(np.stack(probabilities), np.array(labels), display_of(reader))


def _with_baseline(reader: EmotionReader, clips: Sequence[Clip], count: int) -> dict[str, Any]:
    """Figures with each speaker's first `count` neutral clips as baseline, which are not scored."""
    known: dict[str, list[tuple[int, NDArray[np.float32]]]] = {}
    speakers = dict.fromkeys(clip.speaker for clip in clips)
    for speaker in track(speakers, "speakers", console=Console(stderr=True), transient=True):
        own = [clip for clip in clips if clip.speaker == speaker]
        neutral = [clip for clip in own if clip.emotion == 0]
        if len(neutral) <= count:
            continue
        reader.baseline = reader.mean_of(read_audio(clip.audio) for clip in neutral[:count])
        for clip in own:
            if clip not in neutral[:count] and (reading := reader.read(read_audio(clip.audio))[0]) is not None:
                known.setdefault(clip.source, []).append((clip.emotion, reading.probabilities))
    reader.baseline = None
    return {source: _figures(reader, rows) for source, rows in known.items()}


def _voiceless(reader: EmotionReader, files: Iterable[Path]) -> dict[str, str | None]:
    """Why each sound got no reading; None: it got one."""
    sounds = {f"made: {kind}": voiceless(kind, _UNSEEN_SEED) for kind in SOUNDS}
    sounds |= {str(path): read_audio(path) for path in files}
    sounds["made: silence"] = np.zeros(3 * SAMPLE_RATE, np.float32)
    told = {name: reader.read(samples) for name, samples in sounds.items()}
    return {name: why if reading is None else f"read as {reading.label}" for name, (reading, why) in told.items()}


def _timing(reader: EmotionReader) -> dict[str, float]:
    """Median milliseconds of a reading of 3 s on one thread, and of the encoder alone."""
    rng = np.random.default_rng(0)
    times = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    beat = np.sin(2 * np.pi * 3 * times).clip(0)
    samples = (0.1 * beat * ((120 * times) % 1 - 0.5) + 1e-3 * rng.standard_normal(len(times))).astype(np.float32)
    features = log_mel(reader.extractor, samples, trimmed=True)
    model = reader.model

    def whole() -> None:
        reader.judge(reader.frames(samples), samples)

    def encoder() -> None:
        with torch.inference_mode():
            encode(model.encoder, features)

    found = {}
    for name, work in (("reading", whole), ("encoder", encoder)):
        spent = []
        for _ in range(_REPEATS):
            began = time.process_time()
            work()
            spent.append((time.process_time() - began) * 1e3)
        found[name] = statistics.median(spent)
    return {**found, "beyond_encoder": found["reading"] - found["encoder"]}
