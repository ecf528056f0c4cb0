"""Pinned files into folders that the model loads: one converter per format of the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

from model.weights.weight_files import Moved

VERSION = 1
"""Raise it when a converter writes something else than before: folders of older versions are made anew."""


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
        from model.weights.ct2 import convert_whisper

        convert_whisper(raw, out, moved)
    elif form == "causal-lm-gguf":
        from model.weights.gguf_reader import convert_causal_lm

        convert_causal_lm(raw, out, moved)
    elif form == "files":
        shutil.copytree(raw, out, dirs_exist_ok=True)
    else:
        raise ValueError(f"no converter for format {form!r}")
