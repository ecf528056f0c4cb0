"""The program in the applications menu of a Linux desktop: a desktop file and an icon in the user's own folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from assistant.files import write_atomically

NAME = "undertone"


def possible() -> bool:
    """Whether this system has such a menu."""
    return sys.platform == "linux"


def installed() -> bool:
    """Whether it is there."""
    return _entry().is_file()


def install(command: Sequence[str], folder: Path) -> None:
    """Write both files; what was there of an older version is replaced.

    Args:
        command: starts the program; the `undertone` beside the interpreter is preferred where there is one.
        folder: in which it is started.

    Raises:
        OSError: they cannot be written.
    """
    resources = files("resources")
    beside = Path(sys.executable).with_name(NAME)
    program = [str(beside)] if beside.is_file() else list(command)
    text = (resources / f"{NAME}.desktop").read_text("utf-8")
    text = text.replace(f"Exec={NAME}\n", f"Exec={' '.join(map(_quoted, program))}\nPath={_escaped(str(folder))}\n")
    for path, content in ((_icon(), (resources / "icons" / f"{NAME}.svg").read_text("utf-8")), (_entry(), text)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, mode=None)


def remove() -> None:
    """Take both away.

    Raises:
        OSError: they cannot be deleted.
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
    """A word of a command: quoted as the shell would have it, then escaped as every value is."""
    inside = "".join(f"\\{one}" if one in '"`$\\' else one for one in word).replace("%", "%%")
    return _escaped(f'"{inside}"')


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
