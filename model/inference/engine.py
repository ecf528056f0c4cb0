"""The engine: encodes messages, keeps the conversation's KV cache, streams replies.

Every reply gets the whole history. The engine builds its canonical ids and reuses the longest prefix in the cache, so
only what is new is prefilled. The caches can be dropped at any time without changing a reply. One thread uses an
engine; `cancelled` may be set from another.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor

from assistant.events import UNSURE, EmotionReading, Exchange, Message, Spoken, Typed
from model.checkpoints.loader import Checkpoint
from model.errors import BadInput, WeightsMissing
from model.inference.cuda_graphs import StaticDecoder
from model.inference.emotion_reader import EmotionReader
from model.inference.ending import Ending
from model.inference.kv_cache import Decoder, KeyValueCache, unsupported
from model.inference.prompt import Content, chat_ids, encode_text, with_tone
from model.inference.sampling import discourage_copy, next_token
from model.inference.static_step import FixedCache
from model.nn.lora import LoraScope
from model.nn.speech_llm import SPEECH_ID
from model.nn.transcribe import Transcript

_KEPT_HEARINGS = 256
_FRAMES_PER_HEARING = 1 << 20  # each hearing's frames get unique ids, below all token ids
_PREFILL_POSITIONS = 256  # a long prompt is run in chunks, so that cancelling waits for one chunk at most
_SPEECH = "\ue001"  # a private-use character: the placeholder of the speech in the template


@dataclass(slots=True, eq=False)
class Hearing:
    """What the engine keeps of one utterance.

    Attributes:
        serial: number of the utterance in this engine.
        reading: its emotion reading, or None; `why` says why there is none.
        encode_ms: time from samples to reading.
        frames: [n, E] adapter frames, or None without an adapter.
        pieces: encoder output and duration in seconds of each piece.
        transcript: once it was requested.
    """

    serial: int
    reading: EmotionReading | None
    why: str | None
    encode_ms: float
    frames: Tensor | None
    pieces: list[tuple[Tensor, float]] = field(repr=False)  # encoder output and seconds of each piece
    transcript: Transcript | None = None


@dataclass(slots=True)
class ReplyFigures:
    """Measurements of one reply. Times in milliseconds since `reply` was called.

    Attributes:
        reused: prompt positions taken from the cache.
        prefilled: prompt positions computed.
        tokens: tokens generated.
        prefill_ms: until the prompt was in the cache.
        first_token_ms: until the first token.
        reply_ms: until the end.
        limit_reached: the reply was ended by its limit and not by the model.
        repeated: it is what was heard last.
    """

    reused: int = 0
    prefilled: int = 0
    tokens: int = 0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    reply_ms: float = 0.0
    limit_reached: bool = False
    repeated: bool = False


class Engine:
    """Encodes and answers messages with one checkpoint.

    Args:
        checkpoint: what `model.checkpoints.loader.load` returned.
        static: decode over fixed buffers (`model.inference.cuda_graphs`); by default where there is CUDA.
    """

    def __init__(self, checkpoint: Checkpoint, *, static: bool | None = None) -> None:
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        self.tokenizer = checkpoint.tokenizer
        self._reader = EmotionReader(self.model, checkpoint.extractor)
        self._backend: Tokenizer = self.tokenizer.backend_tokenizer
        self.figures = ReplyFigures()
        self._static: StaticDecoder | None = None
        self._cached_ids: list[int] = []
        self._hearings: OrderedDict[bytes, Hearing] = OrderedDict()
        self._lengths: dict[tuple[str | bytes, str], int] = {}
        self._serials = 0
        settings = checkpoint.generation
        ends = settings.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        limit = getattr(self.model.language_model.config, "max_position_embeddings", 2048)
        context = min(limit, checkpoint.context)
        self._limit = settings.max_new_tokens
        self._longest_prompt = context - min(2 * settings.max_new_tokens, context // 2)
        self._newline = encode_text(self.tokenizer, "\n")
        long = self.model.long_prompts
        if long is not None:
            long.active = context > long.trained_length
        self._alpha = 1  # of the prompt that the cache was built for
        everywhere = self.model.config.lora_rank and self.model.config.lora_scope == "global"
        self._start_decoder(self.model.lora_scope if everywhere else None, context, static)

    def _start_decoder(self, everywhere: LoraScope | None, context: int, static: bool | None) -> None:
        language_model = self.model.language_model
        if static is None:
            static = self.model.device.type == "cuda" and unsupported(language_model) is None
        self._cache: KeyValueCache | FixedCache
        if static:
            try:
                self._static = StaticDecoder(language_model, context, everywhere)
                self._static.warm_up()
            except torch.OutOfMemoryError as error:
                raise WeightsMissing("The conversation does not fit into GPU memory: see `plan`.") from error
            self._cache = self._static.cache
        else:
            self._static = None
            self._decoder = Decoder(language_model, everywhere)
            self._cache = KeyValueCache(language_model.config.num_hidden_layers)

    # ---- hearing

    @torch.inference_mode()
    def hear(self, spoken: Spoken) -> Hearing:
        """Encode an utterance and read its emotion; results are cached.

        Args:
            spoken: mono samples at 16 kHz of any length.

        Returns:
            Frames, encoder states and reading.

        Raises:
            BadInput: it has no samples.
        """
        known = self._hearings.get(spoken.key)
        if known is not None:
            self._hearings.move_to_end(spoken.key)
            return known
        if not len(spoken.samples):
            raise BadInput("The recording is empty: record again.")
        started = time.perf_counter()
        frames, emotion, pieces = [], [], []
        for heard, seconds in self._reader.hear(spoken.samples):
            pieces.append((heard.encoded, seconds))
            if heard.frames is not None:
                frames.append(heard.frames[0])
            if heard.emotion_frames is not None:
                emotion.append(heard.emotion_frames[0])
        reading, why = self._reader.judge(torch.cat(emotion) if emotion else None, spoken.samples)
        hearing = Hearing(
            serial=self._serials,
            reading=reading,
            why=why,
            encode_ms=(time.perf_counter() - started) * 1e3,
            frames=torch.cat(frames) if frames else None,
            pieces=pieces,
        )
        self._serials += 1
        self._hearings[spoken.key] = hearing
        if len(self._hearings) > _KEPT_HEARINGS:
            self._hearings.popitem(last=False)
        return hearing

    @torch.inference_mode()
    def transcript(self, spoken: Spoken) -> Transcript | None:
        """Transcribe an utterance; results are cached.

        Args:
            spoken: mono samples at 16 kHz of any length.

        Returns:
            The transcript, or None without a recogniser.
        """
        transcriber = self.checkpoint.transcriber
        hearing = self.hear(spoken)
        if hearing.transcript is None and transcriber is not None:
            texts, language = [], None
            pieces = hearing.pieces
            if transcriber.encoder is not self.model.encoder:
                pieces = transcriber.encode(spoken.samples)
            for encoded, seconds in pieces:
                piece = transcriber.transcribe(encoded, seconds, language)
                language = language or piece.language
                texts.append(piece.text)
            hearing.transcript = Transcript(" ".join(filter(None, texts)), language or "en")
            hearing.pieces = []
        return hearing.transcript

    # ---- replying

    @torch.inference_mode()
    def reply(
        self,
        history: Sequence[Exchange],
        message: Message,
        *,
        empathy: bool = True,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[str]:
        """Stream the reply to `message`.

        Args:
            history: past turns, oldest first, with what was heard of each reply. The oldest turns are dropped, whole,
                if the prompt would not fit.
            message: the new message.
            empathy: add the empathetic part to the system prompt.
            cancelled: called before every token; True ends the reply there.

        Yields:
            Pieces of text.

        Raises:
            BadInput: the message is too long.
        """
        started = time.perf_counter()
        self.figures = figures = ReplyFigures()

        def since() -> float:
            return (time.perf_counter() - started) * 1e3

        ids, frames = self.prompt(history, message, empathy)
        logits = self._prefill(ids, frames, cancelled)
        figures.prefill_ms = since()
        if logits is not None:
            # No empty reply. A checkpoint may name an end token that its vocabulary lacks.
            silent = self._ends.union(self.tokenizer.all_special_ids)
            logits[[token for token in silent if token < len(logits)]] = -torch.inf
        before = ids if self.model.config.penalty_scope == "prompt" else self._newline
        last = history[-1].heard.strip() if history else ""
        previous = encode_text(self.tokenizer, last)
        text, ending, generated = DecodeStream(skip_special_tokens=True), Ending(self._limit), list[int]()
        finished = False
        with closing(self._tokens(logits, before, cancelled, previous)) as tokens:
            for token in tokens:
                if finished := token in self._ends:
                    break
                piece = text.step(self._backend, token) or ""
                if finished := ending.reached(piece, len(generated)):
                    figures.limit_reached = True
                    break
                generated.append(token)
                figures.tokens = len(generated)
                figures.first_token_ms = figures.first_token_ms or since()
                if settled := ending.take(piece, len(generated)):
                    yield settled
        if finished and (rest := ending.rest(cut=figures.limit_reached)):
            yield rest
        figures.repeated = bool(last) and ending.told.strip() == last
        # Surplus positions are truncated with the next prompt.
        self._cached_ids = (self._cached_ids + generated)[: self._cache.get_seq_length()]
        figures.reply_ms = since()

    @torch.inference_mode()
    def decode(self, ids: list[int]) -> Generator[int]:
        """Decode after the prompt `ids` without end, for measurements. Close the iterator before the next reply.

        Args:
            ids: token ids of the prompt.

        Yields:
            Token ids.
        """
        try:
            yield from self._tokens(self._prefill(ids, {}, lambda: False), ids, lambda: False)
        finally:
            self.forget()

    def _tokens(
        self,
        logits: Tensor | None,
        earlier: Sequence[int],
        cancelled: Callable[[], bool],
        previous: Sequence[int] = (),
    ) -> Generator[int]:
        """Tokens after the prompt in the cache; a token's keys and values are computed when the next is needed.

        A reply that begins like the `previous` one is made less likely to continue like it.
        """
        settings = self.checkpoint.generation
        if logits is None:
            return
        if self._static is not None:
            yield from self._static.tokens(logits, earlier, settings, cancelled)
            return
        assert isinstance(self._cache, KeyValueCache), "each decoder has its own cache"
        generated: list[int] = []
        while not cancelled():
            discourage_copy(logits, generated, previous)
            generated.append(next_token(logits, [*earlier, *generated], settings))
            yield generated[-1]
            logits = self._decoder.step(generated[-1], self._cache)

    @torch.inference_mode()
    def prepare(
        self, history: Sequence[Exchange], *, empathy: bool = True, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Prefill the history ahead of the next message, for example while the last reply is spoken.

        Args:
            history: past turns, oldest first.
            empathy: as in `reply`.
            cancelled: called before every chunk; True ends the prefill.
        """
        self.figures = ReplyFigures()
        ids, frames = self.prompt(history, None, empathy)
        self._prefill(ids, frames, cancelled)

    def forget(self) -> None:
        """Drop every cache. Replies stay the same; the next one takes longer."""
        self._cache.keep(0)
        self._cached_ids.clear()
        self._hearings.clear()
        self._lengths.clear()

    def prompt(
        self, history: Sequence[Exchange], message: Message | None, empathy: bool
    ) -> tuple[list[int], dict[int, Tensor]]:
        """Write the prompt of a conversation.

        Args:
            history: earlier exchanges; the oldest are left out if they do not fit.
            message: the newest message, None for the history alone.
            empathy: whether the system prompt asks for empathy.

        Returns:
            The token ids, and the frames [frames, hidden] that each negative id stands for.
        """
        config = self.model.config
        system = config.system_prompt + (config.empathy_prompt if empathy else "")
        examples = [(user, reply) for user, reply in config.examples]
        frames: dict[int, Tensor] = {}
        kept = history[self._first_kept(history, message, system, examples) :]
        turns = [(self.content(past.message, frames), past.heard) for past in kept]
        user = None if message is None else self.content(message, frames)
        ids = chat_ids(self.tokenizer, system, [*examples, *turns], user)
        if len(ids) > self._longest_prompt:
            raise BadInput("The message is too long for the model: say it in shorter parts.")
        return ids, frames

    def _first_kept(
        self, history: Sequence[Exchange], message: Message | None, system: str, examples: Sequence[tuple[Content, str]]
    ) -> int:
        """The first past turn that stays in the prompt.

        When a turn overflows the context, old turns are dropped until it is half empty, so the window moves rarely and
        the cache stays valid in between. The rule depends on the history alone, not on earlier calls.
        """
        empty = [len(chat_ids(self.tokenizer, system, [*examples, *[("", "")] * n], "")) for n in (0, 1)]
        budget = self._longest_prompt - empty[0]
        coming = [] if message is None else [Exchange(message, "")]
        lengths = [self._length(past) + empty[1] - empty[0] for past in (*history, *coming)]
        first = used = 0
        for turn, length in enumerate(lengths):
            used += length
            if used > budget:
                while first < turn and used > budget // 2:
                    used -= lengths[first]
                    first += 1
        return first

    def _length(self, past: Exchange) -> int:
        """Positions of a turn's content; cached, so that turns no longer in the prompt are not encoded again."""
        message = past.message
        key = (message.text if isinstance(message, Typed) else message.key, past.heard)
        if key not in self._lengths:
            content = self.content(message, {})
            said = encode_text(self.tokenizer, content) if isinstance(content, str) else content
            self._lengths[key] = len(said) + len(encode_text(self.tokenizer, past.heard))
        return self._lengths[key]

    def content(self, message: Message, frames: dict[int, Tensor]) -> Content:
        """The content of a message in the prompt.

        Args:
            message: text or a recording.
            frames: gets the frames that the content's negative ids stand for.

        Returns:
            Text, or token ids.
        """
        if isinstance(message, Typed):
            return message.text
        hearing, config = self.hear(message), self.model.config
        reading = hearing.reading
        labels: Sequence[str] = ()
        if reading is not None:
            labels = reading.candidates or (() if reading.label == UNSURE else (reading.label,))
        if config.path == "speech" and hearing.frames is not None:
            first = -2 - hearing.serial * _FRAMES_PER_HEARING
            ids = [first - index for index in range(len(hearing.frames))]
            frames.update(zip(ids, hearing.frames, strict=True))
            before, _, after = with_tone(config, _SPEECH, labels).partition(_SPEECH)
            return [*encode_text(self.tokenizer, before), *ids, *encode_text(self.tokenizer, after)]
        words = self.transcript(message)
        return with_tone(config, words.text if words is not None else "", labels)

    def _prefill(self, ids: list[int], frames: dict[int, Tensor], cancelled: Callable[[], bool]) -> Tensor | None:
        """Bring the cache to `ids`; returns the last position's logits, or None when cancelled."""
        reused = 0
        # LoRA on text acts on a prompt's tokens but not on generated ones: the two never share a cache.
        if self.model.config.lora_scope != "text" or not self.model.config.lora_rank:
            pairs = zip(ids[:-1], self._cached_ids, strict=False)
            reused = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(ids) - 1, len(self._cached_ids)))
        long = self.model.long_prompts
        alpha = 1 if long is None else long.alpha(len(ids))
        if alpha != self._alpha:
            self._alpha, reused = alpha, 0  # the cached keys were rotated for another length
        self._cache.keep(reused)
        del self._cached_ids[reused:]
        self.figures.reused = reused
        logits = None
        for start in range(reused, len(ids), _PREFILL_POSITIONS):
            if cancelled():
                return None
            part = ids[start : start + _PREFILL_POSITIONS]
            speech = [frames[id_] for id_ in part if id_ < 0]
            output = self.model(
                torch.tensor([[max(id_, SPEECH_ID) for id_ in part]], device=self.model.device),
                speech=torch.stack(speech) if speech else None,
                past_key_values=self._cache,
                prompt_lengths=[len(ids)],
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[0, -1].float()
            self._cached_ids += part
            self.figures.prefilled += len(part)
        return logits
