"""The checkpoint sections: built with random weights, quantized, saved, compared with 16 bits, loaded again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, WhisperFeatureExtractor

from model.checkpoints.loader import read_model
from model.errors import WeightsMissing
from model.full_size.run import Figures, Run
from model.nn.speech_llm import SpeechLanguageModel

_SHARD_BYTES = 2 << 30
_ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


def require_room(run: Run) -> None:
    """Check that the work folder has room for the 16-bit and the 4-bit weights.

    Raises:
        WeightsMissing: it has not; the message says what to do.
    """
    needed, free = 1.6 * _bytes(_shapes(run)), shutil.disk_usage(run.work).free
    if free < needed:
        raise WeightsMissing(
            f"{run.work.parent} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed: "
            "choose another folder with --work."
        )


def build(run: Run) -> Figures:
    """Write the 16-bit folder, generated on the device and written shard by shard."""
    tensors = _shapes(run)
    started = run.now()
    folder = run.work / "16-bit"
    folder.mkdir()
    config = run.size.config()
    config.save_pretrained(folder)
    _save_other_files(folder, config.speech_config.num_mel_bins)
    torch.manual_seed(0)
    index = dict[str, str]()
    for number, names in enumerate(_shards(tensors)):
        file = f"model-{number:05}.safetensors"
        shard = {name: _random(name, tensors[name], run.device).cpu() for name in names}
        save_file(shard, folder / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    total = _bytes(tensors)
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document), "utf-8")
    return {"parameters": total // 2, "build_seconds": run.now() - started}


def _shapes(run: Run) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = SpeechLanguageModel(run.size.config())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _bytes(tensors: Mapping[str, tuple[int, ...]]) -> int:
    return 2 * sum(torch.Size(shape).numel() for shape in tensors.values())


def _save_other_files(folder: Path, mels: int) -> None:
    """Write the other files of a checkpoint folder; the tokenizer knows bytes only and replaces the original's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_ENDS))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_ENDS[-1], pad_token=_ENDS[0])
    fast.chat_template = _CHAT
    fast.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)
    GenerationConfig(max_new_tokens=128, eos_token_id=fast.eos_token_id).save_pretrained(folder)


def _shards(tensors: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names, size = list[str](), 0
    for name, shape in tensors.items():
        count = _bytes({name: shape})
        if names and size + count > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += count
    yield names


def _random(name: str, shape: tuple[int, ...], device: str) -> Tensor:
    """Weights that keep the variance of activations, identity norms, and zero LoRA."""
    if len(shape) > 1 and "lora_b" not in name:
        scale = (torch.Size(shape).numel() / shape[0]) ** -0.5
        return torch.randn(shape, device=device, dtype=torch.bfloat16) * scale
    neutral = 1.0 if ("norm" in name and name.endswith("weight")) or name.endswith("temperature") else 0.0
    return torch.full(shape, neutral, device=device, dtype=torch.bfloat16)


def quantize(run: Run) -> Figures:
    """Load the 16-bit folder in NF4 and save the result."""
    run.drop()
    started = run.now()
    run.model = read_model(run.work / "16-bit", run.device, "nf4", run.dtype)
    loaded = run.now()
    run.model.eval().save_pretrained(run.work / "nf4")
    _save_other_files(run.work / "nf4", run.model.config.speech_config.num_mel_bins)
    figures: Figures = {"quantizing_load_seconds": loaded - started, "nf4_save_seconds": run.now() - loaded}
    if run.cuda:
        figures["quantizing_load_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    run.logits = _logits(run)
    size = sum(path.stat().st_size for path in (run.work / "nf4").glob("*.safetensors"))
    return figures | {"nf4_folder_gb": size / 1e9}


@torch.inference_mode()
def _logits(run: Run) -> Tensor:
    return run.loaded().language_model(run.prompt(4)).logits.float()


def compare(run: Run) -> Figures:
    """Compare the 4-bit logits with the 16-bit ones. With random weights: trained ones may lose more or less."""
    quantized = run.logits
    assert quantized is not None, "no 4-bit logits: an earlier section failed"
    run.drop()
    run.model = read_model(run.work / "16-bit", run.device, "none", run.dtype)
    exact = _logits(run)
    run.drop()
    shares = exact.log_softmax(-1)
    divergence = torch.nn.functional.kl_div(quantized.log_softmax(-1), shares, reduction="none", log_target=True)
    return {
        "kl_16_bit_to_nf4_nats": float(divergence.sum(-1).mean()),
        "cosine_16_bit_to_nf4": float(torch.cosine_similarity(exact, quantized, dim=-1).mean()),
        "same_first_choice_share": float((exact.argmax(-1) == quantized.argmax(-1)).float().mean()),
    }


def reload(run: Run) -> Figures:
    """Load the 4-bit folder: the logits must be unchanged."""
    run.drop()
    started = run.now()
    run.model = read_model(run.work / "nf4", run.device, "nf4", run.dtype)
    figures: Figures = {"nf4_load_seconds": run.now() - started}
    run.model.eval()
    if run.cuda:
        figures["nf4_weights_gb"] = torch.cuda.memory_allocated() / 1e9
    before, run.logits = run.logits, None
    assert before is not None, "no 4-bit logits: an earlier section failed"
    return figures | {"reloaded_logits_identical": torch.equal(before, _logits(run))}
