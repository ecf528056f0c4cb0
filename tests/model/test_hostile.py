"""Hostile checkpoint folders: nothing in them runs, none hangs or fills memory, each is refused in one clear line.

Every folder goes through both doors, `checkpoint.load` and `python -m model.convert`, while an audit hook watches
for processes, connections and code from the folder.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assistant.events import Typed
from model import checkpoint, convert, untrusted
from model.engine import Engine
from model.errors import ModelError
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.timeout(20)  # a case takes a tenth of a second
GOLDENS = Path(__file__).parents[1] / "goldens" / "checkpoints"
MEMORY_MIB = 200  # that a case may add to the process, for folders of 2 MB

Damage = Callable[[Path], object]


# ---- what watches


class Watch:
    """Notes what no checkpoint may cause, within a `with` block; an audit hook cannot be taken off."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self.seen.clear()
        self.on = True

    def __exit__(self, *_: object) -> None:
        self.on = False
        assert not self.seen

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        forbidden = event.startswith(_FORBIDDEN)
        if event == "pickle.find_class":
            forbidden |= arguments[0].split(".")[0] in ("os", "posix", "nt", "builtins", "subprocess", "shutil")
        if event in ("import", "open", "compile", "ctypes.dlopen"):
            forbidden |= any(re.search(r"payload|generate\.py$", name) for name in arguments[:2] if type(name) is str)
        if forbidden:
            self.seen.append(f"{event} {arguments}"[:200])


_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "subprocess.", "pty.", "webbrowser.")
_FORBIDDEN += ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.", "http.client")
_WATCH = Watch()


def _memory_mib(reset: bool = False) -> float:
    """The most memory that this process has had since the last reset (Linux; elsewhere nothing is measured)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 1024


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Path]:
    """A folder to work in; fails the test when something ran or memory grew."""
    before = _memory_mib(reset=True)
    yield tmp_path
    assert not (tmp_path / "canary").exists()
    assert _memory_mib() - before < MEMORY_MIB


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "tiny"
    tiny_checkpoint().save(folder)
    return folder


@pytest.fixture(autouse=True)
def without_recogniser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.fetch, "ensure", lambda *_args, **_kwargs: Path())
    monkeypatch.setattr(checkpoint.Transcriber, "load", lambda *_args, **_kwargs: None)


def _load(folder: Path) -> checkpoint.Checkpoint:
    with _WATCH:
        return checkpoint.load(str(folder), device="cpu", quantize="none", threads=1)


def _loading_fails(folder: Path) -> str:
    with pytest.raises(ModelError) as raised:
        _load(folder)
    return str(raised.value)


def _converting_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    target = folder.with_name("converted")
    capsys.readouterr()
    with _WATCH:
        assert convert.main([str(folder), str(target)]) in (2, 3)
    assert not list(folder.parent.glob("converted*")), "something half-made remains"
    return capsys.readouterr().err.strip()


def _is_clear(message: str, names: str) -> bool:
    """One line that names the culprit."""
    named = re.search(names, message) is not None
    return named and message.isprintable() and len(message) < 800


# ---- what is done to a folder


def _json(name: str, **changes: Any) -> Damage:
    """Changes of a JSON file; `a__b` is b within a, and the text RAW... is written as it is."""

    def damage(folder: Path) -> None:
        path = folder / name
        whole = json.loads(path.read_text("utf-8")) if path.exists() else {}
        for key, value in changes.items():
            *outer, last = key.split("__") if not key.startswith("_") else [key]
            inner = whole
            for step in outer:
                inner = inner[step]
            inner[last] = value
        path.write_text(re.sub(r'"RAW([^"]*)"', r"\1", json.dumps(whole)), "utf-8")

    return damage


def _text(name: str, text: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def _with_code(damage: Damage) -> Damage:
    """With a module beside the configs that a careless loader imports."""

    def both(folder: Path) -> None:
        for module in ("payload.py", "modeling_payload.py", "custom_generate/generate.py"):
            (folder / module).parent.mkdir(exist_ok=True)
            (folder / module).write_text(f"open({str(folder.parent / 'canary')!r}, 'w')  # payload\n")
        damage(folder)

    return both


def _weights(change: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return damage


def _header(
    change: Callable[[dict[str, Any]], object] | None = None, *, length: int | None = None, tail: bytes = b""
) -> Damage:
    """A change of the header of model.safetensors; `length`: what it says of its own length."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        if change is not None:
            change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data[8 + size :] + tail)

    return damage


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def _sharded(change: Callable[[dict[str, Any], Path], object]) -> Damage:
    """The weights in two shards, and then a change of the index."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        halves = {"one.safetensors": names[: len(names) // 2], "two.safetensors": names[len(names) // 2 :]}
        index = {"metadata": {}, "weight_map": {name: file for file, half in halves.items() for name in half}}
        for file, half in halves.items():
            save_file({name: tensors[name] for name in half}, folder / file, {"format": "pt"})
        change(index, folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def _points_to(place: str) -> Damage:
    def change(index: dict[str, Any], folder: Path) -> None:
        shutil.copy(folder / "one.safetensors", folder.parent / "elsewhere.safetensors")
        where = place.format(outside=folder.parent)
        index["weight_map"] = {k: where if v == "one.safetensors" else v for k, v in index["weight_map"].items()}

    return _sharded(change)


def _twice(index: dict[str, Any], folder: Path) -> None:
    shared = load_file(folder / "one.safetensors")
    save_file(load_file(folder / "two.safetensors") | dict([shared.popitem()]), folder / "two.safetensors")


def _replaced(name: str, by: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        by(folder / name)

    return damage


def _cut(name: str, size: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def _link_out(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_bytes(b"{}")
    path.symlink_to(outside)


def _sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


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


def _tokenizer(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        whole = json.loads(path.read_text("utf-8"))
        change(whole)
        path.write_text(re.sub(r'"RAW([^"]*)"', r"\1", json.dumps(whole)), "utf-8")

    return damage


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

_EVERY_JSON = ("config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json")
_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoFeatureExtractor", "AutoProcessor")
_AUTO_MAP = dict.fromkeys(_CLASSES, "modeling_payload.Payload")


def _all(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


# Case -> (what is done to a folder of this project's format, what the message names).
REFUSED: dict[str, tuple[Damage, str]] = {
    "config is a list": (_text("config.json", "[]"), "config.json"),
    "config is empty": (_text("config.json", ""), "config.json"),
    "config nests deeply": (_text("config.json", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "config.json.*deep"),
    "config nests a little too deeply": (
        _text("config.json", '{"a":' + "[" * 60 + "]" * 60 + "}"),
        "config.json.*deep",
    ),
    "config with a huge number": (_json("config.json", lora_rank="RAW" + "9" * 5000), "config.json"),
    "config with an infinite number": (_json("config.json", lora_alpha="RAW1e999"), "config.json"),
    "config with NaN": (_json("config.json", lora_alpha="RAWNaN"), "config.json"),
    "config with a name twice": (
        _text("config.json", '{"model_type": "blsp_emo", "model_type": "qwen"}'),
        "config.json",
    ),
    "config in UTF-16": (_text("config.json", '{"model_type": "blsp_emo"}'.encode("utf-16")), "config.json"),
    "config of 5 MB": (_text("config.json", '{"a": "' + "x" * 5_000_000 + '"}'), "config.json"),
    "config outside": (_replaced("config.json", _link_out), "config.json"),
    "config that is a folder": (_replaced("config.json", Path.mkdir), "config.json"),
    "config that is a pipe": (_replaced("config.json", os.mkfifo), "config.json"),
    "config without end": (_replaced("config.json", lambda path: path.symlink_to("/dev/zero")), "config.json"),
    "config that is a link to itself": (_replaced("config.json", lambda path: path.symlink_to(path)), "config.json"),
    "vocabulary of a trillion": (_json("config.json", text_config__vocab_size=10**12), "vocab_size"),
    "vocabulary beyond the file": (_json("config.json", text_config__vocab_size=4_000_000), "embed_tokens"),
    "billion layers": (_json("config.json", text_config__num_hidden_layers=10**9), "num_hidden_layers"),
    "200 layers": (_json("config.json", text_config__num_hidden_layers=200), "num_hidden_layers"),
    "four layers": (_json("config.json", text_config__num_hidden_layers=4), r"layers\.3"),
    "billion encoder layers": (_json("config.json", speech_config__encoder_layers=10**9), "encoder_layers"),
    "no width": (_json("config.json", text_config__hidden_size=0), "hidden_size"),
    "negative width": (_json("config.json", speech_config__d_model=-32), "d_model"),
    "width as text": (_json("config.json", text_config__hidden_size="48"), "hidden_size"),
    "width as a list": (_json("config.json", speech_config__d_model=[32]), "d_model"),
    "true layers": (_json("config.json", text_config__num_hidden_layers=True), "num_hidden_layers"),
    "no heads": (_json("config.json", text_config__num_attention_heads=0), "num_attention_heads"),
    "heads that do not divide": (_json("config.json", speech_config__encoder_attention_heads=7), "config.json|d_model"),
    "endless positions": (_json("config.json", speech_config__max_source_positions=10**12), "max_source_positions"),
    "billion labels": (_json("config.json", text_config__num_labels=10**9), "num_labels"),
    "another language model": (_json("config.json", text_config__model_type="mamba2"), "model_type"),
    "language model that is a path": (_json("config.json", text_config__model_type="../payload"), "model_type"),
    "no language model": (_json("config.json", text_config=None), "text_config"),
    "encoder as a list": (_json("config.json", speech_config=[1]), "speech_config"),
    "activation that is none": (_json("config.json", text_config__hidden_act="payload"), "config.json"),
    "dtype that is a module": (_json("config.json", dtype="os"), "dtype"),
    "rotary settings as text": (_json("config.json", text_config__rope_parameters="os.system"), "config.json"),
    "kernel sizes as text": (_json("config.json", adapter_kernel_sizes="5;rm"), "config.json"),
    "even kernel sizes": (_json("config.json", adapter_kernel_sizes=[4, 4]), "adapter_kernel_sizes"),
    "huge kernel size": (_json("config.json", adapter_kernel_sizes=[10**9 + 1]), "adapter_kernel_sizes"),
    "negative kernel size": (_json("config.json", adapter_kernel_sizes=[-5]), "adapter_kernel_sizes"),
    "LoRA of no rank": (_json("config.json", lora_rank=-1), "lora_rank"),
    "LoRA of huge rank": (_json("config.json", lora_rank=10**9), "lora_rank"),
    "LoRA of another rank": (_json("config.json", lora_rank=16), "lora_a"),
    "LoRA everywhere": (_json("config.json", lora_targets=["lm_head", "__class__"]), "lora_targets"),
    "LoRA scope that is none": (_json("config.json", lora_scope="payload"), "config.json"),
    "frames of no length": (_json("config.json", emotion_frame_group=0), "emotion_frame_group"),
    "layers beyond the encoder": (_json("config.json", emotion_layers=[99]), "emotion_layers"),
    "template that pads": (_json("config.json", tone_template="{words:>9999999999}"), "tone_template"),
    "template that digs": (_json("config.json", tone_template="{words.__class__.__init__}"), "tone_template"),
    "examples that are none": (_json("config.json", examples=[["a"]]), "examples"),
    "kind as a list": (_json("config.json", model_type=["blsp_emo"]), "tiny"),
    "quantised by others": (_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
    "said to be quantised": (
        _json("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantised",
    ),
    "header of 2**60 bytes": (_header(length=2**60), "model.safetensors"),
    "header beyond the file": (_header(length=10**7), "model.safetensors"),
    "header in which a byte is missing": (_header(length=100), "model.safetensors"),
    "2**50 elements": (_header(lambda h: _first(h).update(shape=[2**25, 2**25])), "model.safetensors"),
    "elements beyond 64 bit": (_header(lambda h: _first(h).update(shape=[2**62, 2**62])), "model.safetensors"),
    "negative shape": (_header(lambda h: _first(h).update(shape=[-1, -4])), "model.safetensors"),
    "shape as text": (_header(lambda h: _first(h).update(shape="4,4")), "model.safetensors"),
    "no such type": (_header(lambda h: _first(h).update(dtype="STR")), "model.safetensors"),
    "overlapping tensors": (
        _header(
            lambda h: [
                e.update(data_offsets=[0, e["data_offsets"][1] - e["data_offsets"][0]])
                for e in h.values()
                if "shape" in e
            ]
        ),
        "overlap",
    ),
    "tensor beyond the file": (
        _header(lambda h: _first(h).update(data_offsets=[n + 2**40 for n in _first(h)["data_offsets"]])),
        "model.safetensors",
    ),
    "bytes that belong to nothing": (_header(tail=b"\0" * 4096), "model.safetensors"),
    "header with a name twice": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            struct.pack("<Q", 130)
            + b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(130)
            + b"\0"
        ),
        "model.safetensors",
    ),
    "weights cut short": (_cut("model.safetensors", 5000), "model.safetensors"),
    "weights empty": (_cut("model.safetensors", 0), "model.safetensors"),
    "weights of seven bytes": (_cut("model.safetensors", 7), "model.safetensors"),
    "weights of 2 TB of nothing": (_replaced("model.safetensors", _sparse(2**41)), "model.safetensors"),
    "weights that are a zip": (_text("model.safetensors", b"PK\x03\x04" + b"\0" * 100), "model.safetensors"),
    "weights outside": (_replaced("model.safetensors", _link_out), "model.safetensors"),
    "weights that are a folder": (_replaced("model.safetensors", Path.mkdir), "model.safetensors"),
    "weights that are a pipe": (_replaced("model.safetensors", os.mkfifo), "model.safetensors"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "weights as pickles": (
        lambda folder: (
            torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
            or (folder / "model.safetensors").unlink()
        ),
        "pickle",
    ),
    "tensor missing": (_weights(lambda w: w.pop("adapter.norm.weight")), "adapter.norm.weight"),
    "tensor of another shape": (
        _weights(lambda w: w.update({"adapter.norm.weight": torch.ones(7)})),
        "adapter.norm.weight",
    ),
    "tensor of one number": (
        _weights(lambda w: w.update({"adapter.norm.weight": torch.tensor(1.0)})),
        "adapter.norm.weight",
    ),
    "NaN weight": (_weights(lambda w: w["adapter.fc1.weight"].view(-1)[3].fill_(float("nan"))), "adapter.fc1.weight"),
    "infinite weight": (_weights(lambda w: w["encoder.conv1.bias"][0].fill_(-float("inf"))), "encoder.conv1.bias"),
    "NaN in a buffer": (_weights(lambda w: w["emotion_head.centre"].fill_(float("nan"))), "emotion_head.centre"),
    "names that steer a terminal": (
        _sharded(lambda i, _: i["weight_map"].update({"\x1b[2J\x07\npayload": "one.safetensors"})),
        "index.json.*payload|index.json says",
    ),
    "shards elsewhere": (_points_to("{outside}/elsewhere.safetensors"), "index.json"),
    "shards above": (_points_to("../elsewhere.safetensors"), "index.json"),
    "shards below": (_points_to("sub/one.safetensors"), "index.json"),
    "shard that is a system file": (_points_to("/etc/passwd"), "index.json"),
    "shard that is missing": (_points_to("three.safetensors"), "three.safetensors"),
    "shard that is a pickle": (_points_to("pytorch_model.bin"), "index.json"),
    "tensor in two shards": (_sharded(_twice), "one.safetensors.*two.safetensors"),
    "tensor that no shard has": (_sharded(lambda i, _: i["weight_map"].update(payload="one.safetensors")), "payload"),
    "index without a map": (_sharded(lambda i, _: i.update(weight_map=[])), "index.json"),
    "index of numbers": (_sharded(lambda i, _: i.update(weight_map={"a": 5})), "index.json"),
    "index that nests": (
        _all(_sharded(lambda *_: None), _text("model.safetensors.index.json", "[" * 50_000)),
        "index.json",
    ),
    "adapter from the hub": (
        _json("adapter_config.json", base_model_name_or_path="payload/payload"),
        "adapter_config.json",
    ),
    "shards of another loader": (_text("shard-00000-model-00001-of-00001.safetensors", b"\0" * 16), "shard-00000"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer that is a pickle": (_text("tokenizer.json", pickle.dumps({"a": 1})), "tokenizer.json"),
    "tokenizer of nothing": (_text("tokenizer.json", "{}"), "tokenizer.json"),
    "token that is a number": (_json("tokenizer_config.json", eos_token=5), "tokenizer.json"),
    "template as a list": (
        _all(lambda f: (f / "chat_template.jinja").unlink(), _json("tokenizer_config.json", chat_template=[1])),
        "chat_template",
    ),
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "chat_template"),
    "template outside": (_replaced("chat_template.jinja", _link_out), "chat_template"),
    "template not UTF-8": (_text("chat_template.jinja", b"\xff\xfe{{"), "chat_template"),
    "endless reply": (_json("generation_config.json", max_new_tokens=10**12), "max_new_tokens"),
    "reply of no length": (_json("generation_config.json", max_new_tokens=-1), "max_new_tokens"),
    "end as text": (_json("generation_config.json", eos_token_id="<|im_end|>"), "eos_token_id"),
    "many ends": (_json("generation_config.json", eos_token_id=list(range(100_000))), "eos_token_id"),
    "no temperature": (_json("generation_config.json", do_sample=True, temperature=0), "temperature"),
    "sampling as text": (_json("generation_config.json", do_sample="yes"), "do_sample"),
    "penalty of nothing": (_json("generation_config.json", repetition_penalty=0.0), "repetition_penalty"),
    "generation settings cut short": (_cut("generation_config.json", 9), "generation_config.json"),
    "features of a trillion bins": (_json("preprocessor_config.json", feature_size=10**12), "feature_size"),
    "endless window": (_json("preprocessor_config.json", chunk_length=10**9), "chunk_length"),
    "huge transform": (_json("preprocessor_config.json", n_fft=2**16), "n_fft"),
    "another rate": (_json("preprocessor_config.json", sampling_rate=1), "sampling_rate"),
    **{f"tokenizer: {name}": (_tokenizer(change), "tokenizer.json") for name, change in _TOKENIZER.items()},
    **{f"template: {name}": (_text("chat_template.jinja", text), "template") for name, text in _TEMPLATES.items()},
}

# Case -> what is done; the folder loads and answers as if it had not been.
HARMLESS: dict[str, Damage] = {
    "auto_map everywhere": _with_code(_all(*(_json(name, auto_map=_AUTO_MAP) for name in _EVERY_JSON))),
    "auto_map within": _with_code(
        _json("config.json", text_config__auto_map=_AUTO_MAP, speech_config__auto_map=_AUTO_MAP)
    ),
    "trusting itself": _with_code(_json("config.json", trust_remote_code=True, auto_map=_AUTO_MAP)),
    "pipelines": _with_code(_json("config.json", custom_pipelines={"payload": {"impl": "payload.Payload"}})),
    "attention from the hub": _json(
        "config.json", _attn_implementation="payload/payload", attn_implementation="payload/x"
    ),
    "attention from the hub, inside": _json("config.json", _attn_implementation_internal="payload/payload:payload"),
    "attention within": _all(
        _json("config.json", text_config__attn_implementation="payload/payload:payload"),
        _json("config.json", speech_config__attn_implementation="payload/payload"),
    ),
    "experts from the hub": _json(
        "config.json", _experts_implementation_internal="payload/payload", kernel_config={"a": "b/c"}
    ),
    "another config file": _all(
        _json("config.json", configuration_files=["config.99.0.0.json", "config.4.0.0.json"]),
        _text("config.4.0.0.json", '{"model_type": "payload"}'),
    ),
    "other weights": _json("config.json", transformers_weights="../elsewhere.safetensors"),
    "another name": _json("config.json", _name_or_path="/etc/passwd", name_or_path="payload/payload"),
    "fused by others": _json(
        "config.json", fusion_config={"payload": True}, text_config__per_layer_config={"0": {"a": 1}}
    ),
    "architecture by name": _json("config.json", architectures=["os.system"], model_class="payload"),
    "tokenizer class": _with_code(
        _json("tokenizer_config.json", tokenizer_class="PayloadTokenizer", auto_map=_AUTO_MAP)
    ),
    "slow tokenizer class": _json("tokenizer_config.json", tokenizer_class="LlamaTokenizer", vocab_file="/etc/passwd"),
    "other tokenizer files": _json(
        "tokenizer_config.json", fast_tokenizer_files=["../payload.json"], tokenizer_file="/etc/passwd"
    ),
    "tokenizer that pads": _tokenizer(
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
    "processor": _with_code(_json("processor_config.json", auto_map=_AUTO_MAP, processor_class="Payload")),
    "extractor class": _with_code(
        _json("preprocessor_config.json", feature_extractor_type="Payload", auto_map=_AUTO_MAP)
    ),
    "generation code": _with_code(
        _json("generation_config.json", custom_generate="payload/payload", assistant_model="payload")
    ),
    "generation extras": _json("generation_config.json", max_length=10**12, num_beams=10**9, stop_strings=["a"] * 1000),
    "pickles beside": lambda f: [
        _pickled(f, name) for name in ("optimizer.pt", "training_args.bin", "tokenizer.pkl", "pytorch_model.bin")
    ],
    "distributed metadata beside": lambda f: _pickled(f, ".metadata"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_folder_is_refused(case: str, own: Path, watched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, names = REFUSED[case]
    folder = watched / "tiny"
    shutil.copytree(own, folder)
    damage(folder)
    message = _loading_fails(folder)
    assert _is_clear(message, names), message
    message = _converting_fails(folder, capsys)
    assert _is_clear(message, "json|tensors|tiny"), message


@pytest.mark.parametrize("case", HARMLESS)
def test_what_a_folder_asks_for_is_not_heeded(
    case: str, own: Path, watched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = watched / "tiny"
    shutil.copytree(own, folder)
    HARMLESS[case](folder)
    loaded = _load(folder)
    expected = list(Engine(tiny_checkpoint()).reply([], Typed("hello there")))
    assert list(Engine(loaded).reply([], Typed("hello there"))) == expected
    assert _is_clear(_converting_fails(folder, capsys), "json|tensors|tiny")


# ---- the original's format


class _Runs:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def _command(folder: Path) -> str:
    return f"touch {folder.parent / 'canary'}"


def _pickled(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(_Runs(os.system, _command(folder))))


BIN = "pytorch_model.bin"


def _saved(change: Callable[[dict[str, Any], Path], object], *, old: bool = False) -> Damage:
    """The state dict of the .bin file changed and saved again."""

    def damage(folder: Path) -> None:
        state = dict(torch.load(folder / BIN, weights_only=True))
        whole = change(state, folder)
        torch.save(state if whole is None else whole, folder / BIN, _use_new_zipfile_serialization=not old)

    return damage


def _archive(described: bytes, *, method: int = zipfile.ZIP_STORED, extra: dict[str, bytes] | None = None) -> Damage:
    """A .bin file whose description is the pickle `described`, with one storage of 16 numbers."""

    def damage(folder: Path) -> None:
        entries = {"data.pkl": described, "byteorder": b"little", "data/0": b"\0" * 64, "version": b"3\n"} | (
            extra or {}
        )
        with zipfile.ZipFile(folder / BIN, "w", method) as archive:
            for name, data in entries.items():
                archive.writestr(f"archive/{name}", data)

    return damage


def _text_op(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


_STORAGE = b"(" + _text_op("storage") + b"ctorch\nFloatStorage\n" + _text_op("0") + _text_op("cpu") + b"K\x10tQ"
_SIZE_40 = b"(J\x00\x00\x00\x40J\x00\x00\x10\x00t"  # 2**30 x 2**20 numbers
_WIDE = _call(
    "torch._utils",
    "_rebuild_tensor_v2",
    _STORAGE,
    b"K\x00",
    _SIZE_40,
    b"(K\x00K\x00t",
    b"\x89",
    _call("collections", "OrderedDict"),
)
_HASHED = b"K\x01" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(1, 70))


def _state(value: bytes, key: bytes = _text_op("a")) -> bytes:
    return b"\x80\x02}" + key + value + b"s."


def _tar(folder: Path) -> None:
    with tarfile.open(folder / BIN, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(_Runs(os.system, _command(folder)))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _quantised(weight: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


def _nan(state: dict[str, Any], _: Path) -> None:
    state["adapter.fc1.weight"].view(-1)[0] = float("nan")


def _wte(make: Callable[[torch.Tensor], object]) -> Callable[[dict[str, Any], Path], None]:
    def change(state: dict[str, Any], _: Path) -> None:
        name = next(name for name in state if name.endswith("wte.weight"))
        state[name] = make(state[name])

    return change


def _index(change: Callable[[dict[str, Any], Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        state = torch.load(folder / BIN, weights_only=True)
        (folder / BIN).rename(folder / "pytorch_model-00001-of-00001.bin")
        index = {"metadata": {}, "weight_map": dict.fromkeys(state, "pytorch_model-00001-of-00001.bin")}
        change(index, folder)
        (folder / f"{BIN}.index.json").write_text(json.dumps(index))

    return damage


def _everywhere(place: str) -> Damage:
    return _index(
        lambda index, folder: index.update(
            weight_map=dict.fromkeys(index["weight_map"], place.format(outside=folder.parent))
        )
    )


# Case -> (what is done to a folder of the original's format, what the message names).
ORIGINAL: dict[str, tuple[Damage, str]] = {
    "pickle that calls os.system": (_saved(lambda s, f: s.update(payload=_Runs(os.system, _command(f)))), BIN),
    "pickle that evaluates": (_saved(lambda s, f: s.update(payload=_Runs(eval, "open('canary', 'w')"))), BIN),
    "pickle that executes": (_saved(lambda s, f: _Runs(exec, "open('canary', 'w')")), BIN),
    "old pickle that calls os.system": (
        _saved(lambda s, f: s.update(payload=_Runs(os.system, _command(f))), old=True),
        BIN,
    ),
    "bare pickle": (lambda folder: _pickled(folder, BIN), BIN),
    "tar with pickles": (_tar, BIN),
    "TorchScript": (
        _archive(_state(b"K\x01"), extra={"constants.pkl": b"\x80\x02).", "code/payload.py": b"payload"}),
        BIN,
    ),
    "pickle that imports by getattr": (
        _archive(_state(_call("builtins", "getattr", b"cos\npath\n", _text_op("system")))),
        BIN,
    ),
    "pickle that decodes a codec": (_archive(_state(_call("_codecs", "encode", _text_op("a"), _text_op("zip")))), BIN),
    "pickle that reserves a terabyte": (
        _archive(_state(_call("builtins", "bytearray", b"\x8a\x06" + (2**40).to_bytes(6, "little")))),
        BIN,
    ),
    "tuples whose hash takes for ever": (_archive(_state(b"K\x01", key=_HASHED)), BIN),
    "old pickle with a text of 2**60 letters": (
        _text(BIN, untrusted._LEGACY_START + b"\x80\x02\x8d" + struct.pack("<Q", 2**60)),
        BIN,
    ),
    "pickle without end": (_archive(b"\x80\x02}" + b"]q\x01" * 1000), BIN),
    "nested marks": (_archive(b"\x80\x02" + b"(" * 20_000 + b"t" * 20_000 + b"."), BIN),
    "tensor beyond its storage": (_archive(_state(_WIDE)), BIN),
    "zip bomb": (_archive(_state(_WIDE) + b"\0" * 200_000_000, method=zipfile.ZIP_DEFLATED), BIN),
    "compressed weights": (_archive(_state(b"K\x01"), method=zipfile.ZIP_DEFLATED), BIN),
    "two descriptions": (_archive(_state(b"K\x01"), extra={"x/../data.pkl": b"", "constants.pkl": b""}), BIN),
    "zip of nothing": (lambda folder: zipfile.ZipFile(folder / BIN, "w").close(), BIN),
    "state that is a list": (_saved(lambda s, _: list(s.values())), BIN),
    "state with numbers for names": (_saved(lambda s, _: s.update({5: torch.ones(1)})), BIN),
    "state with text": (_saved(lambda s, _: s.update(payload="text")), BIN),
    "state within a state": (_saved(lambda s, _: {"model": s}), BIN),
    "sparse weight": (_saved(_wte(lambda t: t.to_sparse())), BIN),
    "quantised weight": (_saved(_wte(_quantised)), BIN),
    "weight that is nowhere": (_saved(_wte(lambda t: t.to("meta"))), BIN),
    "complex weight": (_saved(_wte(lambda t: t.to(torch.complex64))), BIN),
    "whole-number weight": (_saved(_wte(lambda t: t.to(torch.int32))), "wte"),
    "expanded weight": (_saved(_wte(lambda t: torch.zeros(1).expand(2**20, 2**10))), BIN),
    "weight of another shape": (_saved(_wte(lambda t: t[:-1].clone())), "wte"),
    "weight of no size": (_saved(_wte(lambda t: t[:0].clone())), "wte"),
    "unknown weight": (_saved(lambda s, _: s.update({"payload.weight": torch.ones(2)})), "payload.weight"),
    "missing weight": (_saved(lambda s, _: s.pop("adapter.fc1.weight") is not s and None), "adapter.fc1.weight"),
    "NaN weight": (_saved(_nan), "adapter.fc1.weight"),
    "weights cut short": (_cut(BIN, 20_000), BIN),
    "weights cut by a byte": (lambda folder: _cut(BIN, (folder / BIN).stat().st_size - 1)(folder), BIN),
    "weights empty": (_cut(BIN, 0), BIN),
    "weights outside": (_replaced(BIN, _link_out), BIN),
    "weights that are a pipe": (_replaced(BIN, os.mkfifo), BIN),
    "weights that are a folder": (_replaced(BIN, Path.mkdir), BIN),
    "weights of 2 TB of nothing": (_replaced(BIN, _sparse(2**41)), BIN),
    "shards elsewhere": (_everywhere("{outside}/elsewhere.bin"), "index.json"),
    "shards above": (_everywhere("../original/pytorch_model-00001-of-00001.bin"), "index.json"),
    "shard that is missing": (_everywhere("pytorch_model-00002-of-00002.bin"), "00002-of-00002"),
    "shard of another kind": (_everywhere("model.safetensors"), "index.json"),
    "vocabulary of a trillion": (_json("config.json", qwen_config__vocab_size=10**12), "vocab_size"),
    "vocabulary beyond the file": (_json("config.json", qwen_config__vocab_size=4_000_000), "wte"),
    "billion layers": (_json("config.json", qwen_config__num_hidden_layers=10**9), "num_hidden_layers"),
    "200 layers": (_json("config.json", qwen_config__num_hidden_layers=200), "missing"),
    "negative layers": (_json("config.json", whisper_config__encoder_layers=-2), "encoder_layers"),
    "no heads": (_json("config.json", whisper_config__encoder_attention_heads=0), "encoder_attention_heads"),
    "kernel sizes with a command": (_json("config.json", conv_kernel_sizes="5;rm -rf /"), "conv_kernel_sizes"),
    "kernel sizes below zero": (_json("config.json", conv_kernel_sizes="5,-5"), "conv_kernel_sizes"),
    "endless kernel sizes": (_json("config.json", conv_kernel_sizes="5," * 100_000 + "5"), "conv_kernel_sizes"),
    "adapter that is a path": (_json("config.json", adapter_type="../payload"), "adapter_type"),
    "LoRA as a list": (_json("config.json", lora_config=[1]), "lora_config"),
    "LoRA of no rank": (
        _json("config.json", lora_config={"r": 0, "target_modules": ["c_attn"], "lora_alpha": 16}),
        "lora_config|r = ",
    ),
    "LoRA of huge rank": (
        _json("config.json", lora_config={"r": 10**9, "target_modules": ["c_attn"]}),
        "lora_config|r = ",
    ),
    "LoRA scope that is none": (_json("config.json", lora_scope={"a": 1}), "lora_scope"),
    "no encoder": (_json("config.json", whisper_config=None), "whisper_config"),
    "base of the rotation is text": (_json("config.json", qwen_config__rotary_emb_base="os"), "rotary_emb_base"),
    "config nests deeply": (_text("config.json", "[" * 100_000), "config.json"),
    "vocabulary that is a pickle": (lambda folder: _pickled(folder, "qwen.tiktoken"), "qwen.tiktoken"),
    "vocabulary cut short": (_cut("qwen.tiktoken", 100), "qwen.tiktoken"),
    "vocabulary with a huge rank": (_text("qwen.tiktoken", "YQ== " + "9" * 5000), "qwen.tiktoken"),
    "vocabulary that is a pipe": (_replaced("qwen.tiktoken", os.mkfifo), "qwen.tiktoken"),
    "vocabulary outside": (_replaced("qwen.tiktoken", _link_out), "qwen.tiktoken"),
    "length as text": (_json("generation_config.json", max_new_tokens="payload"), "max_new_tokens"),
}

# Case -> what is done; the folder converts to the same as if it had not been.
IGNORED: dict[str, Damage] = {
    "auto_map everywhere": _with_code(_all(*(_json(name, auto_map=_AUTO_MAP) for name in _EVERY_JSON))),
    "auto_map within": _with_code(
        _json("config.json", qwen_config__auto_map=_AUTO_MAP, whisper_config__auto_map=_AUTO_MAP)
    ),
    "attention from the hub": _all(
        _json("config.json", _attn_implementation="payload/payload", _attn_implementation_internal="payload/payload"),
        _json("config.json", qwen_config__attn_implementation="payload/payload:payload"),
    ),
    "pickles beside": lambda f: [_pickled(f, name) for name in ("optimizer.pt", "training_args.bin", "rng_state.pth")],
    "tokenizer class": _with_code(_json("tokenizer_config.json", tokenizer_class="payload", auto_map=_AUTO_MAP)),
    "generation code": _with_code(_json("generation_config.json", custom_generate="payload/payload")),
    "a name for the tokenizer's file": _json(
        "tokenizer_config.json", vocab_file="/etc/passwd", merges_file="../payload"
    ),
}


@pytest.mark.parametrize("case", ORIGINAL)
def test_a_hostile_original_is_refused(case: str, watched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, names = ORIGINAL[case]
    folder = watched / "original"
    shutil.copytree(GOLDENS / "a", folder)
    damage(folder)
    message = _converting_fails(folder, capsys)
    assert _is_clear(message, names), message
    assert _is_clear(_loading_fails(folder), "convert it first|config.json")


@pytest.mark.parametrize("case", IGNORED)
def test_what_an_original_asks_for_is_not_heeded(case: str, watched: Path) -> None:
    folder, plain, target = watched / "original", watched / "plain", watched / "converted"
    shutil.copytree(GOLDENS / "a", folder)
    IGNORED[case](folder)
    with _WATCH:
        assert convert.main([str(GOLDENS / "a"), str(plain)]) == convert.main([str(folder), str(target)]) == 0
    assert {path.name for path in plain.iterdir()} == {path.name for path in target.iterdir()}
    for path in plain.iterdir():
        assert path.read_bytes() == (target / path.name).read_bytes(), path.name


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4", "nf4-all"])
def test_weights_that_are_no_numbers_are_named_in_every_precision(quantize: str, own: Path, tmp_path: Path) -> None:
    folder, name = tmp_path / "tiny", "language_model.model.layers.1.mlp.up_proj.base.weight"
    shutil.copytree(own, folder)
    _weights(lambda tensors: tensors[name].view(-1)[7].fill_(float("nan")))(folder)
    with pytest.raises(ModelError, match=re.escape(name)):
        checkpoint.load(str(folder), device="cpu", quantize=quantize, threads=1)


def test_there_are_more_than_fifty_of_each() -> None:
    assert len(REFUSED) + len(HARMLESS) >= 50
    assert len(ORIGINAL) + len(IGNORED) >= 50
