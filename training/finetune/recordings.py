"""`python -m training check`: how usable a manifest, a folder of recordings, or the user's corrections are.

Every recording is checked separately; nothing is dropped silently. Knows no torch.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.progress import track

from assistant.events import EMOTIONS, SAMPLE_RATE, Samples
from assistant.finetune.tuning_data import Problem, Recording, overview, write_manifest
from model.audio.files import read_audio
from model.errors import BadInput
from training.data.manifest import BadRow, Dropped, Report, Row, Rules, find_audio, read_rows
from training.finetune.options import CheckOptions
from training.metrics.predictions import emotion_of_label

SHORTEST_SECONDS, LONGEST_SECONDS = 0.5, 30.0
LEAST_SNR = 10.0
"""Minimum difference in dB between loud and quiet moments; speech in a quiet room has 30 and more."""

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})
_TABLES = ("metadata.csv", "metadata.tsv", "transcripts.csv", "transcripts.tsv")
_COLUMNS = {
    "audio": ("audio", "file", "path", "filename", "file_name"),
    "text": ("text", "transcript", "transcription", "sentence"),
    "emotion": ("emotion", "label"),
    "speaker": ("speaker", "speaker_id", "voice"),
}
_MOST_FILES = 20_000
_CLIPPED_SHARE, _FLAT = 5e-4, 3  # share of samples on flat tops; samples of a flat top
_FRAME = 400


def check(source: Path, mapping: dict[str, str], notify: Callable[[Recording], None] | None = None) -> list[Recording]:
    """Check every recording of a source.

    Args:
        source: a manifest, a folder, or corrections.jsonl.
        mapping: other labels of emotions.
        notify: called with each recording at once.

    Raises:
        BadInput: there is no such file or folder, or no recording in it.
    """
    rows = list(_of_folder(source) if source.is_dir() else _of_manifest(source))
    if not rows:
        raise BadInput(f"{source} has no recording: choose a folder with WAV, FLAC, OGG or MP3 files, or a manifest.")
    seen: dict[str, str] = {}
    for row in track(rows, "check", console=Console(stderr=True), transient=True):
        _judge(row, seen)
        known = row.emotion.strip().lower() in EMOTIONS or row.emotion in mapping
        row.suggestion = "" if known or not row.emotion else emotion_of_label(row.emotion) or ""
        if notify is not None:
            notify(row)
    return rows


def check_command(options: CheckOptions, *, as_json: bool) -> dict[str, Any]:
    """Print the problems, one line per recording, and write the usable ones as a manifest if requested.

    Args:
        options: of the command.
        as_json: print JSON lines.

    Returns:
        The overview.

    Raises:
        BadInput: see `check`; or there is nothing to learn from.
    """
    mapping, out = options.emotion_map, options.write

    def notify(row: Recording) -> None:
        if as_json:
            sys.stdout.write(json.dumps({"recording": row.as_dict()}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            return
        for one in row.problems(mapping):
            sys.stdout.write(f"{row.audio}: {one.message}{'' if one.fatal else ' (usable)'}\n")

    rows = check(options.source, mapping, notify)
    found = overview(rows, mapping)
    summary = {name: getattr(found, name) for name in found.__dataclass_fields__}
    if out is not None:
        if found.refusal:
            raise BadInput(found.refusal)
        try:
            write_manifest(out, rows, mapping)
        except OSError as error:
            raise BadInput(f"{out} cannot be written ({error.strerror}): choose another place.") from error
        summary["manifest"] = str(out)
    return summary


# ---- finding recordings


def _of_manifest(path: Path) -> list[Recording]:
    report = Report()
    lines = [(row.line, _of_row(row)) for row in read_rows([path], Rules(text="", emotions="any"), report)]
    lines += [(one.line, _of_dropped(one)) for one in report.dropped]
    return [row for _, row in sorted(lines, key=lambda pair: pair[0])]


def _of_row(row: Row) -> Recording:
    text, speaker = row.data.get("text"), row.data.get("speaker") or row.data.get("voice") or ""
    made = Recording(row.audio, text if isinstance(text, str) else "", row.emotion or "", str(speaker))
    if row.data.get("consent", True) is not True:
        made.heard = (Problem("no consent", "the speaker has not agreed to its use for training"),)
    try:
        made.audio = str(find_audio(row.audio, row.file).path)
    except BadRow as problem:
        made.heard += (Problem("missing", str(problem)),)
    return made


def _of_dropped(dropped: Dropped) -> Recording:
    kind = "duplicate" if dropped.reason == "duplicate line" else "bad line"
    return Recording(f"{Path(dropped.file).name}:{dropped.line}", heard=(Problem(kind, dropped.message),))


def _of_folder(folder: Path) -> Iterator[Recording]:
    """Recordings with the labels of a manifest or table, of their subfolder, their name, or a text file next to them.

    Raises:
        BadInput: there are too many files, or a table cannot be read.
    """
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        yield from _of_manifest(manifest)
        return
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(found) > _MOST_FILES:
        raise BadInput(f"{folder} holds {len(found):,} recordings: choose a folder inside it.")
    table = _table(folder)
    for path in found:
        stated = table.get(path.name, {})
        transcript = path.with_suffix(".txt")
        text = stated.get("text") or (_text(transcript) if transcript.is_file() else "")
        emotion = stated.get("emotion") or _emotion_of(path, folder)
        yield Recording(str(path), text, emotion, stated.get("speaker") or _speaker_of(path, folder))


def _table(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of a table with a header line, by the file's name."""
    path = next((folder / name for name in _TABLES if (folder / name).is_file()), None)
    if path is None:
        return {}
    lines = _text(path).splitlines()
    rows = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
    names = {name.strip().lower(): name for name in rows.fieldnames or ()}
    columns = {want: next((names[n] for n in known if n in names), None) for want, known in _COLUMNS.items()}
    if columns["audio"] is None:
        raise BadInput(f"{path}: its first line has no column “file”: write file, text, emotion, speaker there.")
    said: dict[str, dict[str, str]] = {}
    for row in rows:
        values = {want: (row.get(column) or "").strip() for want, column in columns.items() if column}
        said[Path(values["audio"]).name] = values
    return said


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error}): save it again, or remove it.") from error


def _emotion_of(path: Path, folder: Path) -> str:
    """The emotion in the subfolder's or the file's name; otherwise the subfolder's name, whatever it means."""
    inside = path.parent.relative_to(folder).parts
    for name in (*reversed(inside), path.stem):
        for word in re.split(r"[^A-Za-z一-鿿]+", name):
            if word.lower() in EMOTIONS:
                return word.lower()
    for name in (*reversed(inside), path.stem):
        for word in re.split(r"[^A-Za-z一-鿿]+", name):
            if emotion_of_label(word) is not None:
                return word
    return inside[-1] if inside else ""


def _speaker_of(path: Path, folder: Path) -> str:
    """A folder above that of the emotion, or the start of a file's name before "-" or "_"."""
    inside = path.parent.relative_to(folder).parts
    if len(inside) > 1:
        return inside[0]
    start = re.split("[-_]", path.stem)[0] if re.search("[-_]", path.stem) else ""
    return "" if start.isdecimal() or emotion_of_label(start) else start


# ---- audio quality


def _judge(row: Recording, seen: dict[str, str]) -> None:
    """Measure the recording and note its problems; `seen` has the hashes of the previous ones."""
    if row.heard and row.heard[-1].kind in ("missing", "bad line", "duplicate"):
        return
    path = Path(row.audio)
    try:
        samples = read_audio(path)
    except BadInput as error:
        reason = str(error).partition(f"{path}: ")[2] or str(error)
        kind = "silent" if reason.startswith("silent") else "too short" if reason.startswith("only ") else "unreadable"
        row.heard += (Problem(kind, reason),)
        return
    row.seconds = round(len(samples) / SAMPLE_RATE, 3)
    levels = frame_levels(samples)
    row.level = round(float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)))), 1)
    row.snr = round(float(np.percentile(levels, 95) - np.percentile(levels, 5)), 1)
    row.heard += tuple(_heard(row, clipped_share(path)))
    key = hashlib.sha256(samples.tobytes()).hexdigest()
    if key in seen:
        row.heard += (Problem("duplicate", f"the same audio as {Path(seen[key]).name}"),)
    seen.setdefault(key, row.audio)


def _heard(row: Recording, clipped: float) -> Iterator[Problem]:
    assert row.seconds is not None
    assert row.snr is not None
    if row.seconds < SHORTEST_SECONDS:
        yield Problem("too short", f"{row.seconds:.2f} s: at least {SHORTEST_SECONDS} s are needed")
    if row.seconds > LONGEST_SECONDS:
        yield Problem("too long", f"{row.seconds:.0f} s: cut it into utterances of at most {LONGEST_SECONDS:.0f} s")
    if clipped > _CLIPPED_SHARE:
        yield Problem("clipped", f"{clipped:.1%} of it is clipped: record it at a lower level", fatal=False)
    if row.snr < LEAST_SNR:
        yield Problem("noisy", f"speech is only {row.snr:.0f} dB above the noise", fatal=False)


def frame_levels(samples: Samples) -> Any:
    """The level in dB of every 25 ms, float64 [n]; at least one."""
    count = max(1, len(samples) // _FRAME)
    frames = np.resize(samples, count * _FRAME) if len(samples) < _FRAME else samples[: count * _FRAME]
    power = np.mean(np.square(frames.reshape(count, _FRAME), dtype=np.float64), axis=1)
    return 10 * np.log10(power + 1e-10)


def clipped_share(path: Path) -> float:
    """The share of samples on flat tops at the recording's own peak, as stored; 0 for MP3."""
    if path.suffix.lower() == ".mp3":  # libsndfile writes remarks on ordinary files to stderr
        return 0.0
    with soundfile.SoundFile(path) as sound:
        stored = np.abs(sound.read(dtype="float32", always_2d=True)).max(axis=1)
    peak = stored.max(initial=0.0)
    if peak < 0.5:
        return 0.0
    flat = np.concatenate([[0], (stored >= peak - 2.0**-14).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= _FLAT].sum() / max(1, len(stored)))
