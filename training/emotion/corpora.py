"""Manifests of people's speech as the mean frames that an emotion head is fitted on.

A clip is read as it is and in `draws` renditions through random voices, rooms and microphones
(`training.emotion.channels`). Mean frames are kept in a cache, because the encoder takes most of the time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperModel

from assistant.events import EMOTIONS, SAMPLE_RATE, Samples
from model.audio.features import encode, encoder_frames, log_mel
from model.audio.files import read_audio
from model.audio.prosody import prosody_frames, speech_frames
from model.audio.voice import levelled
from model.errors import BadInput, WeightsMissing
from training.emotion.channels import apply, draw, trimmed

UNACTED = "unacted"
"""The corpus under which all ordinary speech counts."""

_LONGEST_SECONDS = (12, 7)  # of a clip as it is, and of its renditions
_VOCODER_EVERY = 4  # the WORLD vocoder is slow: every fourth rendition has it, the others play faster or slower
_SAVE_EVERY = 200


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of a manifest.

    Attributes:
        name: its path as the manifest has it.
        emotion: its row in `EMOTIONS`.
        speaker: unique over all manifests.
        acted: False: ordinary speech, which counts as neutral.
    """

    audio: Path
    name: str
    emotion: int
    speaker: str
    corpus: str
    acted: bool
    licence: str

    @property
    def source(self) -> str:
        """The corpus that may be left out as a whole; ordinary speech is one."""
        return self.corpus if self.acted else UNACTED


@dataclass(frozen=True, slots=True, eq=False)
class MeanFrames:
    """Clips in mean frames, a row for each rendition.

    Attributes:
        clips: of each row.
        draws: int [n], 0: the clip as it is.
        states: float16 [n, layers + 1, D], means over frames with a voice; prosody: float32 [n, P].
    """

    clips: list[Clip]
    draws: NDArray[np.int64]
    states: NDArray[np.float16]
    prosody: NDArray[np.float32]

    def features(self, layers: Sequence[int]) -> Tensor:
        """The head's mean frames, float32 [n, D x layers + P]: the layers side by side, then prosody."""
        chosen = self.states[:, list(layers)].reshape(len(self.states), -1).astype(np.float32)
        return torch.from_numpy(np.concatenate([chosen, self.prosody], 1))

    @property
    def labels(self) -> NDArray[np.int64]:
        """Emotions [n]."""
        return np.array([clip.emotion for clip in self.clips])

    @property
    def speakers(self) -> NDArray[np.str_]:
        """Speakers [n]."""
        return np.array([clip.speaker for clip in self.clips])

    @property
    def sources(self) -> NDArray[np.str_]:
        """`Clip.source` [n]."""
        return np.array([clip.source for clip in self.clips])

    @property
    def corpora(self) -> NDArray[np.str_]:
        """Corpora [n], those of ordinary speech apart."""
        return np.array([clip.corpus for clip in self.clips])


def read_manifest(path: Path) -> list[Clip]:
    """Read a manifest: a line of JSON a clip, with `audio` (beside the manifest), `emotion` and `speaker`.

    `corpus` (by default the manifest's name), `licence` and `acted` (by default true) may be there too.

    Raises:
        BadInput: the file is missing, or a line is not as said.
    """
    if not path.is_file():
        raise BadInput(f"{path} is missing: name a manifest.jsonl, as `training import` writes it.")
    clips = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if row["emotion"] not in EMOTIONS:
                raise ValueError(f"unknown emotion {row['emotion']!r}")
            corpus = str(row.get("corpus") or path.parent.name)
            clips.append(
                Clip(
                    audio=path.parent / row["audio"],
                    name=str(row["audio"]),
                    emotion=EMOTIONS.index(row["emotion"]),
                    speaker=f"{corpus}/{row['speaker']}",
                    corpus=corpus,
                    acted=bool(row.get("acted", True)),
                    licence=str(row.get("licence", "not stated")),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wanted = f"audio, speaker and an emotion of {', '.join(EMOTIONS)}"
            raise BadInput(f"{path}:{number}: {error}: a line needs {wanted}.") from error
    if not clips:
        raise BadInput(f"{path} is empty: import a corpus first.")
    return clips


def gather(
    manifests: Sequence[Path], whisper: Path, cache: Path, *, draws: Sequence[int] = (0,), noise: Path | None = None
) -> MeanFrames:
    """Read manifests into mean frames.

    Args:
        manifests: files of `read_manifest`.
        whisper: folder of the Whisper model.
        cache: folder of what is computed once.
        draws: renditions to take; 0 is the clip as it is. Of ordinary speech, of which there is plenty, a rendition
            takes every other clip.
        noise: folder of recorded noise for the renditions.

    Raises:
        BadInput: a manifest or recording cannot be used.
        WeightsMissing: something must be computed, and there is no Whisper.
    """
    noises = [read_audio(path) for path in sorted(noise.iterdir())] if noise else []
    reader = _Reader(whisper, noises)
    rows: list[Clip] = []
    numbers, states, prosody = [], [], []
    for path in manifests:
        clips = read_manifest(path)
        for number in draws:
            chosen = [c for at, c in enumerate(clips) if c.acted or not number or at % 2 == number % 2]
            kept = reader.cached(cache / f"{path.parent.name}-{path.stem}.{number}.npz", chosen, number)
            rows += chosen
            numbers += [number] * len(chosen)
            states.append(kept[0])
            prosody.append(kept[1])
    return MeanFrames(rows, np.array(numbers), np.concatenate(states), np.concatenate(prosody))


def seeded(*what: object) -> Generator:
    """A random generator that depends on `what` alone."""
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest()))


class _Reader:
    """Computes and keeps mean frames."""

    def __init__(self, whisper: Path, noises: Sequence[Samples]) -> None:
        self._whisper = whisper
        self._noises = noises
        self._encoder: WhisperModel | None = None

    def cached(
        self, cache: Path, clips: Sequence[Clip], number: int
    ) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """States and prosody of the clips in rendition `number`, computed where the cache lacks them."""
        known: dict[str, tuple[NDArray[np.float16], NDArray[np.float32]]] = {}
        if cache.is_file():
            with np.load(cache) as kept:
                pairs = zip(kept["states"], kept["prosody"], strict=True)
                known = dict(zip(kept["audio"].tolist(), pairs, strict=True))
        missing = [clip for clip in clips if clip.name not in known]
        told = f"{cache.stem.partition('.')[0]}, rendition {number}"
        for done, clip in enumerate(track(missing, told, console=Console(stderr=True), transient=True), 1):
            known[clip.name] = self._mean(self._rendered(clip, number))
            if done % _SAVE_EVERY == 0 or done == len(missing):
                _save(cache, known)
        return tuple(np.stack(column) for column in zip(*(known[clip.name] for clip in clips), strict=True))  # type: ignore[return-value]  # a pair

    def _rendered(self, clip: Clip, number: int) -> Samples:
        longest = _LONGEST_SECONDS[number > 0] * SAMPLE_RATE
        samples = levelled(trimmed(read_audio(clip.audio)))[:longest]
        if not number:
            return samples
        speaker = clip.speaker.partition("/")[2]
        chosen = draw(seeded(speaker, number), self._noises, vocoder=number % _VOCODER_EVERY == 0)
        return apply(chosen, samples, seeded(clip.name, number))

    @torch.inference_mode()
    def _mean(self, samples: Samples) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        if self._encoder is None:
            if not (self._whisper / "config.json").is_file():
                raise WeightsMissing(f"{self._whisper} holds no Whisper model: pass --whisper DIR")
            # 16 bits change a mean frame by a fiftieth of its spread, and take a third of the time.
            self._encoder = WhisperModel.from_pretrained(self._whisper, dtype=torch.bfloat16).eval()  # type: ignore[no-untyped-call]
            self._extractor = WhisperFeatureExtractor.from_pretrained(self._whisper)
        states = encode(self._encoder.encoder, log_mel(self._extractor, samples, trimmed=True))
        frames = torch.cat(states).float()[:, : encoder_frames(len(samples))]
        voiced = torch.from_numpy(speech_frames(samples))
        return frames[:, voiced].mean(1).half().numpy(), prosody_frames(samples).mean(0)


def _save(cache: Path, known: dict[str, tuple[NDArray[np.float16], NDArray[np.float32]]]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    states, prosody = zip(*known.values(), strict=True)
    part = cache.with_suffix(".part.npz")
    np.savez(part, audio=list(known), states=np.stack(states), prosody=np.stack(prosody))
    part.replace(cache)
