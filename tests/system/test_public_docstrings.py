"""What one package of model or training offers to another is documented: Args, and Returns or Yields."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

DOCUMENTED = ("model", "training")


def modules() -> dict[str, Path]:
    """Every module of the program by its dotted name."""
    files = [
        ROOT / "main.py",
        *(path for top in ("assistant", "ui", *DOCUMENTED) for path in (ROOT / top).rglob("*.py")),
    ]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files)
    return dict(zip(names, files, strict=True))


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def used_elsewhere(files: dict[str, Path]) -> set[tuple[str, str]]:
    """(module, name) of what modules import from other packages, also as an attribute of an imported module."""
    used = set()
    for module, path in files.items():
        tree, imported = ast.parse(path.read_text("utf-8")), dict[str, str]()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in node.names:
                    full = f"{node.module}.{name.name}"
                    if full in files:
                        imported[name.asname or name.name] = full
                    else:
                        used.add((node.module, name.name, module))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
                used.add((imported[node.value.id], node.attr, module))
    return {(source, name) for source, name, user in used if package_of(source) != package_of(user)}


def functions(node: ast.stmt) -> Iterator[ast.FunctionDef]:
    """The function, or the public methods of the class."""
    for one in node.body if isinstance(node, ast.ClassDef) else [node]:
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
            yield one


def missing(function: ast.FunctionDef) -> list[str]:
    """The sections that its docstring lacks."""
    text = ast.get_docstring(function) or ""
    given = function.args
    arguments = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)} - {"self", "cls"}
    is_property = any(isinstance(one, ast.Name) and "property" in one.id for one in function.decorator_list)
    returns = not is_property and not (isinstance(function.returns, ast.Constant) and function.returns.value is None)
    lacks = ["Args"] if arguments and "Args:" not in text else []
    return lacks + (["Returns"] if returns and "Returns:" not in text and "Yields:" not in text else [])


@pytest.mark.parametrize("top", DOCUMENTED)
def test_what_other_packages_use_says_what_it_takes_and_gives(top: str) -> None:
    files = modules()
    lacking = []
    for module, name in sorted(used_elsewhere(files)):
        if module.split(".")[0] != top or module not in files:
            continue
        body = ast.parse(files[module].read_text("utf-8")).body
        found = [one for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name == name]
        for function in (one for node in found for one in functions(node)):
            lacking += [f"{module}: {function.name} lacks {section}" for section in missing(function)]
    assert lacking == []
