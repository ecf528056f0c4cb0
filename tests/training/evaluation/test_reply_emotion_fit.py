"""Whether replies fit the emotion: with a language model that is made to prefer what the script says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from assistant.events import EMOTIONS, Spoken
from model.errors import BadInput
from tests.support.tiny import tiny_tokenizer
from training.data.chat import Chat
from training.data.label import Writer
from training.evaluation.reply_emotion_fit import Scene, likelihoods, read_scenes, reply_emotion_fit

TOKENIZER = tiny_tokenizer()


class Favouring:
    """In a language model's place: behind a prompt that names an emotion, the reply naming it is likelier."""

    device = torch.device("cpu")

    def __call__(self, ids: torch.Tensor) -> Any:
        text = TOKENIZER.decode(ids[0])
        asked, _, reply = text.partition("Reply to them.")
        named = next(word for word in ("calm", "happy", "angry", "sad", "surprised") if f"sounds {word}" in asked)
        logits = torch.zeros(1, ids.shape[1], len(TOKENIZER))
        if named in reply:
            logits.scatter_(2, ids.roll(-1, 1)[..., None], 5.0)
        return type("Output", (), {"logits": logits})()


class Scripted:
    """In an engine's place: the first sample of a recording says which reply it gets."""

    def __init__(self, replies: dict[float, str], plain: str) -> None:
        self.replies, self.plain = replies, plain

    def reply(self, _history: list[Any], message: Any) -> list[str]:
        return [self.replies[round(float(message.samples[0]), 1)] if isinstance(message, Spoken) else self.plain]

    def forget(self) -> None:
        pass


WORDS = dict(zip(EMOTIONS, ("calm", "happy", "angry", "sad", "surprised"), strict=True))


def scene(text: str) -> Scene:
    clips = {emotion: np.full(800, at / 10, np.float32) for at, emotion in enumerate(EMOTIONS)}
    return Scene(text, "voice", clips)


@pytest.fixture
def judge() -> Writer:
    chat = Chat(TOKENIZER, "", "")
    return Writer(Favouring(), chat, 0, frozenset(), 0)


def test_the_judge_prefers_the_emotion_that_is_named(judge: Writer) -> None:
    for emotion, word in WORDS.items():
        assert EMOTIONS[int(np.argmax(likelihoods(judge, "what a day", f"oh so {word}")))] == emotion


def test_replies_that_follow_the_voice_fit_and_others_do_not(judge: Writer) -> None:
    scenes = [scene(text) for text in ("what a day", "open the door", "the rain")]
    following = Scripted({at / 10: f"you are {WORDS[e]} I hear" for at, e in enumerate(EMOTIONS)}, "you are sad")
    figures = reply_emotion_fit(following, judge, scenes)  # type: ignore[arg-type]
    assert figures["fitting"] == 1.0
    assert figures["words_only_fitting"] == pytest.approx(0.2)
    assert figures["gain_interval_95"] == [pytest.approx(0.8)] * 2
    assert figures["distinct_replies_per_sentence"] == 5
    deaf = Scripted({at / 10: "you are sad" for at in range(5)}, "you are sad")
    figures = reply_emotion_fit(deaf, judge, scenes)  # type: ignore[arg-type]
    assert figures["fitting"] == pytest.approx(0.2)
    assert figures["fitting_by_emotion"]["sad"] == 1.0
    assert figures["most_common_opening_share"] == 1.0


def test_scenes_are_whole_and_of_different_words(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    rows = []
    for number in range(4):
        for emotion in EMOTIONS[: 5 if number else 4]:
            name = f"audio/{number}-{emotion}.flac"
            soundfile.write(tmp_path / name, np.zeros(400), 16_000)
            text = f"text {min(number, 2)}"
            row = {
                "audio": name,
                "text": text,
                "emotion": emotion,
                "source": str(number),
                "voice": "v",
                "split": "test",
            }
            rows.append(json.dumps(row))
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows) + "\n")
    assert [s.text for s in read_scenes(tmp_path, "test", 2)] == ["text 1", "text 2"]
    with pytest.raises(BadInput, match="2 sentences"):
        read_scenes(tmp_path, "test", 3)
