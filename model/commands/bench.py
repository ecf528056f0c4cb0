"""`python -m model.bench [--model mini] [--json]`: benchmark a checkpoint on this machine.

Every ratio compares two measurements of this run, with the same threads. Absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assistant.events import SAMPLE_RATE, Exchange, Samples, Spoken
from model.audio.features import encode, log_mel
from model.audio.files import read_audio
from model.checkpoints import loader
from model.checkpoints.loader import RESOURCES, Checkpoint
from model.checkpoints.memory import peak_bytes
from model.checkpoints.memory_plan import usable_device
from model.commands.options import quiet_libraries
from model.errors import ModelError
from model.inference.engine import Engine
from model.inference.prompt import chat_ids, encode_text
from model.nn.int8 import quantize_int8

TOKENS = 64
REPEATS = 5
TURNS = 8

TEXT = """\
On Monday the ferry was late because of the fog, so we sat in the harbour cafe and talked about the garden. \
My aunt wants to plant beans along the wall, where the sun stays until the evening. I said that the soil there \
is too dry, but she has already bought a barrel for the rain. When the boat finally came, the captain waved and \
promised us hot tea. We reached the island at noon, walked past the old school, and found the door of the house \
open. Nobody was in. On the table lay a letter, three apples and a key that fitted no lock we knew."""
"""Written for this benchmark: a fixed text whose likelihood shows the cost of 8 bits."""


def milliseconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median duration of `work` after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[1:])


def encoder_figures(loaded: Checkpoint, samples: Samples) -> dict[str, float]:
    """The encoder over a 6 s clip: the full 30 s window against the utterance plus 2 s."""

    def run(trimmed: bool) -> None:
        features = log_mel(loaded.extractor, samples, trimmed=trimmed)
        with torch.inference_mode():
            encode(loaded.model.encoder, features.to(loaded.model.device))

    padded, trimmed = milliseconds(lambda: run(False)), milliseconds(lambda: run(True))
    return {
        "encoder_padded_ms": padded,
        "encoder_trimmed_ms": trimmed,
        "encoder_ratio_padded_to_trimmed": padded / trimmed,
    }


def generate_speed(model: Any, prompt: list[int]) -> float:
    """Tokens per second of transformers' `generate`, greedy, after the prompt's prefill."""
    ids = torch.tensor([prompt], device=model.device)
    mask = torch.ones_like(ids)
    settings = {"do_sample": False, "repetition_penalty": 1.0, "pad_token_id": 0}

    def run(tokens: int) -> None:
        model.generate(ids, attention_mask=mask, min_new_tokens=tokens, max_new_tokens=tokens, **settings)

    run(2)
    speeds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run(1)
        first = time.perf_counter()
        run(TOKENS + 1)
        speeds.append(TOKENS / ((time.perf_counter() - first) - (first - started)))
    return statistics.median(speeds)


def loop_speed(loaded: Checkpoint, prompt: list[int]) -> float:
    """Tokens per second of the engine's decode loop, greedy, after the prompt's prefill."""
    engine = Engine(loaded)
    speeds = []
    for _ in range(REPEATS + 1):
        engine.forget()
        tokens = engine.decode(prompt)
        next(tokens)
        started = time.perf_counter()
        for _ in range(TOKENS):
            next(tokens)
        speeds.append(TOKENS / (time.perf_counter() - started))
        tokens.close()
    return statistics.median(speeds[1:])


def bandwidth() -> float:
    """Memory bandwidth in bytes per second: a sum over a block larger than any cache."""
    block = torch.ones(1 << 27)
    return block.numel() * 4 / (milliseconds(block.sum) / 1e3)


def likelihood(loaded: Checkpoint) -> float:
    """Mean negative log-likelihood per token of the fixed text, in nats."""
    ids = torch.tensor([encode_text(loaded.tokenizer, TEXT)], device=loaded.model.device)
    with torch.inference_mode():
        logits = loaded.model.language_model(ids).logits.float()
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))


def decode_figures(loaded: Checkpoint) -> dict[str, float]:
    """Decode speed of `generate` and of the engine's loop, the memory bound, and the cost of int8.

    In fp32 on a CPU the language model is also measured in int8, and stays in int8. In 4 bits and on a GPU only the
    loaded form is measured.
    """
    model = loaded.model.language_model
    loaded.generation.do_sample, loaded.generation.repetition_penalty = False, 1.0
    prompt = chat_ids(loaded.tokenizer, loaded.model.config.system_prompt, [], "Tell me about the sea.")
    generate, ours, nats = generate_speed(model, prompt), loop_speed(loaded, prompt), likelihood(loaded)
    if loaded.quantize != "none" or loaded.device != "cpu":
        return {
            "generate_tokens_per_second": generate,
            "decode_tokens_per_second": ours,
            "decode_ratio_to_generate": ours / generate,
            "nats_per_token": nats,
        }
    unread = (".lora_",) if model.config.tie_word_embeddings else (".lora_", "embed_tokens")
    read = [p for name, p in model.named_parameters() if not any(part in name for part in unread)]
    weights = sum(parameter.numel() for parameter in read)
    speed = bandwidth()
    quantize_int8(model)
    int8, int8_nats = loop_speed(loaded, prompt), likelihood(loaded)
    return {
        "generate_tokens_per_second": generate,
        "fp32_tokens_per_second": ours,
        "fp32_bound_tokens_per_second": speed / (4 * weights),
        "fp32_ratio_to_generate": ours / generate,
        "fp32_nats_per_token": nats,
        "decode_tokens_per_second": int8,
        "decode_ratio_to_generate": int8 / generate,
        "int8_bound_tokens_per_second": speed / weights,
        "int8_nats_per_token": int8_nats,
        "int8_cost_percent": 100 * (int8_nats / nats - 1),
        "memory_bandwidth_gb_per_second": speed / 1e9,
    }


def first_token_figures(loaded: Checkpoint, samples: Samples) -> dict[str, float]:
    """Time from a 3 s clip to the first token, at the first and at the eighth turn of a conversation.

    Every turn has the same words at a slightly different level, so that only the length of the history changes and no
    turn hits the cache of its own clip.
    """
    engine = Engine(loaded)
    clip = samples[: 3 * SAMPLE_RATE]
    first, last = [], []
    for run in range(REPEATS + 1):
        history: list[Exchange] = []
        engine.forget()
        for turn in range(TURNS):
            message = Spoken(clip * np.float32(1 - 0.001 * (turn + TURNS * run)))
            started = time.perf_counter()
            stream = engine.reply(history, message)
            reply = next(stream, "")
            elapsed = (time.perf_counter() - started) * 1e3
            reply += "".join(stream)
            history.append(Exchange(message, reply))
            engine.prepare(history)
            if turn == 0:
                first.append(elapsed)
        last.append(elapsed)
    turn_1, turn_8 = statistics.median(first[1:]), statistics.median(last[1:])
    return {
        "first_token_turn_1_ms": turn_1,
        "first_token_turn_8_ms": turn_8,
        "first_token_ratio_turn_8_to_1": turn_8 / turn_1,
    }


def shipped_figures(source: str, device: str, samples: Samples) -> dict[str, float]:
    """Load time and peak memory of the checkpoint as shipped, after one spoken turn; runs in a fresh process."""
    started = time.perf_counter()
    loaded = loader.load(source, device=device)
    load_seconds = time.perf_counter() - started
    list(Engine(loaded).reply([], Spoken(samples)))
    return {"load_seconds": load_seconds, "peak_memory_mib": peak_bytes() / (1 << 20)}


def bench(source: str, device: str, recording: Path, threads: int | None) -> dict[str, float | str]:
    """All figures of one checkpoint on one device."""
    samples = read_audio(recording)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=quiet_libraries) as apart:
        shipped = apart.submit(shipped_figures, source, device, samples).result()
    wide = usable_device(device) == "cpu" and loader.inspect(source).stored is None
    loaded = loader.load(source, device=device, quantize="none" if wide else "auto", threads=threads)
    six_seconds = np.resize(samples, 6 * SAMPLE_RATE)
    figures: dict[str, float | str] = {
        "model": source,
        "device": loaded.device,
        "quantize": loaded.quantize,
        "threads": float(torch.get_num_threads()),
    }
    figures |= encoder_figures(loaded, six_seconds)
    figures |= decode_figures(loaded)
    figures |= first_token_figures(loaded, samples)
    return figures | shipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; print a table, or with --json one flat object.

    Args:
        arguments: the command line; by default sys.argv.

    Returns:
        The exit code: 0 done, 3 something is missing or damaged.
    """
    parser = argparse.ArgumentParser(prog="python -m model.bench", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--recording", type=Path, default=RESOURCES / "samples" / "novel-1.flac")
    parser.add_argument("--threads", type=int, help="compute threads; all cores but one by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        figures = bench(options.model, options.device, options.recording, options.threads)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 3
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:34} {value if isinstance(value, str) else f'{value:12.2f}'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
