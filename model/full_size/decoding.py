"""The decoding sections: first token, decoding against `generate` and the memory bound, memory, a profile."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import GenerationConfig

from model.checkpoints.loader import inspect
from model.checkpoints.memory_plan import plan
from model.config import head_size
from model.full_size.run import FRAMES, Figures, Run
from model.inference.cuda_graphs import StaticDecoder, uncaptured
from model.inference.static_step import FixedCache
from model.nn.speech_llm import SPEECH_ID

_REPEATS = 3
_CALLS = 100
_TARGET_RATIO, _TARGET_SPEED, _TARGET_SHARE, _FAST_MEMORY = 3.0, 300.0, 0.4, 1.2e12


@torch.inference_mode()
def prompt_times(run: Run) -> Figures:
    """Encoding 10 s of speech in the full window, the prompt's prefill, and the time to the first token."""
    model, size = run.loaded(), run.size
    run.forget_peak()
    mels = model.config.speech_config.num_mel_bins
    features = torch.randn(1, mels, 3000, device=run.device, dtype=run.dtype)
    lengths = torch.tensor([FRAMES], device=run.device)
    decoder = StaticDecoder(model.language_model, size.context)
    decoder.warm_up()

    def first_token() -> None:
        heard = model.hear(features, lengths)
        assert heard.frames is not None
        ids = run.prompt()
        ids[0, 10 : 10 + heard.frames.shape[1]] = SPEECH_ID
        decoder.cache.keep(0)
        output = model(ids, speech=heard.frames[0], past_key_values=decoder.cache, use_cache=True, logits_to_keep=1)
        next(decoder.tokens(output.logits[0, -1].float(), [], GenerationConfig()))

    return {
        "hear_10_seconds_ms": 1e3 * run.seconds(lambda: model.hear(features, lengths)),
        "prompt_positions": size.prompt,
        "prefill_ms": 1e3 * run.seconds(lambda: _prefill(run, decoder.cache)),
        "first_token_ms": 1e3 * run.seconds(first_token),
    }


def _prefill(run: Run, cache: FixedCache) -> Tensor:
    cache.keep(0)
    output = run.loaded().language_model(run.prompt(), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[0, -1].float()


@torch.inference_mode()
def decode(run: Run) -> Figures:
    """Tokens per second, greedy, batch size 1: transformers' `generate`, the static loop with and without graphs."""
    language_model, size = run.loaded().language_model, run.size
    eager = StaticDecoder(language_model, size.context, capture=uncaptured)
    figures: Figures = {"eager_tokens_per_second": _speed(run, eager)}
    del eager
    graphed = StaticDecoder(language_model, size.context)
    started = run.now()
    graphed.warm_up()
    figures["capture_seconds"] = run.now() - started
    figures["decode_tokens_per_second"] = speed = _speed(run, graphed)
    figures["graph_failure"] = graphed.failure or (None if run.cuda else "no CUDA: the step ran uncaptured")
    figures["generate_tokens_per_second"] = generated = _generate_speed(run)
    figures["decode_ratio_to_generate"] = speed / generated
    figures["bytes_read_per_token"] = needed = _bytes_per_token(run)
    memory = run.figures.get("memory_bandwidth_gb_per_second")
    if isinstance(memory, float):
        figures["bound_tokens_per_second"] = bound = memory * 1e9 / needed
        figures["share_of_bound"] = speed / bound
        fast = speed >= _TARGET_SPEED if memory * 1e9 >= _FAST_MEMORY else speed / bound >= _TARGET_SHARE
        figures["targets_met"] = fast and speed >= _TARGET_RATIO * generated
    return figures


def _speed(run: Run, decoder: StaticDecoder) -> float:
    def decoded() -> float:
        stream = decoder.tokens(_prefill(run, decoder.cache), [], GenerationConfig())
        next(stream)
        started = run.now()
        for _ in range(run.size.new_tokens):
            next(stream)
        taken = run.now() - started  # includes the step queued ahead, as one was queued at the start
        stream.close()
        return run.size.new_tokens / taken

    return statistics.median([decoded() for _ in range(_REPEATS + 1)][1:])


def _generate_speed(run: Run) -> float:
    ids = run.prompt()

    def generate(tokens: int) -> None:  # this config has no end token
        mask = torch.ones_like(ids)
        model = run.loaded().language_model
        model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)

    first = run.seconds(lambda: generate(1))
    return run.size.new_tokens / (run.seconds(lambda: generate(run.size.new_tokens + 1)) - first)


def _bytes_per_token(run: Run) -> int:
    """Bytes that a step must read: all weights except the embedding table and LoRA, and the filled KV cache."""
    model, text = run.loaded().language_model, run.loaded().config.text_config
    total = 0
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name or ".lora_" in name:
            continue
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.numel() + 4 * state.state2.absmax.numel()
    size = head_size(text)
    position = 2 * text.num_hidden_layers * text.num_key_value_heads * size * run.dtype.itemsize
    return int(total + position * (run.size.prompt + run.size.new_tokens // 2))


def memory(run: Run) -> Figures:
    """GPU memory in use after loading and answering, against `plan`; no other process may use the GPU."""
    about = inspect(str(run.work / "nf4"))
    planned = plan(about, device=run.device, context=run.size.context).estimates[0].total
    figures: Figures = {"planned_gb": planned / 1e9}
    if run.cuda:
        free, total = torch.cuda.mem_get_info()
        outside = total - free - torch.cuda.memory_reserved()
        figures["outside_torch_gb"] = outside / 1e9
        figures["peak_allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
        figures["peak_used_gb"] = (used := torch.cuda.max_memory_reserved() + outside) / 1e9
        figures["plan_ratio_to_used"] = planned / used
    return figures


@torch.inference_mode()
def attention(run: Run) -> Figures:
    """One query's attention over the shortest and the longest range, by every available kernel."""
    text = run.loaded().config.text_config
    size = text.hidden_size // text.num_attention_heads
    figures: Figures = {}
    for reach in (256, run.size.context):
        query, keys, values = (
            torch.randn(1, text.num_attention_heads, length, size, device=run.device, dtype=run.dtype)
            for length in (1, reach, reach)
        )
        mask = torch.zeros(1, 1, 1, reach, device=run.device, dtype=run.dtype)
        for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH):
            name = f"attention_{reach}_{backend.name.split('_')[0].lower()}_us"
            attend = partial(scaled_dot_product_attention, query, keys, values, attn_mask=mask)
            try:
                with sdpa_kernel(backend):
                    figures[name] = 1e6 / _CALLS * run.seconds(partial(_repeat, attend))
            except RuntimeError as error:
                figures[name] = f"unavailable ({str(error).splitlines()[0][:60]})"
    return figures


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(_CALLS):
        call()


@torch.inference_mode()
def profile(run: Run) -> Figures:
    """The kernels that take the most time, if a target was missed."""
    if run.figures.get("targets_met"):
        return {}
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if run.cuda else [])]
    decoder = StaticDecoder(run.loaded().language_model, run.size.context)
    stream = decoder.tokens(_prefill(run, decoder.cache), [], GenerationConfig())
    next(stream)
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(10):
            next(stream)
        run.now()
    order = "self_device_time_total" if run.cuda else "self_cpu_time_total"
    run.profile = profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=70)
    return {"profiled_tokens": 10}
