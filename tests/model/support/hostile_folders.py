"""Cases of hostile folders in this project's format."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.model.support.hostile_damage import (
    AUTO_MAP,
    EVERY_JSON,
    Damage,
    cut,
    first,
    holding,
    in_header,
    in_json,
    in_tokenizer,
    in_weights,
    link_out,
    pickled,
    points_to,
    replaced,
    sharded,
    sparse,
    together,
    twice,
    with_code,
)

_TOKENIZER: dict[str, Callable[[dict[str, Any]], object]] = {
    "nested repetition": lambda t: t.update(pre_tokenizer=_split(r"(\w+\s?)+$")),
    "ambiguous choice": lambda t: t.update(pre_tokenizer=_split(r"(?:a|a|b)*c")),
    "optional letters": lambda t: t.update(pre_tokenizer=_split("a?" * 30 + "a" * 30)),
    "many stars": lambda t: t.update(pre_tokenizer=_split(r"\s*" * 12 + "x")),
    "counted groups": lambda t: t.update(pre_tokenizer=_split(r"(?:(?:(?:x{900}){900}){900})")),
    "reference back": lambda t: t.update(pre_tokenizer=_split(r"(a*)\1*b")),
    "enormous pattern": lambda t: t.update(pre_tokenizer=_split("|".join(f"w{n}" for n in range(60_000)))),
    "pattern that is none": lambda t: t.update(pre_tokenizer=_split("[")),
    "growing text": lambda t: t.update(normalizer=_grow(60, "aa")),
    "growing decoder": lambda t: t.update(decoder=_grow(2, "a" * 1_000_000)),
    "empty pattern": lambda t: t.update(pre_tokenizer=_split("") | {"pattern": {"String": ""}}),
    "charsmap": lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "ids beyond the embeddings": lambda t: t["model"]["vocab"].update({"zz": 4_000_000_000}),
    "merge without tokens": lambda t: t["model"]["merges"].append(["no such", "tokens"]),
    "model of another kind": lambda t: t.update(model={"type": "Payload"}),
    "vocabulary that is a list": lambda t: t["model"].update(vocab=[1, 2, 3]),
    "nested steps": lambda t: t.update(normalizer=_nested_steps(5000)),
}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _grow(times: int, by: str) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": by}
    return {"type": "Sequence", "normalizers": [step] * times, "decoders": [step] * times}


def _nested_steps(depth: int) -> str:
    return "RAW" + "[" * depth + "]" * depth


_TEMPLATES = {
    "long loop": "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
    "multiplied text": "{{ 'a' * 10000000000 }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for m in messages %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "doubling by assignment": "{% set x = 'aaaaaaaa' %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "padded text": "{{ 'a'|center(10000000000) }}",
    "format": "{{ '%10000000000d' % 1 }}",
    "recursion": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__['os'].system('touch canary') }}",
    "loops within loops": "{% for a in messages %}" * 3 + "{% endfor %}" * 3,
    "import": "{% import 'payload' as p %}{{ p }}",
    "include": "{% include '/etc/passwd' %}",
    "no syntax": "{% for m in %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "drops the user's words": "{{ messages[0]['content'] }}",
    "says them twice": "{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}",
    "too long": "a" * 100_000,
}

# Case -> (what is done to a folder of this project's format, what the message names).
REFUSED: dict[str, tuple[Damage, str]] = {
    "config is a list": (holding("config.json", "[]"), "config.json"),
    "config is empty": (holding("config.json", ""), "config.json"),
    "config nests deeply": (holding("config.json", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "config.json.*deep"),
    "config nests a little too deeply": (
        holding("config.json", '{"a":' + "[" * 60 + "]" * 60 + "}"),
        "config.json.*deep",
    ),
    "config with a huge number": (in_json("config.json", lora_rank="RAW" + "9" * 5000), "config.json"),
    "config with an infinite number": (in_json("config.json", lora_alpha="RAW1e999"), "config.json"),
    "config with NaN": (in_json("config.json", lora_alpha="RAWNaN"), "config.json"),
    "config with a name twice": (
        holding("config.json", '{"model_type": "blsp_emo", "model_type": "qwen"}'),
        "config.json",
    ),
    "config in UTF-16": (holding("config.json", '{"model_type": "blsp_emo"}'.encode("utf-16")), "config.json"),
    "config of 5 MB": (holding("config.json", '{"a": "' + "x" * 5_000_000 + '"}'), "config.json"),
    "config outside": (replaced("config.json", link_out), "config.json"),
    "config that is a folder": (replaced("config.json", Path.mkdir), "config.json"),
    "config that is a pipe": (replaced("config.json", os.mkfifo), "config.json"),
    "config without end": (replaced("config.json", lambda path: path.symlink_to("/dev/zero")), "config.json"),
    "config that is a link to itself": (replaced("config.json", lambda path: path.symlink_to(path)), "config.json"),
    "vocabulary of a trillion": (in_json("config.json", text_config__vocab_size=10**12), "vocab_size"),
    "vocabulary beyond the file": (in_json("config.json", text_config__vocab_size=4_000_000), "embed_tokens"),
    "billion layers": (in_json("config.json", text_config__num_hidden_layers=10**9), "num_hidden_layers"),
    "200 layers": (in_json("config.json", text_config__num_hidden_layers=200), "num_hidden_layers"),
    "four layers": (in_json("config.json", text_config__num_hidden_layers=4), r"layers\.3"),
    "billion encoder layers": (in_json("config.json", speech_config__encoder_layers=10**9), "encoder_layers"),
    "no width": (in_json("config.json", text_config__hidden_size=0), "hidden_size"),
    "negative width": (in_json("config.json", speech_config__d_model=-32), "d_model"),
    "width as text": (in_json("config.json", text_config__hidden_size="48"), "hidden_size"),
    "width as a list": (in_json("config.json", speech_config__d_model=[32]), "d_model"),
    "true layers": (in_json("config.json", text_config__num_hidden_layers=True), "num_hidden_layers"),
    "no heads": (in_json("config.json", text_config__num_attention_heads=0), "num_attention_heads"),
    "heads that do not divide": (
        in_json("config.json", speech_config__encoder_attention_heads=7),
        "config.json|d_model",
    ),
    "endless positions": (in_json("config.json", speech_config__max_source_positions=10**12), "max_source_positions"),
    "billion labels": (in_json("config.json", text_config__num_labels=10**9), "num_labels"),
    "another language model": (in_json("config.json", text_config__model_type="mamba2"), "model_type"),
    "language model that is a path": (in_json("config.json", text_config__model_type="../payload"), "model_type"),
    "no language model": (in_json("config.json", text_config=None), "text_config"),
    "encoder as a list": (in_json("config.json", speech_config=[1]), "speech_config"),
    "activation that is none": (in_json("config.json", text_config__hidden_act="payload"), "config.json"),
    "dtype that is a module": (in_json("config.json", dtype="os"), "dtype"),
    "rotary settings as text": (in_json("config.json", text_config__rope_parameters="os.system"), "config.json"),
    "kernel sizes as text": (in_json("config.json", adapter_kernel_sizes="5;rm"), "config.json"),
    "even kernel sizes": (in_json("config.json", adapter_kernel_sizes=[4, 4]), "adapter_kernel_sizes"),
    "huge kernel size": (in_json("config.json", adapter_kernel_sizes=[10**9 + 1]), "adapter_kernel_sizes"),
    "negative kernel size": (in_json("config.json", adapter_kernel_sizes=[-5]), "adapter_kernel_sizes"),
    "layers below zero": (in_json("config.json", adapter_layers=-1), "adapter_layers"),
    "layers of no end": (in_json("config.json", adapter_type="spelling", adapter_layers=256), "adapter_layers"),
    "layers of an adapter without": (in_json("config.json", adapter_layers=1), "adapter_layers"),
    "LoRA of no rank": (in_json("config.json", lora_rank=-1), "lora_rank"),
    "LoRA of huge rank": (in_json("config.json", lora_rank=10**9), "lora_rank"),
    "LoRA of another rank": (in_json("config.json", lora_rank=16), "lora_a"),
    "LoRA everywhere": (in_json("config.json", lora_targets=["lm_head", "__class__"]), "lora_targets"),
    "LoRA scope that is none": (in_json("config.json", lora_scope="payload"), "config.json"),
    "frames of no length": (in_json("config.json", emotion_frame_group=0), "emotion_frame_group"),
    "layers beyond the encoder": (in_json("config.json", emotion_layers=[99]), "emotion_layers"),
    "template that pads": (in_json("config.json", tone_template="{words:>9999999999}"), "tone_template"),
    "template that digs": (in_json("config.json", tone_template="{words.__class__.__init__}"), "tone_template"),
    "examples that are none": (in_json("config.json", examples=[["a"]]), "examples"),
    "kind as a list": (in_json("config.json", model_type=["blsp_emo"]), "tiny"),
    "quantised by others": (
        in_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantized",
    ),
    "said to be quantised": (
        in_json("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantized",
    ),
    "header of 2**60 bytes": (in_header(length=2**60), "model.safetensors"),
    "header beyond the file": (in_header(length=10**7), "model.safetensors"),
    "header in which a byte is missing": (in_header(length=100), "model.safetensors"),
    "2**50 elements": (in_header(lambda h: first(h).update(shape=[2**25, 2**25])), "model.safetensors"),
    "elements beyond 64 bit": (in_header(lambda h: first(h).update(shape=[2**62, 2**62])), "model.safetensors"),
    "negative shape": (in_header(lambda h: first(h).update(shape=[-1, -4])), "model.safetensors"),
    "shape as text": (in_header(lambda h: first(h).update(shape="4,4")), "model.safetensors"),
    "no such type": (in_header(lambda h: first(h).update(dtype="STR")), "model.safetensors"),
    "overlapping tensors": (
        in_header(
            lambda h: [
                e.update(data_offsets=[0, e["data_offsets"][1] - e["data_offsets"][0]])
                for e in h.values()
                if "shape" in e
            ]
        ),
        "overlap",
    ),
    "tensor beyond the file": (
        in_header(lambda h: first(h).update(data_offsets=[n + 2**40 for n in first(h)["data_offsets"]])),
        "model.safetensors",
    ),
    "bytes that belong to nothing": (in_header(tail=b"\0" * 4096), "model.safetensors"),
    "header with a name twice": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            struct.pack("<Q", 130)
            + b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(130)
            + b"\0"
        ),
        "model.safetensors",
    ),
    "weights cut short": (cut("model.safetensors", 5000), "model.safetensors"),
    "weights empty": (cut("model.safetensors", 0), "model.safetensors"),
    "weights of seven bytes": (cut("model.safetensors", 7), "model.safetensors"),
    "weights of 2 TB of nothing": (replaced("model.safetensors", sparse(2**41)), "model.safetensors"),
    "weights that are a zip": (holding("model.safetensors", b"PK\x03\x04" + b"\0" * 100), "model.safetensors"),
    "weights outside": (replaced("model.safetensors", link_out), "model.safetensors"),
    "weights that are a folder": (replaced("model.safetensors", Path.mkdir), "model.safetensors"),
    "weights that are a pipe": (replaced("model.safetensors", os.mkfifo), "model.safetensors"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "weights as pickles": (
        lambda folder: (
            torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
            or (folder / "model.safetensors").unlink()
        ),
        "pickle",
    ),
    "tensor missing": (in_weights(lambda w: w.pop("adapter.norm.weight")), "adapter.norm.weight"),
    "tensor of another shape": (
        in_weights(lambda w: w.update({"adapter.norm.weight": torch.ones(7)})),
        "adapter.norm.weight",
    ),
    "tensor of one number": (
        in_weights(lambda w: w.update({"adapter.norm.weight": torch.tensor(1.0)})),
        "adapter.norm.weight",
    ),
    "NaN weight": (in_weights(lambda w: w["adapter.fc1.weight"].view(-1)[3].fill_(float("nan"))), "adapter.fc1.weight"),
    "infinite weight": (in_weights(lambda w: w["encoder.conv1.bias"][0].fill_(-float("inf"))), "encoder.conv1.bias"),
    "NaN in a buffer": (in_weights(lambda w: w["emotion_head.centre"].fill_(float("nan"))), "emotion_head.centre"),
    "names that steer a terminal": (
        sharded(lambda i, _: i["weight_map"].update({"\x1b[2J\x07\npayload": "one.safetensors"})),
        "index.json.*payload|index.json says",
    ),
    "shards elsewhere": (points_to("{outside}/elsewhere.safetensors"), "index.json"),
    "shards above": (points_to("../elsewhere.safetensors"), "index.json"),
    "shards below": (points_to("sub/one.safetensors"), "index.json"),
    "shard that is a system file": (points_to("/etc/passwd"), "index.json"),
    "shard that is missing": (points_to("three.safetensors"), "three.safetensors"),
    "shard that is a pickle": (points_to("pytorch_model.bin"), "index.json"),
    "tensor in two shards": (sharded(twice), "one.safetensors.*two.safetensors"),
    "tensor that no shard has": (sharded(lambda i, _: i["weight_map"].update(payload="one.safetensors")), "payload"),
    "index without a map": (sharded(lambda i, _: i.update(weight_map=[])), "index.json"),
    "index of numbers": (sharded(lambda i, _: i.update(weight_map={"a": 5})), "index.json"),
    "index that nests": (
        together(sharded(lambda *_: None), holding("model.safetensors.index.json", "[" * 50_000)),
        "index.json",
    ),
    "adapter from the hub": (
        in_json("adapter_config.json", base_model_name_or_path="payload/payload"),
        "adapter_config.json",
    ),
    "shards of another loader": (holding("shard-00000-model-00001-of-00001.safetensors", b"\0" * 16), "shard-00000"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer that is a pickle": (holding("tokenizer.json", pickle.dumps({"a": 1})), "tokenizer.json"),
    "tokenizer of nothing": (holding("tokenizer.json", "{}"), "tokenizer.json"),
    "token that is a number": (in_json("tokenizer_config.json", eos_token=5), "tokenizer.json"),
    "template as a list": (
        together(lambda f: (f / "chat_template.jinja").unlink(), in_json("tokenizer_config.json", chat_template=[1])),
        "chat_template",
    ),
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "chat_template"),
    "template outside": (replaced("chat_template.jinja", link_out), "chat_template"),
    "template not UTF-8": (holding("chat_template.jinja", b"\xff\xfe{{"), "chat_template"),
    "endless reply": (in_json("generation_config.json", max_new_tokens=10**12), "max_new_tokens"),
    "reply of no length": (in_json("generation_config.json", max_new_tokens=-1), "max_new_tokens"),
    "end as text": (in_json("generation_config.json", eos_token_id="<|im_end|>"), "eos_token_id"),
    "many ends": (in_json("generation_config.json", eos_token_id=list(range(100_000))), "eos_token_id"),
    "no temperature": (in_json("generation_config.json", do_sample=True, temperature=0), "temperature"),
    "sampling as text": (in_json("generation_config.json", do_sample="yes"), "do_sample"),
    "penalty of nothing": (in_json("generation_config.json", repetition_penalty=0.0), "repetition_penalty"),
    "generation settings cut short": (cut("generation_config.json", 9), "generation_config.json"),
    "features of a trillion bins": (in_json("preprocessor_config.json", feature_size=10**12), "feature_size"),
    "endless window": (in_json("preprocessor_config.json", chunk_length=10**9), "chunk_length"),
    "huge transform": (in_json("preprocessor_config.json", n_fft=2**16), "n_fft"),
    "another rate": (in_json("preprocessor_config.json", sampling_rate=1), "sampling_rate"),
    **{f"tokenizer: {name}": (in_tokenizer(change), "tokenizer.json") for name, change in _TOKENIZER.items()},
    **{f"template: {name}": (holding("chat_template.jinja", text), "template") for name, text in _TEMPLATES.items()},
}

# Case -> what is done; the folder loads and answers as if it had not been.
HARMLESS: dict[str, Damage] = {
    "auto_map everywhere": with_code(together(*(in_json(name, auto_map=AUTO_MAP) for name in EVERY_JSON))),
    "auto_map within": with_code(
        in_json("config.json", text_config__auto_map=AUTO_MAP, speech_config__auto_map=AUTO_MAP)
    ),
    "trusting itself": with_code(in_json("config.json", trust_remote_code=True, auto_map=AUTO_MAP)),
    "pipelines": with_code(in_json("config.json", custom_pipelines={"payload": {"impl": "payload.Payload"}})),
    "attention from the hub": in_json(
        "config.json", _attn_implementation="payload/payload", attn_implementation="payload/x"
    ),
    "attention from the hub, inside": in_json("config.json", _attn_implementation_internal="payload/payload:payload"),
    "attention within": together(
        in_json("config.json", text_config__attn_implementation="payload/payload:payload"),
        in_json("config.json", speech_config__attn_implementation="payload/payload"),
    ),
    "experts from the hub": in_json(
        "config.json", _experts_implementation_internal="payload/payload", kernel_config={"a": "b/c"}
    ),
    "another config file": together(
        in_json("config.json", configuration_files=["config.99.0.0.json", "config.4.0.0.json"]),
        holding("config.4.0.0.json", '{"model_type": "payload"}'),
    ),
    "other weights": in_json("config.json", transformers_weights="../elsewhere.safetensors"),
    "another name": in_json("config.json", _name_or_path="/etc/passwd", name_or_path="payload/payload"),
    "fused by others": in_json(
        "config.json", fusion_config={"payload": True}, text_config__per_layer_config={"0": {"a": 1}}
    ),
    "architecture by name": in_json("config.json", architectures=["os.system"], model_class="payload"),
    "tokenizer class": with_code(
        in_json("tokenizer_config.json", tokenizer_class="PayloadTokenizer", auto_map=AUTO_MAP)
    ),
    "slow tokenizer class": in_json(
        "tokenizer_config.json", tokenizer_class="LlamaTokenizer", vocab_file="/etc/passwd"
    ),
    "other tokenizer files": in_json(
        "tokenizer_config.json", fast_tokenizer_files=["../payload.json"], tokenizer_file="/etc/passwd"
    ),
    "tokenizer that pads": in_tokenizer(
        lambda t: t.update(
            padding={
                "strategy": {"Fixed": 10**9},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "a",
            },
            truncation={"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        )
    ),
    "more templates": lambda f: (
        (f / "additional_chat_templates").mkdir()
        or (f / "additional_chat_templates" / "default.jinja").write_text(_TEMPLATES["long loop"])
    ),
    "processor": with_code(in_json("processor_config.json", auto_map=AUTO_MAP, processor_class="Payload")),
    "extractor class": with_code(
        in_json("preprocessor_config.json", feature_extractor_type="Payload", auto_map=AUTO_MAP)
    ),
    "generation code": with_code(
        in_json("generation_config.json", custom_generate="payload/payload", assistant_model="payload")
    ),
    "generation extras": in_json(
        "generation_config.json", max_length=10**12, num_beams=10**9, stop_strings=["a"] * 1000
    ),
    "pickles beside": lambda f: [
        pickled(f, name) for name in ("optimizer.pt", "training_args.bin", "tokenizer.pkl", "pytorch_model.bin")
    ],
    "distributed metadata beside": lambda f: pickled(f, ".metadata"),
}
