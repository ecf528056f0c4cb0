"""A small WordNet."""

from __future__ import annotations

from pathlib import Path

NOUNS = ["apple", "bench", "candle", "door", "engine", "flower", "garden", "hammer", "island", "jacket"]


def make_wordnet(folder: Path) -> Path:
    """Ten words of each part of speech, five example sentences of each word, in WordNet's own file format."""
    for part, letter in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        licence = "  1 This software and database is being provided to you\n"
        data = "".join(
            f'{i:08d} 03 {letter} 01 {noun} 0 000 | a thing; "the {part} {noun} was {n} times here"; "{noun} 1990"\n'
            for i, noun in enumerate(NOUNS)
            for n in ("two", "three", "four", "five", "six")
        )
        (folder / f"data.{part}").write_text(licence + data, "latin-1")
        index = "".join(f"{noun} {letter} 1 1 @ 1 {i % 2 + 1} 0000{i:04d}\n" for i, noun in enumerate(NOUNS))
        (folder / f"index.{part}").write_text(licence + index + f"rare_word {letter} 1 1 @ 1 0 00000001\n", "latin-1")
    return folder
