"""The batch tool's answers: input lines to results, a batch at a time, with one checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from assistant.events import Samples, Spoken
from model.audio.files import read_audio
from model.checkpoints import loader as checkpoint
from model.checkpoints.loader import Checkpoint
from model.checkpoints.safe_reader import read_config
from model.commands.generate import Options, Result, read_record
from model.errors import BadInput, WeightsMissing
from model.inference.batch import Prompt, generate, hear
from model.inference.engine import Engine
from model.inference.prompt import Content, chat_ids, encode_text
from model.nn.speech_llm import SPEECH_ID
from model.weights.fetch import Progress


def load(options: Options, progress: Callable[[Progress], None] | None = None) -> Checkpoint:
    """Load the checkpoint of the options.

    On a CPU "auto" leaves the weights as stored: int8 gains nothing where several lines are answered at once, and its
    rounding would not reproduce the original's numbers.

    Raises:
        WeightsMissing: as `loader.load`.
    """
    quantize, folder = options.quantize, Path(options.model)
    on_cpu = options.device == "cpu" or (options.device == "auto" and not torch.cuda.is_available())
    if quantize == "auto" and on_cpu:
        stored = (folder / "config.json").is_file() and read_config(folder).get("quantization_config")
        quantize = "auto" if stored else "none"
    return checkpoint.load(options.model, device=options.device, quantize=quantize, progress=progress)


@dataclass(slots=True)
class _Row:
    """One input line on its way to a result."""

    number: int
    reference: Any = ""
    text: str = ""
    said: Content = ""
    samples: Samples | None = None
    prompt: Prompt | None = None
    response: str = ""
    error: str | None = None

    def result(self) -> Result:
        failed = {} if self.error is None else {"error": self.error}
        return {"response": self.response, "reference": self.reference, **failed}


class Answerer:
    """Answers batches of input lines with one checkpoint: an `Answer` of `model.commands.generate`."""

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        self.tokenizer = checkpoint.tokenizer
        self.options = options
        own, tokenizer = checkpoint.generation, checkpoint.tokenizer
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        pad = tokenizer.pad_token_id if own.pad_token_id is None else own.pad_token_id
        self._ends = {end for end in (*ends, pad, tokenizer.eos_token_id) if end is not None}
        sampling = ("temperature", "top_p", "top_k") if options.do_sample else ()
        self._settings = GenerationConfig(
            eos_token_id=sorted(self._ends),
            pad_token_id=pad,
            repetition_penalty=options.repetition_penalty or own.repetition_penalty,
            **{name: getattr(options, name) for name in ("do_sample", "max_new_tokens", "min_new_tokens", *sampling)},
        )
        config = self.model.config
        limit = getattr(self.model.language_model.config, "max_position_embeddings", None)
        self._longest = None if limit is None else limit - options.max_new_tokens
        self._system = config.system_prompt + (config.empathy_prompt if options.use_emotion else "")
        self._examples = [(user, reply) for user, reply in config.examples]

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self.checkpoint, static=False)

    def __call__(self, first: int, lines: Sequence[bytes]) -> list[Result]:
        """Answer `lines`, the first of which has the number `first`.

        Raises:
            WeightsMissing: GPU memory is too small for the batch.
        """
        rows = [self._read(number, raw) for number, raw in enumerate(lines, first)]
        try:
            self._make_prompts([row for row in rows if row.error is None])
            ready = [(row, row.prompt) for row in rows if row.prompt is not None]
            replies = self._replies([prompt for _, prompt in ready])
        except torch.OutOfMemoryError as error:
            raise WeightsMissing(
                "GPU memory is too small: run the command again with a smaller --batch-size."
            ) from error
        for (row, _), reply in zip(ready, replies, strict=True):
            row.response = self.reply_text(reply)
        return [row.result() for row in rows]

    def _replies(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        legacy = self.options.legacy_batching
        # Rounding to 8 bits amplifies differences caused by padding, so these rows are answered one by one.
        alone = self.checkpoint.quantize == "int8" and not legacy
        batches = [[prompt] for prompt in prompts] if alone else [prompts]
        return [
            reply
            for batch in batches
            for reply in generate(self.model, self.tokenizer, batch, self._settings, legacy_batching=legacy)
        ]

    def prompt(self, text: str, speech: Tensor | None = None, number: int = 0, said: Content = "") -> Prompt:
        """Build the prompt of a line.

        Args:
            text: encoded as one string.
            speech: [n, E] frames after the text; where `said` has placeholders for them (negative ids), they go there.
            number: of the line, for its seed.
            said: the content of the recording.
        """
        if isinstance(said, str):
            said = [*encode_text(self.tokenizer, text + said), SPEECH_ID]
        else:
            first = next(at for at, id_ in enumerate(said) if id_ < 0)
            after = [id_ for id_ in said[first:] if id_ >= 0]
            said = [*encode_text(self.tokenizer, text), *said[:first], SPEECH_ID, *after]
        ids = chat_ids(self.tokenizer, self._system, self._examples, said)
        at = ids.index(SPEECH_ID)
        return Prompt(ids[:at], ids[at + 1 :], speech, seed=self.options.seed * 1_000_003 + number)

    def reply_text(self, ids: Sequence[int]) -> str:
        """The visible text of a reply: up to its end token, if it has one, without surrounding white space.

        The original dropped the last token of a reply without an end token; this keeps it.
        """
        words = list(takewhile(lambda token: token not in self._ends, ids))
        text: str = self.tokenizer.decode(words, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text.strip()

    def _read(self, number: int, raw: bytes) -> _Row:
        """Read a line and its recording; a problem becomes its error."""
        row, options = _Row(number), self.options
        try:
            record = read_record(raw)
            if options.reference_field:
                row.reference = record.get(options.reference_field, "")
            row.text = options.instruction or _text(record, "instruction")
            if options.text_field:
                row.text += _text(record, options.text_field)
            if options.audio_field and record.get(options.audio_field) is not None:
                name = _text(record, options.audio_field)
                if not name.strip():
                    raise BadInput(f"The field {options.audio_field!r} is empty: give a recording.")
                row.samples = read_audio(self._find(name))
            elif not row.text:
                raise BadInput("neither a recording nor text: nothing to answer")
        except BadInput as error:
            row.error = str(error)
        return row

    def _find(self, name: str) -> Path:
        """A recording's path, relative to the input file or, if it is not there, to the working directory."""
        near = self.options.input_file.parent / name
        # os.path: an impossible name is a missing file, not an error.
        return Path(name) if os.path.exists(name) and not os.path.exists(near) else near  # noqa: PTH110

    def _make_prompts(self, rows: Sequence[_Row]) -> None:
        spoken = [(row, row.samples) for row in rows if row.samples is not None]
        speech: dict[int, Tensor] = {}
        config = self.model.config
        if self.model.adapter is None or config.path == "transcript" or config.adapter_type == "spelling":
            # Words and tone, as the engine puts them into a prompt.
            for row, samples in spoken:
                frames: dict[int, Tensor] = {}
                row.said = self._engine.content(Spoken(samples), frames)
                if frames:
                    speech[row.number] = torch.stack(list(frames.values()))
                self._engine.forget()
        else:
            heard = hear(
                self.checkpoint, [samples for _, samples in spoken], legacy_batching=self.options.legacy_batching
            )
            speech = {row.number: frames for (row, _), frames in zip(spoken, heard, strict=True)}
        for row in rows:
            prompt = self.prompt(row.text, speech.get(row.number), row.number, row.said)
            if self._longest is None or len(prompt) <= self._longest:
                row.prompt = prompt
            else:
                row.error = f"{len(prompt)} positions, but only {self._longest} fit with the reply: shorten it"


def _text(record: dict[str, Any], name: str) -> str:
    """A field that is text or absent.

    Raises:
        BadInput: it is something else.
    """
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"field {name!r} is not text")
    return value or ""
