import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics.wer import word_errors

texts = st.text(max_size=40)
sentences = st.lists(st.sampled_from(["go", "forward", "ten", "meters"]), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("Go forward ten meters.", "go forward 10 meters", (0, 4)),
        ("go forward ten meters", "go four word ten meter", (3, 4)),
        ("one two three", "two three", (1, 3)),
        ("two three", "one two three", (1, 2)),
        ("", "anything at all", (3, 0)),
        ("nothing heard", "", (2, 2)),
        ("He was ill-disposed, Mister Dashwood!", "he was ill disposed mr. dashwood", (0, 6)),
        ("ten percent of 1,234.5", "10% of one thousand two hundred thirty-four point five", (0, 11)),
        ("the twenty-first of May", "The 21st of May", (0, 5)),
        ("I’m here", "i'm here", (0, 2)),
        ("seven", "77777777777777777777777777777", (44, 1)),
    ],
)
def test_errors_and_words(reference, hypothesis, expected):
    assert word_errors(reference, hypothesis) == expected


@given(texts)
def test_a_text_has_no_errors_against_itself(text):
    errors, _ = word_errors(text, text)
    assert errors == 0


@given(sentences, sentences)
def test_errors_are_symmetric_and_bounded(one, other):
    errors, words = word_errors(one, other)
    back, others = word_errors(other, one)
    assert errors == back
    assert abs(words - others) <= errors <= max(words, others)
    assert (errors == 0) == (one == other)
