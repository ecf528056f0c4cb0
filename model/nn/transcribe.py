"""Speech recognition by Whisper's decoder, greedy, over encoder states of any window length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from assistant.events import SAMPLE_RATE, Samples
from model.audio.features import LONGEST_SECONDS, encode, log_mel
from model.audio.files import split_at_pauses
from model.nn.int8 import Int8Linear, quantize_int8

_TOKENS_PER_SECOND = 10  # fast speech has five words per second; more tokens mean that the decoder loops
_SHORTEST_LOOP = 12  # tokens; a phrase repeated three times and this long is a decoder loop
_NO_SPEECH = 0.6  # thresholds of the Whisper paper (arXiv 2212.04356, section 4.5)
_LEAST_MEAN_LOG_PROBABILITY = -1.0


@dataclass(frozen=True, slots=True)
class Transcript:
    """`text` as recognised, empty when there was no speech; `language` as an ISO 639-1 code."""

    text: str
    language: str


class Transcriber:
    """Whisper as a recogniser. Its encoder may be shared with a speech language model."""

    def __init__(
        self,
        whisper: WhisperForConditionalGeneration,
        extractor: WhisperFeatureExtractor,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        self.encoder = whisper.model.encoder
        self.extractor = extractor
        self._decoder = whisper.model.decoder
        self._head = whisper.proj_out
        self._tokenizer = tokenizer
        settings: Any = whisper.generation_config
        self._start = settings.decoder_start_token_id
        self._end = whisper.config.eos_token_id
        self._languages = dict(getattr(settings, "lang_to_id", None) or {})
        self._task = [settings.task_to_id["transcribe"]] if self._languages else []
        self._plain = settings.no_timestamps_token_id
        self._no_speech = self._plain - 1  # <|nospeech|> precedes <|notimestamps|> in every vocabulary
        self._never = torch.zeros(whisper.config.vocab_size, dtype=torch.bool)
        self._never[list(settings.suppress_tokens or ())] = True
        self._never[self._plain :] = True
        self._not_first = self._never.clone()
        self._not_first[list(settings.begin_suppress_tokens or ())] = True

    @classmethod
    def load(cls, folder: Path, *, int8: bool = False) -> Transcriber:
        """Load a transformers Whisper folder in float32.

        Args:
            folder: of the Whisper model.
            int8: quantize the decoder.

        Returns:
            The recogniser, on the CPU.
        """
        whisper = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        whisper.eval()
        if int8:
            quantize_int8(whisper.model.decoder)
            whisper.proj_out = Int8Linear.of(whisper.proj_out)  # type: ignore[assignment]  # same interface
        return cls(
            whisper,
            WhisperFeatureExtractor.from_pretrained(folder),
            PreTrainedTokenizerFast.from_pretrained(folder),
        )

    def to(self, device: str) -> None:
        """Move the decoder to the encoder's device.

        Args:
            device: "cpu" or "cuda".
        """
        self._decoder.to(device)
        self._head.to(device)

    @torch.inference_mode()
    def encode(self, samples: Samples) -> list[tuple[Tensor, float]]:
        """Encode a recording in pieces of at most 30 s.

        Args:
            samples: float32 [n], mono, 16 kHz.

        Returns:
            Encoder output [1, T, D] and duration in seconds of each piece.
        """
        pieces = [samples[piece] for piece in split_at_pauses(samples, SAMPLE_RATE, LONGEST_SECONDS)]
        return [
            (encode(self.encoder, log_mel(self.extractor, piece, trimmed=True))[-1], len(piece) / SAMPLE_RATE)
            for piece in pieces
        ]

    @torch.inference_mode()
    def transcribe(self, encoded: Tensor, seconds: float, language: str | None = None) -> Transcript:
        """Transcribe one utterance.

        Args:
            encoded: [1, T, D], the output of `encoder` over the utterance's whole window.
            seconds: duration of the speech in it; limits the length of the transcript.
            language: ISO 639-1 code; None: detect it (English where the model knows no other).

        Returns:
            Text and language.
        """
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        first = self._step([self._start], encoded, cache)
        no_speech = float(first.softmax(-1)[self._no_speech])
        prompt = []
        if self._languages:
            token = self._languages.get(f"<|{language}|>") or self._detect(first)
            language = next(name for name, id_ in self._languages.items() if id_ == token)[2:-2]
            prompt = [token, *self._task]
        logits = self._step([*prompt, self._plain], encoded, cache)
        ids: list[int] = []
        total = 0.0
        for _ in range(int(seconds * _TOKENS_PER_SECOND) + 8):
            logits[self._never if ids else self._not_first] = -torch.inf
            scores = logits.log_softmax(-1)
            token = int(scores.argmax())
            total += float(scores[token])
            if token == self._end:
                break
            ids.append(token)
            repeated = _repeated(ids)
            if repeated:
                del ids[-repeated:]
                break
            logits = self._step([token], encoded, cache)
        if no_speech > _NO_SPEECH and total / (len(ids) + 1) < _LEAST_MEAN_LOG_PROBABILITY:
            ids = []
        text = cast(str, self._tokenizer.decode(ids, skip_special_tokens=True))
        return Transcript(text.strip(), language or "en")

    def _step(self, ids: list[int], encoded: Tensor, cache: EncoderDecoderCache) -> Tensor:
        output = self._decoder(
            input_ids=torch.tensor([ids], device=encoded.device),
            encoder_hidden_states=encoded,
            past_key_values=cache,
            use_cache=True,
        )
        return cast(Tensor, self._head(output.last_hidden_state[0, -1]).float().cpu())

    def _detect(self, logits: Tensor) -> int:
        tokens = list(self._languages.values())
        return tokens[int(logits[tokens].argmax())]


def _repeated(ids: list[int]) -> int:
    """How many of the last tokens only repeat the phrase before them; 0 if the decoder is not looping."""
    for size in range(1, len(ids) // 3 + 1):
        times = max(3, -(-_SHORTEST_LOOP // size))
        if len(ids) >= size * times and ids[-size * times :] == ids[-size:] * times:
            return size * (times - 1)
    return 0
