"""Convert causal language models from GGUF files: weights in 16 bits, configuration, tokenizer, chat template.

Knows no torch: the `gguf` package reads and dequantizes with numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from model.errors import WeightsMissing
from model.weights.weight_files import Moved, write_json, write_tensors

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Module names inside one block: GGUF to transformers."""

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the Qwen2 tokenizer cuts text into words: part of its format (the GGUF names it "qwen2")."""

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
"""Token types of a GGUF vocabulary that are not ordinary text."""


def convert_causal_lm(raw: Path, out: Path, moved: Moved) -> None:
    """Convert `raw`/model.gguf (architectures llama and qwen2) into a transformers folder in float16.

    float16, not bfloat16: block values are a small integer times a float16 scale (plus an offset), so float16's 11 bits
    round far below half a quantization step, and bfloat16's 8 bits do not. `moved` is called with the bytes of the file
    done.

    Raises:
        WeightsMissing: another architecture, or a tensor that has no place in it.
    """
    reader = GGUFReader(raw / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = fields["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise WeightsMissing(f"GGUF architecture {architecture!r} is not supported: use one of {[*ARCHITECTURES]}.")
    config = _config(fields)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    # A file may hold the tied matrix twice, the output's copy with more bits; then that copy is used for both.
    finer_output = any(tensor.name == "output.weight" for tensor in reader.tensors)
    tensors: dict[str, NDArray[np.float16]] = {}
    for tensor in reader.tensors:
        moved(int(tensor.n_bytes))
        if finer_output and tensor.name == "token_embd.weight":
            continue
        array = dequantize(tensor.data, tensor.tensor_type)
        name, module = _rename(tensor.name)
        if architecture == "llama" and module in heads:
            array = unpermute(array, heads[module])
        tensors[name] = array.astype(np.float16)
        if not np.isfinite(tensors[name]).all():
            raise WeightsMissing(f"{tensor.name} does not fit into float16; use the weights of another source.")
    write_tensors(out / "model.safetensors", tensors)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", _generation_config(fields))
    write_json(out / "tokenizer_config.json", _tokenizer_config(fields))
    build_tokenizer(fields).save(str(out / "tokenizer.json"), pretty=True)


def unpermute(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Restore the row order of a query or key matrix [heads * head, width] of a llama GGUF.

    The file interleaves the two halves of every head, (0, h/2, 1, h/2 + 1, ...), for rotary embeddings
    that turn neighbouring rows; transformers turns row i with row i + h/2.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _rename(name: str) -> tuple[str, str]:
    """GGUF tensor name -> (transformers name, module inside the block or "")."""
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if name in whole:
        return whole[name], ""
    block, _, rest = name.removeprefix("blk.").partition(".")
    module, _, kind = rest.partition(".")
    if not block.isdigit() or module not in NAMES:
        raise WeightsMissing(f"GGUF tensor {name!r} has no place in a llama or qwen2 model.")
    return f"model.layers.{block}.{NAMES[module]}.{kind}", module


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    architecture = fields["general.architecture"]
    of = {name.removeprefix(f"{architecture}."): value for name, value in fields.items()}
    return {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_act": "silu",
        "hidden_size": of["embedding_length"],
        "intermediate_size": of["feed_forward_length"],
        "num_hidden_layers": of["block_count"],
        "num_attention_heads": of["attention.head_count"],
        "num_key_value_heads": of["attention.head_count_kv"],
        "max_position_embeddings": of["context_length"],
        "rms_norm_eps": float(f"{of['attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": of["rope.freq_base"]},
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": True,
        "dtype": "float16",
        **_ends(fields),
    }


def _ends(fields: dict[str, Any]) -> dict[str, int]:
    kinds = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{kind}_token_id": fields[f"tokenizer.ggml.{name}_token_id"] for kind, name in kinds.items()}


def _generation_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Greedy by default; a reply ends at the end of its turn or at the end of text."""
    ends = _ends(fields)
    end_of_text = fields["tokenizer.ggml.tokens"].index("<|endoftext|>")
    return ends | {"eos_token_id": sorted({ends["eos_token_id"], end_of_text}), "do_sample": False}


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    names = {f"{kind[:3]}_token": tokens[index] for kind, index in _ends(fields).items()}
    return names | {
        # This class uses tokenizer.json unchanged; others rebuild their word splitting.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<|endoftext|>",
        "model_max_length": fields[f"{fields['general.architecture']}.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }


def build_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE of a GGUF's metadata, with the word splitting that its `tokenizer.ggml.pre` names.

    Raises:
        WeightsMissing: a word splitting other than smollm's and qwen2's.
    """
    kinds = fields["tokenizer.ggml.token_type"]
    tokens = list(enumerate(fields["tokenizer.ggml.tokens"]))
    added = [(index, text) for index, text in tokens if kinds[index] in (CONTROL, USER_DEFINED)]
    # Added tokens that come after the text tokens are no part of the BPE; unused ids pad the matrix only.
    text_end = next((index for index, _ in added if index > len(added)), len(tokens))
    vocabulary = {text: index for index, text in tokens[:text_end] if kinds[index] != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    splitting = fields["tokenizer.ggml.pre"]
    byte_level = pre_tokenizers.ByteLevel
    if splitting == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False)]
    elif splitting == "qwen2":
        words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
        steps = [words, byte_level(add_prefix_space=False, use_regex=False)]
        tokenizer.normalizer = normalizers.NFC()
    else:
        raise WeightsMissing(f"GGUF tokenizer {splitting!r} is not supported: use smollm or qwen2.")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for index, text in added:
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=kinds[index] == CONTROL)])
        assert tokenizer.token_to_id(text) == index, "added tokens keep the ids of the file"
    return tokenizer
