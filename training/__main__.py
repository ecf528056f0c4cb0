"""`python -m training corpus | fit-head | evaluate`: what the model ships with is made, and scored."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from model.errors import BadInput, ModelError, WeightsMissing


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus", help="build the corpus of synthetic prosody (resumable)")
    corpus.add_argument("out", type=Path)
    corpus.add_argument("--clips", type=int, default=600, help="synthetic sentences, each in 6 renditions")
    corpus.add_argument("--prompts", type=int, default=60, help="human Asterisk prompts, if installed")
    corpus.add_argument("--seed", type=int, default=0)
    corpus.add_argument("--engines", default="kokoro,espeak,flite,human")
    corpus.add_argument("--kokoro", type=Path, default=Path("kokoro"), help="folder with *.onnx and voices/*.bin")
    corpus.add_argument("--workers", type=int, default=2)
    head = commands.add_parser("fit-head", help="fit and evaluate the emotion head on a corpus")
    head.add_argument("corpus", type=Path)
    head.add_argument("out", type=Path)
    head.add_argument("--whisper", type=Path, required=True, help="folder of the Whisper model whose frames are read")
    evaluate = commands.add_parser("evaluate", help="score the emotions that replies name")
    evaluate.add_argument("--predictions", type=Path, required=True, help="the output of `generate`, with references")
    evaluate.add_argument("--picture", type=Path, metavar="OUT.svg", help="the confusion matrix (beside them)")
    for command in (corpus, head, evaluate):
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 done, 2 bad input, 3 something is missing (one line on stderr)."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "evaluate":
            return _evaluate(options.predictions, options.picture, as_json=options.json)
        if options.command == "corpus":
            from .corpus import build_corpus

            summary = build_corpus(
                options.out,
                clips=options.clips,
                prompts=options.prompts,
                seed=options.seed,
                kokoro=options.kokoro,
                engines=frozenset(options.engines.split(",")),
                workers=options.workers,
            )
        else:
            from .fit_head import fit_head

            summary = fit_head(options.corpus, options.out, whisper=options.whisper)
    except ModelError as error:
        sys.stderr.write(f"{error}\n")
        return 3 if isinstance(error, WeightsMissing) else 2
    if options.json:
        sys.stdout.write(json.dumps(summary) + "\n")
    else:
        sys.stdout.write("".join(f"{name}: {value}\n" for name, value in summary.items()))
    return 0


def _evaluate(predictions: Path, picture: Path | None, *, as_json: bool) -> int:
    from .predictions import as_svg, as_text, problems, score

    scores = score(predictions)
    picture = picture or predictions.with_suffix(".confusion.svg")
    try:
        picture.write_text(as_svg(scores), "utf-8")
    except OSError as error:
        raise BadInput(f"{picture} cannot be written ({error.strerror}): name another place with --picture.") from error
    sys.stderr.writelines(f"{problem}\n" for problem in problems(scores))
    figures = scores.figures() | {"picture": str(picture)}
    sys.stdout.write(json.dumps(figures) + "\n" if as_json else f"{as_text(scores)}\npicture: {picture}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
