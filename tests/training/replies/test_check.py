"""The corpus's rules find what breaks them, and the shipped corpus breaks none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from training.replies.check import HeldOut, check, exchange_faults, near_doubles, skeleton, summary, token_embeddings
from training.replies.records import Record, Turn, read_corpus

HELD = HeldOut({"fact": [{"ask": "What do you call a baby dog?"}], "dialogue": [{"turns": [{"say": "I keep bees."}]}]})


def record(reply: str, said: str = "My kettle broke.", kind: str = "everyday", number: int = 1) -> Record:
    return Record(f"{kind}-{number:04}", kind, (Turn(("sad",), said, reply),))


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        ("Why? And how?", "question"),
        ("Good! Great!", "exclamation"),
        (" ".join(["word"] * 31) + ".", "31 words"),
        ("A. B. C. D. E.", "four sentences"),
        ("Do this: - sit.", "list"),
        ("No end", "no end"),
        ("Caf\u00e9.", "ASCII"),
        ("Well, I'm here to help.", "here to help"),
        ("That sounds hard.", "opener"),
        ("Ask Laura's mother.", "laura"),
    ],
)
def test_a_reply_against_the_manner_is_named(reply: str, rule: str) -> None:
    faults = check([record(reply)], held_out=HELD)
    assert [fault.where for fault in faults if fault.where != "corpus"] == ["everyday-0001.1"]
    assert rule in faults[0].rule


def test_a_good_reply_has_no_fault() -> None:
    assert list(exchange_faults("everyday", Turn((), "My kettle broke.", "A pan boils water too. Since when?"))) == []
    assert list(exchange_faults("advice", Turn((), "How?", " ".join(["word"] * 45) + "."))) == []


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("what do you call a baby dog", True),
        ("What do you call a baby sheep?", False),
        ("I keep bees.", True),
        ("I keep hens.", False),
    ],
)
def test_held_out_messages_are_recognised(said: str, found: bool) -> None:
    faults = check([record("A fine thing.", said)], held_out=HELD)
    assert bool(faults) == found


def test_openers_skeletons_and_doubles_of_a_corpus() -> None:
    nouns = ["kettle", "ladder", "window", "garden", "bottle", "pencil"]
    same = [record(f"It is only the {noun} that is old.", number=n) for n, noun in enumerate(nouns)]
    rules = [fault.rule for fault in check(same, held_out=HELD)]
    assert any(rule.startswith("opener in 6") for rule in rules)
    assert any(rule.startswith("skeleton of 6") for rule in rules)
    assert skeleton("It is only the kettle.") == "it is only the _"
    replies = ["Put the kettle on and wait for it to sing.", "Put the kettle on and wait for it to boil.", "No."]
    assert near_doubles(replies, None) == {1: 0}

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 1), np.float32)

    assert near_doubles(["a quite long one of six words", "another that has six words too"], embed) == {1: 0}


def test_token_embeddings_are_nearer_for_like_texts() -> None:
    class Words:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [sum(map(ord, word)) % 64 for word in text.split()]

    table = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    vectors = token_embeddings(Words(), table)(
        ["the red kettle sings", "a red kettle sings", "my neighbour moved", "no"]
    )
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2]
    np.testing.assert_allclose(likeness[0, 0], 1, rtol=1e-5)


def test_the_shipped_corpus_keeps_the_rules() -> None:
    records = read_corpus()
    assert check(records) == []
    found = summary(records, [])
    assert found["exchanges"] >= 6350
    assert found["in_dialogues"] >= 1500
    assert found["same_words_in_tones"] >= 250
    least = {"everyday": 800, "advice": 600, "facts": 800, "memory": 800, "limits": 400, "unclear": 300}
    least |= {"commands": 150, "crisis": 150, "lookalike": 150, "itself": 150, "manners": 200}
    assert all(found["by_kind"][kind] >= count for kind, count in least.items())
    assert found["by_kind"]["feelings"] + found["by_kind"]["groups"] >= 2000
