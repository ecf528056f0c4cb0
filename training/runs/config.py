"""The options of the training commands: one definition for command line, run.toml and wizard. Knows no torch.

Names and defaults follow the original's scripts where it has them, with dashes on the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from assistant import options
from assistant.events import EMOTIONS
from assistant.options import POSITIONAL
from model.errors import BadInput

CONTINUE = "Continue the following sentence in a coherent style: "
CONTINUE_WITH_EMOTION = "Continue the following sentence that reflects a '{emotion}' emotion tone in a coherent style: "
CONTINUE_HEARD = "Continue the following sentence based on the conveyed emotion tone in a coherent style: "
"""The original's prompts: stage 1, stage 2 over text, stage 2 over speech."""

IGNORE = "ignore"
"""Target in an emotion map: the row counts as having no emotion label."""


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in _split(value)]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError("write NAME=VALUE,NAME=VALUE")
    return {name.strip(): target.strip() for name, _, target in pairs}


Numbers = Annotated[tuple[int, ...], BeforeValidator(_split)]
Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
Pairs = Annotated[dict[str, str], BeforeValidator(_pairs)]


class Options(options.Options):
    """Frozen options; unknown names and values out of range are refused."""

    refusal: ClassVar[type[Exception]] = BadInput


class InitOptions(Options):
    """`init`: a new checkpoint from an encoder and a language model."""

    out: Path = Field(description="the new checkpoint folder", json_schema_extra=POSITIONAL)
    speech: str = Field("whisper-base", description="the encoder: a name of weights.toml, or a Whisper folder")
    text: str = Field("smollm2-135m-instruct", description="the language model: a name, or a folder")
    adapter: Literal["conv", "spelling", "cformer"] = Field(
        "conv", description="strided convolutions, the same with a CTC decoder, or integrate-and-fire"
    )
    kernels: Numbers = Field((5, 5, 5), description="one odd kernel size per convolution of stride 2")
    inner: int = Field(512, ge=1, le=65536, description="width of the adapter's bottleneck")
    layers: int = Field(0, ge=0, le=64, description="self-attention layers of a CTC adapter (spelling)")
    cformer_pre_layers: int = Field(4, ge=0, le=64, description="layers before the integration")
    cformer_post_layers: int = Field(4, ge=0, le=64, description="layers after it")
    cformer_heads: int = Field(8, ge=1, le=64, description="their attention heads")
    lora_rank: int = Field(16, ge=0, le=4096, description="rank of the partial LoRA, 0 for none")
    lora_alpha: float = Field(16.0, gt=0, description="its scale is alpha / rank")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout before it, in training")
    lora_scope: Literal["audio", "text", "global"] = Field("audio", description="positions where LoRA is active")
    emotion_source: Literal["adapter", "encoder", "none"] = Field("adapter", description="the emotion head's input")
    path: Literal["speech", "transcript"] = Field("speech", description="what replies are conditioned on")
    window: Literal["full", "trimmed"] = Field("full", description="30 s, or the utterance plus 2 s of silence")
    seed: int = Field(0, ge=0, description="of the new weights")
    adapter_weights: Path | None = Field(None, description="safetensors file with adapter.* (and LoRA, linear head)")

    @model_validator(mode="after")
    def _kernels_fit(self) -> Self:
        if not all(0 < kernel < 100 and kernel % 2 for kernel in self.kernels) or len(self.kernels) > 8:
            raise ValueError("--kernels: at most 8 odd numbers from 1 to 99")
        if not self.kernels and (self.path == "speech" or self.emotion_source == "adapter"):
            raise ValueError("--kernels: without one there is no adapter for --path speech or --emotion-source adapter")
        if self.layers and self.adapter != "spelling":
            raise ValueError("--layers: only a CTC adapter (--adapter spelling) has them")
        if self.adapter == "spelling" and self.adapter_weights is None:
            raise ValueError("--adapter spelling: it needs weights of `warm-start`: give --adapter-weights")
        if self.adapter == "spelling" and self.emotion_source == "adapter":
            raise ValueError(
                "--adapter spelling: its tokens do not carry the voice: use --emotion-source encoder or none"
            )
        return self


class _Emotions(Options):
    """Which rows are used, and how their emotions are named."""

    use_emotion: bool = Field(False, description="stage 2: every row needs one of the five emotions")
    emotion_map: Pairs = Field({}, description="map other emotion labels: joy=happy,fear=ignore")
    where: Pairs = Field({}, description="use only rows with these fields: split=train")

    @model_validator(mode="after")
    def _emotions_known(self) -> Self:
        for name, target in self.emotion_map.items():
            if target not in (*EMOTIONS, IGNORE):
                raise ValueError(f"--emotion-map: {name}={target} is none of {', '.join((*EMOTIONS, IGNORE))}")
        return self


class AdapterOptions(Options):
    """`adapter`: export a checkpoint's adapter and partial LoRA in 16 bits, for `init --adapter-weights` or to ship."""

    checkpoint: Path = Field(description="the checkpoint folder", json_schema_extra=POSITIONAL)
    out: Path = Field(description="the safetensors file", json_schema_extra=POSITIONAL)


class LabelOptions(_Emotions):
    """`label`: continuations of transcripts, generated by the language model itself."""

    model: str = Field(description="the language model: a name of weights.toml, its folder, or a checkpoint of `init`")
    manifest: Path = Field(description="JSONL with audio, text, emotion")
    lab_dir: Path = Field(description="folder of the labelled files")
    instruction: str = Field(CONTINUE, description="precedes the text, without --use-emotion")
    nshard: int = Field(1, ge=1, description="number of parts of the manifest")
    rank: int = Field(0, ge=0, description="the part to label, from 0")
    batch_size: int = Field(16, ge=1, description="prompts per batch, of about equal length")
    max_length: int = Field(1024, ge=32, description="maximum tokens of a prompt")
    max_new_tokens: int = Field(48, ge=1, le=4096, description="maximum tokens of a continuation")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the language model runs")

    @model_validator(mode="after")
    def _rank_exists(self) -> Self:
        if self.rank >= self.nshard:
            raise ValueError(f"--rank: part {self.rank} of {self.nshard} does not exist, they count from 0")
        return self


class CleanOptions(Options):
    """`clean`: remove refusals from labelled files."""

    input_dir: Path = Field(description="folder of the labelled *.jsonl files")
    output_dir: Path | None = Field(None, description="output folder (INPUT_DIR/clean)")
    strict: bool = Field(False, description="more phrases than the original, also with typographic apostrophes")
    also: Words = Field((), description="further phrases, in any case, that a continuation must not contain")


class PrepareOptions(_Emotions):
    """`prepare`: labelled manifests to a tokenised data set."""

    dataroot: Path = Field(description="folder of the labelled files")
    save_dir: Path = Field(description="folder of the data set")
    model: str = Field(description="checkpoint of `init` (its tokenizer and adapter), or a language model's folder")
    manifest_files: Words = Field(("*.jsonl",), description="names or patterns in the dataroot")
    instruction: str = Field("", description="precedes text and speech, where a row has no instruction field")
    instruction_field: str = Field("instruction", description="field with a row's own instruction")
    audio_instruction: str | None = Field(
        None, description="precedes the speech, if different from that before the text"
    )
    audio_instruction_field: str = Field("", description="field with a row's own instruction before the speech")
    audio_root: Path | None = Field(
        None, description="folder that recordings are relative to, in addition to the manifest's"
    )
    audio_field: str = Field("audio", min_length=1, description="field with the recording's path")
    input_field: str = Field("text", description="field with the transcript")
    output_field: str = Field("output", min_length=1, description="field with the continuation")
    features: Words = Field((), description="feature caches, for rows with a key and no recording")
    speaker_field: str = Field(
        "", description="field with the speaker (speaker, voice, or the start of the file's name)"
    )
    split_field: str = Field("", description="field with a given split, train or validation: other values are dropped")
    max_length: int = Field(448, ge=8, description="maximum tokens of a row, with speech and with text")
    min_duration: float = Field(1.0, ge=0, description="seconds")
    max_duration: float = Field(30.0, gt=0, le=30, description="seconds")
    kernels: Numbers = Field((5, 5, 5), description="of the adapter, if --model has none")
    validation: float = Field(0.02, ge=0, lt=1, description="share of rows for validation, from separate speakers")
    seed: int = Field(0, ge=0, description="chooses the speakers for validation")
    num_proc: int = Field(1, ge=1, description="number of processes that read recordings")

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        if self.min_duration >= self.max_duration:
            raise ValueError("--min-duration: it must be less than --max-duration")
        return self

    @property
    def heard_instruction(self) -> str | None:
        """The instruction before the speech; None: the same as before the text."""
        if self.audio_instruction is None and self.use_emotion:
            return CONTINUE_HEARD
        return self.audio_instruction


class TrainOptions(Options):
    """`train`: one stage of the recipe. Options that are None follow `RECIPES` (the paper's table) by the stage."""

    data: Path = Field(description="data set of `prepare`")
    model: str = Field(description="checkpoint to start from: of `init`, or of the previous stage")
    run: Path = Field(description="the run folder")
    stage: int = Field(1, ge=1, le=2, description="1: words (adapter); 2: emotion (adapter, partial LoRA, head)")
    losses: Words | None = Field(None, description="response_kl, response_ce, input_er, input_kl, cif")
    only: Literal["", "head"] = Field("", description="train nothing else")
    train_encoder: bool = Field(False, description="in stage 2 also train the encoder, as in the paper")
    learning_rate: float | None = Field(None, gt=0, le=1, description="after the warm-up")
    warmup_steps: int | None = Field(None, ge=0, description="warm-up steps")
    epochs: float | None = Field(None, gt=0, description="passes over the data")
    max_steps: int | None = Field(None, ge=1, description="steps, instead of epochs")
    batch_size: int | None = Field(None, ge=1, description="rows per step, over all processes")
    rows_at_once: int = Field(8, ge=1, description="rows per process and pass; the rest is accumulated")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW")
    clip: float = Field(1.0, gt=0, description="maximum gradient norm")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it")
    quantize: Literal["none", "nf4"] = Field("none", description="nf4: the language model in 4 bits, on a GPU")
    gradient_checkpointing: Literal["auto", "on", "off"] = Field("auto", description="auto: when memory requires it")
    features: Words = Field((), description="feature caches of the frozen encoder")
    validate_every: int = Field(200, ge=1, description="steps between validations and checkpoints")
    patience: int = Field(0, ge=0, description="validations without a better loss before stopping, 0: never")
    keep: int = Field(2, ge=1, description="checkpoints to keep")
    seed: int = Field(0, ge=0, description="of order and dropout")

    def recipe(self) -> dict[str, Any]:
        """The stage's recipe from `RECIPES`, overridden by these options.

        Returns:
            losses, learning_rate, warmup_steps, epochs and batch_size.
        """
        return {
            name: usual if (own := getattr(self, name)) is None else own for name, usual in RECIPES[self.stage].items()
        }


RECIPES: dict[int, dict[str, Any]] = {
    1: {"losses": ("response_kl",), "learning_rate": 1e-4, "warmup_steps": 1000, "epochs": 1.0, "batch_size": 768},
    2: {
        "losses": ("response_ce", "input_er"),
        "learning_rate": 2e-5,
        "warmup_steps": 200,
        "epochs": 3.0,
        "batch_size": 128,
    },
}
"""BLSP-Emo, arXiv 2406.03872, section 4."""
