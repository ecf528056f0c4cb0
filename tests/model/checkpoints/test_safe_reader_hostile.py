"""Hostile checkpoint folders: nothing in them runs, none hangs or fills memory, each is refused in one clear line.

Every folder goes through both doors, `checkpoint.load` and `python -m model.convert`, while an audit hook watches
for processes, connections and code from the folder.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assistant.events import Typed
from model.checkpoints import loader
from model.commands import convert
from model.errors import ModelError
from model.inference.engine import Engine
from tests import GOLDENS
from tests.model.support.hostile_damage import in_weights
from tests.model.support.hostile_folders import HARMLESS, REFUSED
from tests.model.support.hostile_originals import IGNORED, ORIGINAL
from tests.support.tiny import tiny_checkpoint

pytestmark = [
    pytest.mark.timeout(20),  # a case takes a tenth of a second
    pytest.mark.usefixtures("without_recogniser"),
]
CHECKPOINTS = GOLDENS / "checkpoints"
MEMORY_MIB = 200  # that a case may add to the process, for folders of 2 MB


# ---- what watches


class Watch:
    """Notes what no checkpoint may cause, within a `with` block; an audit hook cannot be taken off."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self.seen.clear()
        self.on = True

    def __exit__(self, *_: object) -> None:
        self.on = False
        assert not self.seen

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        forbidden = event.startswith(_FORBIDDEN)
        if event == "pickle.find_class":
            forbidden |= arguments[0].split(".")[0] in ("os", "posix", "nt", "builtins", "subprocess", "shutil")
        if event in ("import", "open", "compile", "ctypes.dlopen"):
            forbidden |= any(re.search(r"payload|generate\.py$", name) for name in arguments[:2] if type(name) is str)
        if forbidden:
            self.seen.append(f"{event} {arguments}"[:200])


_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "subprocess.", "pty.", "webbrowser.")
_FORBIDDEN += ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.", "http.client")
WATCH = Watch()


def _memory_mib(reset: bool = False) -> float:
    """The most memory that this process has had since the last reset (Linux; elsewhere nothing is measured)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 1024


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Path]:
    """A folder to work in; fails the test when something ran or memory grew."""
    before = _memory_mib(reset=True)
    yield tmp_path
    assert not (tmp_path / "canary").exists()
    assert _memory_mib() - before < MEMORY_MIB


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "tiny"
    tiny_checkpoint().save(folder)
    return folder


def _load(folder: Path) -> loader.Checkpoint:
    with WATCH:
        return loader.load(str(folder), device="cpu", quantize="none", threads=1)


def _loading_fails(folder: Path) -> str:
    with pytest.raises(ModelError) as raised:
        _load(folder)
    return str(raised.value)


def _converting_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    target = folder.with_name("converted")
    capsys.readouterr()
    with WATCH:
        assert convert.main([str(folder), str(target)]) in (2, 3)
    assert not list(folder.parent.glob("converted*")), "something half-made remains"
    return capsys.readouterr().err.strip()


def is_clear(message: str, names: str) -> bool:
    """One line that names the culprit."""
    named = re.search(names, message) is not None
    return named and message.isprintable() and len(message) < 800


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_folder_is_refused(case: str, own: Path, watched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, names = REFUSED[case]
    folder = watched / "tiny"
    shutil.copytree(own, folder)
    damage(folder)
    message = _loading_fails(folder)
    assert is_clear(message, names), message
    message = _converting_fails(folder, capsys)
    assert is_clear(message, "json|tensors|tiny"), message


@pytest.mark.parametrize("case", HARMLESS)
def test_what_a_folder_asks_for_is_not_heeded(
    case: str, own: Path, watched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = watched / "tiny"
    shutil.copytree(own, folder)
    HARMLESS[case](folder)
    loaded = _load(folder)
    expected = list(Engine(tiny_checkpoint()).reply([], Typed("hello there")))
    assert list(Engine(loaded).reply([], Typed("hello there"))) == expected
    assert is_clear(_converting_fails(folder, capsys), "json|tensors|tiny")


@pytest.mark.parametrize("case", ORIGINAL)
def test_a_hostile_original_is_refused(case: str, watched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, names = ORIGINAL[case]
    folder = watched / "original"
    shutil.copytree(CHECKPOINTS / "a", folder)
    damage(folder)
    message = _converting_fails(folder, capsys)
    assert is_clear(message, names), message
    assert is_clear(_loading_fails(folder), "convert it first|config.json")


@pytest.mark.parametrize("case", IGNORED)
def test_what_an_original_asks_for_is_not_heeded(case: str, watched: Path) -> None:
    folder, plain, target = watched / "original", watched / "plain", watched / "converted"
    shutil.copytree(CHECKPOINTS / "a", folder)
    IGNORED[case](folder)
    with WATCH:
        assert convert.main([str(CHECKPOINTS / "a"), str(plain)]) == convert.main([str(folder), str(target)]) == 0
    assert {path.name for path in plain.iterdir()} == {path.name for path in target.iterdir()}
    for path in plain.iterdir():
        assert path.read_bytes() == (target / path.name).read_bytes(), path.name


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4", "nf4-all"])
def test_weights_that_are_no_numbers_are_named_in_every_precision(quantize: str, own: Path, tmp_path: Path) -> None:
    folder, name = tmp_path / "tiny", "language_model.model.layers.1.mlp.up_proj.base.weight"
    shutil.copytree(own, folder)
    in_weights(lambda tensors: tensors[name].view(-1)[7].fill_(float("nan")))(folder)
    with pytest.raises(ModelError, match=re.escape(name)):
        loader.load(str(folder), device="cpu", quantize=quantize, threads=1)


def test_there_are_more_than_fifty_of_each() -> None:
    assert len(REFUSED) + len(HARMLESS) >= 50
    assert len(ORIGINAL) + len(IGNORED) >= 50
