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
    """`import`: a corpus's clips to a manifest with our five emotions, from its own names and tables.

    FOLDER is what the corpus was unpacked to; OUT is the manifest, JSON lines. `import --mapping` shows every corpus,
    its licence and what its labels become.
    """

    emotion_map: Pairs = Field({}, description="what labels mean instead: calm=neutral,fear=ignore")
    labels: str = Field("", description="of CREMA-D: intended (by the actor), or heard (by most who heard the voice)")
    test: Words = Field((), description="speakers to put into the split test, by the corpus's names: 01,02")
    licence: str = Field("", description="of recordings of your own")


def add_import_command(commands: Any) -> argparse.ArgumentParser:
    """Declare the command on the `add_subparsers` object; the parser made."""
    command: argparse.ArgumentParser = commands.add_parser(
        "import",
        help="a public corpus of emotional speech, or a folder for every emotion, to a manifest",
        description=ImportOptions.__doc__,
        allow_abbrev=False,
    )
    command.add_argument("corpus", nargs="?", choices=tuple(CORPORA), metavar="CORPUS", help=", ".join(CORPORA))
    command.add_argument("folder", nargs="?", type=Path, metavar="FOLDER")
    command.add_argument("out", nargs="?", type=Path, metavar="OUT")
    command.add_argument("--mapping", action="store_true", help="only show what the labels become")
    ImportOptions.add_arguments(command)
    return command


def run_import_command(given: argparse.Namespace) -> dict[str, Any]:
    """Import a corpus, or tell of those that can be imported; the summary.

    Raises:
        BadInput: as `import_corpus`; a place is missing.
    """
    chosen = [CORPORA[given.corpus]] if given.corpus else list(CORPORA.values())
    if given.mapping:
        return {corpus.name: _about(corpus) if given.json else _about_text(corpus) for corpus in chosen}
    if given.out is None:
        raise BadInput("Name the corpus, its folder and the manifest to write; `import --mapping` shows the corpora.")
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
    """Our emotions, and behind each the labels that become it."""
    parts = []
    for ours in (*EMOTIONS, IGNORE):
        labels = [own for own, meant in mapping.items() if meant == ours]
        parts += [f"{ours if ours != IGNORE else 'left out'}: {', '.join(labels)}"] if labels else []
    return "; ".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return " ".join(value) if isinstance(value, list) else str(value)
