"""The tree keeps its shape: small folders that say what belongs in them, and a test beside every module it tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("assistant", "model", "training", "ui")
MOST_MODULES = 16
# What is tested here is no single module.
WHOLE = ("tests/system", "tests/resources", "tests/test_layout.py", "tests/ui/test_tour.py")


def folders(*tops: str) -> Iterator[Path]:
    """Every folder below that holds modules."""
    for top in tops:
        for folder in (ROOT / top, *sorted((ROOT / top).rglob("*"))):
            if folder.is_dir() and any(folder.glob("*.py")):
                yield folder


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules_of(test: str) -> list[str]:
    """The modules that a test module may belong to: its name, or what it begins with up to an underscore."""
    folder, name = Path(test).relative_to("tests").parent, Path(test).stem.removeprefix("test_")
    words = name.split("_")
    return [(folder / f"{'_'.join(words[:count])}.py").as_posix() for count in range(len(words), 0, -1)]


@pytest.mark.parametrize("folder", [named(one) for one in folders(*PACKAGES, "tests")])
def test_a_folder_holds_at_most_sixteen_modules(folder: str) -> None:
    modules = [one.name for one in (ROOT / folder).glob("*.py") if one.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES, f"{folder} holds {len(modules)} modules: divide it"


@pytest.mark.parametrize("folder", [named(one) for one in folders(*PACKAGES)])
def test_a_package_says_what_belongs_in_it(folder: str) -> None:
    module = ROOT / folder / "__init__.py"
    assert module.is_file(), f"{folder} has no __init__.py"
    assert ast.get_docstring(ast.parse(module.read_text("utf-8"))), f"{folder}/__init__.py has no docstring"


@pytest.mark.parametrize(
    "test", [named(one) for one in sorted((ROOT / "tests").rglob("test_*.py")) if not named(one).startswith(WHOLE)]
)
def test_tests_mirror_the_tree(test: str) -> None:
    modules = modules_of(test)
    assert any((ROOT / one).is_file() for one in modules), f"{test} tests none of {', '.join(modules)}"


def test_the_name_of_a_module_ends_at_an_underscore() -> None:
    assert modules_of("tests/ui/talk/test_page_keys_more.py") == [
        "ui/talk/page_keys_more.py",
        "ui/talk/page_keys.py",
        "ui/talk/page.py",
    ]
