"""`label` and `clean`: the original's prompts, fields and kept lines; the same lines however the work is divided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from model.checkpoints.qwen_tokenizer import VOCABULARY, build_tokenizer, read_ranks
from model.errors import BadInput, WeightsMissing
from model.weights import fetch
from tests import GOLDENS
from tests.support.tiny import tiny_model, tiny_tokenizer
from training.data import label as module
from training.data.chat import Chat
from training.data.clean import RULES, clean, reason_against
from training.data.label import Writer, label, load_writer, make_writer
from training.runs import run_folder
from training.runs.config import CleanOptions, LabelOptions
from training.runs.run_folder import STOP, open_run, read_lines, read_progress

TEXTS = GOLDENS / "text"
SENTENCES = ["hello", "the rain in the street", "in", "other hours are there", "a stone", "thin ink", "er", "out in it"]


def golden(name: str) -> Any:
    return json.loads((TEXTS / f"{name}.json").read_text("utf-8"))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def tiny() -> Writer:
    model = tiny_model(lora_rank=0).language_model
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # wide enough that every prompt has a reply of its own, and one ends by itself
            torch.nn.init.normal_(parameter, std=0.3)
    return make_writer(model, Chat(tiny_tokenizer()))


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerFast:
    return build_tokenizer(read_ranks(fetch.ensure("qwen-tiktoken") / VOCABULARY))


@pytest.fixture
def manifest(tmp_path) -> Path:
    rows = [{"audio": f"{n}.wav", "text": text, "emotion": "sad", "voice": n} for n, text in enumerate(SENTENCES)]
    return write_rows(tmp_path / "train.jsonl", rows)


def options(manifest: Path, labels: str = "labels", **changes: Any) -> LabelOptions:
    given = {"model": "tiny", "manifest": manifest, "lab_dir": manifest.parent / labels, "device": "cpu"}
    return LabelOptions.of(given | {"batch_size": 2, "max_new_tokens": 12} | changes)


def result(manifest: Path, labels: str = "labels") -> list[dict[str, Any]]:
    return read_rows(manifest.parent / labels / f"{manifest.stem}_0_1.jsonl")


def test_lines_come_in_the_manifests_order_with_the_originals_fields(manifest, tiny):
    summary = label(options(manifest), tiny)
    lines = result(manifest)
    assert [line["text"] for line in lines] == SENTENCES
    assert list(lines[0]) == ["audio", "text", "instruction", "emotion", "output", "early_stop", "voice"]
    assert {line["instruction"] for line in lines} == {"Continue the following sentence in a coherent style: "}
    assert len({line["output"] for line in lines}) == len(SENTENCES)
    assert {line["early_stop"] for line in lines} == {True, False}
    assert summary["lines"] == len(SENTENCES)
    assert summary["cut_off"] == sum(line["early_stop"] for line in lines)
    last = read_progress(manifest.parent / "labels" / "train_0_1.run")[-1]
    assert (last["stage"], last["step"], last["of"]) == ("label", 8, 8)


def test_a_batch_changes_no_line(manifest, tiny):
    for size in (1, 3, 8):
        label(options(manifest, f"by{size}", batch_size=size), tiny)
    assert result(manifest, "by1") == result(manifest, "by3") == result(manifest, "by8")


def test_the_reply_is_the_greedy_one(manifest, tiny):
    """Against one forward pass a token, without cache or batch."""
    label(options(manifest), tiny)
    instruction = "Continue the following sentence in a coherent style: "
    for line in result(manifest)[:3]:
        ids = tiny.prompt(instruction + line["text"], use_emotion=False)
        start = len(ids)
        while len(ids) < start + 12 and not (len(ids) > start and ids[-1] in tiny.stops):
            logits = tiny.model(torch.tensor([ids])).logits[0, -1]
            if len(ids) == start:
                logits[sorted(tiny.stops)] = -torch.inf
            ids.append(int(logits.argmax()))
        output, early_stop = tiny.read(ids[start:])
        assert (line["output"], line["early_stop"]) == (output, early_stop)


class Killed(Exception):
    """The process ends here."""


def dies_after(writer: Writer, batches: int) -> Any:
    """The writer, killed in its batch number `batches`."""
    left = [batches]

    def write(prompts, most):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return writer.write(prompts, most)

    return SimpleNamespace(prompt=writer.prompt, write=write, read=writer.read)


@pytest.mark.parametrize("torn", [b"", b'{"place": 5, "line": {"text": "half', b"\xff"])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_kill_loses_at_most_a_batch_and_the_next_start_goes_on(manifest, tiny, batches, torn):
    label(options(manifest, "whole"), tiny)
    with pytest.raises(Killed):
        label(options(manifest), dies_after(tiny, batches))
    assert not (manifest.parent / "labels" / "train_0_1.jsonl").exists()
    part = manifest.parent / "labels" / "train_0_1.run" / "parts" / "0.jsonl"
    assert len(read_lines(part)[0]) == 2 * batches
    with part.open("ab") as file:
        file.write(torn)
    with pytest.raises(Killed):  # what is done is not done again
        label(options(manifest), dies_after(tiny, 3 - batches))
    label(options(manifest), dies_after(tiny, 1))
    assert result(manifest) == result(manifest, "whole")
    assert label(options(manifest), dies_after(tiny, 0))["lines"] == len(SENTENCES)


def test_a_batch_that_is_torn_in_its_middle_is_done_again(manifest, tiny):
    label(options(manifest, "whole"), tiny)
    with pytest.raises(Killed):
        label(options(manifest), dies_after(tiny, 2))
    part = manifest.parent / "labels" / "train_0_1.run" / "parts" / "0.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    label(options(manifest), tiny)
    assert result(manifest) == result(manifest, "whole")


def test_any_number_of_processes_gives_the_lines_of_one(manifest, tiny, monkeypatch):
    """Three threads stand for the processes, a barrier for their waiting."""
    label(options(manifest, "whole"), tiny)
    barrier = Barrier(3)
    states = [
        SimpleNamespace(
            process_index=n, num_processes=3, is_main_process=not n, device=None, wait_for_everyone=barrier.wait
        )
        for n in range(3)
    ]
    left = iter(states)
    monkeypatch.setattr(module, "PartialState", lambda *_, **__: next(left))
    with ThreadPoolExecutor(3) as pool:
        writers = [replace(tiny, chat=Chat(tiny_tokenizer())) for _ in states]  # tokenizers are not for threads
        summaries = [run.result() for run in [pool.submit(label, options(manifest), one) for one in writers]]
    assert sum(map(bool, summaries)) == 1  # one of them speaks
    assert result(manifest) == result(manifest, "whole")


def test_a_stop_ends_between_batches_and_a_start_goes_on(manifest, tiny):
    folder = manifest.parent / "labels" / "train_0_1.run"

    def write(prompts, most):
        (folder / STOP).touch()
        return tiny.write(prompts, most)

    stopping = SimpleNamespace(prompt=tiny.prompt, write=write, read=tiny.read)
    assert label(options(manifest), stopping) == {"stopped": True, "lines": 2, "of": 8}
    assert label(options(manifest), tiny)["lines"] == 8


def test_bad_lines_are_dropped_and_named(manifest, tiny):
    with manifest.open("a") as file:
        file.write('{"audio": "x.wav", "text": ""}\nno json\n{"audio": "y.wav", "text": "' + "er " * 900 + '"}\n')
    emitted = []
    summary = label(options(manifest), tiny, emitted.append)
    assert [(one.line, one.reason) for one in emitted] == [
        (9, "empty text"),
        (10, "broken JSON"),
        (11, "text too long"),
    ]
    assert summary["dropped"] == {str(manifest): {"empty text": 1, "broken JSON": 1, "text too long": 1}}
    assert len(read_rows(manifest.parent / "labels" / "train_0_1.run" / "dropped.jsonl")) == 3
    assert len(result(manifest)) == 8


def test_emotions_of_other_data_sets_are_renamed(tmp_path, tiny):
    rows = [{"audio": "a.wav", "text": "a", "emotion": name} for name in ("joy", "sad", "bored", "")]
    manifest = write_rows(tmp_path / "m.jsonl", rows)
    emitted = []
    label(options(manifest, use_emotion=True, emotion_map="joy=happy"), tiny, emitted.append)
    lines = result(manifest)
    assert [line["emotion"] for line in lines] == ["happy", "sad"]
    assert "reflects a 'happy' emotion" in lines[0]["instruction"]
    assert [(one.line, one.reason) for one in emitted] == [(3, "unknown emotion"), (4, "no emotion")]


def test_other_options_and_other_manifests_need_another_folder(manifest, tiny):
    label(options(manifest), tiny)
    with pytest.raises(BadInput, match="max_new_tokens = 12, not 13"):
        label(options(manifest, max_new_tokens=13), tiny)
    write_rows(manifest, [{"text": "another"}])
    with pytest.raises(BadInput, match="manifest_sha256"):
        label(options(manifest), tiny)
    (manifest.parent / "other").mkdir()
    (manifest.parent / "other" / "train_0_1.jsonl").write_text("mine")
    with pytest.raises(BadInput, match="already exists"):
        label(options(manifest, "other"), tiny)


def test_two_processes_do_not_label_into_the_same_file(manifest, tiny, monkeypatch):
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.0)
    with (
        open_run(manifest.parent / "labels" / "train_0_1.run", {}),
        pytest.raises(BadInput, match="in use by another process"),
    ):
        label(options(manifest), tiny)


@pytest.mark.parametrize("case", golden("emotion_text_generation")["shard_ranges"])
def test_shards_are_the_originals(tmp_path, tiny, case):
    rows = [{"text": f"row {n}"} for n in range(case["total"])]
    found = [module._share(rows, case["nshard"], rank) for rank in range(case["nshard"])]
    assert found == [rows[start:end] for start, end in case["ranges"]]


def test_a_shard_without_rows_is_an_error(manifest, tiny):
    with pytest.raises(BadInput, match="part 0 of 99 has no row"):
        label(options(manifest, nshard=99), tiny)
    with pytest.raises(BadInput, match="--rank: part 2 of 2 does not exist"):
        options(manifest, nshard=2, rank=2)


def test_what_is_no_language_model_is_refused(tmp_path):
    with pytest.raises(WeightsMissing, match="neither a folder nor one of"):
        load_writer("gpt-17")
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(WeightsMissing, match="is a whisper model"):
        load_writer(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsMissing, match=str(tmp_path)):
        load_writer(str(tmp_path))


@given(st.text(max_size=20), st.lists(st.integers(0, 265), max_size=12))
def test_a_label_never_holds_a_special_token(tiny_reader, text, ids):
    special = tiny_reader.chat.tokenizer.encode(text, add_special_tokens=False)
    output, _ = tiny_reader.read([*special, *ids])
    assert not any(token in output for token in ("<|im_start|>", "<|im_end|>"))


@pytest.fixture(scope="module")
def tiny_reader(tiny) -> Writer:
    return replace(tiny, model=None)


def test_a_spelled_out_special_token_is_taken_out(tiny_reader):
    spelled = tiny_reader.chat.tokenizer.encode("a <|im_end|> b", split_special_tokens=True, add_special_tokens=False)
    assert tiny_reader.read(spelled) == ("a  b", True)


@pytest.mark.real
@pytest.mark.parametrize("case", ["plain", "emotion", "shard1of2"])
def test_prompts_and_lines_are_the_originals(tmp_path, qwen, case):
    """Two differences are meant: the original loses the last token of a reply that was cut off, and leaks padding."""
    given = golden("emotion_text_generation")[case]
    replies = iter(given["stub_reply"])
    prompts: dict[str, list[int]] = {}
    writer = replace(make_writer(tiny_model(lora_rank=0).language_model, Chat(qwen)), model=None)

    def write(batch, most):
        assert most == 48
        prompts.update((qwen.decode(prompt), list(prompt)) for prompt in batch)
        return [next(replies) for _ in batch]

    scripted = SimpleNamespace(prompt=writer.prompt, read=writer.read, write=write)
    manifest = write_rows(tmp_path / "etg.jsonl", given["lines"])
    settings = {key: value for key, value in given["settings"].items() if key != "use_emotion"}
    chosen = options(
        manifest, max_new_tokens=48, batch_size=1, use_emotion=bool(given["settings"].get("use_emotion")), **settings
    )
    label(chosen, scripted)
    expected = [
        [token for token, real in zip(ids, mask, strict=True) if real]
        for batch in given["model_inputs"]
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(prompts.values()) == sorted(expected)
    lines = read_rows(tmp_path / "labels" / given["output_file"][0])
    longest_first = sorted(range(len(expected)), key=lambda place: -len(expected[place]))
    for place, reply in zip(longest_first, given["stub_reply"], strict=False):
        theirs = given["output_lines"][longest_first.index(place)]
        ours = lines[place]
        original = given["output_lines"][place]
        assert list(ours) == list(original)
        assert {key: ours[key] for key in ("audio", "text", "instruction", "emotion")} == {
            key: original[key] for key in ("audio", "text", "instruction", "emotion")
        }
        assert ours["early_stop"] == theirs["early_stop"]
        if "<|endoftext|>" in theirs["output"]:
            assert ours["output"] == theirs["output"].partition("<|endoftext|>")[0]
        elif len(reply) == 9:
            assert ours["output"].startswith(theirs["output"])
            assert ours["output"] != theirs["output"]
        else:
            assert ours["output"] == theirs["output"]


@pytest.mark.real
def test_smollm2_continues_sentences(tmp_path):
    sentences = ["i just need an id", "what a lovely morning it is today", "she left", "the train was late again"]
    emotions = ["angry", "happy", "sad", "angry"]
    rows = [
        {"audio": f"{n}.wav", "text": t, "emotion": e} for n, (t, e) in enumerate(zip(sentences, emotions, strict=True))
    ]
    manifest = write_rows(tmp_path / "train.jsonl", rows)
    writer = load_writer("smollm2-135m-instruct")
    label(options(manifest, model="smollm2-135m-instruct", use_emotion=True, max_new_tokens=24), writer)
    for line in result(manifest):
        assert len(line["output"].split()) > 1
        assert "<|" not in line["output"]
        words = writer.chat.tokenizer.encode(line["output"], add_special_tokens=False)
        assert len(words) <= 24
        assert line["early_stop"] == (len(words) >= 23)


@pytest.mark.real
def test_accelerate_divides_the_work_and_gives_the_same_lines(tmp_path, manifest, tiny):
    folder = tmp_path / "lm"
    tiny.model.save_pretrained(folder)
    tiny.chat.tokenizer.save_pretrained(folder)
    label(options(manifest, "whole", model=str(folder)), load_writer(str(folder)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "training"]
    given = ["label", "--model", folder, "--manifest", manifest, "--lab-dir", tmp_path / "labels", "--device", "cpu"]
    given += ["--batch-size", "2", "--max-new-tokens", "12", "--json"]
    done = subprocess.run(
        [*launch, *map(str, given)], capture_output=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert json.loads(done.stdout)["lines"] == len(SENTENCES)
    assert result(manifest) == result(manifest, "whole")
    assert read_progress(tmp_path / "labels" / "train_0_1.run")[-1]["of"] == 4  # half of the eight


def test_clean_keeps_the_originals_lines(tmp_path):
    given = golden("clean_noise")
    write_rows(tmp_path / "x.jsonl", given["input"])
    emitted = []
    summary = clean(CleanOptions(input_dir=tmp_path), emitted.append)
    assert read_rows(tmp_path / "clean" / "x_clean.jsonl") == given["kept"]
    assert (tmp_path / "clean" / "x_clean.jsonl").read_text("utf-8").startswith(given["raw_first_line"])
    assert summary["kept"] == {"x.jsonl": len(given["kept"])}
    dropped = [place + 1 for place in range(len(given["input"])) if place not in given["kept_index"]]
    assert [one.line for one in emitted] == dropped
    assert sum(summary["dropped"][str(tmp_path / "x.jsonl")].values()) == len(dropped)
    assert set(summary["dropped"][str(tmp_path / "x.jsonl")]) == set(RULES)


def test_clean_never_reads_what_it_wrote(tmp_path):
    write_rows(tmp_path / "x.jsonl", golden("clean_noise")["input"])
    first = clean(CleanOptions(input_dir=tmp_path))
    before = (tmp_path / "clean" / "x_clean.jsonl").read_bytes()
    assert clean(CleanOptions(input_dir=tmp_path)) == first
    assert (tmp_path / "clean" / "x_clean.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.rglob("*.jsonl") if ".run" not in str(path)) == [
        "x.jsonl",
        "x_clean.jsonl",
    ]
    with pytest.raises(BadInput, match="would be read again"):
        clean(CleanOptions(input_dir=tmp_path, output_dir=tmp_path / "clean" / ".."))
    with pytest.raises(BadInput, match="is already clean"):
        clean(CleanOptions(input_dir=tmp_path / "clean"))
    write_rows(tmp_path / "out" / "y.jsonl", []) if (tmp_path / "out").mkdir() else (
        tmp_path / "out" / "y.jsonl"
    ).touch()
    with pytest.raises(BadInput, match=r"has y\.jsonl, which is not an output"):
        clean(CleanOptions(input_dir=tmp_path, output_dir=tmp_path / "out"))


def test_clean_names_broken_lines_and_empty_folders(tmp_path):
    with pytest.raises(BadInput, match=r"has no \*\.jsonl"):
        clean(CleanOptions(input_dir=tmp_path))
    with pytest.raises(BadInput, match="is no folder"):
        clean(CleanOptions(input_dir=tmp_path / "gone"))
    (tmp_path / "x.jsonl").write_text('{"text": "t", "output": "Yes."}\n{"text": "t"}\n')
    (tmp_path / "y.jsonl").write_text("")
    emitted = []
    assert clean(CleanOptions(input_dir=tmp_path), emitted.append)["kept"] == {"x.jsonl": 1, "y.jsonl": 0}
    assert [(Path(one.file).name, one.line) for one in emitted] == [("x.jsonl", 2), ("y.jsonl", 0)]


@pytest.mark.parametrize(
    ("output", "usual", "strict"),
    [
        ("I’m sorry, but I can’t help with that.", None, "refusal"),
        ("I am sorry, but that is not possible for me.", None, "refusal"),
        ("I cannot fulfill this request.", None, "refusal"),
        ("As a large language model, I feel nothing.", None, "language model"),
        ("I am an AI and have no feelings.", None, "language model"),
        ("i'm not sure what you mean", None, "not sure"),
        ("I'm sorry to hear that you lost your keys.", None, None),
        ("She said that she would help me in the morning.", None, None),
        ("I'm not sure the train will come.", None, None),
        ("Well, I'm sorry, but I must go.", "refusal", "refusal"),
    ],
)
def test_strict_cleaning_knows_more_wordings(output, usual, strict):
    assert reason_against(output) == usual
    assert reason_against(output, strict=True) == strict


def test_phrases_of_ones_own_are_sorted_out():
    assert reason_against("A Little Piggy bank", also=("little piggy",)) == "phrase 'little piggy'"
