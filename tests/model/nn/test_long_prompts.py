"""Prompts beyond the trained length: formulae, engine, and that ordinary prompts are left alone."""

from __future__ import annotations

import math

import pytest
import torch

from assistant.events import Exchange, Typed
from model.inference.engine import Engine
from model.nn.int8 import quantize_int8
from model.nn.long_prompts import LongPrompts
from model.nn.nf4 import quantize_nf4
from tests.support.tiny import tiny_checkpoint, tiny_model

TEXT = {
    "model_type": "qwen2",
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
RULES = {"trained_length": 100, "dynamic_ntk": True, "logn": True}


def test_alpha_grows_with_every_doubling() -> None:
    rules = LongPrompts(None, 100, dynamic_ntk=True, logn=True)
    assert [rules.alpha(n) for n in (1, 99, 100, 101, 200, 201, 400, 401)] == [1, 1, 1, 3, 3, 7, 7, 15]
    assert LongPrompts(None, 100, dynamic_ntk=False, logn=True).alpha(500) == 1


def test_prompts_of_ordinary_length_are_those_of_the_plain_model() -> None:
    plain = tiny_model(text_config=TEXT)
    ruled = tiny_model(text_config=TEXT | {"long_prompts": RULES})
    assert plain.long_prompts is None
    assert ruled.long_prompts is not None
    assert plain.state_dict().keys() == ruled.state_dict().keys()
    ids = torch.randint(0, 256, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(plain(ids).logits, ruled(ids).logits)
        longer = torch.cat([ids, ids], dim=1)
        assert not torch.allclose(plain(longer).logits, ruled(longer).logits, atol=1e-3)
        assert torch.equal(plain.train()(longer).logits, ruled.train()(longer).logits)


def test_queries_beyond_the_trained_length_are_scaled() -> None:
    model = tiny_model(text_config=TEXT | {"long_prompts": RULES})
    rules = model.long_prompts
    with torch.inference_mode():
        model(torch.randint(0, 256, (1, 150)))
    scale = rules.query_scale[0, :, 0]
    assert torch.equal(scale[:100], torch.ones(100))
    assert scale[149] == pytest.approx(math.log(150) / math.log(100))


def test_a_padded_batch_equals_its_rows() -> None:
    model = tiny_model(text_config=TEXT | {"long_prompts": RULES})
    rows = [torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(n)) for n in (40, 130, 250)]
    ids = torch.zeros(3, 250, dtype=torch.long)
    mask = torch.zeros(3, 250, dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, 250 - len(row) :] = row
        mask[at, 250 - len(row) :] = 1
    with torch.inference_mode():
        together = model(ids, attention_mask=mask).logits[:, -1]
        alone = torch.stack([model(row[None]).logits[0, -1] for row in rows])
    assert torch.allclose(together, alone, atol=1e-4)


def test_a_growing_conversation_equals_one_from_scratch() -> None:
    """The alpha jumps as the prompt grows; every key is then computed anew, and replies do not depend on it."""

    def engine() -> Engine:
        checkpoint = tiny_checkpoint(text_config=TEXT | {"long_prompts": RULES}, penalty_scope="reply")
        checkpoint.generation.repetition_penalty = 1.1
        return Engine(checkpoint)

    kept, history, alphas = engine(), [], set()
    for turn in range(6):
        message = Typed(f"and this is turn number {turn} of them")
        reply = "".join(kept.reply(history, message))
        assert reply == "".join(engine().reply(history, message))
        alphas.add(kept._alpha)
        history.append(Exchange(message, reply))
    assert len(alphas) > 1
    assert kept.model.long_prompts.active


@pytest.mark.parametrize("how", ["none", "int8", "nf4"])
@pytest.mark.parametrize("rank", [0, 4])
def test_the_rules_outlive_quantisation(how: str, rank: int) -> None:
    """Quantising replaces the projections; the scale of their queries must come with the new ones."""
    model = tiny_model(text_config=TEXT | {"long_prompts": RULES | {"dynamic_ntk": False}}, lora_rank=rank)
    if how == "int8":
        quantize_int8(model.language_model)
    elif how == "nf4":
        quantize_nf4(model, "nf4", torch.float32)
    ids = torch.randint(0, 256, (1, 180), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ruled = model(ids).logits[0, -1]
        model.long_prompts.logn = False
        assert (model(ids).logits[0, -1] - ruled).abs().max() > 1e-3
