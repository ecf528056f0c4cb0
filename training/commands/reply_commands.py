"""The command lines of `replies`: checking the conversation corpus, and tuning a small model on it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.errors import BadInput


def add_reply_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Declare `replies` and its sub-commands.

    Args:
        commands: the `add_subparsers` object.

    Returns:
        The parsers made.
    """
    replies = commands.add_parser("replies", help="the conversation corpus, and the tuning of replies on it")
    actions = replies.add_subparsers(dest="action", required=True)
    bring = actions.add_parser("import", help="make the corpus of texts in the plain form: tone | said | reply")
    bring.add_argument("texts", nargs="+", type=Path)
    bring.add_argument("--out", type=Path, required=True)
    check = actions.add_parser("check", help="check the corpus against its rules; every fault is named")
    check.add_argument("--corpus", type=Path, help="folder of *.jsonl; the shipped corpus unless given")
    fit = actions.add_parser("fit", help="tune a preset's language model on the corpus (resumable; `stop` pauses)")
    fit.add_argument("run", type=Path, help="run folder; a file `stop` in it pauses")
    fit.add_argument("--model", default="mini", help="the preset whose language model and prompt are taken")
    fit.add_argument("--rank", type=int, default=64)
    fit.add_argument("--epochs", type=int, default=3)
    fit.add_argument("--steps", type=int, default=0, help="updates in all; all of the epochs unless given")
    fit.add_argument("--learning-rate", type=float, default=1e-3)
    fit.add_argument("--batch-tokens", type=int, default=1000)
    fit.add_argument("--copies", default="", help="records of a kind in an epoch, as 'crisis=3 facts=2'")
    fit.add_argument("--first-layer", type=int, default=0, help="layers below this one stay as they are")
    fit.add_argument("--start", type=Path, help="another run, whose additions are the first")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--threads", type=int, default=1)
    fit.add_argument("--corpus", type=Path, help="folder of *.jsonl; the shipped corpus unless given")
    return [bring, check, fit]


def run_reply_command(options: argparse.Namespace) -> dict[str, Any] | None:
    """Run the command if it is one of these.

    Args:
        options: parsed.

    Returns:
        Its summary; None if it is another command.

    Raises:
        BadInput, WeightsMissing: as the commands say.
    """
    if options.command != "replies":
        return None
    if options.action == "import":
        return _import(options.texts, options.out)
    if options.action == "check":
        return _check(options.corpus)
    return _fit(options)


def _import(texts: list[Path], out: Path) -> dict[str, Any]:
    from training.replies.records import read_plain, write_corpus

    records = read_plain(texts)
    write_corpus(out, records)
    return {"records": len(records), "exchanges": sum(len(record.turns) for record in records)}


def _check(corpus: Path | None) -> dict[str, Any]:
    from safetensors import safe_open
    from transformers import AutoTokenizer

    from model.checkpoints.loader import presets
    from model.weights.fetch import ensure
    from training.replies.check import check, summary, token_embeddings
    from training.replies.records import CORPUS, read_corpus

    records = read_corpus(corpus or CORPUS)
    folder = ensure(presets()["mini"]["text"])
    with safe_open(folder / "model.safetensors", "pt") as opened:
        table = opened.get_tensor("model.embed_tokens.weight").float().numpy()
    faults = check(records, token_embeddings(AutoTokenizer.from_pretrained(folder), table))
    sys.stderr.writelines(f"{fault.where}: {fault.rule}: {fault.text}\n" for fault in faults)
    found = summary(records, faults)
    if faults:
        raise BadInput(f"Faults: {len(faults)} in {found['exchanges']} exchanges. Rewrite what is named above.")
    return found


def _fit(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from model.checkpoints.loader import presets
    from model.checkpoints.tuned import part_sums
    from model.commands.options import quiet_libraries
    from model.weights.fetch import ensure
    from training.replies.fit import CHECKPOINT, PROMPT, Fit, Prompts, Recipe, digest, fit
    from training.replies.network import ReplyNetwork
    from training.replies.records import CORPUS, read_corpus
    from training.runs.run_folder import open_run

    quiet_libraries()
    torch.set_num_threads(options.threads)
    preset = presets().get(options.model)
    if preset is None:
        raise BadInput(f"{options.model} is no preset: {', '.join(presets())}.")
    records = read_corpus(options.corpus or CORPUS)
    recipe = Recipe(
        preset=options.model,
        rank=options.rank,
        epochs=options.epochs,
        steps=options.steps,
        copies=options.copies,
        learning_rate=options.learning_rate,
        batch_tokens=options.batch_tokens,
        first_layer=options.first_layer,
        start=str(options.start or ""),
        seed=options.seed,
    )
    settings = asdict(recipe) | {"corpus": digest(records)}
    with open_run(options.run, settings, changeable=("steps",), kept=options.run / CHECKPOINT) as run:
        folder = ensure(preset["text"])
        ensure(preset["speech"])
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        torch.manual_seed(recipe.seed)
        network = ReplyNetwork(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), recipe.rank, recipe.first_layer
        )
        state = Fit(
            run, recipe, network, Prompts(tokenizer, preset["config"] | PROMPT, tokenizer.eos_token_id), records
        )
        about = {**part_sums(preset)["text"], "rank": str(recipe.rank), "corpus": settings["corpus"]}
        about["prompt"] = json.dumps(PROMPT)
        return fit(state, about)
