"""`python -m model.quantize SOURCE TARGET`: write a checkpoint folder in 4 bits (NF4).

The language model's linear layers become NF4 (with nf4-all the encoder's too); all other weights keep their stored
type. The folder loads on GPUs and CPUs, faster and from less disk space.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.checkpoints.quantize import quantize
from model.commands.options import DEVICES, quiet_libraries
from model.errors import BadInput, ModelError
from model.nn.nf4 import MODES


def main(arguments: Sequence[str] | None = None) -> int:
    """Quantize a checkpoint folder.

    Args:
        arguments: the command line; by default sys.argv.

    Returns:
        The exit code: 0 done, 2 bad input, 3 unusable source, disk or device, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m model.quantize", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a checkpoint folder, converted")
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new folder")
    parser.add_argument("--quantize", choices=MODES, default="nf4", help="nf4-all: the encoder in 4 bits too")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        quantize(options.source, options.target, options.quantize, options.device)
    except KeyboardInterrupt:
        return 130
    except ModelError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 3
    print(options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
