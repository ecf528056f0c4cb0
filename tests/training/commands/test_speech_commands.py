"""Stage 0's commands one after the other: a corpus by espeak, its states, and the adapter's first training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.training.support.tiny_run import make_checkpoint
from tests.training.support.wordnet import make_wordnet
from training.__main__ import main
from training.data.feature_cache import FeatureCache
from training.runs.run_folder import read_progress


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper in `speech`, a tiny language model in `text`, and a small WordNet in `wordnet`."""
    folder = tmp_path_factory.mktemp("speech")
    make_checkpoint(folder)
    (folder / "wordnet").mkdir()
    make_wordnet(folder / "wordnet")
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main([*map(str, words), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_from_sentences_to_an_adapter(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listens = ["--wordnet", place / "wordnet", "--engine", "espeak", "--whisper", place / "speech"]
    for name, more in (("corpus", []), ("check", ["--checks"])):
        run(capsys, "wide-corpus", tmp_path / name, "--clips", 3, *listens, *more)
        assert len(FeatureCache.open(tmp_path / name / "features")) == 3
    run(capsys, "wide-corpus", tmp_path / "corpus", "--clips", 4, *listens)  # goes on where it was
    assert len(FeatureCache.open(tmp_path / "corpus" / "features")) == 4
    training = ["warm-start", tmp_path / "run", "--corpus", tmp_path / "corpus", "--check", tmp_path / "check"]
    training += ["--language-model", place / "text", "--inner", 8, "--check-every", 1]
    run(capsys, *training, "--steps", 1)
    run(capsys, *training, "--steps", 2)
    assert {line["step"] for line in read_progress(tmp_path / "run")} >= {1, 2}


def test_states_are_cached_and_rows_that_cannot_be_used_are_listed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps({"audio": str(path)}) for path in recordings(tmp_path)]
    lines = [*rows, '{"text": "no audio"}', "{torn", '{"audio": "missing.wav"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    words = ("cache", tmp_path / "rows.jsonl", tmp_path / "states", "--whisper", place / "speech", "--half")
    found = run(capsys, *words)
    assert found == {"records": 2, "rows": 2, "dropped": 3, "recomputed": 0}
    dropped = [json.loads(line) for line in (tmp_path / "states" / "dropped.jsonl").read_text().splitlines()]
    assert [row["line"] for row in dropped[:2]] == [3, 4]
    assert run(capsys, *words) == found


def recordings(folder: Path) -> list[Path]:
    paths = [folder / "a.wav", folder / "b.wav"]
    for number, path in enumerate(paths, 1):
        soundfile.write(path, 0.1 * np.sin(np.arange(16_000) / 9 / number), 16_000)
    return paths


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("cache", "nowhere.jsonl", "out", "--whisper", "."), 2, "cannot be read"),
        (("wide-corpus", "out", "--wordnet", ".", "--engine", "espeak", "--whisper", "."), 3, "has no Whisper"),
        (("warm-start", "run", "--corpus", ".", "--language-model", "."), 3, "has no language model"),
    ],
)
def test_what_is_missing_is_named(
    words: tuple[str, ...], code: int, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--json"]) == code
    assert message in capsys.readouterr().err
