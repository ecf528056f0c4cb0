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
    """Width of one attention head of a language model.

    Args:
        text_config: of the language model.

    Returns:
        `head_dim`, or the hidden size divided by the number of heads.
    """
    return getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads


@strict
class SpeechLanguageConfig(PreTrainedConfig):
    """Composition of a checkpoint: encoder, adapter, language model, partial LoRA, emotion head.

    Attributes:
        speech_config: the Whisper model whose encoder is used.
        text_config: any causal language model of transformers.
        adapter_type: "conv", strided convolutions; "spelling", the same with a CTC decoder (`model.nn.ctc_adapter`); or
            "cformer", integrate-and-fire.
        adapter_kernel_sizes: one kernel size per strided convolution (stride 2). Empty: no adapter, and the language
            model gets the words of the transcript.
        adapter_inner_size: width of the convolutional adapter's residual bottleneck.
        adapter_layers: number of `model.nn.ctc_adapter.ContextLayer`s of a CTC adapter.
        cformer_pre_layers: the CFormer's layers before the integration.
        cformer_post_layers: its layers after the integration.
        cformer_heads: their attention heads; 8 in the original, independent of the encoder.
        lora_rank: 0 for none.
        lora_alpha: as in LoRA (arXiv 2106.09685).
        lora_dropout: as in LoRA.
        lora_targets: names of the language model's linear layers.
        lora_scope: where LoRA is active: "audio" on speech positions, "text" on the other prompt positions, "global"
            everywhere.
        emotion_source: the emotion head's input: "adapter" frames, "encoder" frames with prosody features, or "none".
        emotion_layers: encoder layers whose mean is the head's input (0: the embeddings, -1: the output).
        emotion_stacked: give the head these layers side by side instead of their mean.
        emotion_frames: the encoder frames that the head averages, "all", or those with "voice" in a recording that
            is levelled first.
        emotion_hidden: hidden units of the emotion head, 0 for a linear one.
        emotion_threshold: confidence below which a reading is labelled "unsure".
        emotion_neutral_threshold: the same for neutral, where it is higher.
        emotion_pair_threshold: probability that the two likeliest emotions of an unsure reading need together to be
            its candidates; above 1: it never has any.
        emotion_baseline: the head was fitted to take a speaker's normal voice into account.
        emotion_voice: the head was fitted to tell a voice from other sounds, of which it gives no reading.
        emotion_frame_group: encoder frames summed into one row of contributions.
        path: what replies are conditioned on: the "speech" frames or the "transcript".
        penalty_scope: tokens that a repetition penalty sees: the whole "prompt" with the reply, or the "reply" alone
            with the newline before it, as in the original.
        window: the encoder's input: "full" 30 s, or "trimmed", the utterance plus 2 s of silence.
        system_prompt: the system message.
        empathy_prompt: what is added to it with empathy on.
        examples: (user, reply) pairs that precede every conversation.
        tone_template: how the prompt names the tone of voice: a format string over {tone} and {words}. Only the words
            are used when there is no tone to name, and where the frames carry the voice (`tells_tone`).
        tone_detail: the tones that are named: an "emotion" that the reading is sure of; or "candidates": a neutral
            voice and the two candidates of an unsure reading as well ("sad or neutral").
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
    emotion_stacked: bool = False
    emotion_frames: Literal["all", "voice"] = "all"
    emotion_hidden: int = 0
    emotion_threshold: float = 0.0
    emotion_neutral_threshold: float = 0.0
    emotion_pair_threshold: float = 2.0
    emotion_baseline: bool = False
    emotion_voice: bool = False
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
    tone_detail: Literal["emotion", "candidates"] = "emotion"
    tie_word_embeddings: bool = False

    @property
    def tells_tone(self) -> bool:
        """Whether the prompt names the tone: words, and tokens in their place, do not carry it."""
        return "{tone}" in self.tone_template and (self.path == "transcript" or self.adapter_type == "spelling")

    @property
    def frame_seconds(self) -> float:
        """Duration of one frame of the emotion head's input; tokens, unlike frames, have no fixed duration."""
        if self.emotion_source == "encoder":
            return ENCODER_FRAME_SECONDS
        return ENCODER_FRAME_SECONDS * 2 ** len(self.adapter_kernel_sizes)
