"""Tuned checkpoints: a preset with the user's own emotion head, in a small folder.

    config.json       {"model_type": "blsp_emo", "preset": ..., "parts": {"speech": {"name", "sha256"}, "text": ...}}
    head.safetensors  the head's weight, centre, offset and temperature, and its hidden units
    reading.json      encoder layers, hidden units, threshold and frame group, as in resources/mini

The preset's parts stay in the downloads. Their hashes, taken from the stamps of the downloaded folders, are recorded,
because a head that was fitted to one encoder does not work with another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints import components
from model.checkpoints.safe_reader import read_json, read_shard, shown
from model.config import SpeechLanguageConfig
from model.errors import WeightsMissing
from model.files import replacing_folder
from model.weights import fetch
from model.weights.store import STAMP
from model.weights.weight_files import write_json

CONFIG, HEAD, READING = "config.json", "head.safetensors", "reading.json"
_PARTS = ("speech", "text")
_LARGEST_HEAD = 1 << 26  # bytes
_MOST_HIDDEN = 1 << 14


def part_sums(preset: Mapping[str, Any], parts: Sequence[str] = _PARTS) -> dict[str, dict[str, str]]:
    """Identify the preset's downloaded parts.

    Args:
        preset: its settings.
        parts: of "speech" and "text".

    Returns:
        Name and SHA-256 of each part.

    Raises:
        WeightsMissing: one of them is missing, or has no readable stamp.
    """
    sums = {}
    for part in parts:
        folder = fetch.home() / "models" / preset[part]
        try:
            files = json.loads((folder / STAMP).read_text("utf-8"))["files"]
            known = sorted((name, entry["sha256"]) for name, entry in files.items() if name.endswith(".safetensors"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsMissing(f"{folder} is not complete: fetch {preset[part]} again.") from error
        sums[part] = {"name": preset[part], "sha256": hashlib.sha256(json.dumps(known).encode()).hexdigest()}
    return sums


def save(
    folder: Path,
    name: str,
    preset: Mapping[str, Any],
    head: Mapping[str, Tensor],
    reading: Mapping[str, Any],
) -> None:
    """Write a tuned checkpoint, complete or not at all; an existing folder is replaced.

    Args:
        folder: to write.
        name: of the preset.
        preset: its settings.
        head: as `EmotionHead.state_dict`.
        reading: layers, features, hidden, temperature, threshold and frame_group.

    Raises:
        WeightsMissing: the preset's parts are missing.
        OSError: the folder cannot be written.
    """
    about = {"model_type": SpeechLanguageConfig.model_type, "preset": name, "parts": part_sums(preset)}
    with replacing_folder(folder) as staging:
        save_file({key: value.float().contiguous() for key, value in head.items()}, staging / HEAD)
        write_json(staging / READING, dict(reading))
        write_json(staging / CONFIG, about)


def preset_of(folder: Path, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The preset of a tuned checkpoint, with its own head; None if the folder is not a tuned checkpoint.

    Raises:
        WeightsMissing: the preset is unknown, or the head is damaged or invalid.
    """
    try:
        stated = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    except WeightsMissing:
        return None  # another reader reports what is wrong with it
    if stated.get("model_type") != SpeechLanguageConfig.model_type or "preset" not in stated:
        return None
    name = stated["preset"]
    if not isinstance(name, str) or name not in known:
        raise WeightsMissing(f"{folder} was tuned from {shown(name)}, not a preset here: tune it again.")
    reading = read_json(folder / READING)
    layers, threshold, group = (reading.get(key) for key in ("layers", "threshold", "frame_group"))
    valid = isinstance(layers, list) and 0 < len(layers) < 64 and all(isinstance(one, int) for one in layers)
    valid = valid and isinstance(threshold, float) and 0 <= threshold <= 1
    hidden = reading.get("hidden", 0)  # older heads have none
    valid = valid and type(hidden) is int and 0 <= hidden <= _MOST_HIDDEN
    if not valid or not isinstance(group, int) or not 0 < group < 1000:
        raise WeightsMissing(f"{folder / READING} has invalid settings: tune it again.")
    head = folder / HEAD
    if not head.is_file() or head.stat().st_size > _LARGEST_HEAD:
        raise WeightsMissing(f"{head} is not an emotion head: tune it again.")
    return {**known[name], "preset": name, "head": str(folder.absolute()), "parts": stated.get("parts")}


def check(preset: Mapping[str, Any], parts: Sequence[str] = _PARTS) -> None:
    """Check that the downloaded parts are those that a tuned head was fitted on; presets that are shipped pass.

    Args:
        preset: from `preset_of`, or a shipped one.
        parts: those that are used.

    Raises:
        WeightsMissing: the parts differ, or the head has NaN or infinite numbers, or uses layers that do not exist.
    """
    if "parts" not in preset:
        return
    folder = Path(preset["head"])
    noted = preset["parts"] if isinstance(preset["parts"], dict) else {}
    if {part: noted.get(part) for part in parts} != part_sums(preset, parts):
        raise WeightsMissing(f"{folder} was tuned on other weights of {preset['preset']}: tune it again.")
    try:
        head = read_shard(folder / HEAD)
    except WeightsMissing as error:
        raise WeightsMissing(f"{folder / HEAD} is damaged: tune it again.") from error
    components.refuse_nonfinite(head.items(), folder)
    states = read_json(fetch.home() / "models" / preset["speech"] / CONFIG)["encoder_layers"] + 1
    if not all(-states <= layer < states for layer in read_json(folder / READING)["layers"]):
        raise WeightsMissing(f"{folder / READING} names layers that the encoder does not have: tune it again.")
