"""The vector between tokens: what a speech frame gives the language model where no new token is spoken.

An adapter at 12.5 frames a second has about four frames for each token. If three of them were an arbitrary vector,
the language model would not read the fourth. So one vector is fitted, by gradient through the frozen language
model, such that text with runs of it after every token is answered like the plain text: the mean Kullback-Leibler
divergence of the reply's tokens is least (soft prompts, Lester et al. 2021, with one vector).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

RADIUS = 1.5
"""Where frames lie: an adapter's last layer norm gives all of them one size. In units of the token embeddings' own
spread, each dimension in its own; frequent tokens lie at about 1.6, rare ones at 0.8. Plain text moved there is read
like text (divergence 0.03 nats a token with SmolLM2-135M, where none at all gives 1.5); at 1.25 it is 0.04, at 1.0 it
is 0.98: the commonest tokens then lose what they are known by."""

_REPLY_TOKENS = 8
_RUNS = (1, 6)  # blanks after a token, at least and fewer than
_BATCH = 4
_CHECKED = 32  # texts that are kept for measuring


def on_sphere(vectors: Tensor, embeddings: Tensor) -> Tensor:
    """`vectors` [..., E] moved, in their direction from the mean embedding, to where an adapter's frames can lie."""
    mean, spread = embeddings.mean(0), embeddings.std(0)
    return mean + RADIUS * spread * nn.functional.layer_norm((vectors - mean) / spread, vectors.shape[-1:])


@dataclass(frozen=True, slots=True)
class Blank:
    """The fitted vector [E] and the divergences of replies it was judged by, in nats a token."""

    vector: Tensor
    without_speech: float
    at_first: float
    fitted: float


class _Reader:
    """A chat prompt around text, tokens or vectors, and the language model's scores of a reply."""

    def __init__(self, language_model: Any, tokenizer: Any, texts: list[str]) -> None:
        self.model = language_model
        self.embeddings: Tensor = language_model.get_input_embeddings().weight.detach().float()
        self.frames = on_sphere(self.embeddings, self.embeddings)
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": "\0"}], tokenize=False, add_generation_prompt=True
        )
        self.around = [tokenizer(part, add_special_tokens=False).input_ids for part in chat.split("\0")]
        self.texts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        self.replies = [
            self._reply(ids) for ids in track(self.texts, "replies", console=Console(stderr=True), transient=True)
        ]

    def _reply(self, ids: list[int]) -> list[int]:
        prompt = torch.tensor([self.around[0] + ids + self.around[1]])
        written = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=_REPLY_TOKENS,
            min_new_tokens=_REPLY_TOKENS,
            do_sample=False,
        )
        return list(written[0, prompt.shape[1] :].tolist())

    def scores(self, which: list[int], inner: list[Tensor]) -> Tensor:
        """Log-probabilities [len(which) * reply, V] of the replies' tokens after prompts around `inner` [n, E] each."""
        first, last = (self.embeddings[ids] for ids in self.around)
        rows = [
            torch.cat([first, part, last, self.embeddings[self.replies[i]]])
            for i, part in zip(which, inner, strict=True)
        ]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        hidden = self.model.model(inputs_embeds=padded, use_cache=False).last_hidden_state
        ends = [hidden[n, len(row) - _REPLY_TOKENS - 1 : len(row) - 1] for n, row in enumerate(rows)]
        scores: Tensor = self.model.lm_head(torch.cat(ends)).float().log_softmax(-1)
        return scores

    def divergence(self, which: list[int], inner: list[Tensor]) -> Tensor:
        """Mean over the replies' tokens of the divergence from what plain text gives."""
        with torch.no_grad():
            plain = self.scores(which, [self.embeddings[self.texts[i]] for i in which])
        return (plain.exp() * (plain - self.scores(which, inner))).sum(-1).mean()

    def interleaved(self, which: list[int], blank: Tensor, random: np.random.Generator) -> list[Tensor]:
        """The texts as frames would give them: after each token, and before the first, a run of blanks."""
        inner = []
        for i in which:
            runs = random.integers(*_RUNS, len(self.texts[i]) + 1)
            parts = [blank.expand(int(runs[0]), -1)]
            for token, run in zip(self.texts[i], runs[1:], strict=True):
                parts += [self.frames[[token]], blank.expand(int(run), -1)]
            inner.append(torch.cat(parts))
        return inner


def harmless_blank(language_model: Any, tokenizer: Any, texts: list[str], *, steps: int = 120, seed: int = 0) -> Blank:
    """Fit the blank vector; `language_model` is left as it is.

    Args:
        texts: some hundred sentences; the last 32 are only measured on.
    """
    language_model.eval().requires_grad_(False)
    reader = _Reader(language_model, tokenizer, texts)
    checked, size = list(range(len(texts) - _CHECKED, len(texts))), len(texts) - _CHECKED
    groups = [checked[i : i + _BATCH] for i in range(0, _CHECKED, _BATCH)]

    @torch.no_grad()
    def measured(blank: Tensor) -> float:
        random = np.random.default_rng([seed, 1])
        return float(np.mean([reader.divergence(g, reader.interleaved(g, blank, random)).item() for g in groups]))

    with torch.no_grad():
        nothing = float(np.mean([reader.divergence(g, [reader.embeddings[:0]] * len(g)).item() for g in groups]))
    start = reader.embeddings[tokenizer(" ", add_special_tokens=False).input_ids[0]]
    free = nn.Parameter(start[None].clone())
    first = measured(on_sphere(start[None], reader.embeddings))
    optimiser = torch.optim.Adam([free], lr=0.03)
    random = np.random.default_rng([seed, 0])
    for step in track(range(steps), "blank vector", console=Console(stderr=True), transient=True):
        optimiser.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        which = random.integers(0, size, _BATCH).tolist()
        blank = on_sphere(free, reader.embeddings)
        loss = reader.divergence(which, reader.interleaved(which, blank, random))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    vector = on_sphere(free.detach(), reader.embeddings)
    return Blank(vector[0], nothing, first, measured(vector))
