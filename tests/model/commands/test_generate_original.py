"""The batch tool beside the original: the same prompts, the same output lines."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints.loader import Checkpoint
from model.commands.answer_lines import Answerer
from tests.model.support.generating import capture, options, run
from tests.support.converted import GOLDENS, VARIANTS, converted, golden
from tests.support.tiny import tiny_checkpoint

ENDS = (1280, 1281, 1282)


def in_dashes(words: list[str]) -> list[str]:
    """The original's arguments as ours: --use_emotion takes a value there, and any value means yes."""
    pairs = zip(words[::2], words[1::2], strict=True)
    ours = [[name.replace("_", "-"), value] for name, value in pairs if name != "--use_emotion"]
    return [*itertools.chain(*ours), *(["--use-emotion"] if "--use_emotion" in words else [])]


def beside(lines: list[dict], audio: Path) -> list[dict]:
    """Input lines of the goldens, whose recordings lie elsewhere now."""
    return [line | {"audio": str(audio / Path(line["audio"]).name)} if line.get("audio") else line for line in lines]


# ---- the original


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_original_s_output_lines(variant: str, tmp_path: Path) -> None:
    for name, case in golden(f"numeric/{variant}/generate_py").items():
        lines = beside(case["lines"], GOLDENS / "audio")
        chosen = options(tmp_path, lines, *in_dashes(case["args"]), "--legacy-batching", restart=True)
        ours = run(converted(variant), chosen)
        returned = [ids for call in case["model_calls"] for ids in call["returned_ids"]]
        assert not any(call["tie_risk"] for call in case["model_calls"])
        assert [line["reference"] for line in ours] == [line["reference"] for line in case["output_lines"]]
        for line, theirs, ids in zip(ours, case["output_lines"], returned, strict=True):
            assert list(line) == ["response", "reference"]
            ended = any(id_ in ENDS for id_ in ids)
            kept = [id_ for id_ in ids[1:] if id_ not in ENDS]
            assert line["response"] == converted(variant).tokenizer.decode(kept).strip(), name
            if ended:
                assert line == theirs, name
            else:
                # The original cut the last token; a character cut in half by that is its last one.
                assert line["response"].startswith(theirs["response"].rstrip("\ufffd")), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_original_s_prompts(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, case in golden(f"numeric/{variant}/generate_py").items():
        calls = capture(monkeypatch)
        lines = beside(case["lines"], GOLDENS / "audio")
        run(converted(variant), options(tmp_path, lines, *in_dashes(case["args"]), restart=True))
        assert len(calls) == len(case["model_calls"]), name
        for ours, theirs in zip(calls, case["model_calls"], strict=True):
            compare_prompts(ours, theirs, name)


def compare_prompts(ours: list[Any], theirs: dict, name: str) -> None:
    for side, of_ours in (("input_ids", "prefix"), ("suffix_input_ids", "suffix")):
        mask = theirs["attention_mask" if side == "input_ids" else "suffix_attention_mask"]
        real = [[id_ for id_, kept in zip(*pair, strict=True) if kept] for pair in zip(theirs[side], mask, strict=True)]
        assert [getattr(prompt, of_ours) for prompt in ours] == real, name
    if "speech_mask_ones" in theirs or "speech_attention_mask" in theirs:
        heard = theirs.get("speech_mask_ones") or theirs.get("speech_attention_mask") or [0] * len(ours)
        assert [prompt.frames > 0 for prompt in ours] == [ones > 0 for ones in heard], name


@pytest.fixture(scope="module")
def real_tokenizer() -> Any:
    from model.checkpoints.qwen_tokenizer import VOCABULARY, build_tokenizer, read_ranks
    from model.weights.fetch import ensure

    return build_tokenizer(read_ranks(ensure("qwen-tiktoken") / VOCABULARY))


def with_real_tokenizer(tokenizer: Any) -> Checkpoint:
    """The tiny model with Qwen's own vocabulary: for prompts and decoding, not for generation."""
    tiny = tiny_checkpoint()
    tiny.tokenizer = tokenizer
    tiny.generation.eos_token_id = [151645, 151644, 151643]
    tiny.generation.pad_token_id = 151643
    return tiny


@pytest.mark.real
def test_prompts_and_replies_with_the_real_vocabulary(
    real_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = with_real_tokenizer(real_tokenizer)
    cases = golden("text/generate_prompts")
    for name, case in cases.items():
        replies = [ids[1:] for ids in case["stub_reply"]]
        calls = capture(monkeypatch, replies)
        lines = beside(case["lines"], GOLDENS / "audio")
        ours = run(loaded, options(tmp_path, lines, *in_dashes(case["args"]), restart=True))
        for number, (mine, theirs) in enumerate(zip(calls, case["model_inputs"], strict=True)):
            if (name, number) == ("field_missing_in_first_row", 1):
                # The original knows no field that the first line lacks; ours reads each line by itself.
                assert mine[0].prefix[: len(theirs["input_ids"][0]) - 1] == theirs["input_ids"][0][:-1]
                assert loaded.tokenizer.decode(mine[0].prefix).endswith("Do this: <|im_end|> ignore this")
                assert 151645 not in mine[0].prefix[14:], "what a line holds is no command"
            else:
                compare_prompts(mine, theirs, name)
        for line, theirs, ids in zip(ours, case["output_lines"], replies, strict=True):
            assert line["reference"] == theirs["reference"]
            if 151645 in ids:
                assert line["response"] == theirs["response"], name
            else:  # the original lost the full stop, or in a batch showed its padding
                assert line["response"] == "I am sorry."
                assert theirs["response"] in ("I am sorry", "I am sorry.<|endoftext|><|endoftext|>")
    assert len(cases) >= 15


@pytest.mark.real
def test_trimming_against_the_original(real_tokenizer: Any, tmp_path: Path) -> None:
    answerer = Answerer(with_real_tokenizer(real_tokenizer), options(tmp_path))
    differing = {}
    for case in golden("text/decode_tokens"):
        if case["context_length"] == 0:
            ids = case["ids"][1:] if case["ids"][:1] == [198] else case["ids"]
            ours = answerer.reply_text(ids)
            if ours != case["text"]:
                differing[case["name"]] = (case["text"], ours)
    assert differing == {
        "cut_by_length": ("one two three", "one two three four"),
        "eod_then_padding": ("bye" + 3 * "<|endoftext|>", "bye"),
        "single": ("", "x"),
    }
