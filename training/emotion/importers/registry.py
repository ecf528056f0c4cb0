"""The supported corpora by name, and a folder per emotion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from assistant.events import EMOTIONS
from training.emotion.importers import by_name, by_table
from training.emotion.importers.corpus import Clip, Corpus, Found, read_text, sounds
from training.metrics.predictions import emotion_of_label


def _folders(folder: Path, found: Found) -> Iterator[Clip]:
    """Clips below folders named after emotions; another folder in the path is the speaker, a .txt file has the words.

    Names that mean one of the five ("joy", "Anger") are mapped; others are unmapped.
    """
    for path in sounds(folder):
        inside = path.relative_to(folder).parts[:-1]
        place = next((n for n, part in enumerate(inside) if emotion_of_label(part)), len(inside) - 1)
        if place < 0:
            found.skipped["in no folder of an emotion"] += 1
            continue
        speaker = next((part for n, part in enumerate(inside) if n != place), "")
        transcript = path.with_suffix(".txt")
        text = read_text(transcript).strip() if transcript.is_file() else ""
        yield Clip(path, emotion_of_label(inside[place]) or inside[place], speaker, text=text)


FOLDER = Corpus(
    name="folder",
    title="a folder for every emotion",
    source="recordings of your own",
    licence="not stated",
    use="own",
    emotions={name: name for name in EMOTIONS},
    others=(),
    expected="angry/anna/1.wav (a folder named after each emotion, in it one for each speaker, if known)",
    read=_folders,
)

CORPORA = {
    corpus.name: corpus
    for corpus in (
        by_name.RAVDESS,
        by_table.CREMA_D,
        by_name.EMODB,
        by_table.NEMO,
        by_name.INDOWAVE,
        by_name.TESS,
        by_name.SAVEE,
        by_table.IEMOCAP,
        by_table.MELD,
        by_name.EMOGATOR,
        FOLDER,
    )
}
"""By name. To add a corpus, define a `Corpus` and list it here."""
