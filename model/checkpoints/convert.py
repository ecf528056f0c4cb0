"""Convert an original BLSP-Emo or Qwen-1 checkpoint to this project's format.

Weights keep their type and are copied tensor by tensor, so memory holds one source file at a time. Everything is
written to TARGET.part, which is renamed to TARGET when it is complete; an interrupted conversion can be resumed.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from filelock import FileLock, Timeout
from transformers import WhisperFeatureExtractor

from model.checkpoints.blsp_emo import (
    Move,
    Original,
    canonical,
    display_name,
    generation_settings,
    interpret_config,
    is_plain,
)
from model.checkpoints.components import effective_settings
from model.checkpoints.inventory import CONTEXT
from model.checkpoints.qwen_tokenizer import (
    END_OF_TEXT,
    IM_END,
    IM_START,
    SPECIALS,
    VOCABULARY,
    build_tokenizer,
    read_ranks,
)
from model.checkpoints.safe_reader import TensorInfo, list_tensors, read_config, read_shard
from model.checkpoints.tensor_writer import JOURNAL, SHARD_BYTES, Layout, TensorWriter, lay_out
from model.config import SpeechLanguageConfig
from model.errors import BadInput, WeightsMissing
from model.files import sync
from model.weights import fetch
from model.weights.weight_files import write_json

VERSION = 1
"""Increase it when a conversion's output changes: unfinished ones of older versions then start over."""

_LOCK = ".lock"
_WORKING_BYTES = 600 * 2**20  # the program itself, in addition to the largest source file
_SETTINGS_BYTES = 64 * 2**20  # on the disk, for the tokenizer and the configs
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Conversion:
    """A source whose headers and settings were checked.

    Attributes:
        source: its folder.
        original: its config and moves in this project's terms.
        tensors: what is converted, by canonical name.
        ignored: names of unneeded buffers.
        tokens: the vocabulary without special tokens.
        generation: generation_config.json of the target.
        layout: the target's weight files.
        fingerprint: changes with the source, the layout and this program.
    """

    source: Path
    original: Original
    tensors: dict[str, TensorInfo]
    ignored: list[str]
    tokens: list[bytes]
    generation: dict[str, Any]
    layout: Layout
    fingerprint: str

    @property
    def target_bytes(self) -> int:
        """Size of the target's weight files."""
        return sum(self.layout.sizes.values())

    def files(self) -> dict[Path, int]:
        """The source's weight files and their sizes in bytes, in order."""
        return {file: file.stat().st_size for file in sorted({info.file for info in self.tensors.values()})}

    def summary(self) -> dict[str, Any]:
        """What the source contains and what the conversion needs, for people and programs."""
        config = self.original.config
        sizes = self.files()
        found: dict[str, Any] = {"source": str(self.source), "kind": "qwen"}
        if isinstance(config, SpeechLanguageConfig):
            found |= {"kind": "blsp_emo", "adapter": config.adapter_type, "lora_rank": config.lora_rank}
            found |= {"lora_scope": config.lora_scope, "emotion_head": config.emotion_source != "none"}
        return found | {
            "source_files": {file.name: size for file, size in sizes.items()},
            "types": dict(Counter(str(info.dtype).removeprefix("torch.") for info in self.tensors.values())),
            "source_tensors": len(self.tensors),
            "ignored": self.ignored,
            "target_tensors": len(self.layout.places),
            "target_files": self.layout.sizes,
            "target_bytes": self.target_bytes,
            "memory_bytes": max(sizes.values()) + _WORKING_BYTES,
        }


def examine(source: Path, *, shard_bytes: int = SHARD_BYTES) -> Conversion:
    """Read the headers and settings of a source folder and check all that can be checked without its weights.

    Args:
        source: the original's folder.
        shard_bytes: maximum size of the target's weight files.

    Returns:
        The conversion, for `convert`.

    Raises:
        WeightsMissing: the source cannot be converted; the message says what is wrong with it.
    """
    config = read_config(source)
    plain = is_plain(config)
    found: dict[str, TensorInfo] = {}
    ignored, twice = [], []
    tensors = list_tensors(source)
    for name, info in tensors.items():
        known = canonical(name, plain=plain)
        if known is None:
            ignored.append(name)
        elif known in found:
            twice.append(name)
        else:
            found[known] = info
    original = interpret_config(config, found)
    missing = [display_name(name, tensors) for name in original.moves if name not in found]
    _compare(source, original.moves, found, {"missing": missing, "duplicated": twice})
    tokens = read_ranks(source / VOCABULARY)
    text = original.config.get_text_config()
    if len(tokens) + len(SPECIALS) > text.vocab_size:
        raise WeightsMissing(
            f"{source / VOCABULARY} has {len(tokens):,} tokens and {len(SPECIALS)} special ones, more than "
            f"the {text.vocab_size:,} of config.json: it belongs to another model."
        )
    original.config.dtype = found["qwen_model.transformer.wte.weight"].dtype
    layout = lay_out(original.forms({name: info.dtype for name, info in found.items()}), shard_bytes)
    paths = {info.file for info in found.values()} | {source / name for name in ("config.json", VOCABULARY)}
    given: dict[str, Any] = {}
    if (source / "generation_config.json").is_file():
        given = read_config(source, "generation_config.json")
        paths.add(source / "generation_config.json")
    stops = (len(tokens) + SPECIALS.index(special) for special in (END_OF_TEXT, IM_START, IM_END))
    return Conversion(
        source,
        original,
        {name: found[name] for name in original.moves},
        ignored,
        tokens,
        effective_settings(generation_settings(given, *stops), source / "generation_config.json", CONTEXT),
        layout,
        _fingerprint(paths, layout),
    )


def _compare(
    source: Path, moves: dict[str, Move], found: dict[str, TensorInfo], problems: dict[str, list[str]]
) -> None:
    unknown = [info.name for name, info in found.items() if name not in moves]
    known = [(found[name], moves[name].shape) for name in moves if name in found]
    shapes = [f"{info.name} is {list(info.shape)}, not {list(shape)}" for info, shape in known if info.shape != shape]
    types = [f"{info.name} is {info.dtype}" for info, _ in known if info.dtype not in _TYPES]
    problems |= {"unknown": unknown, "of another shape": shapes, "of an unsupported type": types}
    _fail(source, problems)


def _fail(source: Path, problems: dict[str, list[str]]) -> None:
    """Raise an error that names the first of every kind of problem; return when there is none."""
    parts = []
    for what, names in problems.items():
        if names:
            shown = ", ".join(name[:120] if name.isprintable() else ascii(name[:120]) for name in names[:3])
            parts.append(
                f"{len(names)} tensor{'s' * (len(names) > 1)} {what} ({shown}{', ...' if len(names) > 3 else ''})"
            )
    if parts:
        raise WeightsMissing(f"{source} cannot be converted: {'; '.join(parts)}. Download the folder again.")


def _fingerprint(paths: set[Path], layout: Layout) -> str:
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    digest = hashlib.sha256(repr((VERSION, files)).encode())
    for header in layout.headers.values():
        digest.update(header)
    return digest.hexdigest()


def convert(conversion: Conversion, target: Path, progress: Callable[[fetch.Progress], None] = lambda _: None) -> None:
    """Write the checkpoint `target`, or resume an interrupted conversion from target.part.

    When it raises, `target` does not exist. After KeyboardInterrupt or on a full disk target.part is kept, to resume.

    Args:
        conversion: what `examine` returned.
        target: a new or empty folder.
        progress: called with the bytes of weights done.

    Raises:
        BadInput: `target` is in use.
        WeightsMissing: a weight is not finite, a file is damaged, or the disk is full or cannot be written.
    """
    staging = staging_of(target)
    try:
        needed, free = disk_need(conversion, target)
        if needed > free:
            raise WeightsMissing(
                f"The conversion writes {needed / 1e9:.1f} GB and only {free / 1e9:.1f} GB are free for {target}: "
                "make room or choose a TARGET on another disk."
            )
        staging.mkdir(parents=True, exist_ok=True)
        with FileLock(staging / _LOCK, timeout=0):
            _fill(staging, conversion, progress)
        if target.exists():
            target.rmdir()
        staging.rename(target)
        for name in (_LOCK, JOURNAL):  # last: a killed run needs its journal to resume
            (target / name).unlink(missing_ok=True)
    except Timeout as error:
        raise BadInput(f"{staging} is being written by another conversion: wait for it.") from error
    except OSError as error:
        _explain(conversion, staging, error)


def staging_of(target: Path) -> Path:
    """The folder in which `target` is built.

    Args:
        target: the folder to write.

    Returns:
        `target` with the suffix ".part".

    Raises:
        BadInput: `target` or this folder would replace something.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise BadInput(f"{target} already exists: remove it or choose another TARGET.")
    staging = target.with_name(f"{target.name}.part")
    if staging.exists() and not (staging / JOURNAL).is_file() and any(staging.glob("[!.]*")):
        raise BadInput(f"{staging} is in the way: remove it or choose another TARGET.")
    return staging


def disk_need(conversion: Conversion, target: Path) -> tuple[int, int]:
    """Disk space of a conversion.

    Args:
        conversion: what `examine` returned.
        target: the folder to write.

    Returns:
        Bytes that are still to be written, and free bytes on the disk of `target`.
    """
    place = next(folder for folder in target.absolute().parents if folder.is_dir())
    needed = conversion.target_bytes + _SETTINGS_BYTES - _allocated(staging_of(target))
    return max(0, needed), shutil.disk_usage(place).free


def _allocated(staging: Path) -> int:
    """Bytes on the disk that an earlier run allocated (the files are sparse until they are written)."""
    return sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in staging.glob("*.safetensors"))


def _explain(conversion: Conversion, staging: Path, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        missing = conversion.target_bytes + _SETTINGS_BYTES - _allocated(staging)
        raise WeightsMissing(
            f"The disk is full at {staging}: free {missing / 1e9:.1f} GB and try again; the conversion is resumed."
        ) from error
    raise WeightsMissing(
        f"{error.filename or staging} cannot be read or written ({error.strerror}): choose another TARGET."
    ) from error


def _fill(staging: Path, conversion: Conversion, progress: Callable[[fetch.Progress], None]) -> None:
    """Write everything into `staging`, which is removed if the source turns out to be unusable."""
    try:
        with closing(TensorWriter(staging, conversion.layout, conversion.fingerprint)) as writer:
            _write_weights(writer, conversion, progress)
    except WeightsMissing:
        shutil.rmtree(staging)
        raise
    _write_settings(staging, conversion)  # last: building a tokenizer takes memory, and now no weights are mapped
    for path in staging.iterdir():
        sync(path)


def _write_weights(writer: TensorWriter, conversion: Conversion, progress: Callable[[fetch.Progress], None]) -> None:
    for name, value in conversion.original.constants.items():
        writer.write(name, value)
    broken: list[str] = []
    written, total = 0, sum(info.nbytes for info in conversion.tensors.values())
    for file in conversion.files():
        parts = {name: info for name, info in conversion.tensors.items() if info.file == file}
        undone = {name for name in parts if not writer.done.issuperset(conversion.original.moves[name].targets)}
        tensors = read_shard(file) if undone else {}
        for name, info in parts.items():
            progress(fetch.Progress("Converting", written, total))
            if name in undone and not _move(writer, conversion.original.moves[name], tensors[info.name]):
                broken.append(info.name)
            written += info.nbytes
        tensors.clear()  # the memory map is released with its last tensor
        writer.commit()
    progress(fetch.Progress("Converting", total, total))
    _fail(conversion.source, {"not finite": broken})


def _move(writer: TensorWriter, move: Move, tensor: torch.Tensor) -> bool:
    return all(writer.write(target, tensor[start:stop]) for target, start, stop in move.pieces())


def _write_settings(staging: Path, conversion: Conversion) -> None:
    config = conversion.original.config
    config.save_pretrained(staging)
    write_json(staging / "generation_config.json", conversion.generation)
    build_tokenizer(conversion.tokens).save_pretrained(staging)
    if isinstance(config, SpeechLanguageConfig):
        speech = config.speech_config
        seconds = speech.max_source_positions // 50  # two mel frames of 10 ms a position
        WhisperFeatureExtractor(feature_size=speech.num_mel_bins, chunk_length=seconds).save_pretrained(staging)
    if conversion.layout.index:
        write_json(staging / "model.safetensors.index.json", conversion.layout.index)
