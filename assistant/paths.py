"""Folders of the user's own files. Downloads are in the cache (see `model.weights.store.home`)."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from assistant.errors import AssistantError


def user_folder() -> Path:
    """The folder of settings, sessions, corrections, training runs and logs, mode 0700.

    UNDERTONE_HOME chooses it, or else BLSP_HOME, the variable's earlier name.

    Raises:
        AssistantError: it cannot be made.
    """
    chosen = os.environ.get("UNDERTONE_HOME") or os.environ.get("BLSP_HOME")
    folder = Path(chosen).expanduser().absolute() if chosen else platformdirs.user_data_path("undertone")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder} cannot be made ({error.strerror}): set UNDERTONE_HOME to a folder that is yours."
        raise AssistantError(message) from error
    return folder
