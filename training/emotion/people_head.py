"""`python -m training fit-head OUT --corpus MANIFEST...`: a calibrated emotion head from people's speech, with a card.

Nothing that is reported of a corpus or speaker was fitted or chosen with that corpus or speaker in view, but for the
recipe's constants (`training.emotion.recipe`), which were settled on the corpora of the shipped heads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from assistant.events import EMOTIONS
from model.audio.prosody import PROSODY_FEATURES
from model.errors import BadInput
from model.nn.emotion import EmotionHead
from training.emotion.corpora import UNACTED, MeanFrames, gather
from training.emotion.figures import figures_of
from training.emotion.fit_head import Fit
from training.emotion.people_card import write_people_card
from training.emotion.recipe import (
    Data,
    Display,
    Fitted,
    Held,
    Recipe,
    choose_display,
    fit,
    fit_people,
    leave_corpora,
    leave_speakers,
)
from training.emotion.voiceless import write_sounds

FRAME_GROUP = 4
_INNER_FOLDS = 4
_VOICE_L2 = 0.003
_VOICE_MARGIN = 3.5
"""Log odds that a voice must have."""


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """What to fit a head on, and where it goes.

    Attributes:
        out: the head's folder; manifests: of the corpora; cache: of mean frames, by default out/cache.
        draws: renditions of every clip through random voices, rooms and microphones, beside the clip as it is.
        noise: folder of recorded noise for them, and for what is no voice.
        bursts: manifests of laughs, sobs and the like, which count as voices alone.
        leave_out: acted corpora to be left out in turn; empty: none, and no figures of unseen corpora.
        folds: of speakers left out.
        licence: of the weights; name: of the head, for its card.
    """

    out: Path
    manifests: list[Path]
    whisper: Path
    cache: Path | None = None
    draws: tuple[int, ...] = (0, 1, 2)
    noise: Path | None = None
    bursts: list[Path] = field(default_factory=list)
    leave_out: bool = False
    folds: int = 10
    licence: str = "not stated"
    name: str = "people"
    recipe: Recipe = field(default_factory=Recipe)


def fit_people_head(options: HeadOptions) -> dict[str, Any]:
    """Fit, calibrate and measure a head; write head.safetensors, reading.json and CARD.md.

    Args:
        options: of the command line.

    Returns:
        The figures.

    Raises:
        BadInput: a manifest or clip cannot be used, or there is no second acted corpus to leave out.
        WeightsMissing: there is no Whisper in the folder.
    """
    cache = options.cache or options.out / "cache"
    frames = gather(options.manifests, options.whisper, cache, draws=options.draws, noise=options.noise)
    there = tuple(layer for layer in options.recipe.layers if layer < frames.states.shape[1])
    options = replace(options, recipe=replace(options.recipe, layers=there or (frames.states.shape[1] - 1,)))
    data, rows = Data.of(frames, options.recipe), np.ones(len(frames.clips), bool)
    corpora = [str(name) for name in np.unique(frames.sources) if name != UNACTED]
    judged = [name for name in corpora if _is_whole(frames, name)]
    if len(corpora) < 2 and options.leave_out:
        raise BadInput("--leave-one-corpus-out needs two acted corpora: name another manifest.")
    figures: dict[str, Any] = {}
    if options.leave_out:
        figures["corpora"] = {name: _unseen(data, rows, options, name, judged) for name in judged}
    speakers, beside = leave_speakers(data, rows, options.recipe, options.folds)
    others = leave_corpora(data, rows, options.recipe, judged)[0] if len(corpora) > 1 else speakers
    display = choose_display(others, speakers)
    figures["speakers"] = {name: figures_of(part, display) for name, part in speakers.parts()}
    figures["speakers"]["all acted"] = figures_of(_without_calm(speakers), display)
    figures["speakers_baseline"] = {name: figures_of(part, display) for name, part in beside.parts()}
    fitted = fit_people(data, rows, options.recipe)
    voice, figures["voice"] = _fit_voice(data, cache, options)
    write_head(options.out, fitted, display, voice, options)
    about = {"display": display, "recipe": options.recipe, "frames": frames, "options": options}
    write_people_card(options.out / "CARD.md", figures, about)
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def _is_whole(frames: MeanFrames, corpus: str) -> bool:
    """Whether the corpus has most emotions, so that leaving it out says something of all of them."""
    return len(np.unique(frames.labels[frames.sources == corpus])) >= len(EMOTIONS) - 1


def _without_calm(held: Held) -> Held:
    at = held.groups != UNACTED
    return Held(held.logits[torch.from_numpy(at)], held.labels[at], held.groups[at])


def _unseen(data: Data, rows: NDArray[np.bool_], options: HeadOptions, corpus: str, judged: Sequence[str]) -> Any:
    """Figures of one corpus left out whole; temperature and thresholds come from the other corpora alone."""
    others = rows & (data.frames.sources != corpus)
    inner = [name for name in judged if name != corpus]
    speakers, _ = leave_speakers(data, others, options.recipe, _INNER_FOLDS)
    display = choose_display(leave_corpora(data, others, options.recipe, inner)[0] if inner else speakers, speakers)
    result = {}
    read = leave_corpora(data, rows, options.recipe, [corpus])
    for name, held in zip(("without", "with_baseline"), read, strict=True):
        result[name] = figures_of(held.part(corpus), display)
        result[name]["unacted"] = figures_of(held.part(UNACTED), display) if (held.groups == UNACTED).any() else None
    return result


def _fit_voice(data: Data, cache: Path, options: HeadOptions) -> tuple[Fit, dict[str, Any]]:
    """Tell voices, bursts among them, from sounds without one; how well, by kinds and speakers left out."""
    sounds = [write_sounds(cache / "voiceless", options.noise)]
    others = gather([*sounds, *options.bursts], options.whisper, cache)
    inputs = torch.cat([data.inputs, others.features(options.recipe.layers)])
    corpora = np.concatenate([data.frames.corpora, others.corpora])
    speakers = np.concatenate([data.frames.speakers, others.speakers])
    labels = (corpora != "voiceless").astype(np.int64)
    weights = np.zeros(len(labels))
    for name in np.unique(corpora):
        own = corpora == name
        weights[own] = (0.5 if name == "voiceless" else 0.5 / (len(np.unique(corpora)) - 1)) / own.sum()
    names = np.unique(speakers)
    np.random.default_rng(0).shuffle(names)
    folds = np.isin(speakers, names[::2])
    odds = torch.zeros(len(labels))
    for out in (folds, ~folds):
        part = fit(inputs[torch.from_numpy(~out)], labels[~out], weights[~out] / weights[~out].sum(), _VOICE_L2)
        logits = part(inputs[torch.from_numpy(out)])
        odds[torch.from_numpy(out)] = logits[:, 1] - logits[:, 0] - _VOICE_MARGIN
    heard = {
        str(name): float((odds[torch.from_numpy(corpora == name)] > 0).float().mean()) for name in np.unique(corpora)
    }
    return fit(inputs, labels, weights / weights.sum(), _VOICE_L2), heard


def write_head(out: Path, fitted: Fitted, display: Display, voice: Fit, options: HeadOptions) -> None:
    """Write head.safetensors (16 bits) and reading.json."""
    head = head_of(fitted, display, voice)
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in head.state_dict().items()}
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise BadInput("the head's numbers do not fit in 16 bits: a feature is constant but for a few clips")
    save_file(weights, out / "head.safetensors", metadata={"licence": options.licence})
    reading = {
        "layers": list(options.recipe.layers),
        "stacked": True,
        "frames": "voice",
        "features": list(PROSODY_FEATURES),
        "hidden": 0,
        "temperature": display.temperature,
        "threshold": display.threshold,
        "neutral_threshold": display.neutral_threshold,
        "pair_threshold": display.pair_threshold,
        "baseline": True,
        "voice": True,
        "frame_group": FRAME_GROUP,
        "licence": options.licence,
    }
    (out / "reading.json").write_text(json.dumps(reading, indent=2) + "\n")


def head_of(fitted: Fitted, display: Display, voice: Fit) -> EmotionHead:
    """The head of a fit."""
    head = EmotionHead(
        len(fitted.normal),
        threshold=display.threshold,
        neutral_threshold=display.neutral_threshold,
        pair_threshold=display.pair_threshold,
        baseline=True,
        voice=True,
        group=FRAME_GROUP,
    )
    towards = voice.weight[1] - voice.weight[0]
    constant = voice.offset[1] - voice.offset[0] + towards @ (fitted.fit.centre - voice.centre) - _VOICE_MARGIN
    head.load_state_dict(
        {
            "weight": fitted.fit.weight,
            "offset": fitted.fit.offset,
            "centre": fitted.fit.centre,
            "normal": fitted.normal,
            "baseline_share": torch.tensor(fitted.share),
            "temperature": torch.tensor(display.temperature),
            "voice": towards,
            "voice_offset": constant,
        }
    )
    return head
