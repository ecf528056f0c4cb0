"""`prepare`: the original's ids, limits that count the speech, splits by speaker, and no row lost to a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from assistant.events import EMOTIONS
from model.audio.features import encoder_frames
from model.checkpoints.qwen_tokenizer import VOCABULARY, build_tokenizer, read_ranks
from model.errors import BadInput
from model.weights import fetch
from tests import GOLDENS
from tests.support.tiny import tiny_model, tiny_tokenizer
from training.__main__ import main
from training.data import prepare as module
from training.data.batches import IGNORED, TrainingRow
from training.data.chat import Chat, read_chat
from training.data.feature_cache import FeatureCache, content_key
from training.data.manifest import Clip, Dropped
from training.data.prepare import PreparedRows, choose_validation, clip_of, prepare
from training.runs.config import PrepareOptions
from training.runs.run_folder import STOP, read_progress

CONTINUE = "Continue the following sentence in a coherent style: "


def golden(name: str) -> Any:
    return json.loads((GOLDENS / "text" / f"{name}.json").read_text("utf-8"))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def record(path: Path, samples: int, seed: int = 0, rate: int = 16000) -> None:
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, samples).clip(-1, 1), rate)


def language_model(folder: Path, tokenizer: Any, **config: Any) -> Path:
    """A folder that `prepare` takes: tokenizer and config, no weights."""
    tokenizer.save_pretrained(folder)
    settings = {"model_type": "qwen2", "vocab_size": len(tokenizer)} | config
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return language_model(tmp_path_factory.mktemp("tiny"), tiny_tokenizer())


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory) -> Path:
    tokenizer = build_tokenizer(read_ranks(fetch.ensure("qwen-tiktoken") / VOCABULARY))
    return language_model(tmp_path_factory.mktemp("qwen"), tokenizer, vocab_size=151936)


@pytest.fixture(scope="module")
def qwen_chat(qwen_folder) -> Chat:
    return read_chat(qwen_folder)


@pytest.fixture
def qwen(qwen_folder, qwen_chat, monkeypatch) -> Path:
    """Read once: that takes seconds."""
    monkeypatch.setattr(module, "read_chat", lambda _: qwen_chat)
    return qwen_folder


@pytest.fixture
def labels(tmp_path) -> Path:
    """Twelve rows of four speakers in labels/a.jsonl and labels/b.jsonl, recordings of 1.1 s and more."""
    rows = []
    for number in range(12):
        record(tmp_path / f"{number:02}.wav", 17600 + 1600 * number, number)
        row = {
            "audio": f"{number:02}.wav",
            "text": f"text {number}",
            "instruction": CONTINUE,
            "emotion": EMOTIONS[number % 5],
        }
        rows.append(row | {"output": f"so {number}.", "early_stop": bool(number % 2), "speaker": "abcd"[number % 4]})
    write_rows(tmp_path / "labels" / "a.jsonl", rows[:7])
    write_rows(tmp_path / "labels" / "b.jsonl", rows[7:])
    return tmp_path / "labels"


def options(labels: Path, model: Path, out: str = "data", **changes: Any) -> PrepareOptions:
    given = {"dataroot": labels, "save_dir": labels.parent / out, "model": str(model), "validation": 0}
    return PrepareOptions.of(given | changes)


def rows_of(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    data = PreparedRows(folder, split)
    return [data[number] for number in range(len(data))]


def test_rows_hold_ids_recording_and_place(labels, tiny):
    summary = prepare(options(labels, tiny))
    data = PreparedRows(labels.parent / "data", "train")
    assert summary["train"]["rows"] == len(data) == 12
    assert summary["train"]["emotions"] == {"neutral": 3, "happy": 3, "angry": 2, "sad": 2, "surprise": 2}
    tokenizer = tiny_tokenizer()
    for number in range(12):
        row, ids = data[number], data.ids(number)
        assert isinstance(ids, TrainingRow)
        assert tokenizer.decode(ids.text) == row["transcript"] == f"text {number}"
        assert tokenizer.decode(ids.text_instruction) == tokenizer.decode(ids.speech_instruction) == CONTINUE
        ending = "" if number % 2 else "<|im_end|>\n"
        assert tokenizer.decode(ids.answer) == f"so {number}.{ending}"
        assert ids.emotion == number % 5
        samples = 17600 + 1600 * number
        assert ids.encoder_frames == encoder_frames(samples)
        assert row["speech_positions"] == (((encoder_frames(samples) + 1) // 2 + 1) // 2 + 1) // 2
        parts = (ids.opening, ids.speech_instruction, ids.closing, ids.answer)
        assert row["length"] == data.lengths[number] == sum(map(len, parts)) + row["speech_positions"]
        assert clip_of(row) == Clip(labels.parent / f"{number:02}.wav")
        file, line = ("a", number + 1) if number < 7 else ("b", number - 6)
        assert (row["manifest"], row["line"]) == (str(labels / f"{file}.jsonl"), line)
    hours = sum(row["encoder_frames"] for row in rows_of(labels.parent / "data")) * 0.02 / 3600
    assert summary["train"]["hours"] == round(hours, 3)
    assert read_progress(labels.parent / "data")[-1]["step"] == 12


def test_the_key_is_that_of_feature_caches(labels, tiny):
    prepare(options(labels, tiny))
    row = rows_of(labels.parent / "data")[3]
    assert row["key"] == content_key((labels.parent / "03.wav").read_bytes())


@pytest.mark.parametrize("kernels", [1, 2, 3])
def test_positions_are_those_of_the_checkpoints_adapter(labels, tiny_folder, kernels):
    folder, model = tiny_folder(adapter_kernel_sizes=[5] * kernels)
    prepare(options(labels, folder))
    for row in rows_of(labels.parent / "data"):
        frames = model.adapter.frames(torch.tensor(row["encoder_frames"]))
        assert row["speech_positions"] == int(frames)


def test_a_cformer_makes_as_many_positions_as_the_transcript_has_tokens(labels, tiny_folder):
    folder, _ = tiny_folder(adapter_type="cformer", cformer_pre_layers=0, cformer_post_layers=0)
    prepare(options(labels, folder))
    assert all(row["speech_positions"] == len(row["text"]) for row in rows_of(labels.parent / "data"))


@pytest.fixture
def tiny_folder(tmp_path_factory):
    def make(**config: Any) -> tuple[Path, Any]:
        model = tiny_model(**config)
        folder = tmp_path_factory.mktemp("checkpoint")
        tiny_tokenizer().save_pretrained(folder)
        model.config.save_pretrained(folder)
        return folder, model

    return make


def test_the_limit_counts_the_speech_and_its_instruction(labels, tiny):
    heard = "Listen closely to the following sentence, and then go on with it in whatever way seems best: "
    prepare(options(labels, tiny, "all", audio_instruction=heard))
    lengths = {row["transcript"]: row["length"] for row in rows_of(labels.parent / "all")}
    limit = sorted(lengths.values())[5]
    emitted: list[Dropped] = []
    prepare(options(labels, tiny, "some", audio_instruction=heard, max_length=limit), emitted.append)
    kept = {row["transcript"] for row in rows_of(labels.parent / "some")}
    assert kept == {text for text, length in lengths.items() if length <= limit}
    assert {one.reason for one in emitted} == {"too many tokens"}
    assert f"more than {limit} (--max-length)" in str(emitted[0])


def test_the_limit_counts_the_text_too(labels, tiny, tmp_path):
    row = {"audio": "00.wav", "text": "word " * 200, "output": "Hi."}
    write_rows(tmp_path / "long" / "x.jsonl", [row, row | {"text": "word"}])
    emitted: list[Dropped] = []
    prepare(options(tmp_path / "long", tiny, max_length=300), emitted.append)
    assert [(one.line, one.reason) for one in emitted] == [(1, "too many tokens")]


def test_bad_rows_are_named_and_counted_by_file(labels, tiny):
    record(labels.parent / "short.wav", 15999)
    record(labels.parent / "long.wav", 240_001, rate=8000)
    (labels.parent / "broken.wav").write_bytes(b"RIFF and no more")
    good = {"text": "t", "output": "o", "emotion": "sad"}
    rows = [good | {"audio": f"{name}.wav"} for name in ("short", "long", "broken", "gone")]
    rows += [good | {"audio": "00.wav", "output": "", "early_stop": True}, good | {"audio": "00.wav", "text": ""}]
    write_rows(labels / "c.jsonl", rows)
    emitted: list[Dropped] = []
    summary = prepare(options(labels, tiny), emitted.append)
    expected = ["empty text", "too short", "too long", "unusable audio", "missing audio", "empty output"]
    assert [one.reason for one in emitted] == expected
    assert [one.line for one in emitted] == [6, 1, 2, 3, 4, 5]
    assert summary["dropped"] == {str(labels / "c.jsonl"): dict.fromkeys(expected, 1)}
    assert summary["train"]["rows"] == 12
    dropped = [json.loads(line) for line in (labels.parent / "data" / "dropped.jsonl").read_text().splitlines()]
    assert [one["reason"] for one in dropped] == expected


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("rows", [0, 3, 4, 9, 11])
def test_a_kill_loses_no_row_and_the_next_start_goes_on(labels, tiny, monkeypatch, rows):
    write_rows(labels / "c.jsonl", [{"audio": "gone.wav", "text": "t", "output": "o"}])
    monkeypatch.setattr(module, "CHUNK_ROWS", 4)
    whole = prepare(options(labels, tiny, "whole", validation=0.3))
    prepared, left = module._prepared, [rows]

    def killed(*given):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return prepared(*given)

    monkeypatch.setattr(module, "_prepared", killed)
    with pytest.raises(Killed):
        prepare(options(labels, tiny, validation=0.3))
    with pytest.raises(BadInput, match="has no finished data set"):
        PreparedRows(labels.parent / "data", "train")
    left[0] = 13 - rows // 4 * 4  # whole chunks are not done again
    summary = prepare(options(labels, tiny, validation=0.3))
    assert not left[0]
    assert summary | {"data": ""} == whole | {"data": ""}
    for split in ("train", "validation"):
        assert rows_of(labels.parent / "data", split) == rows_of(labels.parent / "whole", split)
    assert prepare(options(labels, tiny, validation=0.3)) == summary
    assert not (labels.parent / "data" / "chunks").exists()


def test_a_stop_ends_between_chunks_and_a_start_goes_on(labels, tiny, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 4)
    write = module._write_chunk

    def stopping(path, *given):
        write(path, *given)
        (labels.parent / "data" / STOP).touch()

    monkeypatch.setattr(module, "_write_chunk", stopping)
    assert prepare(options(labels, tiny))["stopped"]
    monkeypatch.setattr(module, "_write_chunk", write)
    assert prepare(options(labels, tiny))["train"]["rows"] == 12


def test_several_processes_read_the_recordings(labels, tiny):
    prepare(options(labels, tiny, "one"))
    prepare(options(labels, tiny, "two", num_proc=2))
    assert rows_of(labels.parent / "one") == rows_of(labels.parent / "two")


def test_other_options_or_labels_need_another_folder(labels, tiny):
    prepare(options(labels, tiny))
    with pytest.raises(BadInput, match="max_length"):
        prepare(options(labels, tiny, max_length=100))
    (labels / "a.jsonl").write_text("")
    with pytest.raises(BadInput, match="manifests_sha256"):
        prepare(options(labels, tiny))


def test_nothing_usable_is_an_error_and_another_try_may_use_the_folder(labels, tiny):
    with pytest.raises(BadInput, match=r"no usable row \(.*a.jsonl:1: .* tokens"):
        prepare(options(labels, tiny, max_length=20))
    assert prepare(options(labels, tiny))["train"]["rows"] == 12


def test_speakers_are_on_one_side_only(labels, tiny):
    for seed in range(5):
        summary = prepare(options(labels, tiny, f"d{seed}", validation=0.3, seed=seed))
        sides = [{row["speaker"][0] for row in rows_of(labels.parent / f"d{seed}", s)} for s in ("train", "validation")]
        assert not sides[0] & sides[1]
        assert len(sides[1]) == 1  # 3 rows each, and 30 % are 3.6
        assert summary["split_by"] == "speaker field"
        assert summary["train"]["rows"] + summary["validation"]["rows"] == 12


ways = st.lists(
    st.tuples(st.sampled_from(["", "a", "b"]), st.sampled_from(["", "x", "y", "z"]), st.integers(0, 9).map(str)),
    max_size=30,
)


@given(ways, st.floats(0, 0.99), st.integers(0, 3))
def test_no_speaker_is_ever_on_both_sides(rows, share, seed):
    listed = [list(row) for row in rows]
    chosen, basis = choose_validation(listed, share, seed)
    assert len(chosen) == len(rows)
    if basis == "nothing":
        assert not any(chosen)
        return
    assert sum(chosen) <= max(share, 0.25) * len(rows)
    level = ("speaker field", "file name", "recording").index(basis)
    held = {row[level] for row, one in zip(rows, chosen, strict=True) if one}
    trained = {row[level] for row, one in zip(rows, chosen, strict=True) if not one}
    assert not held & trained
    assert held
    assert trained
    assert all(row[level] for row in rows)


def test_without_a_speaker_the_files_name_tells(labels, tiny, tmp_path):
    names = ["84-1-0001", "84-1-0002", "85_x", "86-1-0001"]
    rows = []
    for number, name in enumerate(names):
        record(tmp_path / f"{name}.wav", 20000, number)
        rows.append({"audio": f"{name}.wav", "text": f"t{number}", "output": "o"})
    write_rows(tmp_path / "l" / "x.jsonl", rows)
    summary = prepare(options(tmp_path / "l", tiny, validation=0.4))
    assert summary["split_by"] == "file name"
    assert [row["speaker"][1] for s in ("train", "validation") for row in rows_of(tmp_path / "data", s)].count(
        "84"
    ) == 2


def test_a_split_made_before_is_kept(labels, tiny):
    rows = [
        json.loads(line) | {"split": split}
        for line, split in zip(
            (labels / "a.jsonl").read_text().splitlines(),
            ("train", "validation", "test", "engine", "train", "", "train"),
            strict=True,
        )
    ]
    write_rows(labels / "a.jsonl", rows)
    emitted: list[Dropped] = []
    summary = prepare(options(labels, tiny, manifest_files="a.jsonl", split_field="split"), emitted.append)
    assert (summary["train"]["rows"], summary["validation"]["rows"]) == (3, 1)
    assert summary["split_by"] == "field split"
    assert [(one.line, one.reason) for one in emitted] == [(n, "not wanted") for n in (3, 4, 6)]


def test_recordings_that_are_only_in_a_feature_cache_count(labels, tiny, tmp_path):
    cache = FeatureCache.create(tmp_path / "cache", tiny_model().encoder, "trimmed")
    cache.add("k1", torch.zeros(100, 32))
    cache.add("k2", torch.zeros(20, 32))
    cache.close()
    write_rows(tmp_path / "l" / "x.jsonl", [{"key": k, "text": "t", "output": "o"} for k in ("k1", "k2", "k3")])
    emitted: list[Dropped] = []
    prepare(options(tmp_path / "l", tiny, features=str(tmp_path / "cache")), emitted.append)
    (row,) = rows_of(tmp_path / "data")
    assert (row["key"], row["encoder_frames"], row["speech_positions"], clip_of(row)) == ("k1", 100, 13, None)
    assert [(one.line, one.reason) for one in emitted] == [(2, "too short"), (3, "missing audio")]


def test_emotions_may_be_missing_in_stage_1_only(labels, tiny):
    write_rows(labels / "c.jsonl", [{"audio": "00.wav", "text": "t", "output": "o"}])
    prepare(options(labels, tiny, manifest_files="c.jsonl"))
    assert rows_of(labels.parent / "data")[0]["emotion"] == IGNORED
    emitted: list[Dropped] = []
    prepare(options(labels, tiny, "stage2", use_emotion=True), emitted.append)
    assert [one.reason for one in emitted] == ["no emotion"]


def test_the_command_tells_of_dropped_rows_and_sums_up(labels, tiny, capsys):
    write_rows(labels / "c.jsonl", [{"audio": f"gone{n}.wav", "text": "t", "output": "o"} for n in range(15)])
    given = ["--dataroot", labels, "--save-dir", labels.parent / "data", "--model", tiny, "--json", "--validation", 0]
    assert main(["prepare", *map(str, given)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["train"]["rows"] == 12
    assert f"{labels / 'c.jsonl'}:1: gone0.wav is neither" in err
    assert f"{labels / 'c.jsonl'}: 5 more rows (missing audio); see dropped.jsonl" in err
    assert main(["prepare", *map(str, given), "--max-length", "many"]) == 2
    assert "--max-length: " in capsys.readouterr().err
    assert main(["prepare", *map(str, given), "--min-duration", "30"]) == 2
    assert capsys.readouterr().err == "--min-duration: it must be less than --max-duration\n"


@pytest.mark.real
@pytest.mark.parametrize("case", golden("process_dataset"), ids=lambda case: case["name"])
def test_ids_are_the_originals(tmp_path, qwen, case):
    line, settings, expected = case["line"], case["settings"], case["result"]
    audio = line["audio"]
    if (name := Path(audio).stem)[1:].isdecimal():  # the original's is silence, which is refused here
        record(tmp_path / audio, int(name[1:]))
    write_rows(tmp_path / "l" / "x.jsonl", [line])
    chosen = {key: value for key, value in settings.items() if key != "max_length"}
    # A limit that the original's count of text reaches; the speech needs room of its own here.
    chosen["max_length"] = settings["max_length"] + (188 if settings["max_length"] == 256 else 10**4)
    emitted: list[Dropped] = []
    try:
        prepare(options(tmp_path / "l", qwen, audio_root=GOLDENS, **chosen), emitted.append)
    except BadInput:
        reason = emitted[0].reason
        if "error" in expected:
            assert reason == "unknown emotion"
        elif case["name"] == "empty_output":
            assert reason == "empty output"  # kept there, though no token of it can be learnt
        else:
            assert not expected["to_keep"]
            assert reason in ("too many tokens", "too short", "too long", "missing audio")
        return
    (row,) = rows_of(tmp_path / "data")
    if "error" in expected:  # without an emotion stage 1 crashes there
        assert case["name"].startswith("stage1_emotion")
        assert row["emotion"] == IGNORED
        return
    assert expected["to_keep"] or case["name"] == "one_over_max_length"
    assert row["opening"] == expected["start_ids"]
    assert row["text_instruction"] == expected["instruction_ids"]
    assert row["speech_instruction"] == expected["audio_instruction_ids"]
    assert row["text"] == expected["input_ids"]
    assert row["closing"] + row["answer"] == expected["suffix_ids"]
    assert [IGNORED] * len(row["closing"]) + row["answer"] == expected["suffix_labels"]
    assert row["emotion"] == expected["emotion_labels"]


@pytest.mark.real
def test_a_manifest_gives_the_originals_rows(tmp_path, qwen):
    given = golden("offline_dataset")
    for line in given["manifest"]:
        name = Path(line["audio"])
        if not (GOLDENS / name).exists():
            record(tmp_path / name.name, 15999)
    write_rows(
        tmp_path / "l" / "x.jsonl",
        [line | {"audio": line["audio"].replace("..len/", "")} for line in given["manifest"]],
    )
    emitted: list[Dropped] = []
    prepare(options(tmp_path / "l", qwen, audio_root=GOLDENS, max_length=256), emitted.append)
    rows = rows_of(tmp_path / "data")
    assert len(rows) == given["kept"]
    for row, expected in zip(rows, given["rows"], strict=True):
        assert row["opening"] + row["text_instruction"] == expected["start_ids"] + expected["instruction_ids"]
        assert row["text"] + row["closing"] + row["answer"] == expected["input_ids"] + expected["suffix_ids"]
        assert row["emotion"] == expected["emotion_labels"]
        assert row["audio"] == str(GOLDENS / expected["audio_path"])
    assert [(one.line, one.reason) for one in emitted] == [(2, "too short"), (4, "too many tokens")]
