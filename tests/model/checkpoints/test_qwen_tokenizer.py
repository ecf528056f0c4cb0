"""Qwen-1's tokenizer: the same ids as the original's, for its vocabulary and a miniature one."""

from __future__ import annotations

import base64
import json
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model.checkpoints.qwen_tokenizer import SPECIALS, VOCABULARY, build_tokenizer, read_ranks
from model.config import SpeechLanguageConfig
from model.errors import WeightsMissing
from model.inference.prompt import chat_ids, encode_text
from model.weights import fetch
from tests import GOLDENS

MINI = GOLDENS / "checkpoints" / "a" / VOCABULARY
SPEECH = -1
SYSTEM = SpeechLanguageConfig().system_prompt
EMPATHY = SpeechLanguageConfig().empathy_prompt
WORDS = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

fragments = st.sampled_from(
    ["'s", "'LL", "é", "e\u0301", "中文", "½", "Ⅷ", "٣", "😀", "_", "...", "the", "Hello", "12", "\u0338", "\x00", "ſ"]
)
fragments |= st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "\u3000", "\u0085", "\u200d", "한", "ß"])
fragments |= st.sampled_from(SPECIALS[:4])
texts = st.lists(fragments | st.text(max_size=6), max_size=12).map("".join)


def reloaded(vocabulary: Path, folder: Path) -> PreTrainedTokenizerFast:
    build_tokenizer(read_ranks(vocabulary)).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return reloaded(MINI, tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return reloaded(fetch.ensure("qwen-tiktoken") / VOCABULARY, tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def real_ranks() -> dict[bytes, int]:
    return {token: rank for rank, token in enumerate(read_ranks(fetch.ensure("qwen-tiktoken") / VOCABULARY))}


def reference(ranks: dict[bytes, int], text: str) -> list[int]:
    """tiktoken's rule: a word that is a token is taken whole; else of all adjacent pairs the one that makes the token
    of lowest rank is joined, leftmost first, while there is one."""
    ids = []
    for word in WORDS.findall(unicodedata.normalize("NFC", text)):
        whole = word.encode()
        parts = [whole] if whole in ranks else [bytes([byte]) for byte in whole]
        while len(parts) > 1:
            joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
            place = joined.index(min(joined))
            if joined[place] == len(ranks):
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def agrees(tokenizer: PreTrainedTokenizerFast, ranks: dict[bytes, int], text: str) -> None:
    assert encode_text(tokenizer, text) == reference(ranks, text)
    text = unicodedata.normalize("NFC", text)
    expected, pieces = [], regex.split("(" + "|".join(regex.escape(special) for special in SPECIALS) + ")", text)
    for piece in pieces:
        expected += [len(ranks) + SPECIALS.index(piece)] if piece in SPECIALS else reference(ranks, piece)
    assert tokenizer.encode(text, add_special_tokens=False) == expected


MINI_TOKENS = read_ranks(MINI)
MINI_RANKS = {token: rank for rank, token in enumerate(MINI_TOKENS)}


@given(text=texts)
@settings(deadline=None)
def test_the_mini_vocabulary_merges_as_tiktoken_does(mini: PreTrainedTokenizerFast, text: str) -> None:
    agrees(mini, MINI_RANKS, text)


@pytest.mark.real
@given(text=texts)
@settings(deadline=None, max_examples=200)
def test_the_real_vocabulary_merges_as_tiktoken_does(
    real: PreTrainedTokenizerFast, real_ranks: dict[bytes, int], text: str
) -> None:
    agrees(real, real_ranks, text)


@given(ids=st.lists(st.integers(0, len(MINI_TOKENS) + len(SPECIALS) - 1) | st.integers(128, 255), max_size=12))
def test_bytes_that_are_no_text_decode_as_in_the_original(mini: PreTrainedTokenizerFast, ids: list[int]) -> None:
    every = [*MINI_TOKENS, *(special.encode() for special in SPECIALS)]
    assert mini.decode(ids) == b"".join(every[number] for number in ids).decode("utf-8", "replace")


@given(
    tokens=st.sets(st.binary(min_size=2, max_size=4).map(lambda token: bytes(65 + byte % 4 for byte in token))),
    text=st.text("ABCD", max_size=12),
)
@settings(deadline=None)
def test_any_vocabulary_keeps_its_ids(tmp_path_factory: pytest.TempPathFactory, tokens: set[bytes], text: str) -> None:
    """Also one that no training made, in which tokens overlap in every way but in the same token."""
    ordered = [bytes([byte]) for byte in range(256)]
    ordered += [token for token in sorted(tokens, key=len) if len(set(token)) == len(token)]
    path = tmp_path_factory.mktemp("any") / VOCABULARY
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(ordered)))
    tokenizer = build_tokenizer(read_ranks(path))
    assert encode_text(tokenizer, text) == reference({token: rank for rank, token in enumerate(ordered)}, text)


@pytest.mark.real
def test_ids_of_the_original(real: PreTrainedTokenizerFast) -> None:
    golden = json.loads((GOLDENS / "text" / "tokenizer.json").read_text("utf-8"))
    assert len(real) == golden["n_vocab"]
    for name, special in (("eod", "<|endoftext|>"), ("im_start", "<|im_start|>"), ("im_end", "<|im_end|>")):
        assert real.convert_tokens_to_ids(special) == golden[name]
    for case in golden["encode"]:
        plain = encode_text(real, case["text"])
        assert plain == case["ids_plain"]
        special = real.encode(case["text"], add_special_tokens=False)
        assert special == case["ids_special_allowed"]
        assert real.decode(plain) == case["decode_of_plain"]
        assert real.decode(special) == case["decode_special_kept"]
        assert real.decode(special, skip_special_tokens=True) == case["decode_special_skipped"]
    for case in golden["decode_partial_utf8"]:
        if case["errors"] == "replace":
            assert real.decode(case["ids"]) == case["text"]


def test_prompts_of_the_mini_checkpoints(mini: PreTrainedTokenizerFast) -> None:
    """The prompts that the original fed, taken apart and built again from their words."""
    seen = 0
    for path in sorted((GOLDENS / "numeric").glob("*/generate.json")):
        for name, case in json.loads(path.read_text("utf-8")).items():
            if name == "chat":
                for turn in ("turn1", "turn2"):
                    rebuilt(mini, [item.get("ids", [SPEECH]) for item in case[turn]["history"]])
                    seen += 1
                continue
            if name in ("text2", "long1"):  # instruction and text apart, as in training; random ids
                continue
            for row, mask in zip(case.get("prefix_ids", []), case.get("prefix_mask", []), strict=True):
                prefix = [number for number, kept in zip(row, mask, strict=True) if kept]
                rebuilt(mini, [prefix, [SPEECH] if case.get("audio") else [], case["suffix_ids"][0]])
                seen += 1
    assert seen > 60


@pytest.mark.real
def test_chats_of_the_original(real: PreTrainedTokenizerFast) -> None:
    golden = json.loads((GOLDENS / "text" / "chat_history.json").read_text("utf-8"))
    for emotion in ("False", "True"):
        for turn in golden[f"three_turns_emotion_{emotion}"]["turns"]:
            rebuilt(real, [item.get("ids", [SPEECH]) for item in turn["items"]])


def rebuilt(tokenizer: PreTrainedTokenizerFast, items: list[list[int]]) -> None:
    """Read the messages out of a prompt's ids and let `chat_ids` write them again: the same ids."""
    ids = [number for item in items for number in item]
    start, end = (tokenizer.convert_tokens_to_ids(special) for special in ("<|im_start|>", "<|im_end|>"))
    messages = []
    for place in [place for place, number in enumerate(ids) if number == start][:-1]:
        inside = ids[place + 1 : ids.index(end, place)]
        content = inside[inside.index(198) + 1 :]
        if SPEECH in content:
            before, after = content[: content.index(SPEECH)], content[content.index(SPEECH) + 1 :]
            texts = [encode_text(tokenizer, tokenizer.decode(part)) for part in (before, after)]
            messages.append([*texts[0], SPEECH, *texts[1]])
        else:
            messages.append(tokenizer.decode(content))
    system, *said = messages
    assert isinstance(system, str)
    assert system in (SYSTEM, SYSTEM + EMPATHY)
    turns: list[Any] = list(zip(said[:-1:2], said[1:-1:2], strict=True))
    assert chat_ids(tokenizer, system, turns, said[-1]) == ids


@pytest.mark.real
def test_batch_prompts_of_the_original(real: PreTrainedTokenizerFast) -> None:
    golden = json.loads((GOLDENS / "text" / "generate_prompts.json").read_text("utf-8"))
    seen = 0
    for name, case in golden.items():
        if name == "field_missing_in_first_row":  # there the original forgets the other rows' text
            continue
        options = dict(zip(case["args"][::2], case["args"][1::2], strict=True))
        system = SYSTEM + EMPATHY * ("--use_emotion" in options)
        fed = [row for batch in case["model_inputs"] for row in rows(batch)]
        for line, ids in zip(case["lines"], fed, strict=True):
            words = options.get("--instruction", line.get("instruction", ""))
            words += line[options["--text_field"]] if "--text_field" in options else ""
            speech = [SPEECH] if "--audio_field" in options else []
            assert chat_ids(real, system, [], [*encode_text(real, words), *speech]) == ids
            seen += 1
    assert seen > 30


def rows(batch: dict[str, Any]) -> list[list[int]]:
    masked = []
    for row, mask, suffix in zip(batch["input_ids"], batch["attention_mask"], batch["suffix_input_ids"], strict=True):
        prefix = [number for number, kept in zip(row, mask, strict=True) if kept]
        masked.append([*prefix, *([SPEECH] if batch["speech_values"] else []), *suffix])
    return masked


LINES = MINI.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"IQ== zero\n",
        b"not base64! 0\n",
        b"".join(LINES[:200]),
        b"".join(LINES[1:]),
        b"".join([*LINES[:500], LINES[10].replace(b" 10", b" 500"), *LINES[501:]]),
        b"".join([*LINES, b"%s 1280\n" % base64.b64encode(b"a" * 5000)]),
        b"\xff" * 100,
    ],
    ids=["empty", "no rank", "no base64", "not every byte", "a gap", "twice", "a long token", "no text"],
)
def test_a_damaged_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / VOCABULARY
    path.write_bytes(content)
    with pytest.raises(WeightsMissing, match=r"download the|get the") as caught:
        read_ranks(path)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=VOCABULARY):
        read_ranks(tmp_path / VOCABULARY)
