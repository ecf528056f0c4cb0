import re
import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from assistant.speech.sentences import LONGEST, sentences

ENGLISH = [
    ("It costs $3.50.", "It costs three dollars and fifty cents."),
    ("$1", "one dollar."),
    ("$0.99 or 0.01€", "ninety-nine cents or one cent."),
    ("£2.01", "two pounds and one penny."),
    ("$1,250,000", "one million two hundred and fifty thousand dollars."),
    ("about $3 million", "about three million dollars."),
    ("a $5k budget", "a five thousand dollars budget."),
    ("20 USD and -$5", "twenty dollars and minus five dollars."),
    ("¥500", "five hundred yen."),
    ("25%", "twenty-five percent."),
    (
        "3.5% of 1,234.5 km",
        "three point five percent of one thousand two hundred and thirty-four point five kilometers.",
    ),
    ("1 km at 100 km/h", "one kilometer at one hundred kilometers per hour."),
    ("10 °C or -5°F", "ten degrees Celsius or minus five degrees Fahrenheit."),
    ("6 ft, 1 ft, 3 m²", "six feet, one foot, three square meters."),
    ("16 GB of RAM", "sixteen gigabytes of RAM."),
    ("v2.0", "version two point zero."),
    ("Python 3.11.7", "Python three point eleven point seven."),
    ("007 and 0.5", "zero zero seven and zero point five."),
    (
        "12345678901234567890",
        "one two three four five six seven eight nine zero one two three four five six seven eight nine zero.",
    ),
    ("3:30 pm", "three thirty P M."),
    ("at 3:05, 15:00, 9:00", "at three oh five, fifteen hundred, nine o'clock."),
    ("5 p.m. today", "five P M today."),
    ("On 2026-11-21", "On November twenty-first, twenty twenty-six."),
    ("2026-11-21T15:30", "November twenty-first, twenty twenty-six fifteen thirty."),
    ("11/21/2026", "November twenty-first, twenty twenty-six."),
    ("21.11.2026", "November twenty-first, twenty twenty-six."),
    ("Nov. 21, 2026", "November twenty-first, twenty twenty-six."),
    ("21 November 2026", "November twenty-first, twenty twenty-six."),
    ("March 3rd", "March third."),
    ("2026-13-45", "two thousand and twenty-six-thirteen-forty-five."),
    ("in 1999, 1500 people", "in nineteen ninety-nine, one thousand five hundred people."),
    ("the 1990s and the 80s", "the nineteen nineties and the eighties."),
    ("1990–2000", "nineteen ninety to two thousand."),
    ("3-5 days", "three to five days."),
    ("the 3rd, 21st and 112th", "the third, twenty-first and one hundred and twelfth."),
    ("1/2 cup, 2 1/2 cups, ¾ cup", "one half cup, two and one half cups, three quarters cup."),
    ("16:9", "sixteen to nine."),
    ("24/7 or 50/50", "twenty-four seven or fifty fifty."),
    ("5'11\" tall, 3x faster", "five foot eleven tall, three times faster."),
    ("Call +1 555-123-4567.", "Call one five five five one two three four five six seven."),
    ("#1 and No. 5", "number one and number five."),
    ("e.g. this, i.e. that, etc.", "for example this, that is that, et cetera."),
    ("Dr. Smith vs. Mrs. Jones", "Doctor Smith versus Missus Jones."),
    ("St. Paul on Main St.", "Saint Paul on Main Street."),
    ("The U.S. Army", "The U S Army."),
    ("2 + 2 = 4", "two plus two equals four."),
    ("R&D and/or x^2 → y", "R and D and or x to the power of two to y."),
    ("GPT-4 and B2B", "GPT-four and B two B."),
    ("**bold**, *it*, __both__, ~~gone~~", "bold, it, both, gone."),
    ("snake_case_name", "snake case name."),
    ("# Title", "Title."),
    ("- item", "item."),
    ("- [x] done", "done."),
    ("> quoted", "quoted."),
    ("1. First", "one, First."),
    ("See https://example.com/x?y=1.", "See link."),
    ("[the docs](https://a.b/c) and ![a cat](x.png)", "the docs and a cat."),
    ("bob@example.com at example.org", "bob at example dot com at example dot org."),
    ("Run `rm -rf /` or `print`.", "Run code or print."),
    ("<b>Hi</b> &amp; bye[^1][2]", "Hi and bye."),
    ("so \\(x^2\\) and $$y$$", "so a formula and a formula."),
    ("Great 😀👍🏽 work ❤️ :)", "Great work."),
    ("𝐛𝐨𝐥𝐝 １２", "bold twelve."),
    ("Wait... what", "Wait… what."),
    ("one — two (three) four", "one, two, three, four."),
]
CHINESE = [
    ("今天是2026年11月21日。", "今天是二零二六年十一月二十一日。"),
    ("日期是2026-11-21", "日期是二零二六年十一月二十一日。"),
    ("价格¥3.50", "价格三元五角。"),
    ("价格¥3.05和¥12", "价格三元零五分和十二元。"),
    ("一共1,234.5元", "一共一千二百三十四点五元。"),
    ("大约$20和2亿美元", "大约二十美元和两亿美元。"),
    ("涨了25%", "涨了百分之二十五。"),
    ("下午3:05到15:30", "下午三点零五分到十五点三十分。"),
    ("气温-5°C，10 km", "气温负五摄氏度，十公里。"),
    ("有2个人，第2次，12月", "有两个人，第二次，十二月。"),
    ("共10086件", "共一万零八十六件。"),
    ("比分是3:2", "比分是三比二。"),
    ("人口1400000000", "人口十四亿。"),
    ("占1/3，3-5天", "占三分之一，三到五天。"),
    ("电话13812345678", "电话一三八一二三四五六七八。"),
    ("我喜欢**Python**和`x = 1`", "我喜欢Python和代码。"),
    ("见https://a.b/c。", "见链接。"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "spoken"), ENGLISH)
def test_english_is_said_in_words(text, spoken):
    assert " ".join(s.spoken for s in sentences(text)) == spoken


@pytest.mark.parametrize(("text", "spoken"), CHINESE)
def test_chinese_is_said_in_words(text, spoken):
    found = sentences(text)
    assert "".join(s.spoken for s in found) == spoken
    assert {s.language for s in found} == {"zh"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Dr. Smith lives at 5th Ave. He likes it.", ["Dr. Smith lives at 5th Ave.", "He likes it."]),
        ("I met J. R. Smith at 3 p.m. Then we left.", ["I met J. R. Smith at 3 p.m.", "Then we left."]),
        ("In the U.S. The law", ["In the U.S.", "The law"]),
        ("See No. 5 or Fig. 3 on Nov. 2. Good.", ["See No. 5 or Fig. 3 on Nov. 2.", "Good."]),
        ("Pi is 3.14 or so... maybe. Really?! Yes.", ["Pi is 3.14 or so... maybe.", "Really?!", "Yes."]),
        ('"Stop!" he said. (Really.) So do I. Bye', ['"Stop!" he said.', "(Really.)", "So do I.", "Bye"]),
        ("Steps: 1. Boil it. 2. Drink it.", ["Steps: 1. Boil it.", "2. Drink it."]),
        ("你好！今天好吗？“很好。”再见", ["你好！", "今天好吗？", "“很好。”", "再见"]),
        ("# Title\nText\n- a\n- b", ["# Title", "Text", "- a", "- b"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["| a | b |", "| 1 | 2 |"]),
        ("See [a. B c](http://x.y/z). Done.", ["See [a. B c](http://x.y/z).", "Done."]),
    ],
)
def test_sentences_end_where_a_reader_stops(text, parts):
    assert [s.text for s in sentences(text)] == parts


def test_a_wrapped_paragraph_is_one_sentence_and_a_verse_is_not():
    wrapped = "This paragraph was wrapped by its author at about seventy characters,\nin the middle of a sentence."
    assert len(sentences(wrapped)) == 1
    assert len(sentences("Roses are red\nViolets are blue")) == 2


@pytest.mark.parametrize("code", ["```python\nprint('x')\n```", "~~~\nx. Y\n\nz\n~~~", "```\nnever closed. No"])
def test_a_block_of_code_is_mentioned_and_not_read(code):
    assert [s.spoken for s in sentences(f"Look:\n{code}")] == ["Look.", "Here is some code."]
    assert sentences(f"看：\n{code}")[1].spoken == "这里有一段代码。"


def test_the_language_is_the_sentence_s_own():
    text = "Hello there. 你好，世界。 42! Das ist nicht der Hund und die Katze. Привет, как дела? これはペンです。"
    assert [s.language for s in sentences(text)] == ["en", "zh", "zh", "de", "ru", "ja"]


def test_spoken_words_lead_back_to_their_source():
    (sentence,) = sentences("It **costs** $3.50 today.")
    start = sentence.spoken.index("fifty")
    assert sentence.text[slice(*sentence.source(start, start + 5))] == "$3.50"
    start = sentence.spoken.index("costs")
    assert sentence.text[slice(*sentence.source(start, start + 5))] == "costs"
    assert sentence.text[slice(*sentence.source(start, start + 3))] == "cos"


def test_nothing_to_say_is_no_sentence():
    assert sentences("") == sentences(" \n\t") == sentences("😀 *** --- 👍") == sentences("\x00\ud800") == []


MARKUP = st.sampled_from(
    [*"`*_#[]()<>|\\$~!.?-:;,'\"/@&^ \n", "```", "\n```\n", "$$", "](", "https://a.b/c", "www.", ". ", "! ", "。",
     "，", "你好", "Dr.", "e.g.", "U.S.", "Word", "word", "1", "23", "2026-11-21", "$3.50", "10 km", "3:30 pm", "\n\n",
     "- ", "1. ", "> ", "| ", "&amp;", "😀", "\ud800", "\u200b", "\x00", "é", "½", "１", "\\(", "\\]", "<b>", "a" * 90]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=2000), st.lists(MARKUP, max_size=120).map("".join))


@given(TEXTS)
@example("`" * 500)
@example("www.\ud800你好")
@example("[a](b)" * 200)
@example("x" * 1300 + " y. Z")
def test_any_text_is_read_safely(text):
    end = 0
    for sentence in sentences(text):
        assert end <= sentence.start < sentence.end <= len(text)
        assert text[sentence.start : sentence.end] == sentence.text
        end = sentence.end
        assert not re.search(r"[*_`#|<>\[\]{}~\\]|://|\bwww\.\w", sentence.spoken)
        kinds = {unicodedata.category(character) for character in sentence.spoken}
        assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "So", "Sk", "Sm", "Sc"}
        assert any(character.isalnum() for character in sentence.spoken)
        before = 0
        for mark in sentence.marks:
            assert before <= mark.start < mark.end <= len(sentence.spoken)
            assert 0 <= mark.text_start <= mark.text_end <= len(sentence.text)
            before = mark.end


@given(TEXTS, st.lists(st.integers(0, 2000), max_size=6), st.booleans())
def test_a_growing_text_never_takes_a_sentence_back(text, cuts, eager):
    whole = sentences(text, eager=eager)
    for cut in cuts:
        early = sentences(text[:cut], final=False, eager=eager)
        assert early == whole[: len(early)]


def test_speech_begins_at_the_first_comma_that_leaves_enough_to_say():
    text = "Oh, I am sorry to hear that, truly, I am. And now, what will you do, friend?"
    assert [one.text for one in sentences(text, eager=True)] == [
        "Oh, I am sorry to hear that,",
        "truly, I am.",
        "And now, what will you do, friend?",
    ]
    assert [one.text for one in sentences("No way. But then again, why not?", eager=True)] == [
        "No way.",
        "But then again, why not?",
    ]
    assert [one.text for one in sentences("听到这个消息我真的觉得非常难过，真的。", eager=True)] == [
        "听到这个消息我真的觉得非常难过，",
        "真的。",
    ]
    assert len(sentences("Oh, I am sorry to hear that, tru", final=False, eager=True)) == 1


def test_a_stream_gives_each_sentence_when_the_next_word_is_there():
    text = "First one. Second one? Third"
    given_at = [len(sentences(text[:n], final=False)) for n in range(len(text) + 1)]
    assert given_at[len("First one. Second ")] == 1
    assert given_at[-1] == 1
    assert len(sentences(text + " ", final=False)) == 2


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a ",
        "`",
        "[",
        "[a](",
        "<a ",
        "**",
        "1",
        "1,",
        "1.",
        "$",
        "你",
        "\n",
        ". ",
        "\\(",
        "-",
        "_a",
        "😀",
        " ",
        "a@",
        "a.",
        ":",
        "www.",
        "&",
        "| ",
    ],
)
def test_time_grows_with_length_and_not_faster(unit):
    """The steps of a regular expression's search cannot be counted: two lengths are compared in the same run."""

    def seconds(characters):
        started = time.thread_time()
        sentences(unit * (characters // len(unit)))
        return time.thread_time() - started

    # Linear time is 16 times more for 16 times the text, quadratic 256 times. What else runs can only add.
    short = min(seconds(1_000) for _ in range(5))
    assert any(seconds(16_000) < 80 * max(short, 0.001) for _ in range(5))


def test_a_hundred_thousand_characters_are_read():
    text = "It **costs** $3.50 on 2026-11-21, see https://a.b/c (or `x = 1`).\n- 你好，世界。😀 " * 1300
    assert len(sentences(text)) > 2000


def test_long_sentences_are_cut_at_pauses():
    text = "word after word, " * 100
    found = sentences(text)
    assert all(len(s.text) <= LONGEST + 20 for s in found)
    assert "".join(s.text.replace(" ", "") for s in found) == text.replace(" ", "")
