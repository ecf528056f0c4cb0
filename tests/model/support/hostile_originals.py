"""Cases of hostile folders in the original's format: pickles, archives, vocabularies."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.checkpoints import safe_reader
from tests.model.support.hostile_damage import (
    AUTO_MAP,
    EVERY_JSON,
    Damage,
    Runs,
    command,
    cut,
    holding,
    in_json,
    link_out,
    pickled,
    replaced,
    sparse,
    together,
    with_code,
)

BIN = "pytorch_model.bin"


def _saved(change: Callable[[dict[str, Any], Path], object], *, old: bool = False) -> Damage:
    """The state dict of the .bin file changed and saved again."""

    def damage(folder: Path) -> None:
        state = dict(torch.load(folder / BIN, weights_only=True))
        whole = change(state, folder)
        torch.save(state if whole is None else whole, folder / BIN, _use_new_zipfile_serialization=not old)

    return damage


def _archive(described: bytes, *, method: int = zipfile.ZIP_STORED, extra: dict[str, bytes] | None = None) -> Damage:
    """A .bin file whose description is the pickle `described`, with one storage of 16 numbers."""

    def damage(folder: Path) -> None:
        entries = {"data.pkl": described, "byteorder": b"little", "data/0": b"\0" * 64, "version": b"3\n"} | (
            extra or {}
        )
        with zipfile.ZipFile(folder / BIN, "w", method) as archive:
            for name, data in entries.items():
                archive.writestr(f"archive/{name}", data)

    return damage


def _text_op(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


_STORAGE = b"(" + _text_op("storage") + b"ctorch\nFloatStorage\n" + _text_op("0") + _text_op("cpu") + b"K\x10tQ"
_SIZE_40 = b"(J\x00\x00\x00\x40J\x00\x00\x10\x00t"  # 2**30 x 2**20 numbers

_WIDE = _call(
    "torch._utils",
    "_rebuild_tensor_v2",
    _STORAGE,
    b"K\x00",
    _SIZE_40,
    b"(K\x00K\x00t",
    b"\x89",
    _call("collections", "OrderedDict"),
)
_HASHED = b"K\x01" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(1, 70))


def _state(value: bytes, key: bytes = _text_op("a")) -> bytes:
    return b"\x80\x02}" + key + value + b"s."


def _tar(folder: Path) -> None:
    with tarfile.open(folder / BIN, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Runs(os.system, command(folder)))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _quantised(weight: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


def _nan(state: dict[str, Any], _: Path) -> None:
    state["adapter.fc1.weight"].view(-1)[0] = float("nan")


def _wte(make: Callable[[torch.Tensor], object]) -> Callable[[dict[str, Any], Path], None]:
    def change(state: dict[str, Any], _: Path) -> None:
        name = next(name for name in state if name.endswith("wte.weight"))
        state[name] = make(state[name])

    return change


def _index(change: Callable[[dict[str, Any], Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        state = torch.load(folder / BIN, weights_only=True)
        (folder / BIN).rename(folder / "pytorch_model-00001-of-00001.bin")
        index = {"metadata": {}, "weight_map": dict.fromkeys(state, "pytorch_model-00001-of-00001.bin")}
        change(index, folder)
        (folder / f"{BIN}.index.json").write_text(json.dumps(index))

    return damage


def _everywhere(place: str) -> Damage:
    return _index(
        lambda index, folder: index.update(
            weight_map=dict.fromkeys(index["weight_map"], place.format(outside=folder.parent))
        )
    )


# Case -> (what is done to a folder of the original's format, what the message names).
ORIGINAL: dict[str, tuple[Damage, str]] = {
    "pickle that calls os.system": (_saved(lambda s, f: s.update(payload=Runs(os.system, command(f)))), BIN),
    "pickle that evaluates": (_saved(lambda s, f: s.update(payload=Runs(eval, "open('canary', 'w')"))), BIN),
    "pickle that executes": (_saved(lambda s, f: Runs(exec, "open('canary', 'w')")), BIN),
    "old pickle that calls os.system": (
        _saved(lambda s, f: s.update(payload=Runs(os.system, command(f))), old=True),
        BIN,
    ),
    "bare pickle": (lambda folder: pickled(folder, BIN), BIN),
    "tar with pickles": (_tar, BIN),
    "TorchScript": (
        _archive(_state(b"K\x01"), extra={"constants.pkl": b"\x80\x02).", "code/payload.py": b"payload"}),
        BIN,
    ),
    "pickle that imports by getattr": (
        _archive(_state(_call("builtins", "getattr", b"cos\npath\n", _text_op("system")))),
        BIN,
    ),
    "pickle that decodes a codec": (_archive(_state(_call("_codecs", "encode", _text_op("a"), _text_op("zip")))), BIN),
    "pickle that reserves a terabyte": (
        _archive(_state(_call("builtins", "bytearray", b"\x8a\x06" + (2**40).to_bytes(6, "little")))),
        BIN,
    ),
    "tuples whose hash takes for ever": (_archive(_state(b"K\x01", key=_HASHED)), BIN),
    "old pickle with a text of 2**60 letters": (
        holding(BIN, safe_reader._LEGACY_START + b"\x80\x02\x8d" + struct.pack("<Q", 2**60)),
        BIN,
    ),
    "pickle without end": (_archive(b"\x80\x02}" + b"]q\x01" * 1000), BIN),
    "nested marks": (_archive(b"\x80\x02" + b"(" * 20_000 + b"t" * 20_000 + b"."), BIN),
    "tensor beyond its storage": (_archive(_state(_WIDE)), BIN),
    "zip bomb": (_archive(_state(_WIDE) + b"\0" * 200_000_000, method=zipfile.ZIP_DEFLATED), BIN),
    "compressed weights": (_archive(_state(b"K\x01"), method=zipfile.ZIP_DEFLATED), BIN),
    "two descriptions": (_archive(_state(b"K\x01"), extra={"x/../data.pkl": b"", "constants.pkl": b""}), BIN),
    "zip of nothing": (lambda folder: zipfile.ZipFile(folder / BIN, "w").close(), BIN),
    "state that is a list": (_saved(lambda s, _: list(s.values())), BIN),
    "state with numbers for names": (_saved(lambda s, _: s.update({5: torch.ones(1)})), BIN),
    "state with text": (_saved(lambda s, _: s.update(payload="text")), BIN),
    "state within a state": (_saved(lambda s, _: {"model": s}), BIN),
    "sparse weight": (_saved(_wte(lambda t: t.to_sparse())), BIN),
    "quantised weight": (_saved(_wte(_quantised)), BIN),
    "weight that is nowhere": (_saved(_wte(lambda t: t.to("meta"))), BIN),
    "complex weight": (_saved(_wte(lambda t: t.to(torch.complex64))), BIN),
    "whole-number weight": (_saved(_wte(lambda t: t.to(torch.int32))), "wte"),
    "expanded weight": (_saved(_wte(lambda t: torch.zeros(1).expand(2**20, 2**10))), BIN),
    "weight of another shape": (_saved(_wte(lambda t: t[:-1].clone())), "wte"),
    "weight of no size": (_saved(_wte(lambda t: t[:0].clone())), "wte"),
    "unknown weight": (_saved(lambda s, _: s.update({"payload.weight": torch.ones(2)})), "payload.weight"),
    "missing weight": (_saved(lambda s, _: s.pop("adapter.fc1.weight") is not s and None), "adapter.fc1.weight"),
    "NaN weight": (_saved(_nan), "adapter.fc1.weight"),
    "weights cut short": (cut(BIN, 20_000), BIN),
    "weights cut by a byte": (lambda folder: cut(BIN, (folder / BIN).stat().st_size - 1)(folder), BIN),
    "weights empty": (cut(BIN, 0), BIN),
    "weights outside": (replaced(BIN, link_out), BIN),
    "weights that are a pipe": (replaced(BIN, os.mkfifo), BIN),
    "weights that are a folder": (replaced(BIN, Path.mkdir), BIN),
    "weights of 2 TB of nothing": (replaced(BIN, sparse(2**41)), BIN),
    "shards elsewhere": (_everywhere("{outside}/elsewhere.bin"), "index.json"),
    "shards above": (_everywhere("../original/pytorch_model-00001-of-00001.bin"), "index.json"),
    "shard that is missing": (_everywhere("pytorch_model-00002-of-00002.bin"), "00002-of-00002"),
    "shard of another kind": (_everywhere("model.safetensors"), "index.json"),
    "vocabulary of a trillion": (in_json("config.json", qwen_config__vocab_size=10**12), "vocab_size"),
    "vocabulary beyond the file": (in_json("config.json", qwen_config__vocab_size=4_000_000), "wte"),
    "billion layers": (in_json("config.json", qwen_config__num_hidden_layers=10**9), "num_hidden_layers"),
    "200 layers": (in_json("config.json", qwen_config__num_hidden_layers=200), "missing"),
    "negative layers": (in_json("config.json", whisper_config__encoder_layers=-2), "encoder_layers"),
    "no heads": (in_json("config.json", whisper_config__encoder_attention_heads=0), "encoder_attention_heads"),
    "kernel sizes with a command": (in_json("config.json", conv_kernel_sizes="5;rm -rf /"), "conv_kernel_sizes"),
    "kernel sizes below zero": (in_json("config.json", conv_kernel_sizes="5,-5"), "conv_kernel_sizes"),
    "endless kernel sizes": (in_json("config.json", conv_kernel_sizes="5," * 100_000 + "5"), "conv_kernel_sizes"),
    "adapter that is a path": (in_json("config.json", adapter_type="../payload"), "adapter_type"),
    "LoRA as a list": (in_json("config.json", lora_config=[1]), "lora_config"),
    "LoRA of no rank": (
        in_json("config.json", lora_config={"r": 0, "target_modules": ["c_attn"], "lora_alpha": 16}),
        "lora_config|r = ",
    ),
    "LoRA of huge rank": (
        in_json("config.json", lora_config={"r": 10**9, "target_modules": ["c_attn"]}),
        "lora_config|r = ",
    ),
    "LoRA scope that is none": (in_json("config.json", lora_scope={"a": 1}), "lora_scope"),
    "no encoder": (in_json("config.json", whisper_config=None), "whisper_config"),
    "base of the rotation is text": (in_json("config.json", qwen_config__rotary_emb_base="os"), "rotary_emb_base"),
    "config nests deeply": (holding("config.json", "[" * 100_000), "config.json"),
    "vocabulary that is a pickle": (lambda folder: pickled(folder, "qwen.tiktoken"), "qwen.tiktoken"),
    "vocabulary cut short": (cut("qwen.tiktoken", 100), "qwen.tiktoken"),
    "vocabulary with a huge rank": (holding("qwen.tiktoken", "YQ== " + "9" * 5000), "qwen.tiktoken"),
    "vocabulary that is a pipe": (replaced("qwen.tiktoken", os.mkfifo), "qwen.tiktoken"),
    "vocabulary outside": (replaced("qwen.tiktoken", link_out), "qwen.tiktoken"),
    "length as text": (in_json("generation_config.json", max_new_tokens="payload"), "max_new_tokens"),
}

# Case -> what is done; the folder converts to the same as if it had not been.
IGNORED: dict[str, Damage] = {
    "auto_map everywhere": with_code(together(*(in_json(name, auto_map=AUTO_MAP) for name in EVERY_JSON))),
    "auto_map within": with_code(
        in_json("config.json", qwen_config__auto_map=AUTO_MAP, whisper_config__auto_map=AUTO_MAP)
    ),
    "attention from the hub": together(
        in_json("config.json", _attn_implementation="payload/payload", _attn_implementation_internal="payload/payload"),
        in_json("config.json", qwen_config__attn_implementation="payload/payload:payload"),
    ),
    "pickles beside": lambda f: [pickled(f, name) for name in ("optimizer.pt", "training_args.bin", "rng_state.pth")],
    "tokenizer class": with_code(in_json("tokenizer_config.json", tokenizer_class="payload", auto_map=AUTO_MAP)),
    "generation code": with_code(in_json("generation_config.json", custom_generate="payload/payload")),
    "a name for the tokenizer's file": in_json(
        "tokenizer_config.json", vocab_file="/etc/passwd", merges_file="../payload"
    ),
}
