"""`python -m training reply-fit`: whether replies differ with the emotion, and fit it.

Each sentence is spoken in five emotions. The unmodified language model is the judge: given the words and the name of
each possible emotion, it scores the reply. The reply fits when it is most likely under the emotion that was spoken; by
chance that is one in five. The judge's wording differs from the prompts of checkpoints.

The same is done for replies to the words alone, which cannot depend on the emotion: one in five fits, except for ties.
The difference is what the voice adds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.progress import track

from assistant.events import EMOTIONS, SAMPLE_RATE, Samples, Spoken, Typed
from model.errors import BadInput
from model.inference.engine import Engine
from model.inference.prompt import chat_ids, encode_text
from training.data.label import Writer
from training.runs.run_folder import read_lines

_WORDS = {"neutral": "calm", "happy": "happy", "angry": "angry", "sad": "sad", "surprise": "surprised"}
_ASKED = 'Somebody whose voice sounds {emotion} says to you: "{text}" Reply to them.'


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One sentence, spoken by one voice in each of the five emotions."""

    text: str
    voice: str
    clips: dict[str, Samples]


def read_scenes(corpus: Path, split: str, count: int) -> list[Scene]:
    """Read sentences of a corpus of `training corpus`, each with another wording, evenly over its voices.

    Args:
        corpus: its folder.
        split: of the corpus.
        count: number of sentences.

    Returns:
        The scenes.

    Raises:
        BadInput: the corpus has too few sentences in all five emotions.
    """
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_lines(corpus / "manifest.jsonl")[0]:
        if row["split"] == split and row.get("rendition", row["emotion"]) in EMOTIONS:
            groups.setdefault(row["source"], {})[row["emotion"]] = row
    whole = {rows["neutral"]["text"]: rows for rows in groups.values() if len(rows) == len(EMOTIONS)}
    if len(whole) < count:
        raise BadInput(f"{corpus} has {len(whole)} sentences in five emotions in {split}: choose fewer than {count}.")
    chosen = [list(whole.values())[i] for i in np.linspace(0, len(whole) - 1, count).astype(int)]
    return [_scene(corpus, rows) for rows in chosen]


def _scene(corpus: Path, rows: dict[str, dict[str, Any]]) -> Scene:
    clips = {}
    for emotion, row in rows.items():
        samples, rate = soundfile.read(corpus / row["audio"], dtype="float32")
        if rate != SAMPLE_RATE:
            raise BadInput(f"{row['audio']} has {rate} samples per second: build the corpus again.")
        clips[emotion] = samples
    return Scene(rows["neutral"]["text"], rows["neutral"]["voice"], clips)


@torch.inference_mode()
def likelihoods(writer: Writer, text: str, reply: str) -> list[float]:
    """Return log p(reply | words, emotion) under each of `EMOTIONS`, by the language model alone."""
    tokenizer = writer.chat.tokenizer
    answer = encode_text(tokenizer, reply)
    found = []
    for emotion in EMOTIONS:
        asked = _ASKED.format(emotion=_WORDS[emotion], text=text)
        prompt = chat_ids(tokenizer, writer.chat.system(use_emotion=False), [], asked)
        ids = torch.tensor([[*prompt, *answer]], device=writer.model.device)
        logits = writer.model(ids).logits[0, len(prompt) - 1 : -1].float()
        found.append(float(logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).sum()))
    return found


def reply_emotion_fit(engine: Engine, writer: Writer, scenes: Sequence[Scene], seed: int = 0) -> dict[str, Any]:
    """Measure how often replies fit the emotion, with and without the voice.

    Args:
        engine: of the checkpoint under evaluation.
        writer: its language model, unmodified, as the judge.
        scenes: sentences in five emotions.
        seed: of the bootstrap.

    Returns:
        Shares with 95 % intervals over sentences, counts, and all replies.
    """
    heard, words = list[list[bool]](), list[list[bool]]()
    replies, openings, distinct = list[dict[str, str]](), Counter[str](), list[int]()
    for scene in track(scenes, "fitting", console=Console(stderr=True), transient=True):
        own = {}
        for emotion, samples in scene.clips.items():
            own[emotion] = "".join(engine.reply([], Spoken(samples))).strip()
            engine.forget()
        plain = "".join(engine.reply([], Typed(scene.text))).strip()
        best = {reply: _likeliest(writer, scene.text, reply) for reply in {*own.values(), plain}}
        heard.append([best[own[emotion]] == emotion for emotion in EMOTIONS])
        words.append([best[plain] == emotion for emotion in EMOTIONS])
        openings.update(" ".join(reply.lower().split()[:4]) for reply in own.values())
        distinct.append(len(set(own.values())))
        replies.append({"text": scene.text, "voice": scene.voice, **own, "words_only": plain})
    return {
        "sentences": len(scenes),
        "replies": len(scenes) * len(EMOTIONS),
        "fitting": float(np.mean(heard)),
        "fitting_interval_95": _interval(heard, seed),
        "fitting_by_emotion": dict(zip(EMOTIONS, np.mean(heard, axis=0).tolist(), strict=True)),
        "words_only_fitting": float(np.mean(words)),
        "words_only_interval_95": _interval(words, seed),
        "gain_interval_95": _interval(np.subtract(heard, words, dtype=float), seed),
        "distinct_replies_per_sentence": float(np.mean(distinct)),
        "most_common_opening_share": openings.most_common(1)[0][1] / (len(scenes) * len(EMOTIONS)),
        "said": replies,
    }


def _likeliest(writer: Writer, text: str, reply: str) -> str:
    return EMOTIONS[int(np.argmax(likelihoods(writer, text, reply)))] if reply else ""


def _interval(hits: Any, seed: int) -> list[float]:
    """95 % interval by bootstrap over sentences, because the five replies to one are not independent."""
    shares = np.asarray(hits, dtype=float).mean(axis=1)
    random = np.random.default_rng(seed)
    drawn = random.choice(shares, (10_000, len(shares))).mean(axis=1)
    return [round(float(edge), 4) for edge in np.quantile(drawn, (0.025, 0.975))]
