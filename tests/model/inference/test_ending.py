"""Replies end at a sentence's end within the limit, at the latest before a new word."""

from __future__ import annotations

import pytest

from model.inference.ending import Ending


def told(text: str, limit: int) -> tuple[str, list[str], bool]:
    """Run the words of a text through an ending, a token each; what was told, the pieces, whether it was cut."""
    words = text.split(" ")
    pieces = [words[0], *(f" {word}" for word in words[1:])]
    ending, found = Ending(limit), []
    for number, piece in enumerate(pieces):
        if ending.reached(piece, number):
            return ending.told + ending.rest(cut=True), found, True
        found.append(ending.take(piece, number + 1))
    return ending.told + ending.rest(cut=False), found, False


@pytest.mark.parametrize(
    ("text", "limit", "expected", "cut"),
    [
        ("One two three. Four five six.", 8, "One two three. Four five six.", False),
        ("One two three. Four five six. Seven.", 4, "One two three. Four five six.", True),
        ("One two three. Four five six seven eight nine. Ten.", 4, "One two three.", True),
        ('He said "go." She went on and on and on for ever.', 3, 'He said "go."', True),
        ("one two three four five six seven eight nine", 4, "one two three four five six", True),
        ("One two three four five", 9, "One two three four five", False),
        ("It costs 3.50 there. Yes.", 3, "It costs 3.50 there.", True),
    ],
)
def test_a_reply_ends_with_a_sentence(text: str, limit: int, expected: str, cut: bool) -> None:
    assert told(text, limit)[::2] == (expected, cut)


def test_what_may_be_taken_back_is_held_back() -> None:
    _, pieces, _ = told("One two. Three four. Five six.", 4)
    assert pieces == ["One", " two.", "", ""]
    _, streamed, _ = told("One two three four five six seven.", 4)
    assert all(streamed)


def test_a_sentence_without_spaces_ends_too() -> None:
    ending = Ending(2)
    for number, piece in enumerate(("你", "好。", "再")):
        if ending.reached(piece, number):
            break
        ending.take(piece, number + 1)
    assert ending.told + ending.rest(cut=True) == "你好。"
