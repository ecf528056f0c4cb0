"""A cache of the frozen encoder's output: computed once, appended, memory-mapped, crash-safe.

A folder has `cache.json` (encoder, window, width, type), `states.bin` (records of little-endian floats, [frames,
width], one after another) and `index.jsonl` (one line per record: key, offset in bytes, frames, CRC-32). A record
counts once its index line is complete, so a kill loses at most the record being written.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from assistant.events import SAMPLE_RATE, Samples
from model.audio.features import LONGEST_SECONDS, encode, encoder_frames, log_mel
from model.audio.files import read_audio
from model.errors import BadInput
from model.files import write_atomically

Window = Literal["full", "trimmed"]


def content_key(content: bytes) -> str:
    """The key of a recording in a feature cache.

    Args:
        content: the file's bytes, or a clip's samples if it was never a file.

    Returns:
        The SHA-256 in hexadecimal digits.
    """
    return hashlib.sha256(content).hexdigest()


def encoder_hash(encoder: WhisperEncoder) -> str:
    """The SHA-256 of the encoder's weights as float32, independent of their type in memory."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def states_of(
    encoder: WhisperEncoder, extractor: WhisperFeatureExtractor, samples: Samples, *, window: Window, half: bool = False
) -> Tensor:
    """The encoder's last hidden states over the frames that contain speech.

    One recording per pass: windows of different lengths cannot share a batch without attending to each other's silence,
    and on a CPU a batch is no faster (146 ms for a clip of 5.7 s alone or in a batch of eight, Whisper base, one core).

    Args:
        encoder: Whisper's.
        extractor: of the same model.
        samples: float32 [n], mono, 16 kHz, at most 30 s.
        window: the encoder's input.
        half: compute products in bfloat16, which is faster on CPUs that support it.

    Returns:
        float32 [T, D].
    """
    features = log_mel(extractor, samples, trimmed=window == "trimmed")
    with torch.inference_mode(), torch.autocast(encoder.device.type, torch.bfloat16, enabled=half):
        return encode(encoder, features)[-1][0, : encoder_frames(len(samples))].float()


class FeatureCache:
    """Encoder states by content key. Use `open` to read, `create` to add; one writer at a time.

    Attributes:
        folder: of the cache.
        about: encoder, window, width and type.
        damaged: how many records `check` dropped.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = about
        self.damaged = 0
        self._dtype = np.dtype("<f2" if about["dtype"] == "float16" else "<f4")
        self._records: dict[str, tuple[int, int, int]] = {}
        self._read = 0  # bytes of the index that were read
        self._map: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._lock = FileLock(folder / ".lock")
        self.refresh()

    @classmethod
    def open(cls, folder: Path) -> FeatureCache:
        """Open a cache for reading.

        Args:
            folder: of the cache.

        Returns:
            The cache.

        Raises:
            BadInput: there is no cache in `folder`.
        """
        try:
            about = json.loads((folder / "cache.json").read_text("utf-8"))
            if about["version"] != 1:
                raise BadInput(f"{folder}: a cache of another version: remove it and run `python -m training cache`")
            return cls(folder, about)
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"{folder} holds no feature cache: run `python -m training cache`") from error

    @classmethod
    def create(cls, folder: Path, encoder: WhisperEncoder, window: Window, *, half: bool = False) -> FeatureCache:
        """Open a cache for adding; it is created if necessary.

        Args:
            folder: of the cache.
            encoder: whose states it contains.
            window: the encoder's input.
            half: store float16 instead of float32.

        Returns:
            The cache, locked until `close`.

        Raises:
            BadInput: the folder has states of another encoder, window or type, or another process is adding.
        """
        about = {
            "version": 1,
            "encoder": encoder_hash(encoder),
            "window": window,
            "width": int(encoder.config.d_model),
            "dtype": "float16" if half else "float32",
        }
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "cache.json").exists():
            write_atomically(folder / "cache.json", json.dumps(about, indent=2) + "\n")
        cache = cls.open(folder)
        if differing := [name for name, value in about.items() if cache.about[name] != value]:
            raise BadInput(f"{folder}: its states have another {', '.join(differing)}: choose another folder")
        try:
            cache._lock.acquire(timeout=0)
        except Timeout as error:
            raise BadInput(f"{folder}: another process is adding to it: wait for it") from error
        index = folder / "index.jsonl"
        if index.exists():  # a line torn by a kill would break the next one
            with index.open("r+b") as file:
                file.truncate(cache._read)
        return cache

    def close(self) -> None:
        """Finish adding; reading still works."""
        self._lock.release()

    def refresh(self) -> None:
        """Read what another process has added since."""
        index, states = self.folder / "index.jsonl", self.folder / "states.bin"
        if not (index.exists() and states.exists()):
            return
        with index.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        size = states.stat().st_size
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
                key, record = entry["key"], (int(entry["offset"]), int(entry["frames"]), int(entry["crc"]))
            except (ValueError, KeyError, TypeError):
                continue  # an unreadable line: its record is computed again
            if record[0] >= 0 and record[1] > 0 and record[0] + self._bytes(record[1]) <= size:
                self._records[key] = record
        if size:
            self._map = np.memmap(states, np.uint8, "r")

    def _bytes(self, frames: int) -> int:
        return frames * int(self.about["width"]) * self._dtype.itemsize

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def frames(self, key: str) -> int:
        """Number of encoder frames of a record, without reading it.

        Args:
            key: of the record.

        Returns:
            Frames of 20 ms.

        Raises:
            KeyError: it is not in the cache.
        """
        return self._records[key][1]

    def add(self, key: str, states: Tensor) -> None:
        """Append a record; an existing key keeps its record.

        Args:
            key: of the record.
            states: [T, D].
        """
        if key in self._records:
            return
        data = states.float().numpy().astype(self._dtype).tobytes()
        with (self.folder / "states.bin").open("ab") as file:
            offset = file.tell()
            file.write(data)
        record = (offset, len(states), zlib.crc32(data))
        with (self.folder / "index.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"key": key, "offset": offset, "frames": record[1], "crc": record[2]}) + "\n")
            self._read = lines.tell()
        self._records[key] = record

    def __getitem__(self, key: str) -> Tensor:
        """Read a record, float32 [T, D], as computed (or rounded to 16 bits).

        Raises:
            KeyError: it is not in the cache.
            BadInput: its bytes were changed.
        """
        offset, frames, crc = self._records[key]
        end = offset + self._bytes(frames)
        if end > len(self._map):
            self._map = np.memmap(self.folder / "states.bin", np.uint8, "r")
        data = self._map[offset:end]
        if len(data) != end - offset or zlib.crc32(data.tobytes()) != crc:
            raise BadInput(f"{self.folder}: the record {key[:12]} is damaged: run `python -m training cache` again")
        states = data.view(self._dtype).reshape(frames, -1)
        return torch.from_numpy(states.astype(np.float32))

    def check(self, keys: Iterable[str]) -> None:
        """Verify records and drop damaged ones, so that they are computed again.

        Args:
            keys: of the records.
        """
        for key in keys:
            try:
                self[key]
            except KeyError:
                continue
            except BadInput:
                del self._records[key]
                self.damaged += 1


def build_cache(
    rows: list[dict[str, Any]],
    folder: Path,
    encoder: WhisperEncoder,
    extractor: WhisperFeatureExtractor,
    window: Window = "trimmed",
    dtype: torch.dtype = torch.float32,
    *,
    base: Path = Path(),
    progress: bool = True,
) -> tuple[FeatureCache, list[dict[str, Any]], list[dict[str, Any]]]:
    """Compute the missing states of a manifest.

    Args:
        rows: manifest rows; `audio` is a file below `base`, or absolute. A row without `audio` whose `key` is in the
            cache (a synthetic clip that was never stored) is accepted.
        folder: of the cache.
        encoder: to compute states.
        extractor: of the same model.
        window: the encoder's input.
        dtype: of stored states, torch.float32 or torch.float16.
        base: folder of relative paths.
        progress: show a progress bar.

    Returns:
        The cache; the rows with their `key`; the dropped rows, each with `why`.

    Raises:
        BadInput: the folder belongs to another encoder, window or type.
    """
    cache = FeatureCache.create(folder, encoder, window, half=dtype == torch.float16)
    kept, dropped = [], []
    shown = track(rows, "features", console=Console(stderr=True), transient=True) if progress else rows
    try:
        for row in shown:
            try:
                kept.append(row | {"key": _cached(cache, row, base, encoder, extractor, window)})
            except BadInput as error:
                dropped.append(row | {"why": str(error)})
    finally:
        cache.close()
    return cache, kept, dropped


def _cached(
    cache: FeatureCache,
    row: dict[str, Any],
    base: Path,
    encoder: WhisperEncoder,
    extractor: WhisperFeatureExtractor,
    window: Window,
) -> str:
    if "audio" not in row:
        key = str(row.get("key"))
        cache.check([key])
        if key not in cache:
            raise BadInput(f"{key[:12]}: a clip without audio whose states are not in the cache: make it again")
        return key
    path = base / row["audio"]
    try:
        key = content_key(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}): check the path") from error
    cache.check([key])
    if key not in cache:
        samples = read_audio(path)
        if len(samples) > LONGEST_SECONDS * SAMPLE_RATE:
            raise BadInput(f"{path}: {len(samples) / SAMPLE_RATE:.1f} s: cut it to {LONGEST_SECONDS:.0f} s or less")
        cache.add(key, states_of(encoder, extractor, samples, window=window))
    return key
