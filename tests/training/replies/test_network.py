"""The network in training computes what the language model does, and its additions are what is merged."""

from __future__ import annotations

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.support.tiny import TEXT
from training.replies import network
from training.replies.network import ReplyNetwork, Sampled, filled

SIZES = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2,
}  # fmt: skip
PREFIX = torch.tensor([5, 6, 7, 9])
ROWS = torch.tensor([[20, 21, 22, 23, 24], [30, 31, 32, 0, 0]])


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_NARROW", torch.float32)


def language_model(kind: str) -> LlamaForCausalLM | Qwen2ForCausalLM:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**TEXT, **SIZES)).eval()
    model = Qwen2ForCausalLM(Qwen2Config(**TEXT, **SIZES, tie_word_embeddings=True)).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    return model


def log_likelihoods(model: LlamaForCausalLM | Qwen2ForCausalLM, row: int, targets: torch.Tensor) -> torch.Tensor:
    logits = model(torch.cat([PREFIX, ROWS[row]])[None]).logits[0, len(PREFIX) :]
    return -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["llama", "qwen"])
@torch.no_grad()
def test_it_is_the_language_model(kind: str) -> None:
    model = language_model(kind)
    tuned = ReplyNetwork(model, 4)
    targets = torch.tensor([40, 41, 42, 43, 44])
    hidden = tuned.hidden(PREFIX, ROWS)
    for row in (0, 1):
        torch.testing.assert_close(tuned.losses(hidden[row], targets), log_likelihoods(model, row, targets))
    torch.testing.assert_close(tuned.hidden(PREFIX, ROWS[:1])[0], hidden[0])


def test_the_additions_learn_and_merge() -> None:
    model = language_model("llama")
    model.lm_head.weight.data *= 20  # or no token could become likely
    tuned = ReplyNetwork(model, 4, first=1)
    targets = torch.tensor([40, 41, 42, 43, 44])
    optimiser = torch.optim.Adam(tuned.parameters(), 0.01)
    first = last = 0.0
    for step in range(60):
        loss = tuned.losses(tuned.hidden(PREFIX, ROWS)[0], targets).mean()
        first, last = (float(loss.detach()) if step == 0 else first), float(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert last < first / 2
    factors = tuned.factors()
    assert {key.split(".")[2] for key in factors} == {"1", "2"}
    assert all(value.dtype == torch.float16 for value in factors.values())
    with torch.no_grad():
        expected = tuned.losses(tuned.hidden(PREFIX, ROWS)[0], targets)
        for name in {key.rpartition(".")[0] for key in factors}:
            added = factors[f"{name}.lora_b"].float() @ factors[f"{name}.lora_a"].float()
            model.get_submodule(name).weight += added
        torch.testing.assert_close(log_likelihoods(model, 0, targets), expected, rtol=0.05, atol=0.05)


def test_gradients_of_the_cross_entropy_are_exact() -> None:
    tuned = ReplyNetwork(language_model("llama"), 2)
    torch.manual_seed(1)
    hidden, targets = torch.randn(70, 48, requires_grad=True), torch.randint(0, 300, (70,))
    tuned.losses(hidden, targets).sum().backward()
    got, hidden.grad = hidden.grad, None
    torch.nn.functional.cross_entropy(hidden @ tuned.output.T, targets, reduction="sum").backward()
    torch.testing.assert_close(got, hidden.grad)


@torch.no_grad()
def test_a_sample_of_the_vocabulary_stands_for_all_of_it() -> None:
    tuned = ReplyNetwork(language_model("llama"), 2)
    torch.manual_seed(1)
    hidden, known = torch.randn(40, 48), torch.arange(0, 300, 3)
    targets = known[torch.randint(0, len(known), (40,))]
    others = torch.tensor(sorted(set(range(300)) - set(known.tolist())))
    exact = tuned.losses(hidden, targets)
    torch.testing.assert_close(tuned.losses(hidden, targets, Sampled(known, others, len(others))), exact)
    drawn = others[torch.randperm(len(others))[:100]]
    torch.testing.assert_close(
        tuned.losses(hidden, targets, Sampled(known, drawn, len(others))), exact, rtol=0, atol=0.2
    )


def test_rows_are_filled_up_and_other_layouts_refused() -> None:
    assert filled([[1, 2, 3], [4]]).tolist() == [[1, 2, 3], [4, 0, 0]]
    other = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="layout"):
        ReplyNetwork(other, 2)
