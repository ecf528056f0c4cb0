"""The recordings for fine-tuning: results of the check, the user's corrections, and an overview.

Knows no torch and no file but the manifest that it writes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assistant.errors import AssistantError
from assistant.events import EMOTIONS, Samples
from assistant.files import write_atomically

IGNORE = "ignore"
"""In an emotion mapping: the recording has no emotion."""

LEAST_PER_EMOTION = 4
"""With fewer recordings of an emotion the result is not reliable."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a recording, as a code and a sentence; a `fatal` one excludes it."""

    kind: str
    message: str
    fatal: bool = True


@dataclass(slots=True)
class Recording:
    """A recording: the result of the check, with the user's changes.

    Attributes:
        audio: its path. `text`: what is said, "" if unknown. `emotion`: as it stands in the data, "" if nothing does.
        suggestion: what an unknown emotion may mean.
        seconds: None where it cannot be read; `level`: RMS in decibels of full scale; `snr`: loud over quiet, in dB.
        heard: what is wrong with the sound.
        excluded: the user leaves it out.
    """

    audio: str
    text: str = ""
    emotion: str = ""
    speaker: str = ""
    suggestion: str = ""
    seconds: float | None = None
    level: float | None = None
    snr: float | None = None
    heard: tuple[Problem, ...] = ()
    excluded: bool = False

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Recording:
        """The recording that `as_dict` wrote."""
        values = dict(line)
        values["heard"] = tuple(Problem(**one) for one in values.get("heard", ()))
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def problems(self, mapping: Mapping[str, str], *, words: bool = False) -> list[Problem]:
        """All problems, worst first.

        Args:
            mapping: what other names of emotions mean.
            words: whether the transcript is needed.
        """
        found = list(self.heard)
        if self.meaning(mapping) is None:
            hint = f", maybe {self.suggestion}" if self.suggestion else ""
            if self.emotion and self.emotion not in mapping:
                found.append(Problem("unknown emotion", f"“{self.emotion}” is none of the five{hint}: choose one"))
            else:
                found.append(Problem("no emotion", "no emotion is given: choose one"))
        if not self.text.strip():
            found.append(Problem("no transcript", "it has no transcript: write it, or have it written", words))
        return sorted(found, key=lambda one: not one.fatal)

    def meaning(self, mapping: Mapping[str, str]) -> str | None:
        """The emotion among the five, or None."""
        name = self.emotion.strip().lower()
        name = mapping.get(self.emotion, name)
        return name if name in EMOTIONS else None

    def usable(self, mapping: Mapping[str, str], *, words: bool = False) -> bool:
        """Whether it is used for training."""
        return not self.excluded and not any(one.fatal for one in self.problems(mapping, words=words))


def read_sound(path: Path) -> tuple[Samples, int]:
    """Samples (mono) and rate of a recording, for playback.

    Raises:
        AssistantError: it cannot be read.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise AssistantError(f"{path.name} cannot be played: it is no sound file, or damaged.") from error
    mono: Samples = samples.mean(axis=1)
    return mono, rate


@dataclass(frozen=True, slots=True)
class Overview:
    """An overview of a set of recordings, and its warnings.

    Attributes:
        emotions: usable recordings of each of the five. `remarks`: what to know; `refusal`: why it cannot be learnt
            from, "" if it can.
    """

    recordings: int
    usable: int
    minutes: float
    speakers: int
    emotions: Mapping[str, int]
    problems: Mapping[str, int]
    remarks: tuple[str, ...]
    refusal: str


def overview(rows: Iterable[Recording], mapping: Mapping[str, str], *, words: bool = False) -> Overview:
    """Make the overview."""
    listed = list(rows)
    used = [one for one in listed if one.usable(mapping, words=words)]
    counts = Counter(one.meaning(mapping) for one in used)
    emotions = {name: counts[name] for name in EMOTIONS}
    problems = Counter(one.kind for row in listed if not row.excluded for one in row.problems(mapping, words=words))
    present = [name for name in EMOTIONS if counts[name]]
    refusal = ""
    if len(present) < 2:
        refusal = "Recordings of at least two emotions are needed: the head learns to tell them apart."
    elif sum(count >= 2 for count in emotions.values()) < 2:
        refusal = "At least two recordings of two emotions are needed: one of each is held out to judge the result."
    remarks = []
    if absent := [name for name in EMOTIONS if not counts[name]]:
        remarks.append(f"No recording is {_listed(absent)}: how that sounds stays as the model knows it.")
    if few := [name for name in present if counts[name] < LEAST_PER_EMOTION]:
        remarks.append(f"Only few recordings are {_listed(few)}: {LEAST_PER_EMOTION} or more of each teach more.")
    if present and max(emotions.values()) > 4 * min(emotions[name] for name in present):
        remarks.append("The emotions are out of balance: they are weighed so that each counts about alike.")
    return Overview(
        recordings=len(listed),
        usable=len(used),
        minutes=sum(one.seconds or 0.0 for one in used) / 60,
        speakers=len({one.speaker for one in used if one.speaker}),
        emotions=emotions,
        problems=dict(problems),
        remarks=tuple(remarks),
        refusal=refusal,
    )


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def write_manifest(path: Path, rows: Iterable[Recording], mapping: Mapping[str, str], *, words: bool = False) -> int:
    """Write the usable recordings as a manifest with absolute paths; returns their number. Raises: OSError."""
    lines = [
        {"audio": os.path.abspath(one.audio), "text": one.text.strip(), "emotion": one.meaning(mapping)}  # noqa: PTH100
        | ({"speaker": one.speaker} if one.speaker else {})
        for one in rows
        if one.usable(mapping, words=words)
    ]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return len(lines)
