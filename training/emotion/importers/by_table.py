"""Corpora with label tables: CREMA-D, nEMO, IEMOCAP, MELD."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.emotion.importers.corpus import Clip, Corpus, Found, find_table, read_text, sounds

Table = list[dict[str, str]]


def read_table(path: Path, delimiter: str = ",") -> Table:
    """The rows of a table with a header line, values without surrounding blanks."""
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    return [{str(name): (value or "").strip() for name, value in row.items() if name is not None} for row in rows]


# ---- CREMA-D: actor_sentence_emotion_level, and the listeners' votes

_CREMA_LABELS = {
    "NEU": "neutral", "HAP": "happy", "ANG": "anger", "SAD": "sad", "FEA": "fear", "DIS": "disgust",
}  # fmt: skip
_CREMA_VOTES = {name[0].upper(): name for name in _CREMA_LABELS.values()}  # by the table's columns
_CREMA_LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "", "X": ""}
_CREMA_TEXTS = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_CREMA_NAME = re.compile(
    r"(?P<actor>1\d{3})_(?P<text>[A-Z]{3})_(?P<emotion>NEU|HAP|ANG|SAD|FEA|DIS)_(?P<level>LO|MD|HI|XX?)"
)


def _crema_d(folder: Path, found: Found) -> Iterator[Clip]:
    people, tallies = find_table(folder, "VideoDemographics.csv"), find_table(folder, "tabulatedVotes.csv")
    sexes = {row["ActorID"]: row["Sex"].lower() for row in read_table(people)} if people else {}
    votes = _voice_votes(read_table(tallies)) if tallies else {}
    matches = ((path, _CREMA_NAME.fullmatch(path.stem)) for path in sounds(folder))
    some = False
    for path, match in matches:
        if match is None:
            found.skipped["named differently"] += 1
            continue
        some = True
        yield Clip(
            path,
            _CREMA_LABELS[match["emotion"]],
            match["actor"],
            sex=sexes.get(match["actor"], ""),
            text=_CREMA_TEXTS.get(match["text"], ""),
            intensity=_CREMA_LEVELS[match["level"]],
            more=_heard(votes.get(path.stem)),
        )
    if some and people is None:
        found.remarks.append("VideoDemographics.csv is not there: the speakers' sex is left empty.")
    if some and tallies is None:
        found.remarks.append("processedResults/tabulatedVotes.csv is not there: rows have no votes of listeners.")


def _voice_votes(table: Table) -> Mapping[str, Mapping[str, int]]:
    """Votes of listeners of the voice alone, by clip. Their rows have numbers 1xxxxx (2xxxxx: face, 3xxxxx: both)."""
    heard = (row for row in table if row[""].startswith("1"))
    return {row["fileName"]: {name: int(row[letter]) for letter, name in _CREMA_VOTES.items()} for row in heard}


def _heard(votes: Mapping[str, int] | None) -> dict[str, object]:
    """The votes and the most frequent label, empty on a tie."""
    if not votes:
        return {}
    most = max(votes.values())
    winners = [name for name, count in votes.items() if count == most]
    return {"votes": dict(votes), "heard": winners[0] if len(winners) == 1 else ""}


CREMA_D = Corpus(
    name="crema-d",
    title="CREMA-D (Cao et al. 2014)",
    source="https://github.com/CheyneyComputerScience/CREMA-D (git lfs)",
    licence="ODbL-1.0",
    use="free",
    emotions={"neutral": "neutral", "happy": "happy", "anger": "angry", "sad": "sad"},
    others=("fear", "disgust"),
    expected="AudioWAV/1001_DFA_ANG_XX.wav, with VideoDemographics.csv and processedResults/tabulatedVotes.csv",
    read=_crema_d,
    labels=("intended", "heard"),
)


# ---- nEMO: data.tsv and samples/


def _nemo(folder: Path, found: Found) -> Iterator[Clip]:
    table = find_table(folder, "data.tsv")
    if table is None:
        found.remarks.append("data.tsv is not there.")
        return
    files = {path.stem: path for path in reversed(sounds(table.parent))}
    for row in read_table(table, "\t"):
        path = files.get(Path(row.get("file_id", "")).stem)
        if path is None:
            found.skipped["in the table, but not there"] += 1
            continue
        yield Clip(path, row["emotion"], row["speaker_id"], sex=row["gender"], text=row["raw_text"])


NEMO = Corpus(
    name="nemo",
    title="nEMO (Christop 2024)",
    source="https://github.com/amu-cai/nEMO",
    licence="CC-BY-NC-SA-4.0",
    use="train-nc",
    emotions={
        "neutral": "neutral",
        "happiness": "happy",
        "anger": "angry",
        "sadness": "sad",
        "surprised": "surprise",
    },
    others=("fear",),
    expected="data.tsv (file_id, emotion, raw_text, speaker_id, gender) and samples/EB0_anger_1.wav",
    read=_nemo,
)


# ---- IEMOCAP: a line for every turn in dialog/EmoEvaluation, its words in dialog/transcriptions

_IEMOCAP_TURN = re.compile(r"\[[\d. -]+\]\s+(?P<turn>Ses0\d[FM]_\w+_(?P<sex>[FM])\d+)\s+(?P<label>[a-z]{3})\s")
_IEMOCAP_WORDS = re.compile(r"(?P<turn>Ses0\d[FM]_\w+)\s+\[[\d. -]+\]:?\s*(?P<text>.*)")


def _iemocap(folder: Path, found: Found) -> Iterator[Clip]:
    files = {path.stem: path for path in reversed(sounds(folder)) if "sentences" in path.parts}
    for table in sorted(folder.rglob("dialog/EmoEvaluation/Ses*.txt")):
        spoken = table.parent.parent / "transcriptions" / table.name
        lines = read_text(spoken).splitlines() if spoken.is_file() else []
        said = {match["turn"]: match["text"] for line in lines if (match := _IEMOCAP_WORDS.match(line))}
        for match in filter(None, map(_IEMOCAP_TURN.match, read_text(table).splitlines())):
            path = files.get(match["turn"])
            if path is None:
                found.skipped["in the table, but not there"] += 1
                continue
            yield Clip(
                path,
                match["label"],
                f"{match['turn'][:5]}{match['sex']}",
                sex={"F": "female", "M": "male"}[match["sex"]],
                text=said.get(match["turn"], "").strip(),
            )


IEMOCAP = Corpus(
    name="iemocap",
    title="IEMOCAP (Busso et al. 2008)",
    source="https://sail.usc.edu/iemocap/ (on request)",
    licence="for research only",
    use="measure",
    emotions={"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad", "sur": "surprise"},
    others=("fru", "fea", "dis", "oth", "xxx"),
    expected="Session1/dialog/EmoEvaluation/Ses01F_impro01.txt and "
    "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav",
    read=_iemocap,
)


# ---- MELD: *_sent_emo.csv; dialogues are numbered anew in each split

_MELD_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_MELD_SEXES = {
    "Monica": "female", "Phoebe": "female", "Rachel": "female", "Chandler": "male", "Joey": "male", "Ross": "male",
}  # fmt: skip
_MELD_CLIP = re.compile(r"dia\d+_utt\d+")


def _meld(folder: Path, found: Found) -> Iterator[Clip]:
    files: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sounds(folder):
        split = _meld_split(path, folder)
        if _MELD_CLIP.fullmatch(path.stem) and split:
            files[split].setdefault(path.stem, path)
        else:
            found.skipped["named differently"] += 1
    if not files and next(folder.rglob("dia*_utt*.mp4"), None) is not None:
        found.remarks.append(
            "The clips are videos: write each one's audio next to it, as in "
            "ffmpeg -i dia0_utt0.mp4 -vn -ac 1 -ar 16000 dia0_utt0.wav."
        )
    for name, split in _MELD_SPLITS.items():
        table = find_table(folder, f"{name}_sent_emo.csv")
        if table is None:
            found.remarks.append(f"{name}_sent_emo.csv is not there.")
            continue
        for row in read_table(table):
            clip = files[name].get(f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}")
            if clip is None:
                found.skipped["in the table, but not there"] += 1
                continue
            speaker = row["Speaker"]
            sex = _MELD_SEXES.get(speaker, "")
            yield Clip(clip, row["Emotion"], speaker, sex=sex, text=row["Utterance"], split=split)


def _meld_split(path: Path, folder: Path) -> str:
    """The split in the name of a folder above the clip: train_splits, dev_splits_complete, output_..._test."""
    inside = "/".join(path.relative_to(folder).parts[:-1]).lower()
    return next((name for name in _MELD_SPLITS if re.search(rf"(^|[/_]){name}($|[/_])", inside)), "")


MELD = Corpus(
    name="meld",
    title="MELD (Poria et al. 2019)",
    source="https://github.com/declare-lab/MELD (MELD.Raw.tar.gz; the sound of a television series)",
    licence="GPL-3.0 (annotations alone)",
    use="measure",
    emotions={"neutral": "neutral", "joy": "happy", "anger": "angry", "sadness": "sad", "surprise": "surprise"},
    others=("fear", "disgust"),
    expected="train_sent_emo.csv and train_splits/dia0_utt0.wav (and dev_, test_)",
    read=_meld,
)
