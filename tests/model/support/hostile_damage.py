"""What can be done to a checkpoint folder, for the cases of `test_hostile`."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], object]


def in_json(name: str, **changes: Any) -> Damage:
    """Changes of a JSON file; `a__b` is b within a, and the text RAW... is written as it is."""

    def damage(folder: Path) -> None:
        path = folder / name
        whole = json.loads(path.read_text("utf-8")) if path.exists() else {}
        for key, value in changes.items():
            *outer, last = key.split("__") if not key.startswith("_") else [key]
            inner = whole
            for step in outer:
                inner = inner[step]
            inner[last] = value
        path.write_text(re.sub(r'"RAW([^"]*)"', r"\1", json.dumps(whole)), "utf-8")

    return damage


def holding(name: str, text: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def with_code(damage: Damage) -> Damage:
    """With a module beside the configs that a careless loader imports."""

    def both(folder: Path) -> None:
        for module in ("payload.py", "modeling_payload.py", "custom_generate/generate.py"):
            (folder / module).parent.mkdir(exist_ok=True)
            (folder / module).write_text(f"open({str(folder.parent / 'canary')!r}, 'w')  # payload\n")
        damage(folder)

    return both


def in_weights(change: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return damage


def in_header(
    change: Callable[[dict[str, Any]], object] | None = None, *, length: int | None = None, tail: bytes = b""
) -> Damage:
    """A change of the header of model.safetensors; `length`: what it says of its own length."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        if change is not None:
            change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data[8 + size :] + tail)

    return damage


def first(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def sharded(change: Callable[[dict[str, Any], Path], object]) -> Damage:
    """The weights in two shards, and then a change of the index."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        halves = {"one.safetensors": names[: len(names) // 2], "two.safetensors": names[len(names) // 2 :]}
        index = {"metadata": {}, "weight_map": {name: file for file, half in halves.items() for name in half}}
        for file, half in halves.items():
            save_file({name: tensors[name] for name in half}, folder / file, {"format": "pt"})
        change(index, folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def points_to(place: str) -> Damage:
    def change(index: dict[str, Any], folder: Path) -> None:
        shutil.copy(folder / "one.safetensors", folder.parent / "elsewhere.safetensors")
        where = place.format(outside=folder.parent)
        index["weight_map"] = {k: where if v == "one.safetensors" else v for k, v in index["weight_map"].items()}

    return sharded(change)


def twice(index: dict[str, Any], folder: Path) -> None:
    shared = load_file(folder / "one.safetensors")
    save_file(load_file(folder / "two.safetensors") | dict([shared.popitem()]), folder / "two.safetensors")


def replaced(name: str, by: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        by(folder / name)

    return damage


def cut(name: str, size: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def link_out(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_bytes(b"{}")
    path.symlink_to(outside)


def sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


def in_tokenizer(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        whole = json.loads(path.read_text("utf-8"))
        change(whole)
        path.write_text(re.sub(r'"RAW([^"]*)"', r"\1", json.dumps(whole)), "utf-8")

    return damage


EVERY_JSON = ("config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json")
_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoFeatureExtractor", "AutoProcessor")
AUTO_MAP = dict.fromkeys(_CLASSES, "modeling_payload.Payload")


def together(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


class Runs:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def command(folder: Path) -> str:
    return f"touch {folder.parent / 'canary'}"


def pickled(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(Runs(os.system, command(folder))))
