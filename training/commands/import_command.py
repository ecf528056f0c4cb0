"""The command line of `import`: a public corpus of emotional speech to a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from assistant.events import EMOTIONS
from model.errors import BadInput
from training.emotion.importers.corpus import Corpus, import_corpus
from training.emotion.importers.registry import CORPORA
from training.runs.config import IGNORE, Options, Pairs, Words


class ImportOptions(Options):
    """`import`: write a manifest of a corpus with the five emotions, from its own names and tables.

    FOLDER is the unpacked corpus; OUT is the manifest, JSON lines. `import --mapping` shows every corpus, its licence
    and the mapping of its labels.
    """

    emotion_map: Pairs = Field({}, description="map labels differently: calm=neutral,fear=ignore")
    labels: str = Field("", description="for CREMA-D: intended (by the actor), or heard (by most listeners)")
    test: Words = Field((), description="speakers to put into the split test, by the corpus's names: 01,02")
    licence: str = Field("", description="of your own recordings")


def add_import_command(commands: Any) -> argparse.ArgumentParser:
    """Declare the command.

    Args:
        commands: from `add_subparsers`.

    Returns:
        The parser.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        "import",
        help="write a manifest of a public emotional corpus, or of one folder per emotion",
        description=ImportOptions.__doc__,
        allow_abbrev=False,
    )
    command.add_argument("corpus", nargs="?", choices=tuple(CORPORA), metavar="CORPUS", help=", ".join(CORPORA))
    command.add_argument("folder", nargs="?", type=Path, metavar="FOLDER")
    command.add_argument("out", nargs="?", type=Path, metavar="OUT")
    command.add_argument("--mapping", action="store_true", help="only show the mapping of labels")
    ImportOptions.add_arguments(command)
    return command


def run_import_command(given: argparse.Namespace) -> dict[str, Any]:
    """Import a corpus, or describe the supported corpora.

    Args:
        given: parsed arguments.

    Returns:
        The summary.

    Raises:
        BadInput: as `import_corpus`; or a path is missing.
    """
    chosen = [CORPORA[given.corpus]] if given.corpus else list(CORPORA.values())
    if given.mapping:
        return {corpus.name: _about(corpus) if given.json else _about_text(corpus) for corpus in chosen}
    if given.out is None:
        raise BadInput("Give the corpus, its folder and the manifest to write; `import --mapping` shows the corpora.")
    options = ImportOptions.of(vars(given))
    summary = import_corpus(
        chosen[0],
        given.folder,
        given.out,
        emotion_map=options.emotion_map,
        labels=options.labels,
        test=options.test,
        licence=options.licence,
    )
    if given.json:
        return summary
    mapping = {"mapping": _mapping_text(summary["mapping"])}
    return {name: _text(value) for name, value in (summary | mapping).items() if value not in ({}, [], "")}


def _about(corpus: Corpus) -> dict[str, Any]:
    return {
        "title": corpus.title,
        "source": corpus.source,
        "licence": corpus.licence,
        "use": corpus.use,
        "expected": corpus.expected,
        "mapping": corpus.mapping(),
    }


def _about_text(corpus: Corpus) -> str:
    about = _about(corpus) | {"mapping": _mapping_text(corpus.mapping())}
    return "".join(f"\n  {name}: {value}" for name, value in about.items())


def _mapping_text(mapping: Mapping[str, str]) -> str:
    """The five emotions, each with the labels that are mapped to it."""
    parts = []
    for ours in (*EMOTIONS, IGNORE):
        labels = [own for own, meant in mapping.items() if meant == ours]
        parts += [f"{ours if ours != IGNORE else 'left out'}: {', '.join(labels)}"] if labels else []
    return "; ".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return " ".join(value) if isinstance(value, list) else str(value)
