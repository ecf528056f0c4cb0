"""Tokenised rows against the original's (tests/goldens/text and numeric), and how batches are laid out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from assistant.events import EMOTIONS
from model.checkpoints.qwen_tokenizer import VOCABULARY, build_tokenizer, read_ranks
from model.config import SpeechLanguageConfig
from model.nn.speech_llm import SPEECH_ID
from model.weights import fetch
from tests import GOLDENS
from tests.support.tiny import tiny_tokenizer
from training.data.batches import IGNORED, PADDING, TrainingRow, collate, lay_out, tokenise

SYSTEM = SpeechLanguageConfig().system_prompt
EMPATHY = SYSTEM + SpeechLanguageConfig().empathy_prompt
SPEECH_INSTRUCTION = "Continue the following sentence based on the conveyed emotion tone in a coherent style: "


def golden(name: str) -> Any:
    return json.loads((GOLDENS / "text" / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def qwen():
    """The real vocabulary."""
    return build_tokenizer(read_ranks(fetch.ensure("qwen-tiktoken") / VOCABULARY))


def row_of(tokenizer, line: dict[str, Any], given: dict[str, Any]) -> TrainingRow:
    """A line of a manifest, read with the original's settings."""
    instruction = given.get("instruction", line.get(given.get("instruction_field", ""), ""))
    return tokenise(
        tokenizer,
        system=EMPATHY if given.get("use_emotion") else SYSTEM,
        text=line[given["input_field"]] if given["input_field"] else "",
        answer=line[given["output_field"]],
        text_instruction=instruction,
        speech_instruction=given.get("audio_instruction", line.get(given.get("audio_instruction_field", ""))),
        emotion=line.get("emotion"),
        complete=not line.get("early_stop", False),
    )


def assert_segments(row: TrainingRow, expected: dict[str, Any]) -> None:
    assert row.opening == expected["start_ids"]
    assert row.text_instruction == expected["instruction_ids"]
    assert row.speech_instruction == expected["audio_instruction_ids"]
    assert row.text == expected["input_ids"]
    assert [*row.closing, *row.answer] == expected["suffix_ids"]
    assert [IGNORED] * len(row.closing) + list(row.answer) == expected["suffix_labels"]
    assert row.emotion == expected["emotion_labels"]


@pytest.mark.real
@pytest.mark.parametrize("case", golden("process_dataset"), ids=lambda case: case["name"])
def test_rows_of_the_original(case: dict[str, Any], qwen) -> None:
    row = row_of(qwen, case["line"], case["settings"])
    if "error" in case["result"]:
        # The original stops at a line without a known emotion; here it is a row without that label.
        assert case["result"]["error"].startswith("KeyError")
        assert row.emotion == IGNORED
        assert row.answer
    else:
        assert_segments(row, case["result"])


@pytest.mark.real
def test_the_original_s_data_set(qwen) -> None:
    stored = golden("offline_dataset")
    fields = {"input_field": "text", "output_field": "output", "instruction_field": "instruction"}
    # It leaves out too short a recording and too long an answer: rules of the preparation, not of a row.
    kept = [line for line in stored["manifest"] if len(line["output"]) < 256 and "15999" not in line["audio"]]
    assert len(kept) == stored["kept"]
    for line, expected in zip(kept, stored["rows"], strict=True):
        assert_segments(row_of(qwen, line, fields), expected)


@pytest.mark.parametrize("batch", ["stage1", "stage2", "one"])
@pytest.mark.parametrize("variant", "abcd")
def test_collated_batches_of_the_original(variant: str, batch: str) -> None:
    tokenizer = build_tokenizer(read_ranks(GOLDENS / "checkpoints" / variant / VOCABULARY))
    lines = json.loads((GOLDENS / "numeric" / variant / "losses.json").read_text("utf-8"))["batches"][batch]
    given = {"input_field": "text", "output_field": "output", "instruction_field": "instruction"}
    if batch != "stage1":
        given |= {"use_emotion": True, "audio_instruction": SPEECH_INSTRUCTION}
    features = torch.zeros(80, 4)
    ours = collate([replace(row_of(tokenizer, line, given), features=features) for line in lines])
    stored = load_file(GOLDENS / "numeric" / variant / f"loss_batch_{batch}.safetensors")
    names = {"start": "opening", "audio_instruction": "speech_instruction", "instruction": "text_instruction"}
    for theirs, name in (names | {"input": "text"}).items():
        assert torch.equal(ours[name] != PADDING, stored[f"{theirs}_mask"].bool())
        assert torch.equal(
            ours[name].masked_fill(ours[name] == PADDING, tokenizer.pad_token_id), stored[f"{theirs}_ids"]
        )
    suffix = torch.cat([ours["closing"], ours["answer"]], dim=1)
    labels = torch.cat([torch.full_like(ours["closing"], IGNORED), ours["answer"]], dim=1)
    assert torch.equal(suffix.masked_fill(suffix == PADDING, tokenizer.pad_token_id), stored["suffix_ids"])
    assert torch.equal(labels.masked_fill(labels == PADDING, IGNORED), stored["suffix_labels"])
    assert torch.equal(ours["emotion"], stored["emotion_labels"])


def test_a_template_whose_padding_is_its_end_of_turn() -> None:
    tokenizer = tiny_tokenizer()
    row = tokenise(tokenizer, system="s", text="t <|im_end|>", answer="the", emotion="sad")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.decode(row.opening) == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n"
    assert tokenizer.decode(row.closing) == "<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row.answer) == "the<|im_end|>\n"
    assert end not in row.text  # words that look like a special token stay words
    assert row.emotion == EMOTIONS.index("sad")
    cut_off = tokenise(tokenizer, system="s", text="t", answer="the", complete=False)
    assert tokenizer.decode(cut_off.answer) == "the"
    assert cut_off.emotion == IGNORED


def test_rows_need_their_speech() -> None:
    row = tokenise(tiny_tokenizer(), system="s", text="t", answer="a")
    heard = replace(row, features=torch.zeros(80, 4))
    cached = replace(row, encoded=torch.zeros(2, 8))
    assert collate([heard, heard])["encoded"] == []
    assert len(collate([cached])["encoded"]) == 1
    for rows in ([row], [heard, row], [heard, cached], [replace(heard, encoded=torch.zeros(2, 8))]):
        with pytest.raises(ValueError, match="features"):
            collate(rows)


segments = st.lists(st.lists(st.integers(0, 50), max_size=4), min_size=4, max_size=4)


@settings(max_examples=60)
@given(rows=st.lists(segments, min_size=1, max_size=4), speech=st.booleans())
def test_layouts(rows: list[list[list[int]]], speech: bool) -> None:
    """Segments: opening, words, closing, answer."""
    if speech:
        rows = [[opening, [SPEECH_ID] * len(words), closing, answer] for opening, words, closing, answer in rows]
    padded = [
        torch.tensor([part + [PADDING] * (max(map(len, parts)) - len(part)) for part in parts], dtype=torch.int64)
        for parts in zip(*rows, strict=True)
    ]
    opening, words, *after = padded
    ours = lay_out([opening], words, after)
    theirs = lay_out([opening], words, after, legacy_batching=True)
    for at, row in enumerate(rows):
        whole = [id_ for part in row for id_ in part]
        real = ours.attention_mask[at].bool()
        assert ours.input_ids[at, : len(whole)].tolist() == whole
        assert real.tolist() == [place < len(whole) for place in range(ours.input_ids.shape[1])]
        assert ours.position_ids[at, : len(whole)].tolist() == list(range(len(whole)))
        for layout in (ours, theirs):
            assert layout.input_ids[at][layout.attention_mask[at].bool()].tolist() == whole
            assert layout.input_ids[at][layout.words[at]].tolist() == row[1]
            assert layout.input_ids[at][layout.answers[at]].tolist() == row[3]
            assert layout.labels[at][layout.labels[at] != IGNORED].tolist() == row[3]
    assert ours.input_ids.shape[1] == max(sum(map(len, row)) for row in rows)
    assert theirs.input_ids.shape[1] == sum(segment.shape[1] for segment in padded)
    assert torch.equal(theirs.position_ids[0], torch.arange(theirs.input_ids.shape[1]))


def test_words_alone() -> None:
    layout = lay_out([torch.tensor([[7]])], torch.tensor([[8, 9]]))
    assert layout.input_ids.tolist() == [[7, 8, 9]]
    assert layout.words.tolist() == [[False, True, True]]
    assert not layout.answers.any()
