"""`python -m model.quantize SOURCE TARGET`: a checkpoint folder in 4 bits, which loads without being quantised again.

The language model's linear layers become NF4; what stays wide is copied in the type in which it is stored. The
folder then loads on cards and CPUs alike, in a fraction of the time and of the disk's space.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import logging

from model.checkpoint import inspect, read_model
from model.errors import BadInput, ModelError, WeightsMissing
from model.inventory import Source
from model.nf4 import MODES
from model.plan import usable_device

_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "config.json")
"""What is written anew; every other file of the source (tokenizer, settings) is copied."""

_STORED_WIDTH = 2  # bytes a number that is not quantised, in the usual case; fp32 sources take more


def quantize(source: Path, target: Path, mode: str, device: str = "auto") -> None:
    """Write `target`, a new folder, with the weights of the checkpoint folder `source` in 4 bits.

    Args:
        mode: "nf4", or "nf4-all" for the encoder's linear layers too.
        device: where the numbers are rounded; layers pass through it one after the other.

    Raises:
        BadInput: `target` is there already, or `source` is in 4 bits already.
        WeightsMissing: `source` cannot be read, or the disk or the memory is too small.
    """
    if target.exists():
        raise BadInput(f"{target} is there already: remove it or choose another TARGET.")
    about = inspect(str(source))
    if about.stored is not None:
        raise BadInput(f"{source} is stored in {about.stored} already: take the folder that it was made from.")
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        _check_room(about, mode, target)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.absolute().parent) as staging:
            out = Path(staging) / "out"
            read_model(source, usable_device(device), mode, "auto").save_pretrained(out)
            for file in source.iterdir():
                if file.is_file() and not any(file.match(pattern) for pattern in _WEIGHTS):
                    shutil.copyfile(file, out / file.name)
            out.rename(target)
    except (OSError, SafetensorError) as error:
        raise WeightsMissing(f"{target} could not be written ({error}): make room or choose another TARGET.") from error


def _check_room(about: Source, mode: str, target: Path) -> None:
    needed = sum(weight.bytes(mode, _STORED_WIDTH) for weight in about.weights)
    free = shutil.disk_usage(target.absolute().parent).free
    if needed > free:
        raise WeightsMissing(
            f"{target} takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: make room or choose another TARGET."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Quantise; returns the exit code: 0 done, 2 bad input, 3 the source, the disk or a device will not do."""
    parser = argparse.ArgumentParser(prog="python -m model.quantize", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a checkpoint folder, converted")
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new folder")
    parser.add_argument("--quantize", choices=MODES, default="nf4", help="nf4-all: the encoder in 4 bits too")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    try:
        quantize(options.source, options.target, options.quantize, options.device)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 3
    print(options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
