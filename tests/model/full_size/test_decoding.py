"""The GPU script: its sizes are the original's, its sections run (here: a tiny model, on a CPU) and fail one by one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.full_size import __main__ as full_size
from model.full_size import weights
from model.full_size.decoding import profile
from model.full_size.run import SIZES, Figures, Run, bandwidth
from model.nn.speech_llm import SpeechLanguageModel
from tests import ROOT


def test_the_sizes_are_the_originals() -> None:
    with torch.device("meta"):
        model = SpeechLanguageModel(SIZES["full"].config())
    assert model.adapter is not None
    assert model.emotion_head is not None
    lora = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    parts = (model.encoder, model.adapter, model.language_model, model.emotion_head)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert counts == [636_784_640, 89_412_608, 7_721_324_544 + lora, 20_480]
    # One A for q, k and v in the original, three here.
    assert lora == 35_782_656 + 32 * 2 * 16 * 4096


def test_the_whole_script_runs_on_a_tiny_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (work := tmp_path / "work").mkdir()
    status = full_size.main(
        ["--size", "tiny", "--device", "cpu", "--json", "--out", str(tmp_path / "out"), "--work", str(work)]
    )
    output = capfd.readouterr().out
    assert status == 0, output
    figures = json.loads(output)
    assert figures["failures"] == {}
    assert figures["size"] == "tiny"
    assert figures["reloaded_logits_identical"] is True
    assert figures["last_loss"] < figures["first_loss"]
    assert figures["cosine_16_bit_to_nf4"] > 0.8
    assert figures["graph_failure"] == "no CUDA: the step ran uncaptured"
    ratio = figures["decode_tokens_per_second"] / figures["generate_tokens_per_second"]
    assert figures["decode_ratio_to_generate"] == pytest.approx(ratio)
    assert figures["share_of_bound"] * figures["bound_tokens_per_second"] == pytest.approx(
        figures["decode_tokens_per_second"]
    )
    assert all(value > 0 for name, value in figures.items() if name.endswith(("_ms", "_seconds", "_gb")))
    sections = {section.__name__ for _, section in full_size.SECTIONS}
    assert sections == {name.removesuffix("_section_seconds") for name in figures if name.endswith("_section_seconds")}
    (page,) = (tmp_path / "out").iterdir()
    assert page.name.startswith(figures["date"])
    text = page.read_text("utf-8")
    assert "none of these figures says anything about the full size" in text
    assert all(f"| {name} |" in text for name in figures if name not in ("failures", "command"))
    assert list(work.iterdir()) == []


def broken(run: Run) -> Figures:
    raise RuntimeError(f"CUDA error in {run.work}")


def test_a_section_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    run = Run(SIZES["tiny"], "cpu", tmp_path)
    failures = full_size.measure(run, [("Broken", broken), ("Memory bandwidth", bandwidth), ("Also", profile)])
    assert set(failures) == {"Broken", "Also"}
    assert "RuntimeError: CUDA error in WORK" in failures["Broken"]
    assert "an earlier section failed" in failures["Also"]
    assert run.figures["memory_bandwidth_gb_per_second"] > 0
    text = full_size.page(full_size.about(run, "tiny", "python -m model.full_size"), run, failures)
    assert "## Failed: Broken" in text
    assert "memory_bandwidth_gb_per_second" in text
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


def test_only_the_full_size_goes_to_the_projects_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(full_size, "RESOURCES", tmp_path)
    monkeypatch.setattr(full_size, "measure", lambda _run: {})
    monkeypatch.setattr(full_size, "require_room", lambda _run: None)
    assert full_size.main(["--size", "tiny", "--device", "cpu"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert full_size.main(["--size", "full", "--device", "cpu"]) == 0
    assert len(list((tmp_path / "figures").glob("*.md"))) == 1


@pytest.mark.parametrize("check", full_size.CHECKS)
def test_a_check_that_fails_is_told_by_the_exit_code(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(run: Run) -> dict[str, str]:
        run.figures[check] = False
        return {}

    monkeypatch.setattr(full_size, "measure", measured)
    assert full_size.main(["--size", "tiny", "--device", "cpu"]) == 1


def test_no_profile_is_made_when_the_targets_are_met(tmp_path: Path) -> None:
    run = Run(SIZES["tiny"], "cpu", tmp_path, figures={"targets_met": True})
    assert profile(run) == {}
    assert run.profile == ""


def test_without_a_card_or_room_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert full_size.main([]) == 3
    assert "No CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _path: SimpleNamespace(free=10))
    assert full_size.main(["--device", "cpu"]) == 3
    message = capsys.readouterr().err
    assert "27.2 GB are needed" in message
    assert message.count("\n") == 1
