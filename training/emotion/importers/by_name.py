"""Corpora with labels in their file names: RAVDESS, EMO-DB, IndoWaveSentiment, TESS, SAVEE, EmoGator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from training.emotion.importers.corpus import Clip, Corpus, Found, sounds

Reader = Callable[[Path, Found], Iterator[Clip]]


def by_name(pattern: str, clip: Callable[[Path, re.Match[str], Found], Clip | None]) -> Reader:
    """A reader of files whose stem, or "FOLDER/STEM", matches a pattern completely.

    Args:
        pattern: a regular expression.
        clip: makes the clip of a file and its match; None: it is dropped, and noted.
    """
    named = re.compile(pattern)

    def read(folder: Path, found: Found) -> Iterator[Clip]:
        for path in sounds(folder):
            match = named.fullmatch(path.stem) or named.fullmatch(f"{path.parent.name}/{path.stem}")
            if match is None:
                found.skipped["named differently"] += 1
            elif (made := clip(path, match, found)) is not None:
                yield made

    return read


def _odd_is_male(number: str) -> str:
    return "male" if int(number) % 2 else "female"


# ---- RAVDESS: modality-channel-emotion-intensity-statement-repetition-actor

_RAVDESS_LABELS = dict(
    zip("12345678", ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"), strict=True)
)
_RAVDESS_TEXTS = {"1": "Kids are talking by the door.", "2": "Dogs are sitting by the door."}


def _ravdess(path: Path, match: re.Match[str], found: Found) -> Clip | None:
    if match["channel"] != "1":
        found.skipped["song, no speech"] += 1
        return None
    return Clip(
        path,
        _RAVDESS_LABELS[match["emotion"]],
        match["actor"],
        sex=_odd_is_male(match["actor"]),
        text=_RAVDESS_TEXTS[match["statement"]],
        intensity={"1": "normal", "2": "strong"}[match["intensity"]],
    )


RAVDESS = Corpus(
    name="ravdess",
    title="RAVDESS (Livingstone & Russo 2018)",
    source="https://zenodo.org/record/1188976 (Audio_Speech_Actors_01-24.zip)",
    licence="CC-BY-NC-SA-4.0",
    use="train-nc",
    emotions={"neutral": "neutral", "happy": "happy", "angry": "angry", "sad": "sad", "surprised": "surprise"},
    others=("calm", "fearful", "disgust"),
    expected="Actor_12/03-01-06-01-02-01-12.wav",
    read=by_name(
        r"03-0(?P<channel>[12])-0(?P<emotion>[1-8])-0(?P<intensity>[12])-0(?P<statement>[12])-0[12]-(?P<actor>\d\d)",
        _ravdess,
    ),
)


# ---- EMO-DB: speaker, text, emotion (the first letter of its German name), version

_EMODB_LABELS = {
    "N": "neutral", "F": "happiness", "W": "anger", "T": "sadness", "A": "fear", "L": "boredom", "E": "disgust",
}  # fmt: skip
_EMODB_WOMEN = {"08", "09", "13", "14", "16"}
_EMODB_TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def _emodb(path: Path, match: re.Match[str], _: Found) -> Clip:
    speaker = match["speaker"]
    sex = "female" if speaker in _EMODB_WOMEN else "male"
    return Clip(path, _EMODB_LABELS[match["emotion"]], speaker, sex=sex, text=_EMODB_TEXTS.get(match["text"], ""))


EMODB = Corpus(
    name="emodb",
    title="EMO-DB (Burkhardt et al. 2005)",
    source="http://emodb.bilderbar.info or https://zenodo.org/records/17651657",
    licence="CC0-1.0",
    use="free",
    emotions={"neutral": "neutral", "happiness": "happy", "anger": "angry", "sadness": "sad"},
    others=("fear", "boredom", "disgust"),
    expected="wav/03a01Fa.wav",
    read=by_name(r"(?P<speaker>0[389]|1[0-6])(?P<text>[ab]\d\d)(?P<emotion>[NFWTALE])[a-z]?", _emodb),
)


# ---- IndoWaveSentiment: actor-emotion-intensity-repetition; one sentence

_INDOWAVE_LABELS = dict(zip("12345", ("neutral", "happy", "surprise", "disgust", "disappointed"), strict=True))


def _indowave(path: Path, match: re.Match[str], _: Found) -> Clip:
    return Clip(
        path,
        _INDOWAVE_LABELS[match["emotion"]],
        match["actor"],
        sex=_odd_is_male(match["actor"]),
        intensity={"1": "normal", "2": "strong"}[match["intensity"]],
    )


INDOWAVE = Corpus(
    name="indowave",
    title="IndoWaveSentiment (Bustamin et al. 2024)",
    source="https://data.mendeley.com/datasets/j9ytfdzy27/1",
    licence="CC-BY-4.0 (to be confirmed)",
    use="free-if-confirmed",
    emotions={"neutral": "neutral", "happy": "happy", "surprise": "surprise"},
    others=("disgust", "disappointed"),
    expected="Actor_07/07-03-02-03.wav",
    read=by_name(
        r"(?:Actor_\d\d_)?(?P<actor>\d\d)-0(?P<emotion>[1-5])-0(?P<intensity>[12])-0[1-3]",
        _indowave,
    ),
)


# ---- TESS: speaker_word_emotion; one file is named OA_bite_neutral


def _tess(path: Path, match: re.Match[str], _: Found) -> Clip:
    speaker = "YAF" if match["speaker"] == "YAF" else "OAF"
    return Clip(path, match["emotion"], speaker, sex="female", text=f"Say the word {match['word']}.")


TESS = Corpus(
    name="tess",
    title="TESS (Dupuis & Pichora-Fuller 2010)",
    source="https://tspace.library.utoronto.ca/handle/1807/24487",
    licence="CC-BY-NC-ND-4.0",
    use="measure",
    emotions={"neutral": "neutral", "happy": "happy", "angry": "angry", "sad": "sad", "ps": "surprise"},
    others=("fear", "disgust"),
    expected="OAF_angry/OAF_back_angry.wav",
    read=by_name(r"(?P<speaker>OAF?|YAF)_(?P<word>[a-z]+)_(?P<emotion>neutral|happy|angry|sad|ps|fear|disgust)", _tess),
)


# ---- SAVEE: a folder a speaker, or the speaker before the name; emotion and number

_SAVEE_LABELS = {
    "n": "neutral", "h": "happiness", "a": "anger", "sa": "sadness", "su": "surprise", "f": "fear", "d": "disgust",
}  # fmt: skip


def _savee(path: Path, match: re.Match[str], _: Found) -> Clip:
    return Clip(path, _SAVEE_LABELS[match["emotion"]], match["speaker"], sex="male")


SAVEE = Corpus(
    name="savee",
    title="SAVEE (Haq & Jackson 2010)",
    source="http://kahlan.eps.surrey.ac.uk/savee/ (on registration)",
    licence="for research only",
    use="measure",
    emotions={
        "neutral": "neutral",
        "happiness": "happy",
        "anger": "angry",
        "sadness": "sad",
        "surprise": "surprise",
    },
    others=("fear", "disgust"),
    expected="AudioData/DC/sa01.wav",
    read=by_name(r"(?P<speaker>DC|JE|JK|KL)[/_](?P<emotion>sa|su|[adfhn])\d\d", _savee),
)


# ---- EmoGator: contributor-category-instance; laughs, sighs and cries, no words

_EMOGATOR_LABELS = (
    "Adoration", "Amusement", "Anger", "Awe", "Confusion", "Contempt", "Contentment", "Desire", "Disappointment",
    "Disgust", "Distress", "Ecstasy", "Elation", "Embarrassment", "Fear", "Guilt", "Interest", "Neutral", "Pain",
    "Pride", "Realization", "Relief", "Romantic Love", "Sadness", "Serenity", "Shame", "Surprise (Negative)",
    "Surprise (Positive)", "Sympathy", "Triumph",
)  # fmt: skip
_EMOGATOR_EMOTIONS = {
    "Neutral": "neutral",
    "Amusement": "happy",
    "Elation": "happy",
    "Anger": "angry",
    "Sadness": "sad",
    "Surprise (Negative)": "surprise",
    "Surprise (Positive)": "surprise",
}


def _emogator(path: Path, match: re.Match[str], found: Found) -> Clip | None:
    category = int(match["category"])
    if not 1 <= category <= len(_EMOGATOR_LABELS):
        found.skipped["named differently"] += 1
        return None
    return Clip(path, _EMOGATOR_LABELS[category - 1], match["speaker"], more={"kind": "burst"})


EMOGATOR = Corpus(
    name="emogator",
    title="EmoGator (Buhl 2023)",
    source="https://github.com/fredbuhl/EmoGator",
    licence="Apache-2.0",
    use="free",
    emotions=_EMOGATOR_EMOTIONS,
    others=tuple(name for name in _EMOGATOR_LABELS if name not in _EMOGATOR_EMOTIONS),
    expected="data/mp3/000001-03-1.mp3",
    read=by_name(r"(?P<speaker>\d{6})-(?P<category>\d\d)-[1-3]", _emogator),
)
