"""The corpus is read as it was written, and a line that is no record is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.errors import BadInput
from training.replies.records import Record, Turn, as_row, of_row, read_corpus, read_plain, write_corpus

PLAIN = """# kind: memory
- | My tap is called Bob. | A tap with a name.
s/n | So what's it called? | Bob, your tap.

u | It rains. | Out of nowhere.
# kind: facts
n | Two and two? | Four.
"""


def test_plain_texts_become_records_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PLAIN.replace("Out of nowhere.\n", "Out of nowhere.\n\n"))
    records = read_plain([tmp_path / "a.txt"])
    assert [record.id for record in records] == ["memory-0001", "memory-0002", "facts-0001"]
    assert records[0].turns[1] == Turn(("sad", "neutral"), "So what's it called?", "Bob, your tap.")
    assert [turn.tones for turn in records[1].turns] == [("surprise",)]
    write_corpus(tmp_path / "corpus", records)
    assert sorted(read_corpus(tmp_path / "corpus"), key=lambda one: one.id) == sorted(records, key=lambda one: one.id)
    row = as_row(records[0])
    assert list(row) == ["id", "kind", "tone", "history", "said", "reply"]
    assert (row["tone"], row["history"][0]["tone"]) == ("sad/neutral", None)
    assert of_row(row) == records[0]


@pytest.mark.parametrize("line", ["n | only two", "x | a | b", "n | | b", "n | a | b | c"])
def test_a_plain_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.txt").write_text(f"# kind: facts\n{line}\n")
    with pytest.raises(BadInput, match=r"a\.txt:2"):
        read_plain([tmp_path / "a.txt"])


@pytest.mark.parametrize(
    "change", [{"kind": "x"}, {"tone": "gloomy"}, {"tone": "sad/sad"}, {"said": " "}, {"history": [{}]}, {"reply": 3}]
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    row = {"id": "facts-0001", "kind": "facts", "tone": None, "history": [], "said": "a", "reply": "b"}
    (tmp_path / "facts.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(BadInput, match=r"facts\.jsonl:2"):
        read_corpus(tmp_path)
    with pytest.raises(BadInput, match="holds no"):
        read_corpus(tmp_path / "nowhere")


def test_about_one_in_twenty_is_held_out_and_same_words_together() -> None:
    records = [Record(f"facts-{n}", "facts", (Turn((), f"Question {n}", "Yes."),)) for n in range(2000)]
    assert 70 <= sum(record.held_out for record in records) <= 140
    for record in records[:200]:
        turn = Turn(("sad",), record.turns[0].said.upper() + "?", "No.")
        assert Record("groups-1", "groups", (turn,)).held_out == record.held_out
