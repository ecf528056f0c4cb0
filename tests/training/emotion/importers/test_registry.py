"""Importers on small trees with the corpora's own names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from assistant.events import EMOTIONS
from model.errors import BadInput
from training.__main__ import main
from training.data.manifest import Report, Rules, find_audio, read_clip, read_rows
from training.emotion.importers.corpus import import_corpus
from training.emotion.importers.registry import CORPORA

Rows = dict[str, dict[str, object]]


def sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).standard_normal(4_000)
    soundfile.write(path, 0.1 * noise, 16_000, format="MP3" if path.suffix == ".mp3" else None)


def tree(root: Path, *names: str) -> Path:
    """A folder with these files: sounds, or tables where a text stands behind a newline."""
    for name in names:
        first, _, text = name.partition("\n")
        if text:
            (root / first).parent.mkdir(parents=True, exist_ok=True)
            (root / first).write_text(text, "utf-8")
        else:
            sound(root / first)
    return root


def imported(corpus: str, folder: Path, **options: object) -> tuple[dict[str, object], Rows]:
    """The summary, and the manifest's rows by the clip's name, each checked as training would."""
    out = folder.parent / f"{corpus}.jsonl"
    summary = import_corpus(CORPORA[corpus], folder, out, **options)
    report = Report()
    rows = list(read_rows([out], Rules(text="", emotions="required"), report))
    assert not report.dropped
    for row in rows:
        assert len(read_clip(find_audio(row.audio, out))) == 4_000
    assert len(rows) == summary["rows"]
    return summary, {Path(row.audio).stem: dict(row.data) for row in rows}


def short(row: dict[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("emotion", "speaker", "sex", "intensity", "text"))


# ---- each corpus


def test_ravdess(tmp_path: Path) -> None:
    folder = tree(
        tmp_path / "Audio_Speech_Actors_01-24",
        "Actor_01/03-01-01-01-01-01-01.wav",
        "Actor_12/03-01-08-02-02-01-12.wav",
        "Actor_12/03-01-06-01-02-01-12.wav",
        "Actor_12/03-01-02-01-02-01-12.wav",
        "Actor_12/03-02-03-01-02-01-12.wav",
        # as one popular archive has it: everything once more
        "audio_speech_actors_01-24/Actor_01/03-01-01-01-01-01-01.wav",
        "notes-about-it.wav",
    )
    summary, rows = imported("ravdess", folder)
    assert {name: short(row) for name, row in rows.items()} == {
        "03-01-01-01-01-01-01": ("neutral", "ravdess-01", "male", "normal", "Kids are talking by the door."),
        "03-01-08-02-02-01-12": ("surprise", "ravdess-12", "female", "strong", "Dogs are sitting by the door."),
    }
    assert summary["unmapped"] == {"fearful": 1, "calm": 1}
    assert summary["skipped"] == {"song, no speech": 1, "the same clip again": 1, "named differently": 1}
    assert {row["licence"] for row in rows.values()} == {"CC-BY-NC-SA-4.0"}
    assert {row["use"] for row in rows.values()} == {"train-nc"}


VOTES = """processedResults/tabulatedVotes.csv
"","A","D","F","H","N","S","fileName","numResponses","agreement","emoVote"
"100002",0,0,0,3,6,0,"1001_IEO_HAP_LO",9,0.666666666666667,"N"
"100005",6,2,0,0,1,0,"1001_DFA_ANG_XX",9,0.666666666666667,"A"
"100006",0,0,0,4,4,0,"1002_TSI_SAD_HI",8,0.5,"H:N"
"200002",0,0,0,9,1,0,"1001_IEO_HAP_LO",10,0.9,"H"
"300002",0,0,0,8,1,0,"1001_IEO_HAP_LO",9,0.888888888888889,"H"
"""
PEOPLE = """VideoDemographics.csv
"ActorID","Age","Sex","Race","Ethnicity"
1001,51,"Male","Caucasian","Not Hispanic"
1002,21,"Female","Caucasian","Not Hispanic"
"""
CREMA = (
    "AudioWAV/1001_IEO_HAP_LO.wav", "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_TSI_SAD_HI.wav",
    "AudioWAV/1002_WSI_DIS_XX.wav", "AudioMP3/1001_IEO_HAP_LO.mp3",
)  # fmt: skip


def test_crema_d_by_what_the_actors_meant(tmp_path: Path) -> None:
    summary, rows = imported("crema-d", tree(tmp_path / "CREMA-D", *CREMA, VOTES, PEOPLE))
    assert {name: short(row) for name, row in rows.items()} == {
        "1001_IEO_HAP_LO": ("happy", "crema-d-1001", "male", "low", "It's eleven o'clock."),
        "1001_DFA_ANG_XX": ("angry", "crema-d-1001", "male", "", "Don't forget a jacket."),
        "1002_TSI_SAD_HI": ("sad", "crema-d-1002", "female", "high", "The surface is slick."),
    }
    # Of three tables of votes, that of the voice alone.
    assert rows["1001_IEO_HAP_LO"]["votes"] == {
        "neutral": 6, "happy": 3, "anger": 0, "sad": 0, "fear": 0, "disgust": 0,
    }  # fmt: skip
    assert {name: row["heard"] for name, row in rows.items()} == {
        "1001_IEO_HAP_LO": "neutral",
        "1001_DFA_ANG_XX": "anger",
        "1002_TSI_SAD_HI": "",
    }
    assert str(rows["1001_IEO_HAP_LO"]["audio"]).endswith(".wav")
    assert summary["skipped"] == {"the same clip again": 1}
    assert summary["unmapped"] == {"disgust": 1}
    assert summary["remarks"] == []


def test_crema_d_by_what_most_listeners_heard(tmp_path: Path) -> None:
    summary, rows = imported("crema-d", tree(tmp_path / "CREMA-D", *CREMA, VOTES, PEOPLE), labels="heard")
    assert {name: row["emotion"] for name, row in rows.items()} == {
        "1001_IEO_HAP_LO": "neutral",
        "1001_DFA_ANG_XX": "angry",
    }
    assert summary["skipped"]["no label of the kind heard"] == 2  # type: ignore[index]  # a tie, and no votes


def test_crema_d_without_its_tables_says_what_is_missing(tmp_path: Path) -> None:
    summary, rows = imported("crema-d", tree(tmp_path / "CREMA-D", *CREMA))
    assert "votes" not in rows["1001_DFA_ANG_XX"]
    assert [str(remark).split(" ")[0] for remark in summary["remarks"]] == [  # type: ignore[attr-defined]
        "VideoDemographics.csv", "processedResults/tabulatedVotes.csv",
    ]  # fmt: skip


def test_pointers_of_git_lfs_are_no_sound(tmp_path: Path) -> None:
    folder = tree(tmp_path / "CREMA-D", *CREMA)
    for path in folder.rglob("*_*"):
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:c6f9\nsize 72862\n")
    with pytest.raises(BadInput, match="git lfs pull"):
        imported("crema-d", folder)
    sound(folder / CREMA[0])
    summary, rows = imported("crema-d", folder)
    assert list(rows) == ["1001_IEO_HAP_LO"]
    assert "git lfs pull" in str(summary["remarks"])


def test_emodb(tmp_path: Path) -> None:
    folder = tree(tmp_path / "emodb", "wav/03a01Fa.wav", "wav/16b10Wb.wav", "wav/08a02La.wav", "wav/11b01Nc.wav")
    summary, rows = imported("emodb", folder)
    assert {name: short(row)[:3] for name, row in rows.items()} == {
        "03a01Fa": ("happy", "emodb-03", "male"),
        "16b10Wb": ("angry", "emodb-16", "female"),
        "11b01Nc": ("neutral", "emodb-11", "male"),
    }
    assert rows["03a01Fa"]["text"] == "Der Lappen liegt auf dem Eisschrank."
    assert summary["unmapped"] == {"boredom": 1}


TABLE = (
    "data.tsv\nfile_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n"
    "WR0_surprised_64.wav\tsurprised\tUcho wykrywa dźwięki.\tucho wykrywa dźwięki\t        WR0\tmale\t23\n"
    "EB0_fear_13.wav\tfear\tInteresuje mnie historia.\tinteresuje mnie historia\t        EB0\tfemale\t27\n"
    "EB0_neutral_13.wav\tneutral\tInteresuje mnie historia.\tinteresuje mnie historia\t        EB0\tfemale\t27\n"
    "EB0_sadness_1.wav\tsadness\tNie ma go.\tnie ma go\t        EB0\tfemale\t27\n"
)


def test_nemo(tmp_path: Path) -> None:
    names = ("samples/WR0_surprised_64.wav", "samples/EB0_fear_13.wav", "samples/EB0_neutral_13.wav")
    summary, rows = imported("nemo", tree(tmp_path / "nEMO", TABLE, *names), test=["EB0"])
    assert {name: short(row) for name, row in rows.items()} == {
        "WR0_surprised_64": ("surprise", "nemo-WR0", "male", "", "Ucho wykrywa dźwięki."),
        "EB0_neutral_13": ("neutral", "nemo-EB0", "female", "", "Interesuje mnie historia."),
    }
    assert {name: row["split"] for name, row in rows.items()} == {
        "WR0_surprised_64": "train",
        "EB0_neutral_13": "test",
    }
    assert summary["skipped"] == {"in the table, but not there": 1}


def test_indowave(tmp_path: Path) -> None:
    folder = tree(tmp_path / "Indo", "Actor_07/07-03-02-03.wav", "Actor_02/02-01-01-01.wav", "Actor_02/02-05-01-01.wav")
    summary, rows = imported("indowave", folder)
    assert {name: short(row)[:4] for name, row in rows.items()} == {
        "07-03-02-03": ("surprise", "indowave-07", "male", "strong"),
        "02-01-01-01": ("neutral", "indowave-02", "female", "normal"),
    }
    assert summary["unmapped"] == {"disappointed": 1}


def test_tess(tmp_path: Path) -> None:
    folder = tree(
        tmp_path / "TESS",
        "OAF_Pleasant_surprise/OAF_back_ps.wav",
        "YAF_angry/YAF_youth_angry.wav",
        "OAF_neutral/OA_bite_neutral.wav",
        "YAF_fear/YAF_youth_fear.wav",
        "TESS Toronto emotional speech set data/YAF_angry/YAF_youth_angry.wav",
    )
    summary, rows = imported("tess", folder)
    assert {name: short(row) for name, row in rows.items()} == {
        "OAF_back_ps": ("surprise", "tess-OAF", "female", "", "Say the word back."),
        "YAF_youth_angry": ("angry", "tess-YAF", "female", "", "Say the word youth."),
        "OA_bite_neutral": ("neutral", "tess-OAF", "female", "", "Say the word bite."),
    }
    assert summary["skipped"] == {"the same clip again": 1}
    assert summary["use"] == "measure"


@pytest.mark.parametrize(
    "names", [("DC/sa01.wav", "KL/su15.wav", "JE/d03.wav"), ("DC_sa01.wav", "KL_su15.wav", "JE_d03.wav")]
)
def test_savee_in_folders_and_flat(tmp_path: Path, names: tuple[str, ...]) -> None:
    summary, rows = imported("savee", tree(tmp_path / "AudioData", *names))
    assert sorted(short(row)[:3] for row in rows.values()) == [
        ("sad", "savee-DC", "male"),
        ("surprise", "savee-KL", "male"),
    ]
    assert summary["unmapped"] == {"disgust": 1}


EVALUATION = """Session1/dialog/EmoEvaluation/Ses01F_impro01.txt
% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
C-F1:\tNeutral;\t(curious)
A-E3:\tval 3; act 2; dom  2;\t()

[10.0100 - 11.3925]\tSes01F_impro01_M001\texc\t[2.5000, 2.5000, 2.5000]
[14.8872 - 18.0175]\tSes01F_impro01_F002\txxx\t[2.5000, 2.5000, 2.5000]
[19.2900 - 20.7875]\tSes01F_impro01_M003\tang\t[2.5000, 3.0000, 3.0000]
"""
TRANSCRIPT = """Session1/dialog/transcriptions/Ses01F_impro01.txt
Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
Ses01F_impro01_M001 [010.0100-011.3925]: Yeah.
"""


def test_iemocap(tmp_path: Path) -> None:
    place = "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_"
    files = [f"{place}{turn}.wav" for turn in ("F000", "M001", "F002")]
    junk = "Session1/dialog/EmoEvaluation/Categorical/Ses01F_impro01_e2_cat.txt\nSes01F_impro01_F000 :Neutral; ()\n"
    dialogue = "Session1/dialog/wav/Ses01F_impro01.wav"
    folder = tree(tmp_path / "IEMOCAP_full_release", EVALUATION, TRANSCRIPT, junk, dialogue, *files)
    summary, rows = imported("iemocap", folder)
    assert {name: short(row) for name, row in rows.items()} == {
        "Ses01F_impro01_F000": ("neutral", "iemocap-Ses01F", "female", "", "Excuse me."),
        "Ses01F_impro01_M001": ("happy", "iemocap-Ses01M", "male", "", "Yeah."),
    }
    assert summary["unmapped"] == {"xxx": 1}
    assert summary["skipped"] == {"in the table, but not there": 1}


HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
MELD = (
    f"train_sent_emo.csv\n{HEADER}"
    '1,"also, I was there",Chandler,neutral,neutral,0,0,8,21,"00:16:16,059","00:16:21,731"\n'
    '2,You must’ve.,The Interviewer,joy,positive,0,1,8,21,"00:16:21,940","00:16:23,442"\n',
    f'dev_sent_emo.csv\n{HEADER}1,"Oh my God",Phoebe,sadness,negative,0,0,4,7,"00:20:57,256","00:21:00,049"\n',
    f'test_sent_emo.csv\n{HEADER}1,Why?,Mark,disgust,positive,0,0,3,19,"00:14:38,127","00:14:40,378"\n',
)


def test_meld_tells_the_dialogues_of_its_splits_apart(tmp_path: Path) -> None:
    clips = ("train_splits/dia0_utt0.wav", "train_splits/dia0_utt1.wav", "dev_splits_complete/dia0_utt0.wav")
    last = "output_repeated_splits_test/dia0_utt0.wav"
    summary, _ = imported("meld", tree(tmp_path / "MELD.Raw", *MELD, *clips, last))
    rows = [json.loads(line) for line in (tmp_path / "meld.jsonl").read_text("utf-8").splitlines()]
    assert [(*short(row), row["split"]) for row in rows] == [
        ("neutral", "meld-Chandler", "male", "", "also, I was there", "train"),
        ("happy", "meld-The Interviewer", "", "", "You must’ve.", "train"),
        ("sad", "meld-Phoebe", "female", "", "Oh my God", "validation"),
    ]
    assert summary["unmapped"] == {"disgust": 1}


def test_meld_as_videos_says_how_to_get_the_sound(tmp_path: Path) -> None:
    folder = tree(tmp_path / "MELD.Raw", *MELD, "train_splits/dia0_utt0.mp4\nno sound file\n")
    with pytest.raises(BadInput, match=r"ffmpeg -i dia0_utt0\.mp4"):
        imported("meld", folder)


def test_emogator(tmp_path: Path) -> None:
    names = [f"data/mp3/000357-{category}-1.mp3" for category in ("02", "03", "18", "24", "27", "28", "30")]
    out = tmp_path / "emogator.jsonl"
    summary = import_corpus(CORPORA["emogator"], tree(tmp_path / "EmoGator", *names), out)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(row["label"], row["emotion"]) for row in rows] == [
        ("Amusement", "happy"), ("Anger", "angry"), ("Neutral", "neutral"), ("Sadness", "sad"),
        ("Surprise (Negative)", "surprise"), ("Surprise (Positive)", "surprise"),
    ]  # fmt: skip
    assert {row["speaker"] for row in rows} == {"emogator-000357"}
    assert {row["kind"] for row in rows} == {"burst"}
    assert summary["unmapped"] == {"Triumph": 1}


def test_a_folder_for_every_emotion(tmp_path: Path) -> None:
    folder = tree(
        tmp_path / "mine",
        "angry/anna/1.wav", "angry/anna/1.txt\nStop it.\n", "ben/Joy/2.wav", "sadness/3.wav", "bored/4.wav", "5.wav",
    )  # fmt: skip
    summary, rows = imported("folder", folder, licence="mine")
    assert {name: (row["emotion"], row["speaker"], row["text"]) for name, row in rows.items()} == {
        "1": ("angry", "folder-anna", "Stop it."),
        "2": ("happy", "folder-ben", ""),
        "3": ("sad", "", ""),
    }
    assert {row["licence"] for row in rows.values()} == {"mine"}
    assert summary["unmapped"] == {"bored": 1}
    assert summary["skipped"] == {"in no folder of an emotion": 1}


# ---- all of them


def test_every_label_is_mapped_once() -> None:
    for corpus in CORPORA.values():
        assert set(corpus.emotions.values()) <= set(EMOTIONS)
        assert not set(corpus.emotions) & set(corpus.others)


@pytest.mark.parametrize("name", CORPORA)
def test_an_unknown_layout_says_what_was_expected(tmp_path: Path, name: str) -> None:
    folder = tree(tmp_path / "odd", "what ever.wav", "data/some.txt\ntext\n")
    with pytest.raises(BadInput) as raised:
        imported(name, folder)
    message = str(raised.value)
    assert CORPORA[name].expected in message
    assert "what ever.wav" in message
    assert "\n" not in message
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds nothing"):
        imported(name, tmp_path / "empty")


@pytest.fixture
def emodb(tmp_path: Path) -> Path:
    return tree(tmp_path / "emodb", "wav/03a01Fa.wav", "wav/08a02La.wav")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"emotion_map": {"boredom": "tired"}}, "is none of neutral"),
        ({"emotion_map": {"bored": "neutral"}}, "no label 'bored': it has neutral"),
        ({"labels": "heard"}, "no 'heard'"),
        ({"test": ["99"]}, "no speaker 99: it has 03"),
        ({"emotion_map": {"happiness": "ignore"}}, "No clip of"),
    ],
)
def test_options_that_cannot_be(emodb: Path, options: dict[str, object], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        imported("emodb", emodb, **options)
    assert not (emodb.parent / "emodb.jsonl").exists()


def test_labels_may_mean_something_else(emodb: Path) -> None:
    summary, rows = imported("emodb", emodb, emotion_map={"boredom": "neutral", "happiness": "ignore"})
    assert {name: row["emotion"] for name, row in rows.items()} == {"08a02La": "neutral"}
    assert summary["unmapped"] == {"happiness": 1}


def test_paths_are_relative_where_the_recordings_lie_below_the_manifest(emodb: Path, tmp_path: Path) -> None:
    for out, expected in (
        (emodb / "m.jsonl", "wav/03a01Fa.wav"),
        (tmp_path / "a/m.jsonl", str(emodb / "wav/03a01Fa.wav")),
    ):
        import_corpus(CORPORA["emodb"], emodb, out)
        assert json.loads(out.read_text("utf-8"))["audio"] == expected


# ---- the command


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: object) -> tuple[int, str, str]:
        code = main(["import", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def test_the_command(emodb: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "m.jsonl"
    code, text, err = run("emodb", emodb, out, "--emotion-map", "boredom=neutral", "--test", "08")
    assert (code, err) == (0, "")
    assert "emotions: neutral 1, happy 1, angry 0, sad 0, surprise 0" in text
    assert "left out: fear, disgust" in text
    assert [json.loads(line)["split"] for line in out.read_text("utf-8").splitlines()] == ["train", "test"]
    code, text, _ = run("emodb", emodb, out, "--json")
    assert json.loads(text)["unmapped"] == {"boredom": 1}


def test_the_command_shows_the_mapping(run: Run) -> None:
    code, text, _ = run("--mapping", "--json")
    assert code == 0
    assert json.loads(text)["iemocap"]["mapping"]["exc"] == "happy"
    assert set(json.loads(text)) == set(CORPORA)
    assert "surprise: ps" in run("tess", "--mapping")[1]


@pytest.mark.parametrize("words", [[], ["emodb"], ["emodb", "/"], ["emodb", "nowhere", "m.jsonl"], ["emodb", "/", "/"]])
def test_what_is_missing_is_one_line(words: list[str], run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
