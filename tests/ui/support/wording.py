"""Finds the window's texts in its source. `python -m tests.ui.support.wording [LANGUAGE]` lists the untranslated ones.

A text is the argument of `tr("...")`, `self.tr("...")` or `QCoreApplication.translate(context, "...")`. Texts that
bypass translation are found by the calls that display them: labels, buttons, tooltips, messages.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT
from ui.core.translations import LANGUAGES, table

UI = ROOT / "ui"

_SHOWN = {
    "label": 0, "button": 0, "Switch": 0, "IconButton": 1, "EmptyState": 1, "Notice": 0, "Section": 0, "Radio": 0,
    "setText": 0, "setToolTip": 0, "setAccessibleName": 0, "setAccessibleDescription": 0, "setPlaceholderText": 0,
    "setWindowTitle": 0, "setTitle": 0, "addAction": 0, "show_icon": 1, "report": 0, "notify": 0, "Message": 0,
    "add_field": 0, "setStatusTip": 0,
}  # fmt: skip
"""Calls that show a text to the user, and which argument it is."""

_SAME = {"Undertone", "dB"}
"""Written alike in every language."""


def texts(source: str) -> Iterator[str]:
    """Yield the keys of all translated texts of a file."""
    for call in _calls(source):
        name, arguments = _name(call), call.args
        if name == "translate":
            arguments = arguments[1:]
        elif name != "tr":
            continue
        plain = [one.value for one in arguments[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        if plain and isinstance(arguments[0], ast.Constant):
            yield "|".join(plain)


def bare(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of what is displayed without translation."""
    for call in _calls(source):
        at = _SHOWN.get(_name(call))
        if at is None or len(call.args) <= at:
            continue
        shown = call.args[at]
        values = shown.values if isinstance(shown, ast.JoinedStr) else [shown]
        for value in values:
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and _has_words(value.value):
                yield call.lineno, value.value


def missing(language: str) -> dict[str, list[str]]:
    """Return the texts of each file of ui/ that the language's table lacks."""
    known = table(language)
    found = {
        str(file.relative_to(ROOT)): [one for one in texts(file.read_text("utf-8")) if one not in known]
        for file in files()
    }
    return {file: list(dict.fromkeys(left)) for file, left in found.items() if left}


def unused(language: str) -> list[str]:
    """Return the keys of a language's table that no source file holds."""
    held = {
        node.value
        for package in ("ui", "assistant", "training")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant)
    }
    return [key for key in table(language) if key.partition("|")[0] not in held]


def files() -> list[Path]:
    """Return the window's source files."""
    return sorted(UI.rglob("*.py"))


def _calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _has_words(text: str) -> bool:
    return text.strip() not in _SAME and any(one.isalpha() for one in text)


if __name__ == "__main__":
    for language in sys.argv[1:] or [one for one in LANGUAGES if one != "en"]:
        for file, left in missing(language).items():
            sys.stdout.write(f"\n# {file}\n" + "".join(f'"{one}" = ""\n' for one in left))
    for path in files():
        for line, text in bare(path.read_text("utf-8")):
            sys.stderr.write(f"{path.relative_to(ROOT)}:{line}: not translated: {text!r}\n")
