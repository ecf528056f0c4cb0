"""Pinned files into folders that the model loads: one converter per format of the manifest."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

VERSION = 1
"""Raise it when a converter writes something else than before: folders of older versions are made anew."""


Moved = Callable[[int], None]
"""Told the number of bytes done since the last call."""


def convert(form: str, raw: Path, out: Path, moved: Moved) -> None:
    """Convert the joined files in `raw` into the empty folder `out`.

    Args:
        form: "whisper-ctranslate2", "causal-lm-gguf" or "files" (taken as they are).
        moved: told about the bytes of `raw`.

    Raises:
        WeightsMissing: the files are not what `form` says.
        OSError: the folder cannot be written, or the disk is full.
    """
    if form == "whisper-ctranslate2":
        from model.ct2 import convert_whisper

        convert_whisper(raw, out, moved)
    elif form == "causal-lm-gguf":
        from model.gguf_reader import convert_causal_lm

        convert_causal_lm(raw, out, moved)
    elif form == "files":
        shutil.copytree(raw, out, dirs_exist_ok=True)
    else:
        raise ValueError(f"no converter for format {form!r}")


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a safetensors file that transformers reads. Raises OSError, as other writing does."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        # The library reports a full disk in words only.
        if code := re.search(r"os error (\d+)", str(error)):
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` in the way Hugging Face folders have it: UTF-8, indented, keys in the given order."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
