"""`undertone train replies`: texts become a corpus, faults are counted, wrong options are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.weights import fetch
from tests.support.tiny import tiny_tokenizer
from training.__main__ import main

GOOD = """# kind: everyday
n | The kettle broke again. | Twice in a month is a bad habit for a kettle. Is it still under guarantee?

s | Nobody wants the last biscuit. | Leave it out until four, when good manners give way.
"""


@pytest.fixture
def corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "a.txt").write_text(GOOD)
    assert main(["replies", "import", str(tmp_path / "a.txt"), "--out", str(tmp_path / "corpus"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"records": 2, "exchanges": 2}
    return tmp_path / "corpus"


@pytest.fixture
def language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "text"
    tiny_tokenizer().save_pretrained(folder)
    table = torch.from_numpy(np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32))
    save_file({"model.embed_tokens.weight": table}, folder / "model.safetensors")
    monkeypatch.setattr(fetch, "ensure", lambda _: folder)


def test_a_good_corpus_passes(corpus: Path, language_model: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replies", "check", "--corpus", str(corpus), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["exchanges"], found["by_kind"], found["faults"]) == (2, {"everyday": 2}, 0)


def test_faults_are_named_and_end_with_code_2(
    corpus: Path, language_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = corpus / "everyday.jsonl"
    file.write_text(file.read_text().replace("Leave it out", "Of course, leave it out"))
    assert main(["replies", "check", "--corpus", str(corpus), "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "everyday-0002.1: the opener 'of course'" in told.err
    assert "Faults: 1 in 2 exchanges" in told.err


def test_an_unknown_preset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replies", "fit", str(tmp_path / "run"), "--model", "nowhere"]) == 2
    assert "nowhere is no preset" in capsys.readouterr().err
    assert main(["replies", "fit", str(tmp_path / "run"), "--corpus", str(tmp_path)]) == 2
    assert "holds no *.jsonl" in capsys.readouterr().err
