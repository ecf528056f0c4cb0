"""The command lines of `wide-corpus`, `cache` and `warm-start`: arguments and loading."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.errors import BadInput, WeightsMissing
from model.files import write_atomically


def add_speech_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Declare the three commands.

    Args:
        commands: from `add_subparsers`.

    Returns:
        The parsers.
    """
    wide = commands.add_parser("wide-corpus", help="synthesise speech of a wide vocabulary (resumable)")
    wide.add_argument("out", type=Path)
    wide.add_argument("--wordnet", type=Path, required=True, help="folder of WordNet's data.noun and the others")
    wide.add_argument("--engine", choices=("espeak", "kokoro", "flite", "human"), required=True)
    wide.add_argument("--clips", type=int, default=1000, help="number of clips in total")
    wide.add_argument("--renditions", type=int, default=1, help="clips per training sentence, with different changes")
    wide.add_argument("--texts", type=Path, help="further sentences, one per line")
    wide.add_argument("--kokoro", type=Path, default=Path("kokoro"), help="folder with *.onnx and voices/*.bin")
    wide.add_argument("--mixtures", type=int, default=100, help="number of mixed Kokoro voices")
    wide.add_argument("--seed", type=int, default=0)
    wide.add_argument("--checks", action="store_true", help="only held-out sentences by held-out voices")
    cache = commands.add_parser("cache", help="compute the frozen encoder's states of a manifest once (resumable)")
    cache.add_argument("manifest", type=Path, help="JSONL with `audio`; OUT/manifest.jsonl repeats it with `key`")
    cache.add_argument("out", type=Path)
    cache.add_argument("--window", choices=("trimmed", "full"), default="trimmed")
    for command in (wide, cache):
        command.add_argument(
            "--whisper", type=Path, required=True, help="folder of the Whisper model whose encoder is used"
        )
        command.add_argument("--half", action="store_true", help="16-bit states, computed in bfloat16")
    warm = commands.add_parser("warm-start", help="stage 0: pretrain the CTC adapter on transcripts (resumable)")
    warm.add_argument("run", type=Path, help="run folder; a file `stop` in it pauses")
    warm.add_argument("--corpus", type=Path, action="append", required=True, help="folder of wide-corpus; repeatable")
    warm.add_argument("--check", type=Path, action="append", default=[], help="folder to validate on; repeatable")
    warm.add_argument("--language-model", type=Path, required=True)
    warm.add_argument("--kernels", type=int, nargs="+", default=[5, 5])
    warm.add_argument("--inner", type=int, default=2048)
    warm.add_argument("--layers", type=int, default=0, choices=range(65), metavar="N", help="self-attention layers")
    warm.add_argument("--start", type=Path, help="another run to start from; it may have fewer layers")
    warm.add_argument("--steps", type=int, default=60_000)
    warm.add_argument("--learning-rate", type=float, default=1e-3)
    warm.add_argument("--check-every", type=int, default=1000, help="steps between validations")
    warm.add_argument("--seed", type=int, default=0)
    warm.add_argument("--half", action="store_true", help="compute in bfloat16")
    return [wide, cache, warm]


def run_speech_command(options: argparse.Namespace) -> dict[str, Any] | None:
    """Run the command if it is one of these.

    Args:
        options: parsed arguments.

    Returns:
        The summary; None for other commands.

    Raises:
        BadInput: as the command.
        WeightsMissing: as the command.
    """
    if options.command == "wide-corpus":
        return _wide_corpus(options)
    if options.command == "cache":
        return _cache(options)
    if options.command == "warm-start":
        return _warm_start(options)
    return None


def _whisper(folder: Path) -> tuple[Any, Any]:
    from transformers import WhisperFeatureExtractor, WhisperModel

    if not (folder / "config.json").is_file():
        raise WeightsMissing(f"{folder} has no Whisper model: run undertone fetch whisper-base")
    encoder = WhisperModel.from_pretrained(folder, dtype="float32").encoder.eval()  # type: ignore[no-untyped-call]
    return encoder, WhisperFeatureExtractor.from_pretrained(folder)


def _wide_corpus(options: argparse.Namespace) -> dict[str, Any]:
    from training.synthesis.wide_corpus import build_wide_corpus

    encoder, extractor = _whisper(options.whisper)
    return build_wide_corpus(
        options.out,
        encoder,
        extractor,
        wordnet=options.wordnet,
        engine=options.engine,
        count=options.clips,
        kokoro=options.kokoro,
        mixtures=options.mixtures,
        more=options.texts,
        renditions=options.renditions,
        seed=options.seed,
        half=options.half,
        checks=options.checks,
    )


def _cache(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from training.data.feature_cache import build_cache

    try:
        lines = options.manifest.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(f"{options.manifest}: cannot be read as UTF-8 text: check the path") from error
    rows, dropped = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("audio", row.get("key")), str):
                raise ValueError("no `audio`")
            rows.append(row)
        except ValueError as error:
            dropped.append({"line": number, "why": f"{options.manifest}:{number}: not a manifest row ({error})"})
    encoder, extractor = _whisper(options.whisper)
    cache, kept, refused = build_cache(
        rows,
        options.out,
        encoder,
        extractor,
        options.window,
        torch.float16 if options.half else torch.float32,
        base=options.manifest.parent,
    )
    dropped += refused
    for name, found in (("manifest", kept), ("dropped", dropped)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        write_atomically(options.out / f"{name}.jsonl", text)
    return {"records": len(cache), "rows": len(kept), "dropped": len(dropped), "recomputed": cache.damaged}


def _warm_start(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from training.ctc_pretraining.ctc_training import Recipe, on_sphere
    from training.ctc_pretraining.warm_start import CHECKPOINT, Corpora, WarmStart, train
    from training.runs.run_folder import open_run

    if not (options.language_model / "config.json").is_file():
        raise WeightsMissing(f"{options.language_model} has no language model: run undertone fetch NAME")
    recipe = Recipe(
        kernel_sizes=tuple(options.kernels),
        inner_size=options.inner,
        layers=options.layers,
        start=str(options.start or ""),
        steps=options.steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
        bfloat16=options.half,
    )
    settings = asdict(recipe) | {"kernel_sizes": options.kernels, "corpora": [str(path) for path in options.corpus]}
    settings = {name: value for name, value in settings.items() if value or name not in ("layers", "start")}
    with open_run(options.run, settings, changeable=("steps", "corpora"), kept=options.run / CHECKPOINT) as run:
        tokenizer = AutoTokenizer.from_pretrained(options.language_model)
        language_model: Any = AutoModelForCausalLM.from_pretrained(options.language_model, dtype=torch.float32)
        corpora = Corpora(options.corpus, tokenizer)
        embeddings = language_model.get_input_embeddings().weight.detach()
        del language_model
        blank = on_sphere(embeddings[tokenizer(" ", add_special_tokens=False).input_ids[0]], embeddings)
        checks = Corpora(options.check or options.corpus[:1], tokenizer)
        training = WarmStart(options.run, recipe, corpora, embeddings, blank, checks)
        return train(training, run, check_every=options.check_every)
