"""The entry in the applications menu of a Linux desktop: a desktop file and an icon in the user's folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from assistant.files import write_atomically

NAME = "undertone"


def possible() -> bool:
    """Return whether this system has such a menu."""
    return sys.platform == "linux"


def installed() -> bool:
    """Return whether the entry exists."""
    return _entry().is_file()


def install(command: Sequence[str], folder: Path) -> None:
    """Write the desktop file and the icon, replacing older ones.

    Args:
        command: starts the program. The `undertone` script next to the interpreter takes precedence.
        folder: the working directory.

    Raises:
        OSError: a file cannot be written.
    """
    resources = files("resources")
    script = Path(sys.executable).with_name(NAME)
    program = [str(script)] if script.is_file() else list(command)
    text = (resources / f"{NAME}.desktop").read_text("utf-8")
    text = text.replace(f"Exec={NAME}\n", f"Exec={' '.join(map(_quoted, program))}\nPath={_escaped(str(folder))}\n")
    for path, content in ((_icon(), (resources / "icons" / f"{NAME}.svg").read_text("utf-8")), (_entry(), text)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, mode=None)


def remove() -> None:
    """Delete both files.

    Raises:
        OSError: a file cannot be deleted.
    """
    for path in (_entry(), _icon()):
        path.unlink(missing_ok=True)


def _share() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def _entry() -> Path:
    return _share() / "applications" / f"{NAME}.desktop"


def _icon() -> Path:
    return _share() / "icons" / "hicolor" / "scalable" / "apps" / f"{NAME}.svg"


def _quoted(word: str) -> str:
    """Quote an argument as the desktop entry specification asks."""
    inside = "".join(f"\\{one}" if one in '"`$\\' else one for one in word).replace("%", "%%")
    return _escaped(f'"{inside}"')


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
