"""Converters from downloaded files to model folders, one per format of the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

from model.weights.weight_files import Moved

VERSION = 1
"""Increase it when a converter's output changes: folders of older versions are then rebuilt."""


def convert(form: str, raw: Path, out: Path, moved: Moved) -> None:
    """Convert the joined files in `raw` into the empty folder `out`.

    Args:
        form: "whisper-ctranslate2", "causal-lm-gguf" or "files" (copied unchanged).
        raw: folder of the joined files.
        out: an empty folder.
        moved: called with the bytes of `raw` done since the last call.

    Raises:
        WeightsMissing: the files are not of this format.
        OSError: the folder cannot be written, or the disk is full.
    """
    if form == "whisper-ctranslate2":
        from model.weights.ct2 import convert_whisper

        convert_whisper(raw, out, moved)
    elif form == "causal-lm-gguf":
        from model.weights.gguf_reader import convert_causal_lm

        convert_causal_lm(raw, out, moved)
    elif form == "files":
        shutil.copytree(raw, out, dirs_exist_ok=True)
    else:
        raise ValueError(f"no converter for format {form!r}")
