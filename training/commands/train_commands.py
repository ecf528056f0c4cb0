"""Command lines of `train`, `plan`, `evaluate`, `reply-fit`, `bench` and `demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from model.commands.options import quiet_libraries
from model.errors import BadInput
from training.runs.config import TrainOptions


def add_train_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Declare the commands.

    Args:
        commands: from `add_subparsers`.

    Returns:
        The parsers.
    """
    train = commands.add_parser(
        "train",
        help="train one stage of the recipe (resumable; a file `stop` in the run folder pauses; accelerate launch)",
        description=TrainOptions.__doc__,
        allow_abbrev=False,
    )
    plan = commands.add_parser(
        "plan", help="estimate memory and time of `train` with the same options", allow_abbrev=False
    )
    for command in (train, plan):
        TrainOptions.add_arguments(command)
    evaluate = commands.add_parser("evaluate", help="evaluate a checkpoint, or the output of `generate`")
    evaluate.add_argument("checkpoint", nargs="?", help="folder or preset")
    evaluate.add_argument("--data", type=Path, help="data set of `prepare` (its validation rows), or a manifest")
    evaluate.add_argument("--split", choices=("train", "validation"), default="validation")
    evaluate.add_argument(
        "--before", metavar="CHECKPOINT", help="another checkpoint on the same rows, for a table of both"
    )
    evaluate.add_argument(
        "--compare", action="store_true", help="compare replies to speech with replies to the transcript"
    )
    evaluate.add_argument(
        "--transcripts-of", metavar="CHECKPOINT", help="for --compare: checkpoint of the transcript path (the same)"
    )
    evaluate.add_argument("--limit", type=int, default=100, help="maximum number of rows, evenly chosen")
    evaluate.add_argument("--replies", type=int, default=20, help="number of rows to repeat and answer")
    evaluate.add_argument("--predictions", type=Path, help="instead: score emotions in the output of generate")
    evaluate.add_argument("--features", type=Path, action="append", default=[], help="feature cache; repeatable")
    evaluate.add_argument("--picture", type=Path, metavar="OUT.svg", help="bars and confusion matrices")
    reply_emotion_fit = commands.add_parser(
        "reply-fit", aliases=["fitting"], help="measure whether replies fit the emotion"
    )
    reply_emotion_fit.add_argument("checkpoint", help="folder or preset")
    reply_emotion_fit.add_argument("corpus", type=Path, help="folder of `corpus`")
    reply_emotion_fit.add_argument("--split", choices=("test", "engine", "human"), default="test")
    reply_emotion_fit.add_argument(
        "--sentences", type=int, default=50, help="number of sentences, each in five emotions"
    )
    bench = commands.add_parser(
        "bench", help="benchmark training steps with and without cached features and length grouping"
    )
    bench.add_argument("checkpoint", help="folder to train from")
    bench.add_argument("--data", type=Path, required=True, help="data set of `prepare`")
    bench.add_argument("--stage", type=int, choices=(1, 2), default=1)
    bench.add_argument("--steps", type=int, default=4, help="measured steps per variant")
    bench.add_argument("--batch-size", type=int, default=32, help="rows per step")
    bench.add_argument("--rows-at-once", type=int, default=8)
    demo = commands.add_parser("demo", help="the whole pipeline on a small corpus: init to evaluate (resumable)")
    demo.add_argument("out", type=Path, help="folder of everything")
    demo.add_argument("--sentences", type=int, default=24)
    demo.add_argument("--steps", type=int, default=6, help="of each stage")
    return [train, plan, evaluate, reply_emotion_fit, bench, demo]


def run_train_command(given: argparse.Namespace) -> dict[str, Any] | None:
    """Run the command if it is one of these.

    Args:
        given: parsed arguments.

    Returns:
        The summary; None for other commands.

    Raises:
        BadInput: as the command.
        WeightsMissing: as the command.
    """
    if given.command not in ("train", "plan", "evaluate", "reply-fit", "fitting", "bench", "demo"):
        return None
    quiet_libraries()
    if given.command == "train":
        from training.stages.train import train

        return train(TrainOptions.of(vars(given)))
    if given.command == "plan":
        from training.stages.cost_estimate import plan

        return plan(TrainOptions.of(vars(given)))
    if given.command in ("reply-fit", "fitting"):
        from training.evaluation.evaluate import Subject
        from training.evaluation.reply_emotion_fit import read_scenes, reply_emotion_fit

        scenes = read_scenes(given.corpus, given.split, given.sentences)
        subject = Subject.load(given.checkpoint)
        return reply_emotion_fit(subject.engine, subject.writer, scenes)
    if given.command == "bench":
        from training.commands.bench import bench

        return bench(
            given.checkpoint,
            given.data,
            stage=given.stage,
            steps=given.steps,
            size=given.batch_size,
            at_once=given.rows_at_once,
        )
    if given.command == "demo":
        from training.commands.demo import demo

        return demo(given.out, sentences=given.sentences, steps=given.steps)
    return _evaluate(given)


def _evaluate(given: argparse.Namespace) -> dict[str, Any]:
    if given.checkpoint is None or given.data is None:
        raise BadInput("evaluate: give a CHECKPOINT and --data, or --predictions.")
    from training.commands.evaluate_command import evaluate_command

    return evaluate_command(given)
