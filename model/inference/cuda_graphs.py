"""The decode loop on a GPU: one CUDA graph per step, sampling on the device, asynchronous token reads.

At batch size 1 a step of a 4-bit model takes the GPU less time than the host needs to launch its kernels one by one,
and transformers neither compiles nor captures a bitsandbytes model. So `model.inference.static_step` is captured once
per range of lengths and replayed. The next token is chosen on the device and fed back there; the host reads it through
pinned memory, one step behind, and never stalls the queue.

Only the capture, the pinned memory and the events depend on CUDA: on a CPU the same loop runs over the same buffers,
which is how the tests run it.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from model.inference.kv_cache import unsupported
from model.inference.static_step import FixedCache, StaticStep
from model.nn.lora import LoraScope

_log = logging.getLogger(__name__)
_WARM_UPS = 2  # runs before a capture: libraries choose their kernels and take their workspace
_TOLERANCE = 0.02  # of the largest logit, between a replay and the step that was captured

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes work on static buffers, returns what repeats it."""


class Chooser:
    """`model.inference.sampling.next_token` without the host: all that it reads and writes stays on the device.

    A token is drawn as the largest of p / e with e ~ Exp(1), which has the probabilities p (the exponential race, a
    form of Gumbel-max): torch.multinomial would ask the host whether p is valid.
    """

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._random = torch.Generator(device)
        self._settings = GenerationConfig()

    def begin(self, earlier: Sequence[int], settings: GenerationConfig) -> None:
        """Start a reply; `earlier` and `settings` as in `next_token`. The draws follow torch's global seed."""
        self._settings = settings
        self._random.manual_seed(int(torch.randint(1 << 62, ())))
        self._seen.zero_()
        seen = sorted({token for token in earlier if token >= 0})
        if seen:
            self._seen.index_fill_(0, torch.tensor(seen, device=self._seen.device), True)

    def choose(self, logits: Tensor) -> Tensor:
        """The next token, int64 [1] on the device, from float32 logits [vocabulary]."""
        settings = self._settings
        penalty = settings.repetition_penalty or 1.0
        if penalty != 1.0:
            logits = torch.where(self._seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        token = self._draw(logits) if settings.do_sample else logits.argmax(0, keepdim=True)
        self._seen.index_fill_(0, token, True)
        return token

    def _draw(self, logits: Tensor) -> Tensor:
        settings = self._settings
        scores, tokens = (logits / (settings.temperature or 1.0)).sort(descending=True)
        if settings.top_k:
            scores, tokens = scores[: settings.top_k], tokens[: settings.top_k]
        probabilities = scores.softmax(-1)
        if settings.top_p is not None and settings.top_p < 1.0:
            # The token that crosses the threshold is kept, so at least one always is.
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill(before >= settings.top_p, 0.0)
        race = torch.empty_like(probabilities).exponential_(generator=self._random).clamp_min_(1e-20)
        # gather, not an index: indexing with a scalar tensor would ask the host for its value
        return tokens.gather(0, (probabilities / race).argmax(0, keepdim=True))


def cuda_graphs(device: torch.device) -> Capture:
    """A capture function for `device`. Its graphs share one memory pool, so they are replayed one at a time."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
        gc.disable()  # freeing a CUDA object meanwhile would break the capture
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                work()
        finally:
            if collects:
                gc.enable()
        return graph.replay

    return capture


class _Mailbox:
    """Tokens on their way to the host: pinned slots, each with an event that signals its arrival."""

    def __init__(self, slots: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._slots = torch.zeros(slots, dtype=torch.int64, pin_memory=cuda)
        self._seen = self._slots.numpy()  # the same memory: reading it asks torch nothing
        # blocking: the host sleeps while it waits; audio and UI need the core
        self._events = [torch.cuda.Event(blocking=True) for _ in range(slots)] if cuda else []
        self._device = device
        self._turn = 0

    def send(self, token: Tensor) -> Callable[[], int]:
        """Start the copy of `token` [1]; returns a function that waits for it. At most `slots` copies run at once."""
        slot = self._turn = (self._turn + 1) % len(self._seen)
        self._slots[slot : slot + 1].copy_(token, non_blocking=True)
        event = self._events[slot] if self._events else None
        if event is not None:
            event.record(torch.cuda.current_stream(self._device))

        def arrived() -> int:
            if event is not None:
                event.synchronize()
            return int(self._seen[slot])

        return arrived


def uncaptured(work: Callable[[], None]) -> Callable[[], None]:
    """No capture.

    Args:
        work: a step over static buffers.

    Returns:
        `work`.
    """
    return work


def reaches(capacity: int) -> list[int]:
    """The ranges that a step is captured for: 256, 384, 512, 768, ... slots, up to `capacity`."""
    sizes = [size << shift for shift in range(capacity.bit_length()) for size in (256, 384)]
    return [*(size for size in sizes if size < capacity), capacity]


class StaticDecoder:
    """Decodes one sequence over a cache of fixed buffers, by CUDA graphs where there is CUDA.

    Args:
        language_model: one that `unsupported` accepts, in eval mode, on its device.
        capacity: positions of the longest conversation with its reply; rounded up to a multiple of 64.
        everywhere: the LoRA scope, if LoRA is active on generated tokens too.
        ahead: steps that are queued while the host waits for a token; as many surplus steps run at the end.
        capture: makes a step repeatable; by default CUDA graphs on a CUDA device and `uncaptured` elsewhere.

    Attributes:
        cache: `past_key_values` for the prompt's pass.
        failure: why steps run uncaptured although a capture was tried, or None.

    Raises:
        ValueError: `unsupported` rejects the model.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        capacity: int,
        everywhere: LoraScope | None = None,
        *,
        ahead: int = 1,
        capture: Capture | None = None,
    ) -> None:
        if (reason := unsupported(language_model)) is not None:
            raise ValueError(f"The static step does not take this model: {reason}.")
        device = torch.device(language_model.device)
        self.cache = FixedCache(language_model, -(-capacity // 64) * 64)
        self.failure: str | None = None
        self._step = StaticStep(language_model, self.cache, everywhere)
        self._chooser = Chooser(len(self._step.logits), device)
        self._mailbox = _Mailbox(ahead + 1, device)
        self._ahead = ahead
        self._reaches = reaches(self.cache.capacity)
        self._repeatable: dict[int, Callable[[], None]] = {}
        self._capture = capture or (cuda_graphs(device) if device.type == "cuda" else uncaptured)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture every range beyond what the cache contains, so that no reply waits for it."""
        self._step.begin()
        length = self.cache.get_seq_length()
        for reach in self._reaches:
            if reach > length:
                self._run(max(length, reach - 2))

    @torch.inference_mode()
    def tokens(
        self,
        first_logits: Tensor,
        earlier: Sequence[int],
        settings: GenerationConfig,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[int]:
        """Decode after the prompt in `cache`, token by token, until closed, cancelled or out of capacity.

        The caller handles stop tokens: it closes the iterator when it has seen one. Then `cache` contains the prompt
        and every yielded token that fits; surplus steps are dropped.

        Args:
            first_logits: float32 [vocabulary], of the prompt's last position.
            earlier: tokens that the repetition penalty applies to from the start, as in `next_token`.
            settings: how tokens are chosen, as in `next_token`.
            cancelled: called before every token; True ends the iteration.

        Yields:
            Token ids.
        """
        start = self.cache.get_seq_length()
        self._step.begin()
        self._chooser.begin(earlier, settings)
        under_way = deque([self._choose(first_logits)])
        fed = read = 0  # tokens whose keys and values were computed; tokens that the host has seen
        try:
            while not cancelled():
                while len(under_way) <= self._ahead and start + fed < self.cache.capacity:
                    self._run(start + fed)
                    fed += 1
                    under_way.append(self._choose(self._step.logits))
                if not under_way:
                    return
                token = under_way.popleft()()
                read += 1
                yield token
        finally:
            self.cache.filled(start + min(fed, read))

    def _choose(self, logits: Tensor) -> Callable[[], int]:
        token = self._chooser.choose(logits)
        self._step.token.copy_(token)
        return self._mailbox.send(token)

    def _run(self, position: int) -> None:
        self._step.position.fill_(position)
        reach = next(reach for reach in self._reaches if position < reach)
        if reach not in self._repeatable:
            self._repeatable[reach] = self._captured(reach)
        self._repeatable[reach]()

    def _captured(self, reach: int) -> Callable[[], None]:
        work = partial(self._step.run, reach)
        if self.failure is not None or self._capture is uncaptured:
            return work
        try:
            replay = self._capture(work)
            self._check(work, replay, reach)
        except RuntimeError as error:  # CUDA's errors and out-of-memory are of this kind
            self.failure = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
            _log.warning("The decode step runs without CUDA graphs: %s", self.failure)
            return work
        return replay

    def _check(self, work: Callable[[], None], replay: Callable[[], None], reach: int) -> None:
        """A replay must follow its inputs: compare it with the step at another token and position."""
        step = self._step
        token, position = step.token.clone(), step.position.clone()
        step.token.add_(1).remainder_(step.embedding.shape[0])
        step.position.add_(1).clamp_(max=reach - 1)
        work()
        expected = step.logits.clone()
        step.logits.zero_()
        replay()
        error = (step.logits - expected).abs().max() / expected.abs().max()
        step.token.copy_(token)
        step.position.copy_(position)
        if not error < _TOLERANCE:
            raise RuntimeError(f"a captured step was off by {float(error):.2g} of the largest logit")
