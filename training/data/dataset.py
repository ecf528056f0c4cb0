"""Rows of a prepared data set as input of the losses, and the rows of each step.

The order of the rows depends only on the seed and the size of a step: any number of processes, and a resumed run, see
the same rows in the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from assistant.events import Samples
from model.audio.features import log_mel
from model.checkpoints.safe_reader import list_tensors, read_shard
from model.config import SpeechLanguageConfig
from model.errors import BadInput, WeightsMissing
from training.data.batches import TrainingRow
from training.data.feature_cache import FeatureCache, Window, encoder_hash, states_of
from training.data.manifest import read_clip
from training.data.prepare import PreparedRows, clip_of
from training.runs.run_folder import Run

_WINDOW_ROWS = 512


class SpeechRows(Dataset[TrainingRow]):
    """A split of a prepared data set with its speech: cached encoder states, or log-mel features.

    Args:
        rows: of the split.
        caches: that together contain every row; none: recordings are read and their features computed at every access.
        extractor: of the checkpoint.
        window: the encoder's input.

    Attributes:
        lengths: tokens of every row with its speech.
    """

    def __init__(
        self,
        rows: PreparedRows,
        caches: Sequence[FeatureCache],
        extractor: WhisperFeatureExtractor,
        window: Window,
    ) -> None:
        self.rows = rows
        self.caches = caches
        self.lengths = rows.lengths
        self._extractor = extractor
        self._trimmed = window == "trimmed"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> TrainingRow:
        """Raises: BadInput: the recording has gone or changed, or the cache's record is damaged."""
        row, ids = self.rows[number], self.rows.ids(number)
        if self.caches:
            for cache in self.caches:
                if row["key"] in cache:
                    return replace(ids, encoded=cache[row["key"]][: ids.encoder_frames])
            raise BadInput(f"{row['manifest']}:{row['line']}: it is no longer in the --features: start again.")
        return replace(ids, features=log_mel(self._extractor, self.samples(number), trimmed=self._trimmed)[0])

    def samples(self, number: int) -> Samples:
        """Read a row's recording.

        Args:
            number: of the row.

        Returns:
            float32 [n], mono, 16 kHz.

        Raises:
            BadInput: there is no recording, or it cannot be read.
        """
        row = self.rows[number]
        clip = clip_of(row)
        if clip is None:
            raise BadInput(f"{row['manifest']}:{row['line']}: its speech is only in a feature cache: give --features.")
        return read_clip(clip)


def read_encoder(folder: Path, config: SpeechLanguageConfig) -> WhisperEncoder:
    """Read the encoder of a checkpoint without the rest of the model.

    Args:
        folder: of the checkpoint.
        config: its config.

    Returns:
        The encoder in float32, frozen.

    Raises:
        WeightsMissing: it is missing or quantized.
    """
    prefix = "encoder."
    tensors = list_tensors(folder)
    weights: dict[str, Tensor] = {}
    for file in sorted({info.file for name, info in tensors.items() if name.startswith(prefix)}):
        weights |= {n.removeprefix(prefix): v.float() for n, v in read_shard(file).items() if n.startswith(prefix)}
    with torch.device("meta"):
        encoder = WhisperEncoder(config.speech_config)
    try:
        encoder.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise WeightsMissing(f"{folder} has no complete encoder: use a checkpoint made by init or convert.") from error
    encoder.train(False)
    encoder.requires_grad_(False)
    return encoder


def open_caches(folders: Sequence[str], encoder: WhisperEncoder, window: Window) -> list[FeatureCache]:
    """Open feature caches for reading.

    Args:
        folders: of the caches.
        encoder: whose states they must contain.
        window: of which they must be computed.

    Returns:
        The caches.

    Raises:
        BadInput: one is missing, or has other states.
    """
    caches = [FeatureCache.open(Path(folder)) for folder in folders]
    expected = {"encoder": encoder_hash(encoder), "window": window} if caches else {}
    for cache in caches:
        if differing := [name for name, value in expected.items() if cache.about[name] != value]:
            raise BadInput(
                f"{cache.folder} has states of another {' and '.join(differing)} than the checkpoint's: "
                f"compute them again (python -m training cache --window {window}), or leave out --features."
            )
    return caches


def fill_cache(
    folder: Path,
    splits: Sequence[PreparedRows],
    others: Sequence[FeatureCache],
    encoder: WhisperEncoder,
    extractor: WhisperFeatureExtractor,
    window: Window,
    run: Run | None,
) -> int:
    """Add to a cache the states that neither it nor `others` contain. A kill loses at most one.

    Args:
        folder: of the cache, created if necessary.
        splits: whose rows are needed.
        others: further caches.
        encoder: to compute states.
        extractor: of the checkpoint.
        window: the encoder's input.
        run: where progress is reported, or None.

    Returns:
        How many states were added.

    Raises:
        BadInput: a recording cannot be read, or the folder belongs to another encoder, window or process.
    """
    cache = FeatureCache.create(folder, encoder, window)
    try:
        known = [cache, *others]
        rows = [(split, number) for split in splits for number in range(len(split))]
        missing = {}
        for split, number in rows:
            key = split[number]["key"]
            if not any(key in one for one in known):
                missing[key] = SpeechRows(split, [], extractor, window), number
        with run.bar("features", len(missing)) if run and missing else nullcontext() as bar:
            for key, (speech, number) in missing.items():
                cache.add(key, states_of(encoder, extractor, speech.samples(number), window=window))
                if bar is not None:
                    bar.advance()
        return len(missing)
    finally:
        cache.close()


class StepOrder(Sampler[int]):
    """Row numbers, step after step: every row once before any a second time, rows of a step of similar length.

    The rows of a step are chosen at random, but from windows of about 512 rows sorted by length, and they come sorted,
    so that a process's batches have rows of similar length. Epochs follow each other without a gap: no step is smaller,
    and none is skipped.

    Args:
        lengths: of the rows, at least one.
        size: rows per step.
        steps: number of steps.
        seed: of the order.
        by_length: False leaves the rows unsorted.
    """

    def __init__(self, lengths: Sequence[int], size: int, steps: int, seed: int, *, by_length: bool = True) -> None:
        self._lengths = np.asarray(lengths)
        self._size, self._steps, self._seed, self._by_length = size, steps, seed, by_length
        self._window = max(1, min(_WINDOW_ROWS, len(lengths)) // size)  # steps
        self._round = lru_cache(2)(self._shuffled)

    def __len__(self) -> int:
        return self._steps * self._size

    def __iter__(self) -> Iterator[int]:
        for first in range(0, self._steps, self._window):
            steps = self._sorted_window(first // self._window)
            yield from steps[: self._steps - first].ravel().tolist()

    def _sorted_window(self, window: int) -> NDArray[np.int64]:
        """Row numbers [steps, size] of a window."""
        count = self._window * self._size
        places = np.arange(window * count, (window + 1) * count)
        rounds, places = np.divmod(places, len(self._lengths))
        rows = np.concatenate([self._round(int(one))[places[rounds == one]] for one in np.unique(rounds)])
        if not self._by_length:
            return rows.reshape(self._window, self._size)
        steps = rows[np.argsort(-self._lengths[rows], kind="stable")].reshape(self._window, self._size)
        return steps[np.random.default_rng([self._seed, 1, window]).permutation(self._window)]

    def _shuffled(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, 0, number]).permutation(len(self._lengths))


def divide_step(size: int, processes: int, most: int) -> tuple[int, int]:
    """Divide a step among processes and passes.

    Args:
        size: rows per step.
        processes: number of processes.
        most: maximum rows per pass.

    Returns:
        Rows per process and pass, and passes per step.

    Raises:
        BadInput: the processes cannot share the step evenly.
    """
    if size % processes:
        raise BadInput(f"--batch-size: {size} rows cannot be shared evenly by {processes} processes.")
    share = size // processes
    times = next(times for times in range(1, share + 1) if share % times == 0 and share // times <= most)
    return share // times, times
