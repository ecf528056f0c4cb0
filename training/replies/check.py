"""The corpus's rules: the manner of its replies, no doubles, nothing of the held-out cases.

Rules for one exchange name it; rules for the whole corpus are figures with a limit.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.commands.reply_cases import read_cases
from training.replies.records import Record, Turn

MOST_WORDS = {"advice": 45, "crisis": 45}
"""Words of a reply by kind; 30 for the others."""

PHRASES = (
    "as an ai", "language model", "feel free", "don't hesitate", "remember that", "it's important to", "make sure to",
    "stay positive", "everything happens for a reason", "i can imagine", "how can i help", "sorry to hear",
    "you must feel", "here to help", "i'll call", "i'll book", "i'll order", "i'll remind", "i will remind",
    "i'll look", "i'll search", "i'll check", "let me check", "let me look",
)  # fmt: skip
"""No reply holds one of these."""

OPENERS = (
    "i'm sorry to hear", "i am sorry to hear", "i understand", "that sounds", "sounds like", "it sounds like",
    "of course", "sure", "certainly", "absolutely", "great question", "oh no", "wow", "ah",
)  # fmt: skip
"""No reply begins with one of these."""

NAMES = ("laura", "oslo", "oscar", "dublin", "tom", "volvo", "doctor brown", "dr brown", "weasels", "weasel")
"""Names of the held-out cases and of the published examples: in no exchange."""

MOST_OPENER_SHARE = 0.01
MOST_DOUBLES_SHARE = 0.01
MOST_OF_A_SKELETON = 3
LEAST_DISTINCT_BIGRAMS = 0.4

_ALIKE = 0.5  # of two replies' five-grams: near-doubles
_ALIKE_EMBEDDED = 0.97  # cosine
_HELD_OUT = 0.75  # of two messages' words: the same question
_SKELETON_WORDS = 6  # shorter replies ("Done.") may recur
_COMMONEST = """
a about after again all always an and any anything are aren't as at away back be because been before being but by
can can't could did didn't do does doesn't don't down each either else even ever every for from get gets go goes
going had has have he he's her here him his how i i'd i'll i'm i've if in into is isn't it it's its just keep let
like made make me more most much my never no nobody nor not nothing now of off on once one only or other our out
over own said say she she's so some somebody someone something still take than that that's the their them then there
there's these they they're thing things this those though to too until up us very was wasn't we we're were what
what's when where whether which while who who's whose why will with without won't would yes yet you you'd you'll
you're you've your yours
"""
_FUNCTION_WORDS = frozenset(_COMMONEST.split())

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors of length 1, [n, size]."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What breaks a rule; `where`: a record's id and the exchange's number, or "corpus"."""

    where: str
    rule: str
    text: str


def words(text: str) -> list[str]:
    """Its words in lower case, apostrophes kept."""
    return re.findall(r"[a-z0-9']+", text.lower())


def exchange_faults(kind: str, turn: Turn) -> Iterator[str]:
    """The rules that one exchange breaks."""
    reply, low, count = turn.reply, turn.reply.lower(), len(words(turn.reply))
    if count > MOST_WORDS.get(kind, 30):
        yield f"{count} words"
    if reply.count("?") > 1:
        yield "more than one question"
    if reply.count("!") > 1:
        yield "more than one exclamation mark"
    if len(re.findall(r"[.!?](?:\s|$)", reply)) > 4:
        yield "more than four sentences"
    if re.search(r"(?:^|\s)[-*]\s|\*\*|^\d+\.\s|^#|`", reply):
        yield "list or markdown"
    if not re.search(r"[.!?][\"')]?$", reply):
        yield "no end of a sentence"
    if re.search(r"[^\x20-\x7e]", turn.said + reply):
        yield "not plain ASCII"
    for phrase in PHRASES:
        if phrase in low:
            yield f"the phrase {phrase!r}"
    for opener in OPENERS:
        if re.match(rf"{re.escape(opener)}\b", low):
            yield f"the opener {opener!r}"
    both = f" {' '.join(words(turn.said))} {' '.join(words(reply))} "
    for name in NAMES:
        if f" {name} " in both or f" {name}'s " in both:
            yield f"the held-out name {name!r}"


class HeldOut:
    """Recognises what the held-out cases say and ask in the corpus."""

    def __init__(self, cases: Mapping[str, list[Any]] | None = None) -> None:
        tables = read_cases() if cases is None else cases
        rows = [row for table in tables.values() for row in table if isinstance(row, dict)]
        said = {text for row in rows for text in self._texts(row)}
        self._sets = {text: frozenset(words(text)) for text in said if len(words(text)) >= _LEAST_WORDS}
        self._by_word: dict[str, set[str]] = defaultdict(set)
        for text, own in self._sets.items():
            for word in own - _FUNCTION_WORDS:
                self._by_word[word].add(text)

    @staticmethod
    def _texts(row: Mapping[str, Any]) -> list[str]:
        return [row[key] for key in ("say", "ask", "first") if key in row] + [
            turn["say"] for turn in row.get("turns", ())
        ]

    def match(self, said: str) -> str | None:
        """The held-out message that has nearly the same words, if any."""
        own = frozenset(words(said))
        near = {text for word in own - _FUNCTION_WORDS for text in self._by_word.get(word, ())}
        for text in sorted(near):
            other = self._sets[text]
            # "What do you call a baby sheep?" is another question than that about a dog.
            told, asked = own - _FUNCTION_WORDS, other - _FUNCTION_WORDS
            if len(own & other) >= _HELD_OUT * len(own | other) and (told <= asked or asked <= told):
                return text
        return None


_LEAST_WORDS = 3  # "Hello there" may be said anywhere


def skeleton(reply: str) -> str:
    """The reply with every word but the commonest left out."""
    return " ".join(word if word in _FUNCTION_WORDS else "_" for word in words(reply))


def check(records: Sequence[Record], embed: Embed | None = None, held_out: HeldOut | None = None) -> list[Fault]:
    """Find what breaks a rule in the corpus.

    Args:
        records: of the corpus.
        embed: embeds texts, for near-doubles; None: only five-grams are compared.
        held_out: the held-out cases; None: those of the project.

    Returns:
        The faults.
    """
    held_out = held_out or HeldOut()
    faults = []
    for record in records:
        for number, turn in enumerate(record.turns, 1):
            where = f"{record.id}.{number}"
            faults += [Fault(where, rule, turn.reply) for rule in exchange_faults(record.kind, turn)]
            if (like := held_out.match(turn.said)) is not None:
                faults.append(Fault(where, f"held out: {like!r}", turn.said))
    return faults + list(_corpus_faults(records, embed))


def _named(records: Sequence[Record]) -> list[tuple[str, Turn]]:
    return [(f"{record.id}.{n}", turn) for record in records for n, turn in enumerate(record.turns, 1)]


def _corpus_faults(records: Sequence[Record], embed: Embed | None) -> Iterator[Fault]:
    named = _named(records)
    openers = Counter(" ".join(words(turn.reply)[:3]) for _, turn in named)
    most = max(3, int(MOST_OPENER_SHARE * len(named)))
    for opener, count in openers.most_common():
        if count <= most:
            break
        yield Fault("corpus", f"opener in {count} replies, at most {most}", opener)
    skeletons = defaultdict[str, list[str]](list)
    for where, turn in named:
        if len(words(turn.reply)) >= _SKELETON_WORDS and set(words(turn.reply)) & _FUNCTION_WORDS:
            skeletons[skeleton(turn.reply)].append(where)
    for one, places in skeletons.items():
        if len(places) > MOST_OF_A_SKELETON:
            yield Fault(places[-1], f"skeleton of {len(places)} replies ({', '.join(places[:3])})", one)
    doubles = near_doubles([turn.reply for _, turn in named], embed)
    if len(doubles) > MOST_DOUBLES_SHARE * len(named):
        for second, first in doubles.items():
            yield Fault(named[second][0], f"nearly the same as {named[first][0]}", named[second][1].reply)
    if (share := distinct_bigrams(records)) < LEAST_DISTINCT_BIGRAMS:
        yield Fault("corpus", f"distinct bigrams {share:.2f}, at least {LEAST_DISTINCT_BIGRAMS}", "")


def distinct_bigrams(records: Sequence[Record]) -> float:
    """The share of the replies' word pairs that are different ones."""
    pairs = [pair for _, turn in _named(records) for pair in zip(words(turn.reply), words(turn.reply)[1:])]  # noqa: B905
    return len(set(pairs)) / max(1, len(pairs))


def near_doubles(replies: Sequence[str], embed: Embed | None) -> dict[int, int]:
    """Replies that say nearly what an earlier one says: their places, and that one's."""
    found: dict[int, int] = {}
    grams = [frozenset(zip(*(words(reply)[i:] for i in range(5)))) for reply in replies]  # noqa: B905
    where = defaultdict[Any, list[int]](list)
    for at, own in enumerate(grams):
        for other in sorted({place for gram in own for place in where[gram]}):
            if len(own & grams[other]) >= _ALIKE * len(own | grams[other]):
                found.setdefault(at, other)
        for gram in own:
            where[gram].append(at)
    if embed is None:
        return found
    vectors = embed(replies)
    for start in range(0, len(vectors), 512):
        near = vectors[start : start + 512] @ vectors.T > _ALIKE_EMBEDDED
        for row, other in zip(*near.nonzero(), strict=True):
            if other < start + row and len(words(replies[start + row])) >= _SKELETON_WORDS:
                found.setdefault(int(start + row), int(other))
    return found


def token_embeddings(tokenizer: Any, table: NDArray[np.float32]) -> Embed:
    """Embed texts as the mean of their tokens' embeddings, each weighted by its rarity in the texts.

    Args:
        tokenizer: of the language model.
        table: float32 [V, E], its embeddings.

    Returns:
        The function that embeds texts.
    """

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        # Numbers and spelt letters are so rare that they would outweigh every word.
        plain = [" ".join(re.findall(r"[a-z']{2,}", text.lower())) or text for text in texts]
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in plain]
        counts = Counter(token for one in ids for token in set(one))
        centred = table - table.mean(0)
        vectors = np.stack(
            [np.log(len(texts) / np.array([counts[t] for t in one])) @ centred[one] for one in ids], dtype=np.float32
        )
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9), np.float32)

    return embed


def summary(records: Sequence[Record], faults: Sequence[Fault]) -> dict[str, Any]:
    """Count what the corpus holds.

    Args:
        records: of the corpus.
        faults: found by `check`.

    Returns:
        Counts and shares by name.
    """
    kinds = Counter(record.kind for record in records for _ in record.turns)
    lengths = sorted(len(words(turn.reply)) for record in records for turn in record.turns)
    tones = Counter("/".join(turn.tones) or "none" for record in records for turn in record.turns)
    return {
        "records": len(records),
        "exchanges": len(lengths),
        "in_dialogues": sum(len(record.turns) for record in records if len(record.turns) >= 3),
        "by_kind": dict(sorted(kinds.items())),
        "by_tone": dict(tones.most_common(6)),
        "two_candidates": sum(count for tone, count in tones.items() if "/" in tone),
        "same_words_in_tones": _tone_groups(records),
        "median_words": lengths[len(lengths) // 2],
        "questions_share": round(sum("?" in turn.reply for _, turn in _named(records)) / len(lengths), 3),
        "distinct_bigrams": round(distinct_bigrams(records), 3),
        "faults": len(faults),
    }


def _tone_groups(records: Sequence[Record]) -> int:
    """Messages that occur in four tones or more."""
    tones = defaultdict[str, set[tuple[str, ...]]](set)
    for record in records:
        tones[record.turns[0].said.lower()].add(record.turns[0].tones)
    return sum(len(one) >= 4 for one in tones.values())
