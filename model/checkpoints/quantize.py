"""Write a checkpoint folder in 4 bits (NF4), so that it loads without being quantized again.

Linear layers become NF4; all other weights keep their stored type. The folder loads on GPUs and CPUs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from model.checkpoints.inventory import Source
from model.checkpoints.loader import inspect, read_model
from model.checkpoints.memory_plan import usable_device
from model.checkpoints.safe_reader import list_tensors, plain_file, read_shard
from model.errors import BadInput, WeightsMissing
from model.files import replacing_folder
from model.nn.speech_llm import SpeechLanguageModel

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "generation_config.json",
)
"""Copied unchanged; the weights and config.json are rewritten."""

_STORED_WIDTH = 2  # usual bytes per number that is not quantized; fp32 sources need more


def quantize(source: Path, target: Path, mode: str, device: str = "auto") -> None:
    """Write `target`, a new folder, with the weights of the checkpoint folder `source` in 4 bits.

    Args:
        source: a checkpoint folder of this project's format.
        target: a new folder.
        mode: "nf4", or "nf4-all" for the encoder's linear layers too.
        device: where the numbers are rounded; layers are moved there one by one.

    Raises:
        BadInput: `target` exists, or `source` is in 4 bits already.
        WeightsMissing: `source` cannot be read, or disk or memory is too small.
    """
    if target.exists():
        raise BadInput(f"{target} already exists: remove it or choose another TARGET.")
    about = inspect(str(source))
    if about.stored is not None:
        raise BadInput(f"{source} is already stored in {about.stored}: use the folder that it was made from.")
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        _check_room(about, mode, target)
        lock = target.with_name(f".{target.name}.lock")
        with FileLock(lock, timeout=0), replacing_folder(target) as out:
            model = read_model(source, usable_device(device), mode, "auto")
            _restore_types(model, source)
            model.save_pretrained(out)
            for name in _COPIED:
                if (source / name).exists():
                    shutil.copyfile(plain_file(source / name), out / name)
        lock.unlink(missing_ok=True)
    except Timeout as error:
        raise BadInput(f"{target} is being written by another run: wait for it.") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise WeightsMissing(f"{source} does not fit into memory: close programs, or use --device cpu.") from error
    except (OSError, SafetensorError) as error:
        raise WeightsMissing(f"{target} could not be written ({error}): make room or choose another TARGET.") from error


def _restore_types(model: SpeechLanguageModel, source: Path) -> None:
    """Loading gave all weights that are not quantized the type in config.json; restore each one's own type."""
    stored = list_tensors(source)
    wide = {name: one for name, one in model.named_parameters() if name in stored and one.is_floating_point()}
    other = {name for name, one in wide.items() if one.dtype != stored[name].dtype}
    for file in sorted({stored[name].file for name in other}):
        tensors = read_shard(file)
        for name in other & tensors.keys():
            wide[name].data = tensors[name].to(wide[name].device)


def _check_room(about: Source, mode: str, target: Path) -> None:
    needed = sum(weight.bytes(mode, _STORED_WIDTH) for weight in about.weights)
    free = shutil.disk_usage(target.absolute().parent).free
    if needed > free:
        raise WeightsMissing(
            f"{target} takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: make room or choose another TARGET."
        )
