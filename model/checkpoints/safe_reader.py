"""Reading untrusted checkpoint folders.

Nothing in such a folder is executed, can name a file outside it, or causes an allocation of a size it chooses. JSON is
read strictly, configs lose every key that makes a library import, download or dispatch something, and the headers of
weight files are checked against the files before a tensor is read.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file

from model.errors import WeightsMissing

_MIB = 2**20
_JSON_BYTES = {".index.json": 16 * _MIB, "tokenizer.json": 64 * _MIB}
_CONFIG_BYTES = 4 * _MIB
_HEADER_BYTES = 32 * _MIB  # of a safetensors file
_PICKLE_BYTES = 4 * _MIB  # of a .bin file's description; with 10,000 tensors it has 2 MiB
_FILE_BYTES = 2**40
_DEPTH = 32

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# Keys that make transformers import code, open a file or a connection, or choose a kernel.
_DANGEROUS = re.compile(
    r"auto_map|custom_.*|trust_remote_code|_?name_or_path|.*attn_implementation.*|.*experts_implementation.*"
    r"|quantization_config|configuration_files|transformers_weights|_commit_hash|.*kernel(_config|s_config)|gguf_file|per_layer_config"
    r"|(base_model_)?[tpe]p_plan|base_model_fsdp_plan|extra(_config)?_files|__.*__"
)

# Bounds of model sizes: (names, least, most).
_LIMITS = (
    (r"num_(pre|post)_cif_layers|cformer_(pre|post)_layers|adapter_(hidden_)?layers|(num_)?decoder_layers", 0, 256),
    (r"(num_)?(hidden|encoder)_layers", 1, 256),
    (r"num_(attention|key_value)_heads|(encoder|decoder)_attention_heads|cformer_heads", 1, 1024),
    (r"hidden_size|d_model|head_dim|kv_channels", 1, 2**16),
    (r"adapter_inner_(size|dim)|emotion_hidden|lora_rank|r", 0, 2**14),
    (r"intermediate_size|(encoder|decoder)_ffn_dim", 1, 2**20),
    (r"vocab_size", 1, 2**22),
    (r"max_position_embeddings|seq_length|max_(source|target)_positions|trained_length", 1, 2**24),
    (r"num_mel_bins|feature_size|num_labels|num_emotions|emotion_frame_group", 1, 1024),
    (r"n_fft|hop_length|chunk_length", 1, 2**16),
)

_DTYPE_NAMES = ("float32", "float16", "bfloat16", None)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor according to a weight file's header."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object strictly.

    Raises:
        WeightsMissing: the file is absent, not a plain file of its folder, too large, or not a plain JSON object:
            duplicate names, numbers that are not finite, or deeper nesting than any config has.
    """
    return _parse(_contents(path), path)


def read_text(path: Path) -> str:
    """Read a small text file of a folder.

    Raises:
        WeightsMissing: the file is absent, not a plain file of its folder, too large, or not UTF-8.
    """
    try:
        return _contents(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise WeightsMissing(f"{path} is not UTF-8 text: download the folder again.") from error


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read a config without keys that could make a library run, load or fetch anything, and with bounded sizes.

    How its own weights are quantized stays in it, for `nf4.stored_mode`; transformers must not see that.

    Args:
        folder: of the checkpoint.
        name: of the file.

    Returns:
        The cleaned config.

    Raises:
        WeightsMissing: as `read_json`, or a size that no model of this kind has.
    """
    path = folder / name
    raw = read_json(path)
    config: dict[str, Any] = _clean(raw)
    if "quantization_config" in raw:
        config["quantization_config"] = _clean(raw["quantization_config"])
    _check_sizes(config, path)
    return config


def list_tensors(folder: Path) -> dict[str, TensorInfo]:
    """List the tensors of a folder's weight files from their headers.

    safetensors are preferred to pickles (`pytorch_model*.bin`), a single file to shards.

    Args:
        folder: of the checkpoint.

    Returns:
        The tensors by name.

    Raises:
        WeightsMissing: there are no weights, an index contradicts its files, or a file is damaged, contains something
            other than dense numbers, or claims more than it has.
    """
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).exists():
            return list_file(folder / single)
        index = folder / f"{single}.index.json"
        if index.exists():
            return _indexed(index)
    raise WeightsMissing(f"{folder} holds no model.safetensors and no pytorch_model.bin: download the folder again.")


def list_file(file: Path) -> dict[str, TensorInfo]:
    """List the tensors of one weight file, by name, from its header.

    Raises:
        WeightsMissing: as `list_tensors`.
    """
    if file.suffix == ".safetensors":
        return _safetensors_header(file)
    return {name: TensorInfo(name, tuple(t.shape), t.dtype, file) for name, t in _unpickled(file).items()}


def read_shard(file: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of one weight file on the CPU, memory-mapped except for .bin files older than torch 1.6.

    Args:
        file: a safetensors or .bin file.

    Returns:
        The tensors by name.

    Raises:
        WeightsMissing: as `list_tensors`.
    """
    if file.suffix == ".safetensors":
        _safetensors_header(file)
        return load_file(file)
    return _unpickled(file)


def checked_folder(folder: Path) -> dict[str, Any]:
    """Check a folder of this project's format before transformers reads it.

    Args:
        folder: of the checkpoint.

    Returns:
        The cleaned config.

    Raises:
        WeightsMissing: as `read_config` and `list_tensors`; weights that are not safetensors; or files that would make
            transformers read something else than the weights checked here.
    """
    config = read_config(folder)
    for name in ("tokenizer_config.json", "preprocessor_config.json", "generation_config.json"):
        read_config(folder, name)
    for file in folder.iterdir():
        if file.name == "adapter_config.json" or re.match(r"shard-\d+-model-", file.name):
            raise WeightsMissing(f"{file} does not belong in a checkpoint folder: remove it, or convert it again.")
    if any(info.file.suffix != ".safetensors" for info in list_tensors(folder).values()):
        raise WeightsMissing(f"{folder} holds its weights as pickles: convert it first (python -m model.convert).")
    return config


def shown(value: object) -> str:
    """The first line of untrusted text, short and without control characters, for a message.

    Args:
        value: what a folder says.

    Returns:
        At most 120 printable characters.
    """
    first = next(iter(str(value).strip().splitlines()), "")[:120]
    return "".join(letter if letter.isprintable() else "?" for letter in first)


def _contents(path: Path) -> bytes:
    limit = next((size for end, size in _JSON_BYTES.items() if path.name.endswith(end)), _CONFIG_BYTES)
    size = plain_file(path).stat().st_size
    if size > limit:
        raise WeightsMissing(f"{path} has {size:,} bytes, more than such a file needs: download the folder again.")
    return path.read_bytes()


def plain_file(path: Path) -> Path:
    """Check that `path` is a regular file of its folder; links of a hub cache, to its blobs, are accepted."""
    if not path.exists():
        raise WeightsMissing(f"{path} is missing: download the folder again.")
    home = path.parent.resolve()
    homes = {home, home.parent.parent / "blobs"} if home.parent.name == "snapshots" else {home}
    if path.resolve().parent not in homes:
        raise WeightsMissing(f"{path} links to a file outside its folder: put the file itself there.")
    if not path.is_file():
        raise WeightsMissing(f"{path} is not a plain file: download the folder again.")
    return path


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a duplicate name in an object")
        return found

    def refuse(word: str) -> float:
        raise ValueError(f"{word[:20]} is not a finite number")

    def whole(word: str) -> int:
        return int(word) if len(word) <= 40 else int(refuse(word))

    def real(word: str) -> float:
        return float(word) if math.isfinite(float(word)) else refuse(word)

    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse, parse_int=whole, parse_float=real
        )
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else shown(error)
        raise WeightsMissing(f"{path} is not usable JSON ({reason}): download the folder again.") from error
    if not isinstance(value, dict):
        raise WeightsMissing(f"{path} is not a JSON object: download the folder again.")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEPTH):
        nested = (child for child in level if isinstance(child, dict | list))
        level = [child for holder in nested for child in (holder.values() if isinstance(holder, dict) else holder)]
    if level:
        raise RecursionError


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(child) for key, child in value.items() if not _DANGEROUS.fullmatch(key)}
    return [_clean(child) for child in value] if isinstance(value, list) else value


def _check_sizes(value: Any, path: Path) -> None:
    for child in value if isinstance(value, list) else []:
        _check_sizes(child, path)
    for key, child in value.items() if isinstance(value, dict) else []:
        _check_sizes(child, path)
        if key in ("dtype", "torch_dtype") and child not in _DTYPE_NAMES:
            raise WeightsMissing(f"{path} has {key} = {shown(child)!r}, not a type of weights: download it again.")
        least, most = next(((low, high) for names, low, high in _LIMITS if re.fullmatch(names, key)), (0, 0))
        if most and child is not None and not (type(child) is int and least <= child <= most):
            raise WeightsMissing(
                f"{path} has {key} = {shown(child)}, not a number from {least} to {most}: download it again."
            )


def _indexed(index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsMissing(f"{index} has no weight_map: download the folder again.")
    suffix = index.name.removesuffix(".index.json").rpartition(".")[2]
    for shard in weight_map.values():
        if not isinstance(shard, str) or not re.fullmatch(rf"\w[\w.-]{{0,200}}\.{suffix}", shard):
            raise WeightsMissing(f"{index} names {shown(shard)!r}, not a file of its folder: download it again.")
    found: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        for name, info in list_file(index.with_name(shard)).items():
            if name in found:
                raise WeightsMissing(f"{shown(name)} is in {found[name].file} and {info.file}: download both again.")
            found[name] = info
    for name, shard in weight_map.items():
        if name not in found or found[name].file.name != shard:
            raise WeightsMissing(f"{index} says that {shown(name)} is in {shard}, but it is not: download it again.")
    return found


def _damaged(file: Path, reason: object) -> WeightsMissing:
    said = shown(reason) or type(reason).__name__
    return WeightsMissing(f"{file} is damaged or not a weight file ({said}): download it again.")


def _safetensors_header(file: Path) -> dict[str, TensorInfo]:
    """The header of a safetensors file (https://github.com/huggingface/safetensors, "Format")."""
    size = plain_file(file).stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _HEADER_BYTES) or size > _FILE_BYTES:
            raise _damaged(file, f"its {size:,} bytes cannot hold the header that it announces")
        header = _parse(stream.read(length), file)
    header.pop("__metadata__", None)
    found, spans = {}, []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            valid = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
            if not valid or math.prod(shape) * dtype.itemsize != end - begin:
                raise ValueError("shape and place do not agree")
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(file, f"{shown(name)}: {error}") from error
        spans.append((begin, end))
        found[name] = TensorInfo(name, shape, dtype, file)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise _damaged(file, "its tensors overlap or leave gaps")
        position = end
    if position != size - 8 - length:
        raise _damaged(file, "its length is not that of its tensors")
    return found


# The globals of a pickled state dict; torch's own list for weights_only is longer.
_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)
# What torch's and Python's readers raise on malformed bytes.
_UNREADABLE = (
    *(OSError, ValueError, RuntimeError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile),
)
_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """A state dict from a .bin file: torch's weights-only reader, after a check of the opcodes."""
    size = plain_file(file).stat().st_size
    if size > _FILE_BYTES:
        raise _damaged(file, f"{size:,} bytes")
    try:
        with file.open("rb") as stream, warnings.catch_warnings(action="ignore"):
            legacy = stream.read(len(_LEGACY_START)) == _LEGACY_START
            for pickled in _old_pickles(stream) if legacy else _zipped_pickle(stream, size):
                _check_pickle(pickled, size)
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=not legacy)
    except _UNREADABLE as error:
        raise _damaged(file, error) from error
    if not isinstance(state, dict):
        raise _damaged(file, "it is not a dictionary of tensors")
    for name, tensor in state.items():
        dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not isinstance(name, str) or not dense or tensor.is_quantized or tensor.dtype not in _DTYPES.values():
            raise _damaged(file, f"{shown(name)} is not a dense tensor of numbers")
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise _damaged(file, f"{shown(name)} claims {tensor.numel():,} values that the file does not hold")
    if sum(tensor.nbytes for tensor in state.values()) > 2 * size:  # tied embeddings share their values
        raise _damaged(file, "its tensors claim more than the file has")
    return {name: tensor.detach() for name, tensor in state.items()}


def _zipped_pickle(stream: IO[bytes], size: int) -> Iterator[bytes]:
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        described = [entry for entry in entries if re.fullmatch(r"[^/]+/data\.pkl", entry.filename)]
        if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > size:
            raise ValueError("it is compressed, which torch never does")
        if len(described) != 1 or any(entry.filename.endswith("constants.pkl") for entry in entries):
            raise ValueError("it is not a saved state dict")
        if described[0].file_size > _PICKLE_BYTES:
            raise ValueError("its description is too large")
        yield archive.read(described[0])


def _old_pickles(stream: IO[bytes]) -> Iterator[bytes]:
    """The pickles of torch's format before 1.6: a magic number, a version, word sizes, the state dict, its storages."""
    start = io.BytesIO(stream.read(_PICKLE_BYTES))  # in memory, so that no length in it can allocate more
    for _ in range(4):
        begin = start.tell()
        for _ in pickletools.genops(start):
            pass
        yield start.getvalue()[begin : start.tell()]


def _check_pickle(pickled: bytes, size: int) -> None:
    """Refuse what a state dict never contains, though torch would accept it.

    Other names, shared tuples (hashing them can take very long), numbers and memo indices beyond the file.
    """
    tuples: set[int] = set()
    last = ""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not _GLOBALS.fullmatch(str(argument)):
            raise ValueError(f"it uses {shown(argument)!r}")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and last.startswith("TUPLE") and isinstance(argument, int):
            tuples.add(argument)
        if (opcode.name in ("BINGET", "LONG_BINGET") and argument in tuples) or opcode.name in ("DUP", "NEWOBJ"):
            raise ValueError("its description is not that of a state dict")
        if isinstance(argument, int) and abs(argument) > max(size, 2**16):
            raise ValueError(f"it names the number {argument:,}, beyond its {size:,} bytes")
        last = opcode.name
