"""What goes wrong in training, and that nothing is lost by it."""

from __future__ import annotations

import json
import resource
import shutil

import pytest
from safetensors.torch import save_file

from model.errors import BadInput, WeightsMissing
from tests.training.support.tiny_run import losses, options, weights
from training.__main__ import main
from training.runs import checkpoints
from training.runs.run_folder import read_progress
from training.stages.train import train
from training.stages.trainer import Reporter


@pytest.mark.parametrize(
    ("damage", "emitted"),
    [
        (lambda last: (last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:999]), "damaged"),
        (lambda last: (last / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda last: (last / "sums.json").unlink(), "incomplete"),
        (lambda last: (last / "sums.json").write_text("[]"), "cannot be read"),
        (lambda last: (last / "sums.json").write_text("{}"), "not complete"),
        (lambda last: (last / "trainer_state.json").unlink(), "incomplete"),
    ],
    ids=["torn", "missing", "unsealed", "no sums", "empty sums", "no state"],
)
def test_the_newest_sound_checkpoint_is_found(stage1, tmp_path, damage, emitted):
    shutil.copytree(stage1, tmp_path / "run")
    assert checkpoints.newest(tmp_path / "run") == (tmp_path / "run" / "checkpoint-8", [])
    damage(tmp_path / "run" / "checkpoint-8")
    found, problems = checkpoints.newest(tmp_path / "run")
    assert found == tmp_path / "run" / "checkpoint-4"
    assert len(problems) == 1
    assert str(tmp_path / "run" / "checkpoint-8") in problems[0]
    assert emitted in problems[0]


def test_a_run_goes_on_before_a_damaged_checkpoint(folder, stage1, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(stage1, run)
    (run / "run.toml").unlink()
    (run / "summary.json").unlink()
    shutil.rmtree(run / "model")
    file = run / "checkpoint-8" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    summary = train(options(folder, "", run=run))
    assert "checkpoint-8: model.safetensors is damaged; the previous one is used" in capsys.readouterr().err
    assert summary["steps"] == 8
    assert losses(run) == losses(stage1)
    assert len(read_progress(run)) == 15
    assert checkpoints.damage_in(run / "checkpoint-8") is None


def test_a_full_disk_says_so_and_the_run_goes_on_later(folder, stage1, tmp_path):
    run = tmp_path / "run"
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit_from_step_five(self, args, state, control, **_):
        if state.global_step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, usual[1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "on_step_begin", limit_from_step_five)
        try:
            with pytest.raises(WeightsMissing, match=r"checkpoint-8 cannot be written .*resumes from checkpoint-4"):
                train(options(folder, "", run=run))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not (run / "checkpoint-8").exists()
    train(options(folder, "", run=run))
    assert losses(run) == losses(stage1)


def test_a_loss_that_is_not_finite_ends_the_run(folder, tmp_path, capsys):
    given = ["--data", folder / "data", "--model", folder / "start", "--run", tmp_path / "run", "--max-steps", 20]
    given += ["--batch-size", 4, "--learning-rate", 1, "--warmup-steps", 0, "--clip", 1e30, "--stage", 2]
    broken = tmp_path / "broken"
    shutil.copytree(folder / "start", broken)
    values = weights(broken)
    save_file(values | {"adapter.norm.weight": values["adapter.norm.weight"] * 1e30}, broken / "model.safetensors")
    given[3] = broken
    assert main(["train", *map(str, given)]) == 2
    assert "not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": "input_kl"}, "CFormer"),
        ({"losses": "nonsense"}, "Unknown losses"),
        ({"losses": "response_kl", "only": "head"}, "nothing would be trained"),
        ({"data": "nowhere"}, "prepare"),
    ],
)
def test_options_that_cannot_be(folder, tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        train(options(folder, "", **{"run": tmp_path / "run"} | change))


def test_a_cache_of_another_window_is_refused(folder, tmp_path):
    cached = options(folder, "", run=tmp_path / "run", features=(str(tmp_path / "cache"),), max_steps=1)
    train(cached)
    about = json.loads((tmp_path / "cache" / "cache.json").read_text("utf-8"))
    (tmp_path / "cache" / "cache.json").write_text(json.dumps(about | {"window": "full"}))
    with pytest.raises(BadInput, match="another window"):
        train(cached.model_copy(update={"run": tmp_path / "other"}))


def test_other_options_need_another_folder(folder, stage1):
    with pytest.raises(BadInput, match="learning_rate"):
        train(options(folder, "stage1", learning_rate=1e-4))
