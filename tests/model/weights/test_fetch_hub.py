"""Fetching from the model hub, which is scripted here: weights of one commit, never code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.errors import BadInput, WeightsMissing
from model.weights import store
from model.weights.fetch import fetch_hub
from tests.model.support.registry import WHOLE, one_line

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Stands for huggingface_hub's snapshot_download, with its allow_patterns and dry_run."""

    files: dict[str, bytes]
    calls: list[bool] = field(default_factory=list)

    def __call__(
        self, *, repo_id: str, revision: str, local_dir: Path, allow_patterns: list[str], dry_run: bool = False
    ) -> list[SimpleNamespace]:
        self.calls.append(dry_run)
        chosen = {n: d for n, d in self.files.items() if any(Path(n).match(p) for p in allow_patterns)}
        if not dry_run:
            (local_dir / ".cache").mkdir(parents=True, exist_ok=True)
            for name, data in chosen.items():
                (local_dir / name).write_bytes(data)
        return [SimpleNamespace(filename=name, file_size=len(data)) for name, data in chosen.items()]


HUB_FILES = {"config.json": b"{}", "model.safetensors": WHOLE, "pytorch_model.bin": b"pickle", "modeling_x.py": b"code"}


def test_a_hub_revision_brings_weights_but_no_code_and_no_pickles(place: Path) -> None:
    hub = Hub(HUB_FILES)
    folder = fetch_hub("owner/name", COMMIT, snapshot=hub)
    assert folder == place / "models" / "owner--name@0123456789ab"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", store.STAMP}
    assert fetch_hub("owner/name", COMMIT, snapshot=hub) == folder
    assert hub.calls == [True, False], "a second start asks the hub nothing"
    fetch_hub("owner/name", COMMIT, allow_pickles=True, snapshot=hub)
    assert {path.name for path in folder.iterdir()} == {*HUB_FILES, store.STAMP} - {"modeling_x.py"}
    assert fetch_hub("owner/name", COMMIT, snapshot=Hub({})) == folder


def test_a_hub_repository_of_pickles_alone_is_refused(place: Path) -> None:
    pickles = {name: data for name, data in HUB_FILES.items() if name != "model.safetensors"}
    with pytest.raises(WeightsMissing) as error:
        fetch_hub("owner/name", COMMIT, snapshot=Hub(pickles))
    one_line(error, "no safetensors")
    assert fetch_hub("owner/name", COMMIT, allow_pickles=True, snapshot=Hub(pickles)).is_dir()


@pytest.mark.parametrize(("repo", "revision"), [("owner/name", "main"), ("owner/name", COMMIT[:39]), ("name", COMMIT)])
def test_a_hub_revision_must_be_a_commit(place: Path, repo: str, revision: str) -> None:
    with pytest.raises(BadInput):
        fetch_hub(repo, revision, snapshot=Hub({}))


def test_an_unreachable_hub_gives_one_message(place: Path) -> None:
    def unreachable(**_: object) -> None:
        from huggingface_hub.errors import DryRunError

        raise DryRunError("cannot be accessed\nsecond line")

    with pytest.raises(WeightsMissing) as error:
        fetch_hub("owner/name", COMMIT, snapshot=unreachable)
    one_line(error, "check the network")
