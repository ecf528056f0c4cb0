"""Sentences of a wide vocabulary: WordNet's examples, everyday requests, the language model's own lines.

All are written like ordinary text (capital letter first, final punctuation), because a language model's embeddings are
of such text. They contain no digits, so that numbers are aligned with their words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from num2words import num2words

from model.errors import BadInput
from training.synthesis.voices import sentence

_FRAMES = (
    "What is {a_noun}?",
    "What does the word {noun} mean?",
    "Tell me something about {nouns}.",
    "Can you explain {noun} to me?",
    "How do you spell {adjective}?",
    "Is {a_noun} bigger than {a_noun}?",
    "I would like to know more about {nouns}.",
    "Why do people {verb}?",
    "Remind me to buy {a_noun} {when}.",
    "Where did you put the {noun}?",
    "The {noun} was really {adjective}.",
    "My {relative} has {a_noun} and {a_noun}.",
    "I saw {a_noun} next to the {noun} {when}.",
    "We should {verb} before we talk about the {noun}.",
    "She did not want to {verb} {adverb}.",
    "He spoke {adverb} about the {noun}.",
    "Do you prefer {nouns} or {nouns}?",
    "They found {a_adjective} {noun} in the {noun}.",
    "Set a timer for {number} minutes.",
    "Set an alarm for {hour} in the {daytime}.",
    "Wake me up at half past {small} {when}.",
    "What will the weather be like in {city} {when}?",
    "Will it {weather} {when}?",
    "Is it going to {weather} in {city}?",
    "How far is it from {city} to {city}?",
    "What time is it in {city}?",
    "What is {number} plus {number}?",
    "How much is {number} times {small}?",
    "I need {number} {nouns} by {day}.",
    "My birthday is on the {ordinal} of {month}.",
    "The meeting is on {day}, the {ordinal} of {month}, at {hour}.",
    "It was {month} of nineteen {year}.",
    "That costs {number} dollars and {year} cents.",
    "Call {name} and tell {them} I will be late.",
    "My name is {name} and I come from {city}.",
    "Have you heard from {name} {when}?",
    "{name} and {name} are getting married in {month}.",
    "I feel {feeling} today.",
    "I am so {feeling} about the {noun}.",
    "Why are you so {feeling}?",
    "I was {feeling} when {name} told me.",
    "Nobody told me that {name} was {feeling}.",
    "I am going to {city} with my {relative} {when}.",
    "Let's have {food} for dinner.",
    "How do I cook {food}?",
    "Could you order {food} and {food}, please?",
    "Add {food} to the shopping list.",
    "Turn {on} the {device} in the {room}.",
    "Is the {device} in the {room} still {on}?",
    "Play some {music} in the {room}.",
    "Who wrote the book about the {noun}?",
    "Write {name} a message about the {noun}.",
    "Read me the news about {city}.",
    "How do I get to the {noun} from here?",
    "Translate {adjective} into another language.",
    "Give me a good name for a {adjective} {noun}.",
    "I can't {verb}, my {body} hurts.",
    "What should I do about my {body}?",
    "Sorry, I did not {verb} that.",
    "Thank you for the {noun}, {name}.",
    "Please {verb} the {noun} {adverb}.",
    "Is it true that {nouns} can {verb}?",
    "I lost my {noun} in {city} and I don't know what to do.",
    "Guess what, {name} gave me {a_noun}!",
    "Stop it, that is {adjective}!",
    "Good morning, how was your {noun}?",
    "Could you help me with this {noun}?",
    "Which {noun} is the most {adjective}?",
)
_SLOTS = {
    "when": "tomorrow|today|tonight|next week|this weekend|on Friday|yesterday|later|in the evening|last night|soon|"
    "right now|this morning|in two days|after work|every day|next month|on Sunday",
    "relative": "sister|father|cousin|grandmother|uncle|daughter|husband|friend|wife|colleague|son|mother|brother|aunt",
    "small": "two|three|four|five|six|seven|eight|nine|ten|eleven",
    "hour": "one o'clock|two thirty|three o'clock|quarter to four|half past five|six o'clock|seven fifteen|eight|nine "
    "thirty|ten o'clock|eleven|twelve fifteen|noon|midnight",
    "daytime": "morning|afternoon|evening|night",
    "weather": "rain|snow|be sunny|be cold|freeze|be windy|storm|get warmer|be foggy|hail",
    "city": "London|Paris|New York|Berlin|Tokyo|Boston|Rome|Madrid|Chicago|Sydney|Dublin|Moscow|Toronto|Vienna|Cairo|"
    "San Francisco|Amsterdam|Athens|Beijing|Mumbai|Lisbon|Oslo|Seattle|Edinburgh|Prague|Denver|Miami|Warsaw|Glasgow|"
    "Texas|France|Germany|Spain|Italy|India|China|Canada|Mexico|Brazil|Scotland|California|Norway|Japan|Egypt",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "month": "January|February|March|April|May|June|July|August|September|October|November|December",
    "name": "Anna|Peter|Maria|John|Sarah|David|Emma|Michael|Laura|James|Julia|Robert|Sophie|Daniel|Lisa|Thomas|Kate|"
    "Paul|Alice|George|Rachel|Mark|Helen|Steven|Olivia|Henry|Grace|Martin|Susan|Jack|Nina|Oliver|Clara|Simon|Hannah|"
    "Andrew|Megan|Kevin|Amy|Brian|Mister Brown|Doctor Smith|Mrs Taylor|Elizabeth|William|Jennifer|Charles|Margaret",
    "them": "him|her|them",
    "feeling": "happy|sad|angry|tired|afraid|lonely|excited|worried|nervous|proud|jealous|surprised|bored|grateful|"
    "disappointed|ashamed|confused|relieved|hopeful|upset|calm|anxious|guilty|frustrated|cheerful|miserable|furious|"
    "delighted|scared|embarrassed|curious|hurt|thankful|sick|hungry|thirsty|stressed|heartbroken|glad|annoyed",
    "food": "pizza|soup|pasta|fish|chicken|rice|salad|bread|eggs|pancakes|potatoes|apples|cheese|chocolate cake|tea|"
    "coffee|tomatoes|a sandwich|mushrooms|noodles|beans|strawberries|milk|butter|onions|garlic|lemons|a steak|cookies",
    "on": "on|off",
    "device": "light|lamp|heating|television|radio|fan|oven|music|dishwasher|computer|heater|speaker",
    "room": "kitchen|bedroom|bathroom|living room|garage|hall|office|garden|basement|attic|dining room",
    "music": "jazz|classical music|rock|piano music|folk songs|the blues|opera|relaxing music|country music",
    "body": "back|head|knee|stomach|shoulder|tooth|arm|foot|throat|neck|leg|hand|ear|eye|heart|finger",
    "year": "twenty|thirty|forty-five|fifty|sixty-two|seventy|eighty-four|ninety-nine|fifteen|eighteen",
}
_PART = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
_SPOKEN = re.compile(r"[A-Z][A-Za-z',;:?!. -]*[.?!]")


def wordnet_examples(folder: Path) -> list[str]:
    """The example sentences of a WordNet database folder (data.noun, ...), cleaned, without duplicates.

    Raises:
        BadInput: the folder has no WordNet data files.
    """
    files = [folder / f"data.{part}" for part in ("noun", "verb", "adj", "adv")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise BadInput(
            f"{folder} holds no {missing[0]}: name the folder of WordNet's data files (Debian: wordnet-base)"
        )
    quoted = (
        example
        for file in files
        for line in file.read_text("latin-1").splitlines()
        for example in re.findall(r'"([^"]+)"', line.partition("|")[2])
    )
    return list(dict.fromkeys(filter(None, map(tidy, quoted))))


def tidy(text: str) -> str:
    """`text` as an ordinary sentence; "" if it is not 2 to 24 words of plain letters and punctuation."""
    text = " ".join(text.replace("`", "'").replace("--", ",").replace(" ,", ",").split()).strip(" ,;:-'")
    if not text:
        return ""
    text = text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")
    return text if _SPOKEN.fullmatch(text) and 2 <= len(text.split()) <= 24 else ""


def everyday_words(folder: Path) -> dict[str, list[str]]:
    """WordNet's single-word lemmas by part of speech that occur in its tagged texts."""
    words: dict[str, list[str]] = {"noun": [], "verb": [], "adjective": [], "adverb": []}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"index.{part}").read_text("latin-1").splitlines():
            if line.startswith(" "):
                continue  # the licence
            lemma, kind, _, pointers, *rest = line.split()
            tagged = int(rest[int(pointers) + 1])
            if tagged and lemma.isalpha() and lemma.islower() and len(lemma) > 2:
                words[_PART[kind]].append(lemma)
    return words


def _one_of(words: list[str], random: np.random.Generator) -> str:
    return words[random.integers(len(words))]


def _article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def everyday(words: dict[str, list[str]], random: np.random.Generator) -> str:
    """One request, question or remark; half of all slots can be any word of WordNet's vocabulary."""
    if random.random() < 0.2:
        return sentence(random)

    def fill(slot: re.Match[str]) -> str:
        name = slot[1]
        if name in _SLOTS:
            return _one_of(_SLOTS[name].split("|"), random)
        if name in ("number", "ordinal"):
            number = int(random.integers(2, 32 if name == "ordinal" else 130))
            return str(num2words(number, to="ordinal" if name == "ordinal" else "cardinal"))
        if name == "nouns":
            return _plural(_one_of(words["noun"], random))
        kind = name.removeprefix("a_")
        word = _one_of(words[kind], random)
        return _article(word) if name.startswith("a_") else word

    text = re.sub(r"\{(\w+)\}", fill, _FRAMES[random.integers(len(_FRAMES))])
    return text[0].upper() + text[1:]


def held_out(text: str) -> bool:
    """Whether a sentence is kept from training: 1 of 20, by the hash of its words, so the same in any corpus."""
    words = " ".join(re.findall(r"[a-z']+", text.lower()))
    return hashlib.sha256(words.encode()).digest()[0] % 20 == 0


def texts(wordnet: Path, more: Path | None, seed: int) -> Iterator[tuple[str, str]]:
    """Endless (sentence, source): 55 % WordNet examples, each once per round, the rest everyday lines.

    Args:
        wordnet: folder of WordNet's data files.
        more: a text file of further sentences, one per line; they make up 15 %.
        seed: of all random numbers.
    """
    examples, words = wordnet_examples(wordnet), everyday_words(wordnet)
    further = list(filter(None, map(tidy, more.read_text("utf-8").splitlines()))) if more else []
    rounds = {"wordnet": examples, "language model": further}
    position = dict.fromkeys(rounds, 0)
    for number in range(10**9):
        random = np.random.default_rng([seed, 7, number])
        draw = random.random()
        name = "wordnet" if draw < 0.55 else "language model" if draw < 0.7 and further else "everyday"
        if name == "everyday":
            yield everyday(words, random), name
            continue
        turn, place = divmod(position[name], len(rounds[name]))
        if place == 0:
            np.random.default_rng([seed, 8, turn]).shuffle(rounds[name])
        position[name] += 1
        yield rounds[name][place], name
