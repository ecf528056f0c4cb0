"""Manifests: JSON lines with audio, text, emotion, as in the original, read so that no bad row stops a run.

Every bad row is reported with its file, its line and the problem; the good ones are used. Knows no torch.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile
import soxr

from assistant.events import EMOTIONS, SAMPLE_RATE, Samples
from model.audio.files import read_audio
from model.errors import BadInput
from model.files import write_atomically
from training.runs.config import IGNORE

LINE_BYTES = 1 << 20
"""Maximum length of a row."""

KEY = "key"
"""The field of a row whose recording is only in a feature cache (`python -m training wide-corpus`): its key there."""

Policy = Literal["required", "optional", "any"]
"""Whether every row needs a known emotion, may be without one, or may have any value at all."""

_SEGMENT = re.compile(r"(.+):(\d{1,15}):(\d{1,15})", re.DOTALL)


class Dropped(NamedTuple):
    """Why a row was dropped. `line` counts from 1; 0 is the whole file."""

    file: str
    line: int
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


OnDropped = Callable[[Dropped], None]


@dataclass(slots=True)
class Report:
    """The dropped rows, in order; `notify` is called with each at once."""

    notify: OnDropped | None = None
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, file: Path | str, line: int, reason: str, message: str) -> None:
        """Record a dropped row.

        Args:
            file: of the row.
            line: of the row, from 1; 0 for the whole file.
            reason: in a few fixed words, for counts.
            message: the problem, for people.
        """
        name = str(file)
        self.dropped.append(Dropped(name if name.isprintable() else ascii(name), line, reason, message))
        if self.notify is not None:
            self.notify(self.dropped[-1])

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the dropped rows.

        Returns:
            Counts by file and reason.
        """
        files: dict[str, Counter[str]] = {}
        for one in self.dropped:
            files.setdefault(one.file, Counter())[one.reason] += 1
        return {file: dict(reasons) for file, reasons in files.items()}

    def write(self, folder: Path) -> None:
        """Write dropped.jsonl: file, line, reason, message.

        Args:
            folder: where to write it.
        """
        lines = (json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in self.dropped)
        write_atomically(folder / "dropped.jsonl", "".join(lines))

    def first(self) -> str:
        """The first message.

        Returns:
            In parentheses, or nothing.
        """
        return f" ({self.dropped[0]})" if self.dropped else ""


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, or `frames` samples (at its own rate) of it from `start` on; -1: all of it."""

    path: Path
    start: int = 0
    frames: int = -1


@dataclass(frozen=True, slots=True)
class Row:
    """A valid row of a manifest.

    Attributes:
        file: its manifest.
        line: its line, from 1.
        audio: as in the row, possibly empty.
        text: not empty, unless the manifest has no such field.
        emotion: one of the five, or None; with the policy "any" as in the row.
        data: the whole row.
    """

    file: Path
    line: int
    audio: str
    text: str
    emotion: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes a row valid.

    Attributes:
        audio: name of the field with the recording.
        text: name of the field with the transcript; empty: there is none.
        needs_audio: whether rows must name a recording, or its key in a feature cache.
        strings: further fields that must be text if present.
        required: fields that must be present.
        emotions: see `Policy`.
        emotion_map: other labels of emotions; "ignore" for no label.
        where: required values of fields.
    """

    audio: str = "audio"
    text: str = "text"
    needs_audio: bool = True
    strings: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    emotions: Policy = "optional"
    emotion_map: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)


class BadRow(ValueError):
    """A row that is dropped: the reason in a few fixed words, and the message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_rows(files: Iterable[Path], rules: Rules, report: Report) -> Iterator[Row]:
    """Read the valid rows of manifests in order.

    Args:
        files: the manifests.
        rules: what makes a row valid.
        report: gets the dropped rows, and files without rows.

    Yields:
        Valid rows.

    Raises:
        BadInput: no row of any file is valid; it names the file and the first problem.
    """
    seen: dict[bytes, tuple[Path, int]] = {}
    names, valid = [], 0
    for path in files:
        names.append(str(path))
        lines = 0
        try:
            for number, raw in _lines(path):
                lines += 1
                try:
                    row = _row(path, number, raw, rules, seen)
                except BadRow as problem:
                    report.drop(path, number, problem.reason, str(problem))
                    continue
                valid += 1
                yield row
        except BadRow as problem:
            report.drop(path, 0, problem.reason, str(problem))
            continue
        if not lines:
            report.drop(path, 0, "no rows", "it holds no rows: write one JSON object a line")
    if not valid:
        raise BadInput(f"{', '.join(names[:3]) or 'The manifest'} has no usable row{report.first()}.")


def find_manifests(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of `folder` that match one of the names or patterns, sorted by name.

    Raises:
        BadInput: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder: choose the one with the manifests.")
    wanted = list(patterns)
    found = {path for path in folder.iterdir() for pattern in wanted if fnmatch.fnmatchcase(path.name, pattern)}
    missing = [name for name in wanted if not any(fnmatch.fnmatchcase(path.name, name) for path in found)]
    if missing or not found:
        raise BadInput(f"{folder} has no {', '.join(missing) or 'manifest'}: check the folder and the names.")
    return sorted(found)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that is not blank; a line that is too long is cut to more than `LINE_BYTES`."""
    if not os.path.lexists(path):
        raise BadRow("no manifest", "it does not exist: check the path")
    if path.is_dir():
        raise BadRow("no manifest", "it is a folder: choose a JSONL file inside it")
    if not path.is_file():
        raise BadRow("no manifest", "it is not a regular file, or a broken link: check the path")
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES + 2):
                number += 1
                if number == 1:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise BadRow("not UTF-8", "it is UTF-16: save it as UTF-8")
                    line = line.removeprefix(b"\xef\xbb\xbf")
                rest = line
                while not rest.endswith(b"\n") and (rest := file.readline(LINE_BYTES)):
                    pass
                if line.strip():
                    yield number, line
    except OSError as error:
        raise BadRow("no manifest", f"it cannot be read ({error.strerror}): check its permissions") from error


def _row(path: Path, number: int, raw: bytes, rules: Rules, seen: dict[bytes, tuple[Path, int]]) -> Row:
    data = _object(raw)
    for name, value in rules.where.items():
        if str(data.get(name, "")) != value:
            raise BadRow("not wanted", f"{name} is {_short(data.get(name))}, not {value!r} (--where)")
    digest = hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=12).digest()
    if digest in seen:
        first, line = seen[digest]
        raise BadRow(
            "duplicate line", f"the same row as {first}:{line}" if first != path else f"the same as line {line}"
        )
    audio = _text(data, rules.audio, required=rules.needs_audio and not _text(data, KEY, required=False))
    if rules.needs_audio and not audio.strip() and not data.get(KEY):
        raise BadRow("empty audio", f"{rules.audio!r} is empty: give the recording")
    text = _text(data, rules.text, required=True) if rules.text else ""
    if rules.text and not text.strip():
        raise BadRow("empty text", f"{rules.text!r} is empty: there is no transcript")
    for name in (*rules.required, *rules.strings):
        _text(data, name, required=name in rules.required)
    if type(data.get("early_stop", False)) is not bool:
        raise BadRow("wrong type", f"'early_stop' is {_short(data['early_stop'])}, not true or false")
    emotion = _emotion(data, rules)
    seen[digest] = (path, number)
    return Row(path, number, audio, text, emotion, data)


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > LINE_BYTES + 1:
        raise BadRow("line too long", f"more than {LINE_BYTES:,} bytes: this is no row")
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8", f"byte {error.start + 1} is not UTF-8: save the file as UTF-8") from error
    try:
        data = json.loads(line, object_pairs_hook=_unique)
    except BadRow:
        raise
    except (ValueError, RecursionError) as error:
        what = (
            f"{error.msg} at character {error.pos + 1}"
            if isinstance(error, json.JSONDecodeError)
            else "nested too deep"
        )
        raise BadRow("broken JSON", f"not JSON: {what}") from error
    if not isinstance(data, dict):
        raise BadRow("not an object", f"{_short(data)} instead of an object {{...}}: write one row a line")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise BadRow("field twice", f"{twice!r} is there twice")
    return data


def _text(data: Mapping[str, Any], name: str, *, required: bool) -> str:
    if name not in data:
        if required:
            raise BadRow("missing field", f"no {name!r}: it has {', '.join(map(repr, list(data)[:8])) or 'nothing'}")
        return ""
    value = data[name]
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{name!r} is {_short(value)}, not text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow("broken text", f"{name!r} holds half of a surrogate pair")
    return value


def _emotion(data: Mapping[str, Any], rules: Rules) -> str | None:
    if data.get("emotion") is None or rules.emotions == "any":
        value = _text(data, "emotion", required=False) if data.get("emotion") is not None else ""
    else:
        value = _text(data, "emotion", required=True)
    if rules.emotions == "any":
        return value
    name = value.strip()
    name = rules.emotion_map.get(name, name.lower())
    if name in EMOTIONS:
        return name
    if name and name != IGNORE:
        known = ", ".join(EMOTIONS)
        raise BadRow("unknown emotion", f"emotion {_short(value)} is none of {known}: see --emotion-map")
    if rules.emotions == "required":
        raise BadRow("no emotion", "it has no emotion, and with --use-emotion every row needs one")
    return None


def _short(value: Any) -> str:
    """A value in at most about 60 characters."""
    kind = {dict: "an object", list: "an array", bool: "a truth value", type(None): "null"}.get(type(value))
    text = json.dumps(value, ensure_ascii=True)
    return f"{kind} ({text[:40]})" if kind and value is not None else kind or text[:60]


def find_audio(audio: str, manifest: Path, root: Path | None = None) -> Clip:
    """Find the recording that a row names.

    It is relative to `root` if given, to its manifest or one of the three folders above (labelled manifests are often
    below the recordings), or to the working directory. "PATH:START:FRAMES" is a part of a recording, in samples at its
    own rate, as in the original.

    Args:
        audio: as in the row.
        manifest: the row's manifest.
        root: a further folder.

    Returns:
        The clip.

    Raises:
        BadRow: it is in none of these places.
    """
    folder = manifest.absolute().parent
    places = [*filter(None, [root]), folder, *list(folder.parents)[:3], Path()]
    names = [(audio, 0, -1)]
    if segment := _SEGMENT.fullmatch(audio):
        names.append((segment[1], int(segment[2]), int(segment[3])))
    for name, start, frames in names:
        for place in places:
            # os.path: an impossible name is a missing file.
            if os.path.exists(place / name):  # noqa: PTH110
                return Clip(Path(os.path.abspath(place / name)), start, frames)  # noqa: PTH100 (links stay)
    shown = audio if audio.isprintable() else ascii(audio)
    where = f"below {manifest.parent}" if root is None else f"in {root}, below {manifest.parent}"
    raise BadRow("missing audio", f"{shown[:200]} is neither {where} nor in the working directory")


def read_clip(clip: Clip) -> Samples:
    """Read the samples of a clip.

    Args:
        clip: a recording or a part of one.

    Returns:
        float32 [n], mono, 16 kHz.

    Raises:
        BadInput: it cannot be read, is silent (`model.audio.files.read_audio`), or ends before the segment does.
    """
    if clip.frames < 0:
        return read_audio(clip.path)
    try:
        with soundfile.SoundFile(clip.path) as sound:
            if clip.start + clip.frames > sound.frames or not clip.frames:
                raise BadInput(f"{clip.path}: has {sound.frames} samples, too few from {clip.start} on")
            sound.seek(clip.start)
            block = sound.read(clip.frames, dtype="float32", always_2d=True)
            rate = sound.samplerate
    except (OSError, soundfile.SoundFileError) as error:
        raise BadInput(f"{clip.path}: damaged or not audio: record, copy or convert it again") from error
    samples: Samples = soxr.resample(block.mean(axis=1), rate, SAMPLE_RATE)
    if not np.isfinite(samples).all() or np.ptp(samples) < 2e-3:
        raise BadInput(f"{clip.path}: silent or NaN from {clip.start} on")
    return samples


class Found(NamedTuple):
    """A row's recording: the clip, its number of samples at 16 kHz, its key; or reason and message of the problem."""

    clip: Clip | None = None
    samples: int = 0
    key: str = ""
    problem: tuple[str, str] | None = None


def inspect(row: Row, min_seconds: float, max_seconds: float, root: Path | None = None) -> Found:
    """Find the row's recording, read all of it and measure it. A row without one has only the key that it names.

    The key is that of feature caches: the SHA-256 of the file, or of the samples of a part of one.

    Args:
        row: of a manifest.
        min_seconds: shortest recording.
        max_seconds: longest recording.
        root: see `find_audio`.

    Returns:
        The recording, or the problem.
    """
    if not row.audio.strip():
        return Found(key=str(row.data[KEY]))
    try:
        clip = find_audio(row.audio, row.file, root)
        samples = read_clip(clip)
        content = clip.path.read_bytes() if clip.frames < 0 else samples.tobytes()
    except BadRow as problem:
        return Found(problem=(problem.reason, str(problem)))
    except BadInput as problem:
        return Found(problem=("unusable audio", str(problem)))
    seconds = len(samples) / SAMPLE_RATE
    if not min_seconds <= seconds <= max_seconds:
        reason = "too short" if seconds < min_seconds else "too long"
        limits = f"{min_seconds:g} to {max_seconds:g} s are allowed"
        return Found(problem=(reason, f"{clip.path.name} is {seconds:.3f} s long, and {limits}"))
    return Found(clip, len(samples), hashlib.sha256(content).hexdigest())
