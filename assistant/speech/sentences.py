"""Splits a reply into sentences to speak: sentence ends, languages, and the normalized text.

Pure functions. A sentence's span depends on nothing behind a bounded look-ahead, and its spoken form on
its span and the sentences before it, so that a reply can be spoken while it is still being written.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from assistant.speech.normalize import HAN, PLAIN, URL, Mark, Reader
from assistant.speech.normalize_en import ENGLISH
from assistant.speech.normalize_zh import CHINESE

LONGEST = 400
"""Sentences longer than this many characters are cut at a pause or space, so that speech can start."""

_FIRST_CLAUSE = 14  # characters, about a second of speech: most sentences are complete by then


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a reply.

    Attributes:
        text: the source, reply[start:end], with its markup.
        spoken: what is said: no markup, emoji, links or code; numbers as words (English and Chinese).
        start: first character in the reply.
        end: past the last character in the reply.
        language: "en", "zh", or another ISO 639-1 code when script or function words tell.
        marks: words of `spoken` and where in `text` they come from, in order.
    """

    text: str
    spoken: str
    start: int
    end: int
    language: str
    marks: tuple[Mark, ...] = field(default=(), repr=False, compare=False)

    def source(self, start: int, end: int) -> tuple[int, int]:
        """The span of `text` that the characters [start, end) of `spoken` come from."""
        if not self.marks:
            return 0, len(self.text)
        starts = [mark.start for mark in self.marks]
        first = self.marks[max(bisect.bisect_right(starts, start) - 1, 0)]
        last = self.marks[max(bisect.bisect_left(starts, end) - 1, 0)]
        text_start, text_end = first.text_start, last.text_end
        if first.verbatim:
            text_start += min(max(start - first.start, 0), first.text_end - first.text_start)
        if last.verbatim:
            text_end = min(max(last.text_start + end - last.start, text_start), last.text_end)
        return text_start, max(text_start, text_end)


def sentences(text: str, *, final: bool = True, eager: bool = False) -> list[Sentence]:
    """The sentences of `text` to speak, in order, without overlap; those with nothing to say are left out.

    With `final` False more text may follow: only sentences that no continuation can change are given,
    and the list for any longer text begins with them. With `eager` the first sentence ends at its first comma or
    the like, unless that comes too soon, so that speech can begin before it is written to its end.
    """
    found: list[Sentence] = []
    language = "en"
    for start, end, code in _spans(text, final, eager):
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        source = text[start:end]
        if code:
            # Code is not read aloud, only announced.
            spoken = _CODE.get(language, "")
            marks: tuple[Mark, ...] = (Mark(0, len(spoken), 0, len(source), False),)
        else:
            language = _language(source, language)
            spoken, marks = _READERS.get(language, PLAIN).read(source)
        if spoken:
            found.append(Sentence(source, spoken, start, end, language, marks))
    return found


_CODE = {"en": "Here is some code.", "zh": "这里有一段代码。"}
_READERS: dict[str, Reader] = {"en": ENGLISH, "zh": CHINESE}

_SCRIPTS = {
    "ja": "\u3040-\u30ff", "ko": "\uac00-\ud7af", "ru": "\u0400-\u04ff", "el": "\u0370-\u03ff",
    "ar": "\u0600-\u06ff", "he": "\u0590-\u05ff", "hi": "\u0900-\u097f",
}  # fmt: skip
# Function words that none of the other languages writes the same way.
_FUNCTION_WORDS = {
    "de": "der die das und ist nicht ich du ein eine mit für auf wir sie es zu den",
    "fr": "le les des est et je vous nous une un pas dans pour que qui avec sur être c'est",
    "es": "el los las es y que una por con para muy está qué cómo pero más usted",
    "it": "il gli che è di una per con sono non molto anche della come più questo",
    "pt": "os que é uma não com para você muito mas também são isso está eu",
    "en": "the is and a to of in you i it that for on with are was this have not be",
}
_NOT_PROSE = re.compile(rf"`[^`]*`|\]\([^)]*\)|{URL}")
_WORD_SETS = {code: frozenset(words.split()) for code, words in _FUNCTION_WORDS.items()}


@cache
def _counter(characters: str) -> re.Pattern[str]:
    return re.compile(f"[{characters}]")


def _language(source: str, before: str) -> str:
    """The sentence's language by script, then by function words; `before` without evidence."""
    prose = _NOT_PROSE.sub(" ", source[:LONGEST])
    words = re.findall(r"[a-zà-öø-ÿœ']+", prose.lower())
    scripts = {code: len(_counter(span).findall(prose)) for code, span in _SCRIPTS.items()}
    han = len(_counter(HAN).findall(prose))
    if han and not scripts["ja"] and han >= len(words):
        return "zh"
    scripts["ja"] += han if scripts["ja"] else 0
    most = max(scripts, key=lambda code: scripts[code])
    if scripts[most] > len(words):
        return most
    if not words:
        return before
    votes = {code: sum(word in known for word in words) for code, known in _WORD_SETS.items()}
    best = max(votes, key=lambda code: votes[code])
    # Two function words more than English: a foreign name or phrase does not change the voice.
    return best if votes[best] >= votes["en"] + 2 else "en"


# --- where sentences end

_HEAD = 16  # characters of a line that decide its kind
_WRAPPED = 60  # a plain line this long continues in the next one; a shorter one ends on purpose
_BLANK = re.compile(r"\s*(?:[-*_=]{3,}\s*)?$")
_SINGLE = re.compile(r" {0,3}(?:#{1,6}\s|\|)")
_ITEM = re.compile(r"\s*(?:>\s?)*(?:[-*+•]\s+(?:\[[ xX]\]\s+)?|\d{1,3}[.)]\s+|>\s?)")
_FENCE = re.compile(r"\s{0,9}(```+|~~~+|\\\[|\$\$)")
_CLOSERS = {"`": r"`{3,}", "~": r"~{3,}", "\\": r"\\\]", "$": r"\$\$"}

_SCAN = re.compile(
    r"(?P<atom>"
    r"(?<!`)(?P<ticks>`++)[^\n]{1,300}?(?<!`)(?P=ticks)(?!`)"  # inline code
    r"|!?\[[^\[\]\n]{0,300}\](?:\([^()\n]{0,500}\)|(?=[^(]))"  # a link, an image, a footnote
    r"|<[A-Za-z/!][^<>\n]{0,300}>"
    r"|\\\([^\n]{1,300}?\\\)|\\\[[^\n]{1,300}?\\\]|\$\$[^\n]{1,300}?\$\$"
    r"|(?:https?://|www\.)[!-~]*[\w/])"
    r"|(?P<open>`+|\[|<(?=[A-Za-z/!]|\Z)|\\(?=[(\[]|\Z)|\$\$|\$\Z)"
    rf"|(?P<stop>[。！？]+[\"'”’」』）)\]*_~]*|[.!?…]+[\"'”’)\]*_~]*(?=\s|$|[{HAN}]))"
    r"|(?P<pause>[，；：、,;:]{0,8}\s+|[，；：、]+)"
)
_OPEN_SPAN = 820  # an opener further back than this can no longer become an atom
_NEXT = re.compile(r"[\W_]{0,40}(\w{1,12})")
_NEXT_SPAN = 60

_TITLES = re.compile(
    r"mr|mrs|ms|mx|dr|prof|st|mt|vs|e\.g|i\.e|cf|fig|figs|approx|gen|rep|sen|gov|capt|lt|col|sgt|hon|rev|"
    r"messrs|al|resp|ca"
)
_BEFORE_NUMBERS = re.compile(
    r"no|nos|p|pp|vol|ch|sec|eq|art|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|"
    r"thur|thurs|fri|sat|sun"
)
_STARTERS = re.compile(
    r"The|A|An|He|She|It|I|We|They|You|This|That|These|Those|There|In|On|At|But|And|If|When|So|My|His|Her|"
    r"Its|Our|Their|What|Why|How|As|For|To|Then|Now|Yes|No|Is|Are|Do|Did|Please|Let"
)


def _spans(text: str, final: bool, eager: bool) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is a block of code) of every sentence whose end is certain."""
    for start, end, code, closed in _blocks(text, final):
        if code:
            yield start, end, True
        else:
            for first, last in _split(text, start, end, closed, eager):
                yield first, last, False
        eager = False


def _blocks(text: str, final: bool) -> Iterator[tuple[int, int, bool, bool]]:
    """Blocks of text: (start, end, code, closed). Not closed: more text may follow."""
    run: int | None = None
    previous = 0  # where the line before began
    at = 0
    while at < len(text):
        newline = text.find("\n", at)
        complete = final or newline >= 0
        end = newline if newline >= 0 else len(text)
        head = text[at : min(end, at + _HEAD)]
        fence, blank = _FENCE.match(head), _BLANK.match(text, at, end)
        if not complete and (len(head) < _HEAD or fence or blank):
            break  # the line's kind is not certain yet
        if fence and (fence[1][0] != "`" or "`" not in text[at + fence.end() : end]):
            closing = _closing(text, fence[1], at + fence.end(), end, final)
            if closing is not None:
                if run is not None:
                    yield run, at, False, True
                run = None
                if closing < 0:  # it has not ended yet
                    return
                yield at, closing, True, True
                at = previous = closing
                continue
        single, item = _SINGLE.match(head), _ITEM.match(head)
        wrapped = at - previous > _WRAPPED and not (blank or single or item)
        if run is not None and not wrapped:
            yield run, at, False, True
            run = None
        if single:
            yield at, end, False, complete
        elif run is None and not blank:
            run = at
        previous = at
        at = end + 1
    if run is not None:
        yield run, min(at, len(text)), False, final


def _closing(text: str, opener: str, inside: int, line_end: int, final: bool) -> int | None:
    """Where the fenced block that `opener` opens ends; -1: not yet; None: the line opens no block."""
    if opener[0] in "\\$" and text[inside:line_end].strip():
        return None  # a formula within its line
    line_ends = r"(?:\n|\Z)" if final else r"\n"
    closer = re.compile(rf"(?m)^[ \t]*{_CLOSERS[opener[0]]}[ \t]*{line_ends}").search(text, line_end)
    if closer:
        return closer.end()
    return len(text) if final else -1


def _split(text: str, start: int, end: int, closed: bool, eager: bool) -> Iterator[tuple[int, int]]:
    """Sentences of one block; of an open block only the certain ones."""
    item = _ITEM.match(text, start, end)
    first, done = start, item.end() if item else start
    pause = clause = None
    for match in _SCAN.finditer(text, done, end):
        for cut in _cuts(first, done, match.start(), pause, clause):
            yield first, cut
            first, pause, clause = cut, None, None
        done = match.end()
        kind = match.lastgroup
        if kind == "open" and not closed and end - match.start() < _OPEN_SPAN:
            if "\n" not in text[match.start() : end]:
                return
        elif kind == "pause":
            pause = match.end()
            clause = pause if not match[0].isspace() else clause
            if eager and clause == pause and match.start() - start >= _FIRST_CLAUSE and pause < end:
                yield first, pause
                first, pause, clause, eager = pause, None, None, False
        elif kind == "stop":
            verdict = _ends(text, first, match, end, closed)
            if verdict is None:
                return
            if verdict:
                yield first, match.end()
                first, pause, clause, eager = match.end(), None, None, False
    if closed:
        for cut in _cuts(first, done, end, pause, clause):
            yield first, cut
            first, pause, clause = cut, None, None
        if first < end:
            yield first, end


def _cuts(first: int, done: int, upto: int, pause: int | None, clause: int | None) -> Iterator[int]:
    """Where to cut an overlong sentence from `first`, if there is no full stop up to `upto`."""
    if upto - first <= LONGEST:
        return
    if clause is not None and clause - first > LONGEST // 3:
        yield clause
        first = clause
    elif pause is not None and pause > first:
        yield pause
        first = pause
    if upto - first > LONGEST and done > first:  # what lies before `done` may be an atom
        yield done
        first = done
    while upto - first > LONGEST:
        first += LONGEST
        yield first


def _ends(text: str, first: int, stop: re.Match[str], end: int, closed: bool) -> bool | None:
    """Whether the sentence ends at `stop`; None: more text is needed."""
    if stop.end() == end:
        return True if closed else None
    if stop[0][0] in "。！？":
        return True
    following = _NEXT.match(text, stop.end(), end)
    if not closed and (following is None or following.end() == end) and end - stop.end() < _NEXT_SPAN:
        return None
    if following is None:
        return True
    word = following[1]
    if stop[0][0] in "!?":
        return not (word[0].islower() and stop[0][-1] in "\"'”’)")
    if word[0].islower():
        return False
    return stop[0][0] != "." or not _abbreviates(text[max(first, stop.start() - 16) : stop.start()], word)


def _abbreviates(before: str, word: str) -> bool:
    """Whether the full stop behind `before` belongs to an abbreviation, the next word being `word`."""
    if re.search(r"(?:^|[:;])\s*\(?\d{1,2}$", before):
        return True  # the number of an item within a line
    last = re.split(r"[\s(\[\"“'*_]", before)[-1]
    name = last.lower()
    if _TITLES.fullmatch(name):
        return True
    if _BEFORE_NUMBERS.fullmatch(name):
        return word[0].isdigit()
    if name in ("a.m", "p.m"):
        return False
    initial = len(last) == 1 and last.isupper() and last != "I"
    if initial or re.fullmatch(r"(?:[^\W\d]+\.)+[^\W\d]+", last):
        return not _STARTERS.fullmatch(word)
    return False
