"""The static step and its loop give the tokens of transformers' `generate` and never ask the device for a value.

There is no CUDA here: the capture is a scripted fake, everything else is the code that runs under one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, GPTNeoXConfig, LlamaConfig, MistralConfig, Qwen2Config

from model.errors import BadInput
from model.inference.cuda_graphs import Chooser, StaticDecoder, reaches
from model.inference.kv_cache import Decoder, KeyValueCache, unsupported
from model.inference.sampling import next_token
from model.inference.static_step import FixedCache, StaticStep
from model.nn import nf4
from model.nn.lora import LoraScope
from model.nn.speech_llm import SpeechLanguageModel
from tests.support.tiny import tiny_model

GREEDY = GenerationConfig(do_sample=False)
CPU = torch.device("cpu")


def text_config(kind: type, **extra: object) -> object:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return kind(vocab_size=300, max_position_embeddings=4096, **sizes, **ends, **extra)


def qwen(seed: int = 0, **extra: object) -> SpeechLanguageModel:
    model = tiny_model(seed, text_config=text_config(Qwen2Config, num_key_value_heads=4, **extra))
    for name, parameter in model.language_model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 299, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def prefill(language_model, cache, ids: list[int], scope: LoraScope | None = None) -> Tensor:
    """As the engine does it: behind what the cache holds, in pieces; the last position's logits."""
    logits = None
    for start in range(0, len(ids), 256):
        part = torch.tensor([ids[start : start + 256]])
        with (scope or LoraScope()).on(torch.ones_like(part, dtype=torch.bool) if scope else None):
            output = language_model(
                inputs_embeds=language_model.get_input_embeddings()(part),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits = output.logits[0, -1].float()
    return logits


def stepped(language_model, ids: list[int], tokens: int, scope: LoraScope | None = None) -> list[int]:
    """The reference of this project: one general step after the other."""
    cache = KeyValueCache(language_model.config.num_hidden_layers)
    logits = prefill(language_model, cache, ids, scope)
    decoder, found = Decoder(language_model, scope or LoraScope()), list[int]()
    for _ in range(tokens):
        found.append(next_token(logits, [], GREEDY))
        logits = decoder.step(found[-1], cache)
    return found


def decoded(decoder: StaticDecoder, logits: Tensor, tokens: int, earlier=(), choice=GREEDY) -> list[int]:
    stream = decoder.tokens(logits, earlier, choice)
    found = list(itertools.islice(stream, tokens))
    stream.close()
    return found


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("build", [tiny_model, qwen])
def test_greedy_tokens_are_those_of_generate(
    build: Callable[[int], SpeechLanguageModel], quantized: bool, penalty: float
) -> None:
    model = build(4)
    if quantized:
        nf4.quantize_nf4(model, "nf4", torch.float32)
    language_model, ids = model.language_model, prompt(37)
    prompt_ids = torch.tensor([ids])
    expected = language_model.generate(
        prompt_ids,
        attention_mask=torch.ones_like(prompt_ids),
        max_new_tokens=24,
        do_sample=False,
        repetition_penalty=penalty,
        pad_token_id=0,
    )[0, len(ids) :].tolist()
    assert len(set(expected)) > 5, "the tiny model must say different things, or the test shows nothing"
    decoder = StaticDecoder(language_model, 128)
    logits = prefill(language_model, decoder.cache, ids)
    choice = GenerationConfig(do_sample=False, repetition_penalty=penalty)
    assert decoded(decoder, logits, 24, ids, choice) == expected
    assert decoder.cache.get_seq_length() == len(ids) + 24


@settings(max_examples=12, deadline=None)
@given(length=st.one_of(st.integers(1, 40), st.integers(244, 258), st.integers(374, 388)), seed=st.integers(0, 3))
def test_tokens_do_not_depend_on_the_range_they_fall_into(length: int, seed: int) -> None:
    language_model = tiny_model(seed).language_model
    ids = prompt(length, seed)
    decoder = StaticDecoder(language_model, 448)
    assert decoded(decoder, prefill(language_model, decoder.cache, ids), 12) == stepped(language_model, ids, 12)


@pytest.mark.parametrize("build", [tiny_model, qwen])
def test_lora_acts_on_decoded_tokens_in_the_global_scope_alone(build) -> None:
    model = build(1, lora_scope="global")
    language_model, ids = model.language_model, prompt(20)
    plain = StaticDecoder(language_model, 64)
    without = decoded(plain, prefill(language_model, plain.cache, ids), 16)
    assert without == stepped(language_model, ids, 16)
    everywhere = StaticDecoder(language_model, 64, model.lora_scope)
    found = decoded(everywhere, prefill(language_model, everywhere.cache, ids, model.lora_scope), 16)
    assert found == stepped(language_model, ids, 16, model.lora_scope)
    assert found != without


@pytest.mark.parametrize("length", [30, 90, 200])
@pytest.mark.parametrize("rules", [(True, True), (True, False), (False, True)])
def test_long_prompts_keep_their_rules(length: int, rules: tuple[bool, bool]) -> None:
    extra = {"trained_length": 40, "dynamic_ntk": rules[0], "logn": rules[1]}
    model = qwen(2, long_prompts=extra)
    assert model.long_prompts is not None
    language_model, ids = model.language_model, prompt(length)
    decoder = StaticDecoder(language_model, 256)
    for _ in range(2):  # the second time the rules were set up for another prompt in between
        model.long_prompts.begin([length])
        decoder.cache.keep(0)
        logits = prefill(language_model, decoder.cache, ids)
        assert decoded(decoder, logits, 16) == stepped(language_model, ids, 16)
        model.long_prompts.begin([5])


def test_a_kept_prefix_is_as_good_as_a_fresh_prompt() -> None:
    language_model = tiny_model(5).language_model
    decoder, held = StaticDecoder(language_model, 512), list[int]()
    buffers = [layer.both.data_ptr() for layer in decoder.cache.kept]
    for seed, (kept, new) in enumerate([(0, 300), (310, 20), (335, 5), (270, 30), (40, 300), (0, 7)]):
        ids = held[:kept] + prompt(new, seed)
        decoder.cache.keep(kept)
        reply = decoded(decoder, prefill(language_model, decoder.cache, ids[kept:]), 10)
        assert reply == stepped(language_model, ids, 10)
        held = ids + reply
        assert decoder.cache.get_seq_length() == len(held)
    assert buffers == [layer.both.data_ptr() for layer in decoder.cache.kept], "the buffers must never move"


class Counted:
    """A capture that repeats the work itself and counts: captures, and runs of each."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        number = len(self.runs)
        self.runs.append(0)

        def replay() -> None:
            self.runs[number] += 1
            work()

        return replay


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("wanted", [1, 4])
def test_at_most_the_steps_ahead_are_run_in_vain(ahead: int, wanted: int) -> None:
    language_model, ids = tiny_model(0).language_model, prompt(12)
    capture = Counted()
    decoder = StaticDecoder(language_model, 64, ahead=ahead, capture=capture)
    expected = stepped(language_model, ids, wanted + 6)
    stream = decoder.tokens(prefill(language_model, decoder.cache, ids), [], GREEDY)
    found = [next(stream) for _ in range(wanted)]
    stream.close()  # as on a stop token
    fed = sum(capture.runs) - len(capture.runs)  # one run checks each capture
    assert wanted - 1 <= fed <= wanted + ahead
    assert decoder.cache.get_seq_length() == len(ids) + min(wanted, fed)
    held = (ids + found)[: decoder.cache.get_seq_length()]
    # What ran ahead is forgotten: the sequence goes on from the last token as if nothing had happened.
    decoder.cache.keep(len(held) - 1)
    logits = prefill(language_model, decoder.cache, (ids + found)[len(held) - 1 :])
    assert found + decoded(decoder, logits, 5) == expected[: wanted + 5]


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_a_cancel_ends_the_reply_before_the_next_token(asked: int) -> None:
    language_model = tiny_model(0).language_model
    decoder = StaticDecoder(language_model, 64)
    logits = prefill(language_model, decoder.cache, prompt(10))
    answers = iter([False] * asked + [True] * 9)
    assert len(list(decoder.tokens(logits, [], GREEDY, lambda: next(answers)))) == asked
    assert decoder.cache.get_seq_length() == 10 + asked


@pytest.mark.parametrize("length", [60, 63, 64])
def test_the_last_token_is_the_one_behind_the_full_cache(length: int) -> None:
    language_model, ids = tiny_model(2).language_model, prompt(length)
    decoder = StaticDecoder(language_model, 50)  # rounded up to 64
    found = list(decoder.tokens(prefill(language_model, decoder.cache, ids), [], GREEDY))
    assert found == stepped(language_model, ids, 64 - length + 1)
    assert decoder.cache.get_seq_length() == 64


def test_a_prompt_beyond_the_capacity_is_refused() -> None:
    language_model = tiny_model().language_model
    decoder = StaticDecoder(language_model, 64)
    with pytest.raises(BadInput, match="64 positions"):
        prefill(language_model, decoder.cache, prompt(65))


def test_every_range_is_captured_once_and_ahead_of_time() -> None:
    language_model = tiny_model(1).language_model
    capture = Counted()
    decoder = StaticDecoder(language_model, 448, capture=capture)
    decoder.warm_up()
    assert decoder.failure is None
    assert len(capture.runs) == len(reaches(448)) == 3
    assert decoder.cache.get_seq_length() == 0
    ids = prompt(380)
    for _ in range(2):
        decoder.cache.keep(0)
        assert decoded(decoder, prefill(language_model, decoder.cache, ids), 8) == stepped(language_model, ids, 8)
    assert len(capture.runs) == 3
    assert reaches(64) == [64]
    assert reaches(4096) == [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]


def forgetful(work: Callable[[], None]) -> Callable[[], None]:
    """A capture whose graph does not read its inputs again."""
    work()
    return lambda: None


def failing(work: Callable[[], None]) -> Callable[[], None]:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")


@pytest.mark.parametrize(
    ("capture", "reason"), [(forgetful, "RuntimeError: a captured step was off"), (failing, "RuntimeError: CUDA error")]
)
def test_without_a_good_capture_the_steps_run_as_they_are(
    capture, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    language_model, ids = tiny_model(1).language_model, prompt(250)
    decoder = StaticDecoder(language_model, 300, capture=capture)
    assert decoded(decoder, prefill(language_model, decoder.cache, ids), 12) == stepped(language_model, ids, 12)
    assert decoder.failure is not None
    assert decoder.failure.startswith(reason)
    assert "\n" not in decoder.failure
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once, not for every range
    assert decoder.failure in caplog.text


class NoQuestions(TorchDispatchMode):
    """Forbids every operation whose result the host would have to wait for."""

    asking = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.asking, f"{func} asks the device for a value"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    "choice",
    [
        GREEDY,
        GenerationConfig(do_sample=True, temperature=0.7, top_p=0.8, top_k=0, repetition_penalty=1.1),
        GenerationConfig(do_sample=True, top_k=5),
    ],
)
def test_the_loop_never_asks_the_device(choice: GenerationConfig, quantized: bool) -> None:
    model = qwen(1)
    if quantized:
        nf4.quantize_nf4(model, "nf4", torch.float32)
    decoder = StaticDecoder(model.language_model, 300)
    logits = prefill(model.language_model, decoder.cache, prompt(250)).clone()
    stream = decoder.tokens(logits, [1, 2], choice)
    next(stream)
    with NoQuestions():
        assert len(list(itertools.islice(stream, 10))) == 10
        with pytest.raises(AssertionError, match="asks the device"):
            next_token(logits, [1, 2], choice)


@pytest.mark.parametrize("quantized", [False, True])
def test_the_step_is_one_graph(quantized: bool) -> None:
    model = qwen(1)
    if quantized:
        nf4.quantize_nf4(model, "nf4", torch.float32)
    step = StaticStep(model.language_model, FixedCache(model.language_model, 64), None)
    whole = torch.compile(step.run, fullgraph=True, backend="eager", dynamic=False)
    with torch.inference_mode():
        step.begin()
        for position, token in ((0, 5), (1, 250), (2, 5)):
            step.position.fill_(position)
            step.token.fill_(token)
            step.run(64)
            expected = step.logits.clone()
            step.logits.zero_()
            whole(64)
            assert torch.equal(step.logits, expected)


@pytest.mark.parametrize("scope", ["audio", "global"])
def test_everything_is_on_the_models_device(scope: str) -> None:
    # The meta device stands for a GPU: mixing it with CPU tensors fails, and so does reading a value.
    model = qwen(0, long_prompts={"trained_length": 40, "dynamic_ntk": True, "logn": True})
    language_model = model.to(torch.bfloat16).language_model.to("meta")
    with torch.inference_mode():
        cache = FixedCache(language_model, 64)
        step = StaticStep(language_model, cache, model.lora_scope if scope == "global" else None)
        step.begin()
        step.run(64)
    tensors = [value for value in vars(step).values() if isinstance(value, Tensor)]
    tensors += [layer.both for layer in cache.kept]
    assert len(tensors) >= 10
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.bfloat16, torch.float32}


# ---- choosing


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    earlier=st.lists(st.integers(-5, 49), max_size=12).map(lambda ids: [*ids, 3]),
    penalty=st.sampled_from([None, 1.0, 0.8, 1.7]),
)
def test_greedy_choices_are_those_of_next_token(seed: int, earlier: list[int], penalty: float | None) -> None:
    choice = GenerationConfig(do_sample=False, repetition_penalty=penalty)
    chooser, generated = Chooser(50, CPU), list[int]()
    chooser.begin(list(range(0, 50, 2)), choice)  # another reply, which must leave no trace
    chooser.begin(earlier, choice)
    for step in range(6):
        logits = torch.randn(50, generator=torch.Generator().manual_seed(seed + step)) * 2
        generated.append(next_token(logits.clone(), earlier + generated, choice))
        before = logits.clone()
        assert int(chooser.choose(logits)) == generated[-1]
        assert torch.equal(logits, before)


SAMPLED = [
    {"temperature": 0.6},
    {"top_k": 4},
    {"top_p": 0.7, "top_k": 0},
    {"repetition_penalty": 1.9, "top_k": 0},
    {"temperature": 1.5, "top_k": 8, "top_p": 0.85, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("choice", SAMPLED, ids=[" ".join(f"{k}={v}" for k, v in case.items()) for case in SAMPLED])
def test_draws_are_distributed_like_those_of_next_token(choice: dict[str, float]) -> None:
    torch.manual_seed(11)
    logits, earlier, draws = torch.randn(12) * 1.5, [0, 3, 7], 3000
    settled = GenerationConfig(do_sample=True, **choice)
    chooser = Chooser(12, CPU)
    chooser.begin(earlier, settled)
    counts = torch.zeros(2, 12)
    for _ in range(draws):
        counts[0, next_token(logits.clone(), earlier, settled)] += 1
        token = chooser.choose(logits)
        chooser._seen[token] = token in earlier  # each draw stands for itself
        counts[1, token] += 1
    possible = counts.sum(0) > 0
    assert int(possible.sum()) > 1
    expected = counts[:, possible].mean(0)
    chi_square = float(((counts[:, possible] - expected) ** 2 / expected).sum())
    # The 0.999 quantiles of chi-square with 1 to 11 degrees of freedom.
    limits = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59, 31.26]
    assert chi_square < limits[int(possible.sum()) - 2]


def test_draws_follow_the_global_seed() -> None:
    language_model, ids = tiny_model(0).language_model, prompt(9)
    decoder = StaticDecoder(language_model, 64)
    choice = GenerationConfig(do_sample=True, temperature=2.0)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        decoder.cache.keep(0)
        found.append(decoded(decoder, prefill(language_model, decoder.cache, ids), 12, ids, choice))
    assert found[0] == found[1] != found[2]


# ---- what the step takes


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (text_config(LlamaConfig), None),
        (text_config(Qwen2Config, num_key_value_heads=2), None),
        (text_config(MistralConfig, sliding_window=None, num_key_value_heads=2), None),
        (text_config(GPTNeoXConfig), "a different layout"),
        (text_config(LlamaConfig, hidden_act="gelu"), "gelu"),
        (text_config(MistralConfig, sliding_window=16, num_key_value_heads=2), "slides"),
        (
            text_config(LlamaConfig, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            "dynamic",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_models_that_need_another_decoder_are_named(config, reason: str | None) -> None:
    targets = [] if config.model_type == "gpt_neox" else ["q_proj"]
    language_model = tiny_model(text_config=config, lora_targets=targets).language_model
    found = unsupported(language_model)
    if reason is not None:
        assert found is not None
        assert reason in found
        with pytest.raises(ValueError, match=reason):
            StaticDecoder(language_model, 64)
        return
    assert found is None
    decoder, ids = StaticDecoder(language_model, 64), prompt(10)
    assert decoded(decoder, prefill(language_model, decoder.cache, ids), 8) == stepped(language_model, ids, 8)
