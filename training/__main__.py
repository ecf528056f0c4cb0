"""`python -m training COMMAND`: from recordings to a trained checkpoint, and what the model ships with."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from model.errors import BadInput, ModelError, WeightsMissing
from model.files import write_atomically
from training.commands.data_commands import add_data_commands, run_data_command
from training.commands.head_commands import add_evaluate_head, add_fit_head, run_head_command
from training.commands.import_command import add_import_command, run_import_command
from training.commands.reply_commands import add_reply_commands, run_reply_command
from training.commands.speech_commands import add_speech_commands, run_speech_command
from training.commands.train_commands import add_train_commands, run_train_command
from training.commands.tune_commands import add_tune_commands, run_tune_command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus", help="build the corpus of synthetic prosody (resumable)")
    corpus.add_argument("out", type=Path)
    corpus.add_argument("--clips", type=int, default=600, help="synthetic sentences, each in 6 renditions")
    corpus.add_argument(
        "--training-clips",
        type=int,
        default=0,
        help="training voices get as many sentences as in a corpus of this size, if that is more",
    )
    corpus.add_argument("--prompts", type=int, default=60, help="human Asterisk prompts, if installed")
    corpus.add_argument("--seed", type=int, default=0)
    corpus.add_argument("--engines", default="kokoro,espeak,flite,human")
    corpus.add_argument("--kokoro", type=Path, default=Path("kokoro"), help="folder with *.onnx and voices/*.bin")
    corpus.add_argument("--workers", type=int, default=2)
    head = commands.add_parser("fit-head", help="fit and evaluate the emotion head on a corpus")
    add_fit_head(head)
    measured = commands.add_parser("evaluate-head", help="measure a head on people's speech, and through microphones")
    add_evaluate_head(measured)
    speech = add_speech_commands(commands)
    data = add_data_commands(commands)
    training = add_train_commands(commands)
    tuning = add_tune_commands(commands)
    importing = add_import_command(commands)
    replies = add_reply_commands(commands)
    for command in (importing, *data, *speech, *training, *tuning, *replies, corpus, head, measured):
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0 done, 2 bad input, 3 something is missing (one line on stderr), 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "evaluate" and options.predictions is not None:
            return _evaluate(options.predictions, options.picture, as_json=options.json)
        if (data := run_data_command(options)) is not None:
            summary = data
        elif options.command == "import":
            summary = run_import_command(options)
        elif (speech := run_speech_command(options)) is not None:
            summary = speech
        elif (training := run_train_command(options)) is not None:
            summary = training
        elif (tuned := run_tune_command(options)) is not None:
            summary = tuned
        elif (replies := run_reply_command(options)) is not None:
            summary = replies
        elif options.command == "corpus":
            from training.synthesis.corpus import build_corpus

            summary = build_corpus(
                options.out,
                clips=options.clips,
                training_clips=options.training_clips,
                prompts=options.prompts,
                seed=options.seed,
                kokoro=options.kokoro,
                engines=frozenset(options.engines.split(",")),
                workers=options.workers,
            )
        else:
            summary = run_head_command(options)
    except ModelError as error:
        sys.stderr.write(f"{error}\n")
        return 3 if isinstance(error, WeightsMissing) else 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped: run the same command again to resume.\n")
        return 130
    if options.json:
        sys.stdout.write(json.dumps(summary) + "\n" if summary else "")  # one of several processes prints
    else:
        sys.stdout.write("".join(f"{name}: {value}\n" for name, value in summary.items()))
    return 0


def _evaluate(predictions: Path, picture: Path | None, *, as_json: bool) -> int:
    from training.metrics.predictions import as_svg, as_text, problems, score

    scores = score(predictions)
    picture = picture or predictions.with_suffix(".confusion.svg")
    try:
        write_atomically(picture, as_svg(scores))
    except OSError as error:
        raise BadInput(f"{picture} cannot be written ({error.strerror}): choose another --picture.") from error
    sys.stderr.writelines(f"{problem}\n" for problem in problems(scores))
    figures = scores.figures() | {"picture": str(picture)}
    sys.stdout.write(json.dumps(figures) + "\n" if as_json else f"{as_text(scores)}\npicture: {picture}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
