"""The vector between tokens, on a tiny random language model."""

import torch
from torch import nn

from tests.tiny import tiny_model, tiny_tokenizer
from training.blank import RADIUS, harmless_blank, on_sphere


def test_frames_of_a_layer_norm_reach_exactly_the_sphere():
    torch.manual_seed(0)
    embeddings = torch.randn(300, 24) * torch.rand(24) + torch.randn(24)
    moved = on_sphere(embeddings, embeddings)
    norm = nn.LayerNorm(24)
    with torch.no_grad():
        norm.weight.copy_(RADIUS * embeddings.std(0))
        norm.bias.copy_(embeddings.mean(0))
        frames = norm((moved - embeddings.mean(0)) / embeddings.std(0))
    torch.testing.assert_close(frames, moved, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(on_sphere(moved, embeddings), moved, atol=1e-4, rtol=1e-4)
    nearest = torch.cdist(moved, embeddings).argmin(1)
    assert (nearest == torch.arange(300)).float().mean() > 0.95


def test_fitting_makes_interleaved_text_read_more_like_plain_text():
    language_model, tokenizer = tiny_model(lora_rank=0).language_model, tiny_tokenizer()
    before = {name: value.clone() for name, value in language_model.state_dict().items()}
    random = torch.Generator().manual_seed(0)
    words = ["the", "inner", "outer", "thin", "stone", "a", "hour", "other"]
    texts = [" ".join(words[i] for i in torch.randint(8, (4,), generator=random)) for _ in range(48)]
    blank = harmless_blank(language_model, tokenizer, texts, steps=12)
    assert 0 < blank.fitted < 0.8 * blank.at_first
    embeddings = language_model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(on_sphere(blank.vector, embeddings), blank.vector, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in language_model.state_dict().items())
    assert torch.equal(harmless_blank(language_model, tokenizer, texts, steps=12).vector, blank.vector)
