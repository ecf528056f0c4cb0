"""Emotion recognition from replies: reading them, counting them, the intervals, text and picture."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.events import EMOTIONS
from model.errors import BadInput
from training.__main__ import main
from training.metrics.predictions import (
    _shade,
    as_svg,
    as_text,
    emotion_in,
    emotion_of_label,
    problems,
    score,
    wilson,
)

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("text", "emotion"),
    [
        ("The emotion tone of the speech provided is neutral.", "neutral"),
        ("Sad", "sad"),
        ("HAPPY!", "happy"),
        ("It conveys surprise and some happiness.", "surprise"),
        ("The speaker is surprised.", "surprise"),
        ("There is a lot of anger here", "angry"),
        ("I am glad you asked. The tone is sad.", "sad"),
        ("The speaker sounds joyful.", "happy"),
        ("She is frustrated and upset.", "angry"),
        ("He is not happy but sad", "sad"),
        ("It isn't very angry; neutral.", "neutral"),
        ("unhappy", "sad"),
        ("This is not sad.", None),
        ("Sadly, I cannot hear the recording.", None),
        ("happyness saddle emotion", None),
        ("", None),
        ("这段话的情绪是悲伤。", "sad"),
        ("他不高兴，很生气", "angry"),
        ("neutral, sad, angry, happy, or surprise", "neutral"),
    ],
)
def test_the_emotion_in_a_reply(text: str, emotion: str | None) -> None:
    assert emotion_in(text) == emotion


@pytest.mark.parametrize(
    ("label", "emotion"),
    [
        (" Angry ", "angry"),
        ("joy", "happy"),
        ("sadness", "sad"),
        ("surprised", "surprise"),
        ("neu", "neutral"),
        ("fear", None),
        ("not sad", None),
        (None, None),
        (3, None),
        ("", None),
    ],
)
def test_the_emotion_of_a_label(label: object, emotion: str | None) -> None:
    assert emotion_of_label(label) == emotion


def write(path: Path, rows: Sequence[tuple[object, object]]) -> Path:
    lines = [json.dumps({"response": response, "reference": reference}) + "\n" for response, reference in rows]
    path.write_text("".join(lines), "utf-8")
    return path


def test_the_figures_of_a_known_matrix(tmp_path: Path) -> None:
    rows = (
        [("sad", "sad")] * 6 + [("angry", "sad")] * 2 + [("who knows", "sad")] * 2
        + [("happy", "joy")] * 3 + [("It is neutral", "happy")]
        + [("neutral", "neutral")] * 2
    )  # fmt: skip
    figures = score(write(tmp_path / "out.jsonl", rows)).figures()
    assert figures["n"] == 16
    assert figures["accuracy"] == pytest.approx(11 / 16)
    assert figures["unweighted_recall"] == pytest.approx((0.6 + 0.75 + 1) / 3)
    assert figures["confusion"] == [
        [2, 0, 0, 0, 0, 0],
        [1, 3, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 2, 6, 0, 2],
        [0, 0, 0, 0, 0, 0],
    ]
    assert figures["confusion_columns"] == [*EMOTIONS, "none"]
    assert figures["none"] == 2
    assert set(figures["emotions"]) == {"neutral", "happy", "sad"}
    # Wilson's interval of 11 of 16, by an independent formula: the roots of (p - x)^2 = z^2 x (1 - x) / n.
    for edge in figures["interval_95"]:
        assert (11 / 16 - edge) ** 2 == pytest.approx(1.96**2 * edge * (1 - edge) / 16, rel=1e-3)
    low, high = figures["unweighted_recall_interval_95"]
    assert low < figures["unweighted_recall"] < high


@given(total=st.integers(1, 3000), data=st.data())
def test_an_interval_holds_its_share(total: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, total))
    low, high = wilson(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    assert high - low > 0
    mirrored = wilson(total - hits, total)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


def test_the_interval_of_the_unweighted_recall_covers_it(tmp_path: Path) -> None:
    """Drawn a thousand times from known recalls, the interval holds the true mean in about 95 % of them."""
    chances = random.Random(7)
    recalls, counts = (0.95, 0.7, 0.6, 0.5, 0.3), (60, 25, 15, 30, 8)
    true, covered = sum(recalls) / 5, 0
    for _ in range(1000):
        scores = score_of(
            [sum(chances.random() < r for _ in range(n)) for r, n in zip(recalls, counts, strict=True)], counts
        )
        low, high = scores["unweighted_recall_interval_95"]
        covered += low <= true <= high
    assert 0.93 <= covered / 1000 <= 0.985


def score_of(hits: Sequence[int], counts: Sequence[int]) -> dict:
    from training.metrics.predictions import Scores

    scores = Scores()
    for at, (hit, count) in enumerate(zip(hits, counts, strict=True)):
        scores.confusion[at][at], scores.confusion[at][-1] = hit, count - hit
    return scores.figures()


def test_lines_that_do_not_count_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", [("sad", "sad"), ("x", "fear"), ("sad", "sad"), ("", "happy"), ("x", "fear")])
    lines = path.read_text().splitlines()
    lines[3] = json.dumps({"response": "", "reference": "happy", "error": "missing"})
    path.write_text("\n".join([*lines, "", '{"response": "x", "reference": null}', ""]))
    scores = score(path)
    assert scores.figures()["n"] == 2
    assert scores.figures()["unknown_references"] == {"fear": [2, 5], "None": [7]}
    assert problems(scores) == [
        "lines 2, 5: the reference 'fear' is none of the five emotions; left out",
        "line 7: the reference 'None' is none of the five emotions; left out",
        "line 4: not answered; left out",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("", "--reference-field"),
        ('{"response": "sad", "reference": ""}\n', "--reference-field"),
        ('{"response": "sad", "reference": "sad"}\n{"resp', "line 2"),
        ('{"response": 3, "reference": "sad"}\n', "line 1"),
        ('["response"]\n', "line 1"),
        ('{"response": "sad"}\n', "line 1"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "out.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadInput, match=said):
        score(path)
    assert main(["evaluate", "--predictions", str(path)]) == 2


def example(tmp_path: Path) -> Path:
    chances = random.Random(1)
    rows: list[tuple[object, object]] = []
    for emotion, count in zip(EMOTIONS, (123, 40, 35, 52, 1), strict=True):
        rows += [(chances.choice([emotion, emotion, *EMOTIONS, "?"]), emotion) for _ in range(count)]
    return write(tmp_path / "out.jsonl", rows)


def test_the_text_is_aligned(tmp_path: Path) -> None:
    scores = score(example(tmp_path))
    *_, head, a, b, c, d, e = as_text(scores).splitlines()
    edges = [match.end() for match in re.finditer(r"\S+", head)][:7]
    for line, row, count in zip((a, b, c, d, e), scores.confusion, scores.counts, strict=True):
        ends = {match.end(): match.group() for match in re.finditer(r"\S+", line)}
        assert [int(ends[edge]) for edge in edges] == [*row, count]


def test_the_picture_holds_every_number(tmp_path: Path) -> None:
    scores = score(example(tmp_path))
    picture = ElementTree.fromstring(as_svg(scores))
    words = [element.text for element in picture.iter(f"{SVG}text")]
    for name in (*EMOTIONS, "none"):
        assert name in words
    for row, count in zip(scores.confusion, scores.counts, strict=True):
        assert f"n = {count}" in words
        for value in row:
            assert str(value) in words
            assert f"{100 * value / count:.0f} %" in words
    width, height = float(picture.get("width", 0)), float(picture.get("height", 0))
    for element in picture.iter():
        if element.tag in (f"{SVG}rect", f"{SVG}text"):
            x, y = float(element.get("x", 0)), float(element.get("y", 0))
            assert 0 <= x <= x + float(element.get("width", 0)) <= width
            assert 0 <= y <= y + float(element.get("height", 0)) <= height
    outlined = [element for element in picture.iter(f"{SVG}rect") if element.get("stroke-width")]
    assert len(outlined) == 5


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_numbers_stand_out_from_every_shade(tmp_path: Path) -> None:
    """Lightness alone carries the picture: it falls steadily, and text keeps a contrast of 4.5 : 1."""
    shades = [luminance(_shade(step / 100)) for step in range(101)]
    assert all(later < earlier for earlier, later in itertools.pairwise(shades))
    picture = ElementTree.fromstring(as_svg(score(write(tmp_path / "a.jsonl", contrasts()))))
    cells = [element for element in picture.iter(f"{SVG}rect") if element.get("rx")]
    inks = [element.get("fill") for element in picture.iter(f"{SVG}text") if element.get("font-size") == "17"]
    assert len(cells) == len(inks) == 30
    for cell, ink in zip(cells, inks, strict=True):
        light, dark = sorted((luminance(cell.get("fill", "")), luminance(ink or "")), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (cell.get("fill"), ink)


def contrasts() -> list[tuple[object, object]]:
    """Shares of all sizes."""
    rows: list[tuple[object, object]] = []
    for emotion, own in zip(EMOTIONS, (100, 71, 65, 64, 58), strict=True):
        rows += [(emotion, emotion)] * own + [("?", emotion)] * (100 - own)
    return rows


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = example(tmp_path)
    assert main(["evaluate", "--predictions", str(path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"n", "accuracy", "unweighted_recall", "confusion", "interval_95", "picture"} <= set(figures)
    assert Path(figures["picture"]) == tmp_path / "out.confusion.svg"
    assert ElementTree.parse(figures["picture"]).getroot().tag == f"{SVG}svg"
    assert main(["evaluate", "--predictions", str(path), "--picture", str(tmp_path / "m.svg")]) == 0
    assert "unweighted recall" in capsys.readouterr().out
    assert (tmp_path / "m.svg").read_text() == (tmp_path / "out.confusion.svg").read_text()
    assert main(["evaluate", "--predictions", str(path), "--picture", str(tmp_path / "no" / "m.svg")]) == 2
    assert "--picture" in capsys.readouterr().err
