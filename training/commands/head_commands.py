"""The command lines of `fit-head` and `evaluate-head`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from model.errors import BadInput


def add_fit_head(command: argparse.ArgumentParser) -> None:
    """Declare `fit-head OUT --corpus MANIFEST...`, and `fit-head CORPUS OUT` for synthetic prosody.

    Args:
        command: the parser that gets the options.
    """
    command.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="OUT; or CORPUS OUT for a corpus of synthetic prosody"
    )
    command.add_argument("--whisper", type=Path, required=True, help="folder of the Whisper model that is read")
    command.add_argument("--corpus", nargs="+", type=Path, default=[], metavar="MANIFEST", help="people's speech")
    command.add_argument(
        "--leave-one-corpus-out", action="store_true", help="measure each acted corpus by a head without it"
    )
    command.add_argument("--renditions", type=int, default=2, help="of a clip, through random microphones and voices")
    command.add_argument("--noise", type=Path, help="folder of recorded noise for them")
    command.add_argument(
        "--bursts", nargs="*", type=Path, default=[], help="manifests of laughs and sobs, as voices alone"
    )
    command.add_argument("--cache", type=Path, help="folder of mean frames; OUT/cache by default")
    command.add_argument("--unacted", type=float, help="weight of ordinary speech, in shares of a corpus' emotion")
    command.add_argument("--folds", type=int, default=10, help="of speakers left out")
    command.add_argument("--licence", default="not stated", help="of the weights")
    command.add_argument("--name", default="people", help="of the head, for its card")


def add_evaluate_head(command: argparse.ArgumentParser) -> None:
    """Declare `evaluate-head MANIFEST...`.

    Args:
        command: the parser that gets the options.
    """
    command.add_argument("manifests", nargs="*", type=Path, metavar="MANIFEST", help="clips that the head never heard")
    command.add_argument("--model", default="mini", help="a preset or checkpoint folder")
    command.add_argument("--reading", help="people, free, or a head's folder")
    command.add_argument("--baseline", type=int, default=0, metavar="N", help="use N neutral clips of each speaker")
    command.add_argument("--channels", action="store_true", help="also through ten simulated microphones and rooms")
    command.add_argument("--limit", type=int, help="clips of each manifest, evenly chosen")
    command.add_argument("--voiceless", nargs="*", type=Path, help="sounds without a voice, beside ten made ones")
    command.add_argument("--card", type=Path, help="a card to which the figures are added")
    command.add_argument("--title", default="Measured afterwards", help="of that section")
    command.add_argument("--timing", action="store_true", help="what a reading of 3 s costs beyond the encoder")


def run_head_command(given: argparse.Namespace) -> dict[str, Any]:
    """Run one of the two.

    Args:
        given: the parsed options.

    Returns:
        The command's summary.

    Raises:
        BadInput, WeightsMissing: as the commands say.
    """
    if given.command == "evaluate-head":
        from training.emotion.evaluate_head import evaluate_head

        return evaluate_head(given)
    if given.corpus:
        return _fit_people(given)
    if len(given.folders) != 2:
        raise BadInput("fit-head takes OUT and --corpus MANIFEST..., or the two folders CORPUS OUT.")
    from training.emotion.fit_head import fit_head

    return fit_head(*given.folders, whisper=given.whisper)


def _fit_people(given: argparse.Namespace) -> dict[str, Any]:
    from training.emotion.people_head import HeadOptions, fit_people_head
    from training.emotion.recipe import Recipe

    if len(given.folders) != 1:
        raise BadInput("With --corpus, fit-head takes one folder: OUT.")
    return fit_people_head(
        HeadOptions(
            out=given.folders[0],
            manifests=given.corpus,
            whisper=given.whisper,
            cache=given.cache,
            draws=tuple(range(given.renditions + 1)),
            noise=given.noise,
            bursts=given.bursts,
            leave_out=given.leave_one_corpus_out,
            folds=given.folds,
            licence=given.licence,
            name=given.name,
            recipe=Recipe() if given.unacted is None else Recipe(unacted=given.unacted),
        )
    )
