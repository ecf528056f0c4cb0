"""The documents name files, modules and links that exist: a renamed module must not leave them behind."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

import pytest

import main
import training.__main__
from tests import ROOT

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "resources/*/*.md")
    for path in ROOT.glob(pattern)
)
PACKAGES = ("assistant", "model", "training", "ui", "resources", "tests")
WRITTEN_BY_THE_PROGRAM = {"run.toml", "settings.toml", "card.md"}


@pytest.fixture(scope="module")
def files() -> list[str]:
    """All files of the tree, with a slash before each path."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return [f"/{path.relative_to(ROOT).as_posix()}" for path in found]


def named_files(text: str) -> Iterator[str]:
    """Files in code spans and in the architecture's diagram; a path may start inside its package."""
    for span in re.findall(r"`([^`\n]+)`", text):
        yield from re.findall(r"^[\w./-]+\.(?:py|toml|md|yaml|sh)$", span)
    for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from re.findall(r"[\w/]+\.py\b", block)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str, files: list[str]) -> None:
    named = set(named_files((ROOT / document).read_text("utf-8"))) - WRITTEN_BY_THE_PROGRAM
    assert {name for name in named if not any(path.endswith(f"/{name}") for path in files)} == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / document).parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_that_a_document_runs_exist(document: str) -> None:
    modules = set(re.findall(r"python -m ([\w.]+\w)", (ROOT / document).read_text("utf-8")))
    assert {module for module in modules if importlib.util.find_spec(module) is None} == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_a_document_exist(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands = set(
        re.findall(r"[`/\n]undertone ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", (ROOT / document).read_text("utf-8"))
    )
    assert {first for first, _ in commands} <= {*main.COMMANDS, *main.PROGRAMS}
    assert {second for first, second in commands if first == "bench"} <= {*main.BENCHES}
    with pytest.raises(SystemExit):
        training.__main__.main(["--help"])
    listed = set(re.search(r"{([a-z,-]+)}", capsys.readouterr().out).group(1).split(","))  # type: ignore[union-attr]
    assert {second for first, second in commands if first == "train"} <= {*listed, ""}
