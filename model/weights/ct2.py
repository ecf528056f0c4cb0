"""Convert a CTranslate2 Whisper model: weights, configuration, generation settings, tokenizer.

Knows no torch: arrays come from numpy, and the folder is written as plain files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from model.errors import WeightsMissing
from model.weights.weight_files import Moved, write_json, write_tensors

Array = NDArray[Any]
BINARY_VERSION = 6
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
"""Data type numbers of the binary format; 5 (bfloat16) has no numpy counterpart and is not needed here."""

TIMESTAMPS = 1501
"""Whisper's timestamp tokens: 0.00 to 30.00 s in steps of 20 ms (Radford et al. 2022, section 2.3)."""


def read_ct2(path: Path) -> dict[str, Array]:
    """Map every variable of a CTranslate2 model file to a read-only array, memory-mapped.

    Layout (little endian): u32 version, string specification, u32 revision, u32 count, then for each variable: string
    name, u8 rank, u32 dimensions[rank], u8 data type, u32 bytes, data; then u32 count of aliases, each a pair of
    strings. A string is u16 length (with its final NUL) and the bytes.

    Raises:
        WeightsMissing: the file ends early, or is another version or kind of model.
    """
    position = 0

    def take(length: int) -> Array:
        nonlocal position
        position += length
        if position > len(data):
            raise ValueError("the file ends early")
        return data[position - length : position]

    def number(code: str) -> int:
        (value,) = struct.unpack("<" + code, take(struct.calcsize("<" + code)).tobytes())
        return int(value)

    def string() -> str:
        return take(number("H"))[:-1].tobytes().decode()

    variables: dict[str, Array] = {}
    try:
        data = np.memmap(path, np.uint8, mode="r")
        version, kind, _revision = number("I"), string(), number("I")
        if (version, kind) != (BINARY_VERSION, "WhisperSpec"):
            raise WeightsMissing(f"{path.name} is {kind} version {version}, not a Whisper model; fetch it again.")
        for _ in range(number("I")):
            name = string()
            shape = [number("I") for _ in range(number("B"))]
            dtype, size = DTYPES[number("B")], number("I")
            variables[name] = take(size).view(dtype).reshape(shape)
        for _ in range(number("I")):
            alias, original = string(), string()
            variables[alias] = variables[original]
    except (ValueError, KeyError) as error:
        raise WeightsMissing(f"{path.name} ends early or is damaged; fetch it again.") from error
    return variables


def whisper_tensors(ct2: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """Rename CTranslate2's variables to transformers' Whisper and split its fused projections.

    Self attention is stored as one [3 d, d] matrix (query, key, value), cross attention as a query and one [2 d, d]
    matrix (key, value). Whisper's key projection has no bias: the stored one is zero.

    Raises:
        WeightsMissing: a key bias is not zero, so this is not a Whisper model.
    """
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", ct2[f"{side}/position_encodings/encodings"]
        yield from _pair(ct2, f"{side}/layer_norm", f"model.{side}.layer_norm", norm=True)
        for index in range(_layers(ct2, side)):
            source, target = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            yield from _attention(ct2, f"{source}/self_attention", f"{target}.self_attn", fused=("qkv", "out"))
            if side == "decoder":
                yield from _attention(ct2, f"{source}/attention", f"{target}.encoder_attn", fused=("q", "kv", "out"))
            yield from _pair(ct2, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm", norm=True)
            yield from _pair(ct2, f"{source}/ffn/linear_0", f"{target}.fc1")
            yield from _pair(ct2, f"{source}/ffn/linear_1", f"{target}.fc2")
    for name in ("conv1", "conv2"):
        yield from _pair(ct2, f"encoder/{name}", f"model.encoder.{name}")
    # The output projection is tied to these embeddings: the alias is not written again.
    yield "model.decoder.embed_tokens.weight", ct2["decoder/embeddings/weight"]


def _layers(ct2: dict[str, Array], side: str) -> int:
    return sum(name.startswith(f"{side}/layer_") and name.endswith("ffn/linear_0/weight") for name in ct2)


def _pair(ct2: dict[str, Array], source: str, target: str, norm: bool = False) -> Iterator[tuple[str, Array]]:
    weight, bias = ("gamma", "beta") if norm else ("weight", "bias")
    yield f"{target}.weight", ct2[f"{source}/{weight}"]
    yield f"{target}.bias", ct2[f"{source}/{bias}"]


def _attention(ct2: dict[str, Array], source: str, target: str, fused: tuple[str, ...]) -> Iterator[tuple[str, Array]]:
    yield from _pair(ct2, f"{source}/layer_norm", f"{target}_layer_norm", norm=True)
    for index, letters in enumerate(fused):
        weight, bias = ct2[f"{source}/linear_{index}/weight"], ct2[f"{source}/linear_{index}/bias"]
        names = ["out_proj"] if letters == "out" else [f"{letter}_proj" for letter in letters]
        pieces = zip(names, np.split(weight, len(names)), np.split(bias, len(names)), strict=True)
        for name, rows, constants in pieces:
            yield f"{target}.{name}.weight", rows
            if name != "k_proj":
                yield f"{target}.{name}.bias", constants
            elif constants.any():
                raise WeightsMissing(f"{source} has a bias on its keys: not a Whisper model; fetch it again.")


def convert_whisper(raw: Path, out: Path, moved: Moved) -> None:
    """Convert `raw` (model.bin, config.json, tokenizer.json of CTranslate2) into a transformers folder.

    The weights keep their 16-bit values bit for bit. `moved` is called with the bytes of model.bin done.
    """
    ct2 = read_ct2(raw / "model.bin")
    tensors: dict[str, Array] = {}
    for name, array in whisper_tensors(ct2):
        tensors[name] = np.ascontiguousarray(array)
        moved(array.nbytes)
    write_tensors(out / "model.safetensors", tensors)
    tokenizer, ids = whisper_tokenizer(json.loads((raw / "tokenizer.json").read_text("utf-8")))
    settings = json.loads((raw / "config.json").read_text("utf-8"))
    files = {
        "config.json": _config(ct2, settings, ids),
        "generation_config.json": _generation_config(settings, ids),
        "preprocessor_config.json": _preprocessor_config(ct2),
        "tokenizer_config.json": _tokenizer_config(ids),
    }
    for file, content in files.items():
        write_json(out / file, content)
    tokenizer.save(str(out / "tokenizer.json"), pretty=True)


def whisper_tokenizer(source: dict[str, Any]) -> tuple[Tokenizer, dict[str, int]]:
    """Complete a tokenizer.json with what an older export left out; also return the ids of its special tokens.

    Exports differ: merges as pairs or as text, the first merge missing, timestamps listed or not, the name of the token
    for silence. The result is the same for all of them.
    """
    special = {token["content"]: token["id"] for token in source["added_tokens"] if token["special"]}
    if "<|nocaptions|>" in special:
        special["<|nospeech|>"] = special.pop("<|nocaptions|>")
    special = dict(sorted(special.items(), key=lambda item: item[1]))
    model = source["model"]
    vocabulary = {text: index for text, index in model["vocab"].items() if text not in special}
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if "Ġt" in vocabulary and ["Ġ", "t"] not in merges:
        merges.insert(0, ["Ġ", "t"])
    first = special["<|notimestamps|>"] + 1
    stamps = {f"<|{step * 0.02:.2f}|>": first + step for step in range(TIMESTAMPS)}
    added = [_added(text, index, text in special) for text, index in (special | stamps).items()]
    completed = source | {"added_tokens": added, "model": model | {"vocab": vocabulary, "merges": merges}}
    return Tokenizer.from_str(json.dumps(completed)), special


def _added(text: str, index: int, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": index, "content": text, **flags, "normalized": not special, "special": special}


def _config(ct2: dict[str, Array], settings: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    vocabulary, width = ct2["decoder/embeddings/weight"].shape
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "d_model": width,
        "vocab_size": vocabulary,
        "num_mel_bins": ct2["encoder/conv1/weight"].shape[1],
        "max_source_positions": len(ct2["encoder/position_encodings/encodings"]),
        "max_target_positions": len(ct2["decoder/position_encodings/encodings"]),
        "scale_embedding": bool(ct2["decoder/scale_embeddings"]),
        # The class's default is that of the English-only models.
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "tie_word_embeddings": True,
        "dtype": "float16",
    }
    for side in ("encoder", "decoder"):
        config[f"{side}_layers"] = _layers(ct2, side)
        config[f"{side}_attention_heads"] = int(ct2[f"{side}/num_heads"])
        config[f"{side}_ffn_dim"] = len(ct2[f"{side}/layer_0/ffn/linear_0/bias"])
    return config | _ends(ids)


def _ends(ids: dict[str, int]) -> dict[str, int]:
    end = ids["<|endoftext|>"]
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": ids["<|startoftranscript|>"],
    }


def _generation_config(settings: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    names = {index: text for text, index in ids.items()}
    languages = {names[index]: index for index in settings["lang_ids"]}
    # The list of an English-only model holds every language but English, which needs no token there.
    multilingual = "<|en|>" in languages
    config: dict[str, Any] = _ends(ids) | {
        "alignment_heads": settings["alignment_heads"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "is_multilingual": multilingual,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "return_timestamps": False,
        "suppress_tokens": settings["suppress_ids"],
    }
    if multilingual:
        tasks = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
        config |= {"lang_to_id": languages, "task_to_id": tasks}
    return config


def _preprocessor_config(ct2: dict[str, Array]) -> dict[str, Any]:
    """Whisper's features: 16 kHz, 25 ms windows every 10 ms, 30 s (Radford et al. 2022, section 2.2)."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": ct2["encoder/conv1/weight"].shape[1],
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _tokenizer_config(ids: dict[str, int]) -> dict[str, Any]:
    end = "<|endoftext|>"
    return {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "add_prefix_space": False,
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        # In the order of their ids: decoding assumes that the last one precedes the first timestamp.
        "additional_special_tokens": [*ids][1:],
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
