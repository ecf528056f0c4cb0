"""Loading an emotion reader without the language model: encoder, head, and an adapter if the head needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor

from model.checkpoints import components, inventory, loader, tuned
from model.checkpoints.memory_plan import usable_device, usable_mode
from model.checkpoints.safe_reader import TensorInfo, list_tensors, read_shard
from model.config import SpeechLanguageConfig
from model.errors import WeightsMissing
from model.nn.hearing import EmotionModel
from model.nn.int8 import quantize_int8
from model.nn.nf4 import quantize_nf4, stored_mode
from model.nn.speech_llm import SpeechLanguageModel
from model.weights import fetch

Report = Callable[[fetch.Progress], None]


@dataclass(slots=True, eq=False)
class EmotionCheckpoint:
    """A loaded emotion model, on its device.

    Attributes:
        name: the preset's name or the folder's path.
        model: in eval mode.
        extractor: of log-mel features.
        quantize: as loaded; readings differ slightly between modes.
    """

    name: str
    model: EmotionModel | SpeechLanguageModel
    extractor: WhisperFeatureExtractor
    quantize: str


def load_emotion(
    source: str,
    *,
    device: str = "auto",
    quantize: str = "auto",
    reading: str | None = None,
    progress: Report | None = None,
) -> EmotionCheckpoint:
    """Load the part of a preset or checkpoint folder that reads emotion, with the same weights as `loader.load`.

    The whole checkpoint is loaded in the two rare cases that need it: a head over a CTC adapter, and an encoder stored
    in 4 bits.

    Args:
        source: as `loader.load`.
        device: as `loader.load`.
        quantize: as `loader.load`.
        reading: as `loader.load`.
        progress: called with the progress of downloads.

    Returns:
        The emotion model.

    Raises:
        WeightsMissing: as `loader.load`.
        BadInput: as `loader.load`.
    """
    device = usable_device(device)
    preset = loader.preset_of(source, reading)
    if preset is None:
        found = loader.explained(Path(source), lambda folder: _of_folder(folder, device, quantize))
    elif source in loader.presets():
        found = _of_preset(source, preset, device, quantize, progress)
    else:
        found = loader.explained(
            Path(source), lambda folder: _of_preset(str(folder), preset, device, quantize, progress)
        )
    if found is None:
        whole = loader.load(source, device=device, quantize=quantize, reading=reading, progress=progress)
        return EmotionCheckpoint(whole.name, whole.model, whole.extractor, whole.quantize)
    model = found.model.eval().to(device)
    if found.quantize == "int8":
        quantize_int8(model.encoder)
    elif found.quantize == "nf4-all":
        quantize_nf4(model, found.quantize, loader.compute_type(device))  # type: ignore[arg-type]  # has a config too
    return found


def _of_preset(
    name: str, preset: Mapping[str, Any], device: str, quantize: str, progress: Report | None
) -> EmotionCheckpoint | None:
    if preset["config"]["emotion_source"] != "encoder":
        return None
    speech = fetch.ensure(preset["speech"], progress=progress)
    tuned.check(preset, ("speech",))
    head = inventory.head_folder(preset)
    config = SpeechLanguageConfig(
        speech_config=WhisperConfig.from_pretrained(speech).to_dict(),
        **preset["config"],
        **loader.reading_settings(head),
    )
    read = dict(_tensors(speech, lambda name: name.removeprefix("model.").startswith("encoder.")))
    read |= {f"emotion_head.{name}": tensor for name, tensor in load_file(head / tuned.HEAD).items()}
    weights = {name.removeprefix("model."): tensor.float() for name, tensor in read.items()}  # stored in 16 bits
    extractor = WhisperFeatureExtractor.from_pretrained(speech)
    return EmotionCheckpoint(name, _filled(config, weights), extractor, usable_mode(quantize, device))


def _of_folder(folder: Path, device: str, quantize: str) -> EmotionCheckpoint | None:
    stated = loader.own_config(folder)
    config = components.model_config(stated, folder)
    tensors = list_tensors(folder)
    components.check_fit(config, tensors, folder)
    mode = usable_mode(quantize, device, stored_mode(stated))
    is_ctc = config.emotion_source == "adapter" and config.adapter_type == "spelling"
    if is_ctc or _is_packed(tensors):
        return None
    parts = ("encoder.", "emotion_head.", *(["adapter."] if config.emotion_source == "adapter" else []))
    weights = dict(_tensors(folder, lambda key: key.startswith(parts)))
    components.refuse_nonfinite(weights.items(), folder)
    model = _filled(config, weights).to(loader.compute_type(device))
    return EmotionCheckpoint(str(folder), model, components.extractor(folder, config.speech_config.num_mel_bins), mode)


def _is_packed(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(name.startswith("encoder.") and name.endswith(".absmax") for name in tensors)


def _tensors(folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    """The wanted tensors of a folder; only files with such tensors are read."""
    found = {name: info for name, info in list_tensors(folder).items() if wanted(name)}
    for file in sorted({info.file for info in found.values()}):
        yield from ((name, tensor) for name, tensor in read_shard(file).items() if name in found)


def _filled(config: SpeechLanguageConfig, weights: Mapping[str, Tensor]) -> EmotionModel:
    """Create the model with these weights.

    Raises:
        WeightsMissing: they belong to another version.
    """
    with torch.device("meta"):
        model = EmotionModel(config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in weights.items()} != wanted:
        raise WeightsMissing("The emotion head is of another version: install this program again.")
    model.load_state_dict(weights, assign=True)
    return model
