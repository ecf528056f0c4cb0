"""From logits to the next token, with the checkpoint's generation settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig

_COPIED = 3  # tokens that a reply may begin with as the last one did
_COPY_PENALTY = 2.0  # off the logit of each further one; a reply that is asked for again is surer than that


def discourage_copy(logits: Tensor, generated: Sequence[int], previous: Sequence[int]) -> None:
    """Make it less likely, in place, that a reply which began as the `previous` one did goes on so."""
    at = len(generated)
    if _COPIED <= at < len(previous) and list(generated) == list(previous[:at]):
        logits[previous[at]] -= _COPY_PENALTY


def next_token(logits: Tensor, earlier: Sequence[int], settings: GenerationConfig) -> int:
    """Choose a token: greedy, or sampled with temperature, top-k and top-p if `do_sample` is set.

    Args:
        logits: float32 [vocabulary]; may be changed in place.
        earlier: tokens that the repetition penalty (arXiv 1909.05858, section 4.1) applies to.
        settings: of transformers; `None` means the neutral value.

    Returns:
        The token id.
    """
    penalty = settings.repetition_penalty or 1.0
    if penalty != 1.0:
        seen = torch.tensor(sorted({token for token in earlier if token >= 0}), dtype=torch.long, device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if not settings.do_sample:
        return int(logits.argmax())
    scores, tokens = (logits / (settings.temperature or 1.0)).sort(descending=True)
    if settings.top_k:
        scores, tokens = scores[: settings.top_k], tokens[: settings.top_k]
    probabilities = scores.softmax(-1)
    if settings.top_p is not None and settings.top_p < 1.0:
        # The token that crosses the threshold is kept, so at least one always is.
        kept = int((probabilities.cumsum(-1) - probabilities < settings.top_p).sum())
        probabilities, tokens = probabilities[:kept], tokens[:kept]
    return int(tokens[torch.multinomial(probabilities, 1)])
