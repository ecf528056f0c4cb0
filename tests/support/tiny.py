"""Tiny random checkpoints: for tests only, nothing they say means anything."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from model.checkpoints.loader import Checkpoint
from model.config import SpeechLanguageConfig
from model.nn.ctc_adapter import CtcAdapter
from model.nn.speech_llm import SpeechLanguageModel

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, a few merges (so that text does not fall apart letter by letter) and the ChatML specials."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("o", "u"), ("Ġ", "a"), ("s", "t")]
    vocabulary = {token: index for index, token in enumerate([*letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    )


SPEECH = {
    "d_model": 32, "encoder_attention_heads": 4, "decoder_layers": 1, "vocab_size": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
"""Of a tiny Whisper; layers and widths of the encoder's are the test's."""

TEXT = {"vocab_size": 300, "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": None}
"""Of a tiny language model on `tiny_tokenizer`."""


def tiny_model(seed: int = 0, **config: object) -> SpeechLanguageModel:
    """A speech language model of some 100,000 random parameters, in fp32 and eval mode."""
    torch.manual_seed(seed)
    settings = {
        "speech_config": WhisperConfig(**SPEECH, encoder_layers=2, encoder_ffn_dim=64),
        "text_config": LlamaConfig(
            **TEXT,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
        ),
        "adapter_inner_size": 24,
        "lora_rank": 4,
        "adapter_kernel_sizes": [5, 5],
    } | config
    model = SpeechLanguageModel(SpeechLanguageConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() > 1:
            # Wide weights spread the logits, so that greedy choices are not ties.
            torch.nn.init.normal_(parameter, std=0.12)
    if isinstance(model.adapter, CtcAdapter):
        model.adapter.blank.fill_(9)  # far from every frame: they are read as tokens
    return model


def tiny_checkpoint(seed: int = 0, **config: object) -> Checkpoint:
    """The same as a checkpoint, without a recogniser: replies come from the speech frames."""
    return Checkpoint(
        name="tiny",
        model=tiny_model(seed, **config),
        tokenizer=tiny_tokenizer(),
        extractor=WhisperFeatureExtractor(),
        generation=GenerationConfig(max_new_tokens=24, eos_token_id=265, do_sample=False),
        transcriber=None,
        device="cpu",
        quantize="none",
    )
