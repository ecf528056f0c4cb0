"""Writing the files of a weights folder: safetensors and JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Moved = Callable[[int], None]
"""Called with the number of bytes done since the last call."""


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a safetensors file that transformers reads. Raises OSError, also on a full disk."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        # The library reports a full disk only as text.
        if code := re.search(r"os error (\d+)", str(error)):
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file in the style of Hugging Face folders: UTF-8, indented, keys in the given order.

    Args:
        path: of the file.
        content: JSON values.
    """
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
