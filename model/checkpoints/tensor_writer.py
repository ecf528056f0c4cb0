"""Writing a checkpoint's safetensors piece by piece, in any order, without holding it in memory.

The position of every tensor follows from names, shapes and types alone. So the files have their full length from the
start, and an interrupted run can be resumed. Format: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from model.files import write_atomically

SHARD_BYTES = 4_000_000_000
"""Maximum size of a file (a larger tensor has its own file): below FAT32's limit of 2^32."""

COMMIT_BYTES = 2**30
"""Maximum bytes between two journal entries (or one tensor), which an interrupted run repeats."""

JOURNAL = ".journal.json"

_BLOCK_BYTES = 16 * 2**20
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"}


class TensorSpec(NamedTuple):
    """Shape and type of a tensor to write."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a checkpoint.

    Attributes:
        places: file name and first byte of every tensor.
        headers: the first bytes of every file.
        sizes: of the files, in bytes.
        index: model.safetensors.index.json; None if there is one file.
    """

    places: dict[str, tuple[str, int]]
    headers: dict[str, bytes]
    sizes: dict[str, int]
    index: dict[str, Any] | None


def lay_out(forms: Mapping[str, TensorSpec], shard_bytes: int = SHARD_BYTES) -> Layout:
    """Distribute tensors over files, in the given order.

    Args:
        forms: shape and type by name.
        shard_bytes: maximum size of a file.

    Returns:
        The layout.
    """
    shards: list[dict[str, TensorSpec]] = [{}]
    room = shard_bytes
    for name, form in forms.items():
        if shards[-1] and form.size > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = form
        room -= form.size
    places, headers, sizes = {}, {}, {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # The widest first: every tensor is aligned to its type.
        for name, form in sorted(shard.items(), key=lambda item: -item[1].dtype.itemsize):
            start, end = end, end + form.size
            header[name] = {"dtype": _DTYPES[form.dtype], "shape": form.shape, "data_offsets": (start, end)}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        headers[file] = len(text).to_bytes(8, "little") + text
        for name in shard:
            places[name] = (file, len(headers[file]) + header[name]["data_offsets"][0])
        sizes[file] = len(headers[file]) + end
    index = {
        "metadata": {"total_size": sum(form.size for form in forms.values())},
        "weight_map": {name: file for name, (file, _) in places.items()},
    }
    return Layout(places, headers, sizes, index if len(shards) > 1 else None)


class TensorWriter:
    """The files of a layout in `folder`, created in full length and filled in any order.

    A journal in the folder records which tensors are on the disk. A writer with the same layout and fingerprint resumes
    from there; for another one the folder is emptied first (except hidden files, such as a lock). Methods raise
    OSError, above all on a full disk.

    Attributes:
        done: names of the tensors already written.
    """

    def __init__(self, folder: Path, layout: Layout, fingerprint: str) -> None:
        self._folder = folder
        self._layout = layout
        self._fingerprint = fingerprint
        self._uncommitted = 0
        self._files: dict[str, BinaryIO] = {}
        self.done = self._resume()
        try:
            for name, header in layout.headers.items():
                path = folder / name
                path.touch()
                self._files[name] = file = path.open("r+b", buffering=0)
                file.truncate(layout.sizes[name])
                _write(file, header)
        except OSError:
            self.close()
            raise

    def write(self, name: str, values: Tensor) -> bool:
        """Write a tensor.

        Args:
            name: of the tensor.
            values: of the layout's shape and type.

        Returns:
            Whether all values are finite; only then the tensor counts as done.
        """
        file, start = self._layout.places[name]
        stream = self._files[file]
        stream.seek(start)
        finite = True
        for block in _blocks(values):
            lowest, highest = torch.aminmax(block)
            finite = finite and math.isfinite(lowest) and math.isfinite(highest)
            _write(stream, block.view(torch.uint8).numpy().data)
        if finite:
            self.done.add(name)
        self._uncommitted += values.nbytes
        if self._uncommitted >= COMMIT_BYTES:
            self.commit()
        return finite

    def commit(self) -> None:
        """Flush everything written so far to the disk, then record it in the journal."""
        for file in self._files.values():
            os.fsync(file.fileno())
        self._record(self.done)
        self._uncommitted = 0

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _record(self, done: set[str]) -> None:
        journal = {"fingerprint": self._fingerprint, "done": sorted(done)}
        write_atomically(self._folder / JOURNAL, json.dumps(journal))

    def _resume(self) -> set[str]:
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            journal = json.loads((self._folder / JOURNAL).read_text("utf-8"))
            if journal["fingerprint"] == self._fingerprint:
                return set(journal["done"])
        for path in self._folder.glob("[!.]*"):
            path.unlink()
        self._record(set())
        return set()


def _write(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write all of `content`: one call may write less, near a full disk or beyond 2 GiB."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """The values of `tensor` in order, flat, in blocks small enough to copy where it is not contiguous."""
    if tensor.is_contiguous():
        flat = tensor.detach().reshape(-1)
        yield from flat.split(_BLOCK_BYTES // flat.itemsize) if len(flat) else ()
        return
    for part in tensor.split(max(1, _BLOCK_BYTES * len(tensor) // tensor.nbytes)):
        yield from _blocks(part.contiguous() if part.nbytes <= _BLOCK_BYTES else part[0])
