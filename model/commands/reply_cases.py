"""Held-out cases (resources/reply_cases), what passes, and the form of replies.

Words are looked for; nothing here judges sense.
"""

from __future__ import annotations

import re
import statistics
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from assistant.events import Exchange, Typed
from model.checkpoints.loader import RESOURCES
from model.inference.engine import Engine
from model.inference.prompt import with_tone

CASES = RESOURCES / "reply_cases"

_MOST_WORDS = {"advice": 45}
_LIST = re.compile(r"(?m)^\s*(?:[-*•]|\d{1,2}[.)])\s|\*\*|^#|`")
_SENTENCE = re.compile(r"[.!?…]+(?=[\"')\s]|$)")
_ENDED = re.compile(r"[.!?…][\"')]*$")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A case and what was answered.

    Attributes:
        kind: of the case; `topic`: what it is about, or "".
        admitted: of limits, whether the reply says that it cannot.
        replies: more than one only for a group of tones.
    """

    kind: str
    passed: bool
    said: str
    reply: str
    topic: str = ""
    admitted: bool = False
    replies: tuple[str, ...] = ()


def read_cases(folder: Path = CASES) -> dict[str, list[Any]]:
    """Read the cases.

    Args:
        folder: of TOML files.

    Returns:
        The tables of all files by name: lists of cases by kind, and lists of words.
    """
    found: dict[str, list[Any]] = {}
    for file in sorted(folder.glob("*.toml")):
        for name, rows in tomllib.loads(file.read_text("utf-8")).items():
            found.setdefault(name, []).extend(rows)
    return found


def labels(tone: str | None) -> tuple[str, ...]:
    """The emotions of a tone as people write it: "sad", "surprised", "sad/neutral"; none for "", "-" and None."""
    named = {"surprised": "surprise", "unsure": "", "-": ""}
    return tuple(filter(None, (named.get(one, one) for one in (tone or "").strip().split("/"))))


class Answerer(Protocol):
    """Whatever answers: an engine (`EngineAnswerer`), or a script in a test."""

    def exchange(self, said: str, tone: str | None, history: Sequence[Exchange]) -> Exchange:
        """What was said in a tone after past turns, and what is answered."""


class EngineAnswerer:
    """Answers with an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def exchange(self, said: str, tone: str | None, history: Sequence[Exchange]) -> Exchange:
        """As `Answerer`."""
        message = Typed(with_tone(self.engine.model.config, said, labels(tone)))
        return Exchange(message, "".join(self.engine.reply(history, message)).strip())


def judge(answerer: Answerer, cases: Mapping[str, list[Any]]) -> list[Verdict]:
    """Answer every case of every kind that there is."""
    found = [_in_turns("memory", [{"say": case["first"]}], case, answerer) for case in cases.get("memory", ())]
    found += [_in_turns("dialogue", case["turns"], case, answerer) for case in cases.get("dialogue", ())]
    groups = defaultdict[str, list[Verdict]](list)
    for kind in ("fact", "feeling", "form", "limits", "crisis", "lookalike", "tone_group", "everyday", "advice"):
        for case in cases.get(kind, ()):
            verdict = _alone(kind, case, cases, answerer)
            if kind == "tone_group":
                groups[case["group"]].append(verdict)
            else:
                found.append(verdict)
    return found + [one for group in groups.values() for one in _all_different(group)]


def _alone(kind: str, case: Mapping[str, Any], cases: Mapping[str, list[Any]], answerer: Answerer) -> Verdict:
    said = case.get("say") or case["ask"]
    reply = answerer.exchange(said, case.get("tone"), ()).heard
    wrong = list(case.get("never", ()))
    if kind == "feeling":
        wrong += cases["refusals"] + cases["condolences"]
    if kind == "limits":
        wrong += cases["promises"]
    passed = bool(reply) and not holds(reply, wrong)
    if "expect" in case:
        passed = passed and holds(reply, case["expect"])
    if kind in ("form", "everyday", "advice"):
        passed = passed and not faults(reply, cases.get("forbidden", ()), _MOST_WORDS.get(kind, 30))
    admitted = kind == "limits" and holds(reply, cases["admissions"])
    return Verdict(kind, passed, _shown(case.get("tone"), said), reply, case.get("topic", ""), admitted)


def _in_turns(kind: str, turns: Sequence[Mapping[str, str]], case: Mapping[str, Any], answerer: Answerer) -> Verdict:
    history: list[Exchange] = []
    for turn in turns:
        history.append(answerer.exchange(turn["say"], turn.get("tone"), history))
    reply = answerer.exchange(case["ask"], None, history).heard
    return Verdict(kind, holds(reply, case["expect"]), case["ask"], reply)


def _all_different(group: list[Verdict]) -> list[Verdict]:
    """A group passes as a whole: one verdict for it, with the replies in one line."""
    words = {" ".join(re.findall(r"\w+", one.reply.lower())) for one in group}
    passed = all(one.passed for one in group) and len(words) == len(group)
    replies = "\n".join(f"{one.said.partition(' ')[0]} {one.reply}" for one in group)
    said = group[0].said.partition(" ")[2]
    return [Verdict("tone_group", passed, said, replies, replies=tuple(one.reply for one in group))]


def _shown(tone: str | None, said: str) -> str:
    return f"({tone}) {said}" if tone else said


def holds(reply: str, words: Iterable[str]) -> bool:
    """Whether one of `words` stands in the reply, whatever its case and apostrophes."""
    plain = reply.lower().replace("’", "'")
    return any(word in plain for word in words)


def faults(reply: str, forbidden: Iterable[str] = (), most_words: int = 30) -> list[str]:
    """What is wrong with the form of a reply that is to be spoken."""
    found = {
        "empty": not reply.strip(),
        "long": len(reply.split()) > most_words,
        "many sentences": len(_SENTENCE.findall(reply)) > 3,
        "many questions": reply.count("?") > 1,
        "list or markdown": _LIST.search(reply) is not None,
        "forbidden": holds(reply, forbidden),
        "unfinished": _ENDED.search(reply.strip()) is None,
    }
    return [name for name, there in found.items() if there]


def form_figures(replies: Sequence[str]) -> dict[str, float | int]:
    """Lengths, lists, openers and repetition over all replies."""
    words = sorted(len(reply.split()) for reply in replies)
    openers = Counter(" ".join(reply.lower().split()[:4]) for reply in replies)
    pairs = [tuple(pair) for reply in replies for pair in zip(reply.lower().split(), reply.lower().split()[1:])]  # noqa: B905
    return {
        "replies": len(replies),
        "words_median": statistics.median(words),
        "words_95": words[min(len(words) - 1, int(0.95 * len(words)))],
        "words_most": words[-1],
        "lists": sum(_LIST.search(reply) is not None for reply in replies),
        "language_model": sum(holds(reply, ("language model", "as an ai")) for reply in replies),
        "unfinished": sum(_ENDED.search(reply) is None for reply in replies),
        "empty": sum(not reply.strip() for reply in replies),
        "questions_share": sum("?" in reply for reply in replies) / len(replies),
        "most_common_opening_share": openers.most_common(1)[0][1] / len(replies),
        "same_reply_share": Counter(replies).most_common(1)[0][1] / len(replies),
        "distinct_bigrams_share": len(set(pairs)) / max(1, len(pairs)),
    }


def figures(verdicts: Sequence[Verdict]) -> dict[str, float | int]:
    """Shares that pass by kind, how many there are, and the form of all replies."""
    total, passed = Counter(one.kind for one in verdicts), Counter(one.kind for one in verdicts if one.passed)
    found: dict[str, float | int] = {}
    for kind in sorted(total):
        found[f"{kind}_cases"], found[f"{kind}_share"] = total[kind], passed[kind] / total[kind]
    if total["limits"]:
        admitted = sum(one.passed and one.admitted for one in verdicts)
        found["limits_admitted_share"] = admitted / total["limits"]
    if total["lookalike"]:
        found["false_alarms"] = total["lookalike"] - passed["lookalike"]
    replies = [reply for one in verdicts for reply in (one.replies or (one.reply,))]
    return found | form_figures(replies)
