"""Import a corpus: its clips become a manifest with our five emotions. `Corpus` describes one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from assistant.events import EMOTIONS
from model.errors import BadInput
from model.files import write_atomically
from training.runs.config import IGNORE

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
"""Of sound files. If a clip exists in several formats, the first one counts."""

Use = Literal["free", "free-if-confirmed", "train-nc", "measure", "own"]
"""What a licence allows: free weights; free weights once the licence is confirmed by the authors; weights for
non-commercial use only; measuring only; "own": the user decides."""

_LFS = b"version https://git-lfs"


@dataclass(slots=True)
class Clip:
    """A recording as described by its corpus.

    Attributes:
        audio: its file.
        label: the corpus's own name of the emotion; empty if there is none.
        speaker: the corpus's own name; empty if unknown.
        sex: "female", "male" or empty.
        text: the transcript, or empty.
        intensity: the corpus's own word, or empty.
        split: "train", "validation" or "test" if the corpus defines it.
        more: further fields of the manifest's row.
    """

    audio: Path
    label: str
    speaker: str
    sex: str = ""
    text: str = ""
    intensity: str = ""
    split: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Found:
    """Notes of `Corpus.read`: dropped clips by reason, and remarks for the user."""

    skipped: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus and how it is read.

    Attributes:
        name: in the command and the manifest.
        title: name and authors.
        source: where people get it and agree to its licence.
        licence: an SPDX identifier if there is one.
        use: what the licence allows.
        emotions: our emotion for each of its labels that means one of the five.
        others: its labels that mean none of them. Labels in neither are unmapped too.
        expected: paths in its folder, for the message about an unknown layout.
        read: yields the clips below a folder; none if the layout is unknown.
        labels: kinds of labels to choose from, the default first; empty if there is only one kind.
    """

    name: str
    title: str
    source: str
    licence: str
    use: Use
    emotions: Mapping[str, str]
    others: Sequence[str]
    expected: str
    read: Callable[[Path, Found], Iterator[Clip]]
    labels: Sequence[str] = ()

    def mapping(self) -> dict[str, str]:
        """The mapping of the corpus's own labels.

        Returns:
            One of the five emotions, or "ignore", by label.
        """
        return {**self.emotions, **dict.fromkeys(self.others, IGNORE)}


def import_corpus(
    corpus: Corpus,
    folder: Path,
    out: Path,
    *,
    emotion_map: Mapping[str, str] | None = None,
    labels: str = "",
    test: Iterable[str] = (),
    licence: str = "",
) -> dict[str, Any]:
    """Write a manifest of a corpus.

    Its JSON lines have audio, text, emotion, speaker, sex, intensity, corpus, split, licence, use and the corpus's own
    label. Paths are relative to the manifest if the recordings are below it.

    Args:
        corpus: one of the supported ones.
        folder: the unpacked corpus, or a folder around it.
        out: the manifest; an existing file is replaced.
        emotion_map: labels that mean something else than in `Corpus.emotions`; "ignore" drops clips.
        labels: which of `Corpus.labels` to use as the emotion; by default the first.
        test: the corpus's names of speakers for the split "test", if it has no split of its own.
        licence: instead of `Corpus.licence`, for the user's own recordings.

    Returns:
        Rows, rows per emotion, speakers, unmapped and skipped clips with reasons; the mapping, the licence.

    Raises:
        BadInput: the folder's layout is unknown, an option names something unknown, or the manifest cannot be written.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder: choose the one that {corpus.title} was unpacked to.")
    if out.is_dir():
        raise BadInput(f"{out} is a folder: give the manifest to write, such as {out / corpus.name}.jsonl.")
    if labels and labels not in corpus.labels:
        raise BadInput(f"{corpus.name} has {' and '.join(corpus.labels) or 'one kind of'} labels, no {labels!r}.")
    mapping = corpus.mapping() | _sound_map(emotion_map or {}, corpus)
    found, unmapped = Found(), Counter[str]()
    held, rows, speakers = set(test), [], set()
    for clip in _once(_whole(corpus, folder, found), found):
        label = _chosen_label(clip, labels, corpus, found)
        if not label:
            continue
        emotion = mapping.get(label, IGNORE)
        if emotion == IGNORE:
            unmapped[label] += 1
            continue
        speakers.add(clip.speaker)
        rows.append(_row(clip, label, emotion, corpus, out, held, licence))
    if unknown := held - speakers:
        raise BadInput(f"{corpus.name} has no speaker {min(unknown)}: it has {_few(sorted(speakers))}.")
    if not rows:
        raise BadInput(f"No clip of {folder} has one of the five emotions: see {corpus.name}'s --mapping.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}): choose another path.") from error
    counts = Counter(row["emotion"] for row in rows)
    return {
        "corpus": corpus.name,
        "licence": licence or corpus.licence,
        "use": corpus.use,
        "rows": len(rows),
        "emotions": {name: counts[name] for name in EMOTIONS},
        "speakers": len(speakers),
        "unmapped": dict(unmapped.most_common()),
        "skipped": dict(found.skipped.most_common()),
        "remarks": found.remarks,
        "mapping": mapping,
        "manifest": str(out),
    }


def sounds(folder: Path) -> list[Path]:
    """The audio files below a folder, the best format first, sorted by name, without hidden ones."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    found = [path for path in found if path.suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda path: (SUFFIXES.index(path.suffix.lower()), path))


def find_table(folder: Path, name: str) -> Path | None:
    """Find a file by its name.

    Args:
        folder: to search.
        name: of the file.

    Returns:
        The file in the folder itself, else the first one below it; None if there is none.
    """
    if (folder / name).is_file():
        return folder / name
    return next((path for path in sorted(folder.rglob(name)) if path.is_file()), None)


def read_text(path: Path) -> str:
    """Read a text file as UTF-8. Bytes that are not UTF-8 become replacement characters.

    Args:
        path: of the file.

    Returns:
        Its text.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): check its permissions.") from error


def _sound_map(emotion_map: Mapping[str, str], corpus: Corpus) -> dict[str, str]:
    known = corpus.mapping()
    for own, ours in emotion_map.items():
        if ours not in (*EMOTIONS, IGNORE):
            raise BadInput(f"--emotion-map: {own}={ours} is none of {', '.join((*EMOTIONS, IGNORE))}")
        if corpus.others and own not in known:
            raise BadInput(f"--emotion-map: {corpus.name} has no label {own!r}: it has {', '.join(known)}")
    return dict(emotion_map)


def _whole(corpus: Corpus, folder: Path, found: Found) -> Iterator[Clip]:
    """Yield the corpus's clips that have sound.

    Raises:
        BadInput: there are none. The message says what was expected and what the folder contains.
    """
    sound = 0
    for clip in corpus.read(folder, found):
        with clip.audio.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                found.skipped["Git LFS pointers"] += 1
                continue
        sound += 1
        yield clip
    if pointers := found.skipped["Git LFS pointers"]:
        remark = "are pointers of Git LFS in place of sound: run `git lfs pull` in the repository."
        if not sound:
            raise BadInput(f"All {pointers} recordings of {folder} {remark}")
        found.remarks.append(f"{pointers} recordings {remark}")
    if not sound:
        there = _few([str(path.relative_to(folder)) for path in islice(_everything(folder), 4)]) or "nothing"
        remarks = " ".join([f"It holds {there}.", *found.remarks])
        raise BadInput(f"{folder} is not laid out as {corpus.title}: expected {corpus.expected}. {remarks}")


def _everything(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))


def _once(clips: Iterable[Clip], found: Found) -> Iterator[Clip]:
    """Yield each clip once: some archives contain everything twice, or in two formats."""
    seen: set[tuple[str, str, str]] = set()
    for clip in clips:
        key = (clip.speaker, clip.split, clip.audio.stem)
        if key in seen:
            found.skipped["the same clip again"] += 1
            continue
        seen.add(key)
        yield clip


def _chosen_label(clip: Clip, labels: str, corpus: Corpus, found: Found) -> str:
    """The clip's label of the chosen kind; empty and counted if it has none."""
    usual = not labels or labels == corpus.labels[0]
    label = clip.label if usual else str(clip.more.get(labels, ""))
    if not label:
        found.skipped["no label" if usual else f"no label of the kind {labels}"] += 1
    return label


def _row(
    clip: Clip, label: str, emotion: str, corpus: Corpus, out: Path, test: set[str], licence: str
) -> dict[str, Any]:
    audio, base = clip.audio.absolute(), out.absolute().parent
    inside = audio.is_relative_to(base)
    return {
        "audio": audio.relative_to(base).as_posix() if inside else str(audio),
        "text": clip.text,
        "emotion": emotion,
        "speaker": f"{corpus.name}-{clip.speaker}" if clip.speaker else "",
        "sex": clip.sex,
        "intensity": clip.intensity,
        "corpus": corpus.name,
        "split": clip.split or ("test" if clip.speaker in test else "train"),
        "licence": licence or corpus.licence,
        "use": corpus.use,
        "label": label,
        **clip.more,
    }


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
