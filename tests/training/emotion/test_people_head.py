"""A head from manifests of people's speech, on scripted voices: nothing left out is known, and the model loads it."""

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from assistant.events import EMOTIONS
from model.checkpoints.loader import reading_settings
from model.errors import BadInput
from model.nn.emotion import EmotionHead
from training.__main__ import main
from training.emotion import voiceless
from training.emotion.corpora import gather, read_manifest
from training.emotion.recipe import Data, Display, Held, Recipe, choose_display, fit_people, leave_corpora, weigh

RATE = 16_000
PITCH = dict(zip(EMOTIONS, (120, 180, 160, 90, 260), strict=True))


def write_corpus(folder, name, speakers, emotions=EMOTIONS, each=3, acted=True):
    """A buzz at each emotion's pitch."""
    folder.mkdir()
    random = np.random.default_rng(len(name))
    rows = []
    for speaker in range(speakers):
        for emotion in emotions:
            for take in range(each):
                phase = 2 * np.pi * np.cumsum(np.full(RATE, PITCH[emotion] * random.uniform(0.96, 1.04))) / RATE
                wave = 0.1 * sum(np.sin(k * phase) / k for k in range(1, 9)) + 0.001 * random.normal(size=RATE)
                audio = f"{speaker}-{emotion}-{take}.flac"
                soundfile.write(folder / audio, wave, RATE)
                row = {
                    "audio": audio,
                    "emotion": emotion,
                    "speaker": str(speaker),
                    "corpus": name,
                    "licence": "CC0-1.0",
                }
                rows.append(row | {"acted": acted})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return [
        write_corpus(folder / "one", "one", 4),
        write_corpus(folder / "two", "two", 4),
        write_corpus(folder / "people", "people", 4, ["neutral"], acted=False),
    ]


def test_fit_head_writes_a_head_a_card_and_figures_of_what_was_left_out(
    manifests, tiny_whisper, tmp_path, capsys, monkeypatch
):
    few = {kind: voiceless.SOUNDS[kind] for kind in ("hiss", "keys")}
    monkeypatch.setattr(voiceless, "SOUNDS", few)
    words = ["fit-head", str(tmp_path), "--whisper", str(tiny_whisper), "--corpus", *map(str, manifests)]
    options = ["--leave-one-corpus-out", "--renditions", "1", "--folds", "2", "--licence", "CC0-1.0", "--json"]
    assert main(words + options) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["corpora"].keys() == {"one", "two"}
    assert figures["corpora"]["one"]["without"]["n"] == 60
    assert figures["corpora"]["one"]["with_baseline"]["n"] == 60 - 2 * 4
    assert figures["corpora"]["one"]["without"]["unweighted_recall"] > 0.5
    assert figures["speakers"]["all acted"]["n"] == 120
    settings = {name.removeprefix("emotion_"): value for name, value in reading_settings(tmp_path).items()}
    assert (settings["layers"], settings["stacked"], settings["baseline"]) == ([2, 3, 4, 5], True, True)
    weights = load_file(tmp_path / "head.safetensors")
    head = EmotionHead(len(weights["centre"]), baseline=True, voice=True)
    head.load_state_dict(weights)
    card = (tmp_path / "CARD.md").read_text()
    assert "**Licence of the weights: CC0-1.0**" in card
    assert "| one | 60 | 4 | acted | CC0-1.0 |" in card
    assert "| people | 12 | 4 | ordinary speech, as neutral | CC0-1.0 |" in card


def test_a_second_gathering_needs_no_whisper(manifests, tiny_whisper, tmp_path):
    first = gather(manifests[:1], tiny_whisper, tmp_path, draws=(0, 1))
    second = gather(manifests[:1], tmp_path / "none", tmp_path, draws=(0, 1))
    np.testing.assert_array_equal(first.states, second.states)
    assert len(first.clips) == 120


def test_a_corpus_left_out_changes_nothing_of_its_readings(manifests, tiny_whisper, tmp_path):
    frames = gather(manifests, tiny_whisper, tmp_path)
    recipe = Recipe(layers=(2,))
    data, rows = Data.of(frames, recipe), np.ones(len(frames.clips), bool)
    before, _ = leave_corpora(data, rows, recipe, ["one"])
    changed = data.inputs.clone()
    other = Data(frames, changed, data.baselines, data.spent)
    changed[torch.from_numpy(frames.sources == "one")] *= -1
    fitted = fit_people(other, rows & (frames.sources != "one"), recipe)
    again = fit_people(data, rows & (frames.sources != "one"), recipe)
    torch.testing.assert_close(fitted.fit.weight, again.fit.weight)
    assert set(before.groups) == {"one", "unacted"}


def test_corpora_and_emotions_weigh_alike(manifests, tiny_whisper, tmp_path):
    frames = gather(manifests, tiny_whisper, tmp_path)
    weights = weigh(frames, np.ones(len(frames.clips), bool), unacted=0.5)
    assert weights.sum() == pytest.approx(1)
    sad = weights[(frames.sources == "one") & (frames.labels == EMOTIONS.index("sad"))].sum()
    assert weights[frames.sources == "two"].sum() == pytest.approx(5 * sad)
    assert weights[frames.sources == "unacted"].sum() == pytest.approx(0.5 * sad)


def test_the_display_keeps_its_promises():
    random = np.random.default_rng(0)

    def held(strength, groups):
        labels = random.integers(5, size=len(groups)) * (groups != "unacted")
        return Held(
            torch.from_numpy(strength * np.eye(5)[labels] + random.normal(size=(len(groups), 5))), labels, groups
        )

    groups = np.array(["one"] * 400 + ["two"] * 400 + ["unacted"] * 400)
    corpora, speakers = held(2.0, groups), held(4.0, groups)
    display = choose_display(corpora, speakers)
    for one in (corpora, speakers):
        calm = one.part("unacted")
        probabilities = torch.softmax(calm.logits / display.temperature, 1).numpy()
        assert (display.sure(probabilities) & (probabilities.argmax(1) > 0)).mean() <= 0.05
    assert isinstance(display, Display)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "1:"),
        ('{"audio": "a.flac", "emotion": "bored", "speaker": "1"}', "bored"),
        ('{"audio": "a.flac", "emotion": "sad"}', "speaker"),
        ("", "empty"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(tmp_path, line, told):
    path = tmp_path / "manifest.jsonl"
    path.write_text(line)
    with pytest.raises(BadInput, match=told):
        read_manifest(path)
