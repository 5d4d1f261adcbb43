"""Streamed Markdown: the same clauses however it arrives, nothing lost, and fit to be spoken."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpuserver.language import Language
from gpuserver.tutor.sentences import Clauses, speakable

# Markdown is made of few signs; a text of any characters would hardly ever hold a code block.
MARKUP = st.lists(
    st.sampled_from(
        [
            "`",
            "``",
            "```",
            "~~~",
            "\n",
            "\n\n",
            " ",
            ". ",
            ".",
            "! ",
            "?",
            "。",
            "，",
            "；",
            ", ",
            ",",
            "[1]",
            " [2]",
            "[",
            "]",
            "(",
            ")",
            "**",
            "_",
            "# ",
            "- ",
            "1. ",
            "  3. ",
            "> ",
            "| a | b |\n|---|---|\n",
            "[the page](http://x.org/a.b?c=d)",
            "](",
            "[12",
            "python\n",
            "`x = 1`",
            "e.g. ",
            "etc. ",
            "3.14",
            "list.append",
            "word",
            "Word ",
            "a longer run of words ",
            "列表是一种",
            "好",
            "python",
            "…",
            '"',
            "”",
            "|",
            "x" * 90,
            "y " * 60,
            "好" * 25,
            "`" + "c" * 118 + "`",
            "." * 7,
            "\r\n",
            "\u3000",
            "\ud800",
            "😀",
            "\t",
        ]
    )
).map("".join)
ANSWER = (
    "A list is a collection that keeps many values in order, under one name. [1] To write a "
    "list use `names.append(x). ok`. [2]\n\n```python\nprint('a. b')\n```\n\n"
    "More, e.g. 3.14 or list.pop."
)


def clauses(text: str) -> list[str]:
    splitter = Clauses()
    return splitter.feed(text) + splitter.flush()


@settings(deadline=None)
@given(st.one_of(st.text(), MARKUP), st.data())
@example(text=ANSWER, data=None)
def test_any_chunking_gives_the_same_clauses(text: str, data: st.DataObject | None) -> None:
    whole = clauses(text)
    letters = Clauses()
    assert [clause for letter in text for clause in letters.feed(letter)] + letters.flush() == whole
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
        chunks = Clauses()
        found: list[str] = []
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            found += chunks.feed(text[begin:end])
        assert found + chunks.flush() == whole


@pytest.mark.parametrize(
    "piece", ["x", "好", "word ", ".", "`", "[", " ", "\n", ")", "[1]", "`a", "A. ", "a, ", "。"]
)
@pytest.mark.parametrize("before", ["Hi. ", "```\n"])
def test_floods_of_one_piece_are_cut_alike_however_they_arrive(piece: str, before: str) -> None:
    count = 2_000
    found = clauses(before + piece * count)
    letters = Clauses()
    streamed = letters.feed(before)
    for _ in range(count):
        streamed += letters.feed(piece)
    assert streamed + letters.flush() == found


@settings(deadline=None)
@given(st.one_of(st.text(), MARKUP))
def test_nothing_is_lost_or_empty(text: str) -> None:
    found = clauses(text)
    assert "".join(found) == text
    assert "" not in found


@settings(deadline=None)
@given(st.one_of(st.text(), MARKUP), st.sampled_from(["en", "zh"]))
def test_every_text_can_be_spoken(text: str, language: Language) -> None:
    spoken = speakable(text, language)
    assert spoken == spoken.strip()
    assert not re.search(r"[`*|\n\ud800😀]|\s\s", spoken)


@settings(deadline=None)
@given(MARKUP)
def test_clauses_have_a_bounded_length(text: str) -> None:
    for clause in clauses(text):
        if "```" not in clause and "~~~" not in clause:
            assert len(clause.strip()) <= 200 + 2 * 120 + 10


def test_a_question_of_two_sentences() -> None:
    assert clauses(ANSWER) == [
        "A list is a collection that keeps many values in order, ",
        "under one name. [1] ",
        "To write a list use `names.append(x). ok`. [2]\n\n",
        "```python\nprint('a. b')\n```\n\n",
        "More, e.g. 3.14 or list.pop.",
    ]


def test_a_clause_comes_as_soon_as_it_is_complete() -> None:
    splitter = Clauses()
    assert splitter.feed("Yes. ") == []
    assert splitter.feed("A") == ["Yes. "]
    assert splitter.feed(" list is short. [1]") == []
    assert splitter.feed(" It") == ["A list is short. [1] "]
    assert splitter.flush() == ["It"]
    assert splitter.flush() == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Short, yes, and no comma splits this one.",
            ["Short, yes, and no comma splits this one."],
        ),
        (
            "This first part is long enough, the rest, after it, is not cut. And on, it goes on.",
            [
                "This first part is long enough, ",
                "the rest, after it, is not cut. ",
                "And on, it goes on.",
            ],
        ),
        (
            "列表是一种数据类型，英文叫列表。元组，不能改。",
            ["列表是一种数据类型，", "英文叫列表。", "元组，不能改。"],
        ),
        ("列表，好。", ["列表，好。"]),
        ("Say 1,000, or 3.14, of e.g. list.append etc. here", None),
        ("Dr. Ada wrote `a. b, c! d` in No. 5 of it", None),
        ("1. First thing", None),
        ("See [the page. One](http://x.org/a.b?c=d! e) there", None),
        ("# Head\n- one\n- two", ["# Head\n", "- one\n", "- two"]),
        ("A ` b. C", ["A ` b. ", "C"]),
        ("```x``` y. Z", ["```x``` y. ", "Z"]),
        ("```python\na = 1. B\n\nc", None),
        ("Look:\n```\na\n```", ["Look:\n", "```\na\n```"]),
        ("~~~\n```\n~~~\nB", ["~~~\n```\n~~~\n", "B"]),
        ("  \n ", None),
    ],
)
def test_cuts(text: str, expected: list[str] | None) -> None:
    """None: one clause."""
    assert clauses(text) == (expected or [text])


def test_long_sentences_are_cut_at_commas_then_spaces_then_anywhere() -> None:
    with_comma = f"Hi. {'word ' * 30}end, {'word ' * 30}"
    assert clauses(with_comma)[1] == f"{'word ' * 30}end,"
    assert [len(clause) for clause in clauses("word " * 80)] == [200, 200]
    assert [len(clause) for clause in clauses("x" * 500)] == [201, 201, 98]
    assert [len(clause) for clause in clauses("好" * 150)] == [61, 61, 28]


@pytest.mark.parametrize(
    ("markdown", "english"),
    [
        ("", ""),
        ("***", ""),
        (" [1] ", ""),
        ("---\n", ""),
        ("😀", ""),
        ("👍🏽 ok", "ok"),
        ("A list. [1] [2]", "A list."),
        ("So[3], yes [1, 2].", "So, yes."),
        ("## The *big* **one**", "The big one"),
        ("- item __one__\n* two", "item one two"),
        ("> quoted", "quoted"),
        ("1. First", "1. First"),
        ("See [the docs](http://x.org/a_b) now", "See the docs now"),
        ("See https://docs.python.org/3/x.html?a=b now", "See docs.python.org now"),
        ("Use `for i in range(3):` here", "Use for i in range 3 here"),
        ("The `__init__` method", "The init method"),
        ("snake_case", "snake case"),
        (
            "a == b, 2 ** 3, 7 // 2",
            "a equals equals b, 2 to the power of 3, 7 integer divided by 2",
        ),
        ("```python\nx = 1\n```", "The example is on your screen."),
        ("```python\nx = 1", "The example is on your screen."),
        ("Look:\n```\na\n```\nDone.", "Look: The example is on your screen. Done."),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a, b 1, 2"),
        ("x<br>y", "x y"),
        ("5 < 6", "5 < 6"),
        ("50% of C#", "50% of C#"),
        ("a\0b", "ab"),
        ("colors[0]", "colors 0"),
    ],
)
def test_speakable_english(markdown: str, english: str) -> None:
    assert speakable(markdown, "en") == english


def test_speakable_chinese() -> None:
    assert speakable("列表用 `==` 比较。 [1]", "zh") == "列表用双等号比较。"
    assert speakable("```\nx\n```", "zh") == "示例代码请看屏幕。"
    assert speakable("写成 `x[0:3]`，好", "zh") == "写成 x 0 到 3，好"
