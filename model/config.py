"""The configuration of a speech language model checkpoint. Knows no weights and no files."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, WhisperConfig
from transformers.configuration_utils import SubConfigSpec

MEL_HOP_SAMPLES = 160
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ENCODER_FRAME_SECONDS = 0.02
"""One Whisper encoder frame: two mel frames of 10 ms."""


def head_size(text_config: Any) -> int:
    """Width of one attention head of a language model."""
    return getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads


@strict
class SpeechLanguageConfig(PreTrainedConfig):
    """What a checkpoint is made of: encoder, adapter, language model, partial LoRA, emotion head.

    Attributes:
        speech_config: the Whisper whose encoder listens.
        text_config: any causal language model of transformers.
        adapter_type: "conv", strided convolutions; "spelling", the same read as tokens (`model.nn.ctc_adapter`); or
            "cformer", integrate-and-fire.
        adapter_kernel_sizes: one entry a strided convolution (stride 2); empty: no adapter yet, and
            speech reaches the language model as the words of its transcript.
        adapter_inner_size: width of the convolutional adapter's residual bottleneck.
        adapter_layers: `model.nn.ctc_adapter.ContextLayer`s of one that spells.
        cformer_pre_layers, cformer_post_layers: the CFormer's layers before and after the integration;
            `cformer_heads`: their attention heads, 8 in the original whatever the encoder has.
        lora_rank: 0 for none. `lora_alpha`, `lora_dropout`, `lora_targets` (names of the language
            model's linear layers) as in LoRA (arXiv 2106.09685).
        lora_scope: where LoRA acts: "audio" on speech positions, "text" on the other prompt
            positions, "global" everywhere.
        emotion_source: what the emotion head averages: "adapter" frames, "encoder" frames with
            prosody features beside them, or "none".
        emotion_layers: encoder layers whose mean feeds the head (0: the embeddings, -1: the output).
        emotion_hidden: hidden units of the emotion head, 0 for a linear one.
        emotion_threshold: confidence below which a reading is labelled "unsure".
        emotion_frame_group: encoder frames summed into one row of contributions.
        path: how replies are conditioned: on the "speech" frames or on the "transcript".
        system_prompt, empathy_prompt: the system message, and what is added to it with empathy on.
        examples: (user, reply) pairs that stand before every conversation.
        tone_template: how the model is told of the voice: a format string over {tone} and {words}, or the words
            alone when the reading is neutral or unsure, and where the frames carry the voice (`tells_tone`).
        penalty_scope: which tokens a repetition penalty sees: the whole "prompt" with the reply, or the
            "reply" alone with the newline before it, as in the original.
        window: what the encoder sees: "full" 30 s, or "trimmed", the utterance plus 2 s of silence.
    """

    model_type = "blsp_emo"
    sub_configs_defaults = {  # noqa: RUF012 (transformers' own class-level registry)
        "speech_config": SubConfigSpec(config_class=WhisperConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    # PreTrainedConfig once built; dictionaries and None are accepted and made into one.
    speech_config: Any = None
    text_config: Any = None
    adapter_type: Literal["conv", "spelling", "cformer"] = "conv"
    adapter_kernel_sizes: list[int] = field(default_factory=lambda: [5, 5, 5])
    adapter_inner_size: int = 512
    adapter_layers: int = 0
    cformer_pre_layers: int = 4
    cformer_post_layers: int = 4
    cformer_heads: int = 8
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    lora_targets: list[str] = field(default_factory=lambda: list(LINEAR_LAYERS))
    lora_scope: Literal["audio", "text", "global"] = "audio"
    emotion_source: Literal["adapter", "encoder", "none"] = "adapter"
    emotion_layers: list[int] = field(default_factory=lambda: [-1])
    emotion_hidden: int = 0
    emotion_threshold: float = 0.0
    emotion_frame_group: int = 1
    path: Literal["speech", "transcript"] = "speech"
    penalty_scope: Literal["prompt", "reply"] = "prompt"
    window: Literal["full", "trimmed"] = "full"
    system_prompt: str = "You are a helpful assistant."
    empathy_prompt: str = (
        " Your response should fulfill requests with empathy toward user's emotion tone."  # the original's words
    )
    examples: list[list[str]] = field(default_factory=list)
    tone_template: str = "{words} (I am {tone}.)"
    tie_word_embeddings: bool = False

    @property
    def tells_tone(self) -> bool:
        """Whether replies depend on the reading: words, and tokens in their place, do not say how they were said."""
        return "{tone}" in self.tone_template and (self.path == "transcript" or self.adapter_type == "spelling")

    @property
    def frame_seconds(self) -> float:
        """The time that one frame before the emotion head covers; tokens, unlike frames, have no fixed duration."""
        if self.emotion_source == "encoder":
            return ENCODER_FRAME_SECONDS
        return ENCODER_FRAME_SECONDS * 2 ** len(self.adapter_kernel_sizes)
