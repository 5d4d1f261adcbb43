"""The extractive engine: nothing invented, everything cited, small talk first."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuserver.knowledge import course
from gpuserver.language import Language, code_blocks, prose, sentences
from gpuserver.providers import Message, Passage, Place, Request
from gpuserver.providers.extractive import ExtractiveLLM, not_covered

SHIPPED = Path(__file__).resolve().parent.parent / "gpuserver" / "courses" / "python"
COURSE = {item.id: item for item in course.load("python", SHIPPED).passages}
LIST = COURSE["en/06-collections#lists"]
TUPLES = COURSE["en/06-collections#tuples"]
WHILE = COURSE["en/05-loops#the-while-loop"]
LISTE = COURSE["zh/06-collections#列表"]
CITED = re.compile(r" \[(\d+)\]")


async def pieces(
    question: str,
    passages: Sequence[Passage] = (),
    language: Language = "en",
    messages: Sequence[Message] = (),
) -> list[str]:
    engine = ExtractiveLLM("", Place(Path()))
    engine.load()
    request = Request(messages, question, passages, language)
    found = [delta.text async for delta in engine.generate(request)]
    engine.close()
    engine.close()
    return found


async def answer(
    question: str,
    passages: Sequence[Passage] = (),
    language: Language = "en",
    messages: Sequence[Message] = (),
) -> str:
    return "".join(await pieces(question, passages, language, messages))


# Nothing to say


@pytest.mark.parametrize("question", ["What is a volcano?", "", "火山", "\ud800"])
async def test_without_passages_it_says_that_it_does_not_know(question: str) -> None:
    english = await answer(question)
    assert english.startswith("The course material does not cover this")
    assert "another question" in english
    assert (await answer(question, language="zh")).startswith("课程资料里没有讲到")


@pytest.mark.parametrize(
    ("language", "named"),
    [("en", "“Lists” and “1 Evil rm -rf”"), ("zh", "《Lists》和《1 Evil rm -rf》")],
)
async def test_without_passages_it_names_what_is_near(language: Language, named: str) -> None:
    near = [
        replace(LIST, heading="6 Collections › 6.10 Lists"),
        replace(LIST, heading="Other › Lists"),
        replace(LIST, heading="[1] **Evil** https://evil.example/x `rm -rf`"),
        replace(LIST, heading="A third one"),
    ]
    request = Request((), "What is a volcano?", (), language, near=near)
    said = not_covered(request)
    engine = ExtractiveLLM("", Place(Path()))
    assert said == "".join([delta.text async for delta in engine.generate(request)])
    assert named in said
    assert "third" not in said
    assert "evil.example" not in said


@pytest.mark.parametrize(
    ("heading", "document", "named"),
    [
        ("什么是循环？", "Loops", "is “什么是循环？”; have"),
        ("Operators › `*`", "Signs", "is “Signs”; have"),
        ("[ ]", "**", "The course material does not cover this"),
    ],
)
async def test_what_is_near_is_named_whole_and_never_by_nothing(
    heading: str, document: str, named: str
) -> None:
    near = [replace(LIST, heading=heading, document=document)]
    request = Request((), "What is a volcano?", (), "en", near=near)
    engine = ExtractiveLLM("", Place(Path()))
    assert named in "".join([delta.text async for delta in engine.generate(request)])


@pytest.mark.parametrize("text", ["", "```\nx = 1\n```", "```\nnever closed", "\n\n", "- \n- "])
async def test_a_passage_without_sentences_is_no_crash(text: str) -> None:
    found = await answer("what is this list", [replace(LIST, text=text)])
    assert "never" not in found.replace("never closed", "")
    assert CITED.search(found) is None or text.startswith("- ")


@settings(deadline=None)
@given(question=st.text(max_size=60), text=st.text(max_size=200))
async def test_no_text_is_too_odd(question: str, text: str) -> None:
    await pieces(question, [replace(LIST, text=text)], "zh")


# Answers


def check(found: str, passages: Sequence[Passage]) -> list[int]:
    """Every sentence stands in the passage that its number names. Returns the numbers."""
    blocks = code_blocks(found)
    for block in blocks:
        assert any(block in passage.text for passage in passages)
        found = found.replace(block, "")
    numbers = []
    rest = found.strip()
    while rest:
        match = CITED.search(rest)
        assert match, f"not cited: {rest}"
        number = int(match.group(1))
        said = list(sentences(prose(passages[number - 1].text)))
        assert rest[: match.start()].strip() in said
        numbers.append(number)
        rest = rest[match.end() :].strip()
    return numbers


@pytest.mark.parametrize(
    "question",
    ["what is {}", "how do I use {}", "why does {} go wrong", "give me an example of {}", "{}"],
)
async def test_every_sentence_is_the_courses_own(question: str) -> None:
    for passage in COURSE.values():
        found = await answer(question.format(passage.heading), [passage, WHILE], passage.language)
        numbers = check(found, [passage, WHILE])
        assert 2 <= len(numbers) <= 4
        assert numbers == sorted(numbers)


async def test_sentences_come_one_by_one_in_reading_order() -> None:
    found = await pieces("What is a list?", [LIST, TUPLES])
    assert found[0] == (
        "A list is a collection that keeps many values in order under one name. [1]"
    )
    said = list(sentences(prose(LIST.text)))
    places = [said.index(CITED.sub("", piece).strip()) for piece in found]
    assert places == sorted(places)
    assert not code_blocks("".join(found))


@pytest.mark.parametrize(
    ("question", "passage", "language", "needed"),
    [
        ("how do I write a while loop", WHILE, "en", "To write a `while` loop"),
        ("give me an example of a list", LIST, "en", "A list is"),
        ("show me a while loop", WHILE, "en", "A `while` loop is"),
        ("列表怎么写", LISTE, "zh", "写列表时"),
        ("举一个列表的例子", LISTE, "zh", "列表是"),
    ],
)
async def test_how_and_example_come_with_the_code(
    question: str, passage: Passage, language: Language, needed: str
) -> None:
    found = await answer(question, [passage], language)
    (block,) = code_blocks(passage.text)
    assert needed in found
    assert found.endswith(f" [1]\n\n{block}")


async def test_long_code_is_left_out() -> None:
    code = "```python\n" + "x = 1\n" * 40 + "```"
    found = await answer("how do I write a list", [replace(LIST, text=f"A list is. \n\n{code}")])
    assert "x = 1" not in found


@pytest.mark.parametrize(
    ("question", "passage", "needed"),
    [
        (
            "why do I get an error with append",
            COURSE["en/06-collections#adding-and-removing-list-items"],
            "A common mistake is",
        ),
        ("what is a set used for", COURSE["en/06-collections#sets"], "Sets are used to"),
        ("why does my tuple with one item not work", TUPLES, "A common mistake is"),
    ],
)
async def test_why_and_what_for(question: str, passage: Passage, needed: str) -> None:
    assert needed in await answer(question, [passage])


async def test_a_comparison_quotes_both_sides() -> None:
    passages = [TUPLES, WHILE, LIST]
    found = await answer("what is the difference between a list and a tuple", passages)
    assert set(check(found, passages)) == {1, 3}
    one = await answer("what is the difference between a for and a while loop", [WHILE, LIST])
    assert set(check(one, [WHILE, LIST])) == {1}


async def test_of_two_passages_found_alike_both_are_quoted() -> None:
    function, shown = (
        COURSE["en/07-functions-and-modules#functions"],
        COURSE["en/01-first-steps#the-print-function"],
    )
    question = "how do I show text on the screen"
    close = [replace(function, similarity=0.42), replace(shown, similarity=0.41)]
    found = await answer(question, close)
    assert set(check(found, close)) == {1, 2}
    # The code is of the passage that answers best.
    assert code_blocks(found) == code_blocks(shown.text)
    for second in (replace(shown, similarity=0.3), replace(LISTE, similarity=0.41), shown):
        passages = [close[0], second]
        assert set(check(await answer(question, passages), passages)) == {1}


async def test_material_in_the_other_language_is_announced() -> None:
    found = await answer("什么是 list", [LIST], "zh")
    assert found.startswith("这部分课程资料只有英文：A list is")
    assert (await answer("列表", [LISTE], "en")).startswith("The course material on this is in Chi")


# Small talk


@pytest.mark.parametrize(
    ("question", "language", "reply"),
    [
        ("hello", "en", "Hello!"),
        ("thank you", "en", "You are welcome!"),
        ("bye", "en", "Goodbye"),
        ("who are you", "en", "I am the tutor"),
        ("how are you", "en", "I am a program"),
        ("what can I ask you", "en", "I answer questions"),
        ("okay", "en", "All right."),
        ("你好", "zh", "你好！"),
        ("谢谢老师", "zh", "不客气！"),
        ("再见", "zh", "再见"),
        ("你是谁", "zh", "我是这门课程的导师"),
        ("你好吗", "zh", "我是一个程序"),
        ("你能做什么", "zh", "我根据课程资料"),
        ("好的", "zh", "好的。"),
        ("hello", "zh", "你好！"),
    ],
)
async def test_small_talk_wins_over_passages(question: str, language: Language, reply: str) -> None:
    found = await answer(question, [LIST], language)
    assert found.startswith(reply)
    assert not CITED.search(found)


async def test_a_greeting_before_a_question_is_a_question() -> None:
    assert (await answer("hello, what is a list", [LIST])).startswith("A list is")


async def test_repeating() -> None:
    said = "A list is. [1] Use it.\n\n```python\nx = 1. y\n```\n\nEnd [2]."
    messages = [
        Message("system", "no"),
        Message("assistant", "Earlier."),
        Message("user", "q"),
        Message("assistant", said),
        Message("user", "can you repeat that"),
    ]
    found = await pieces("can you repeat that", messages=messages)
    assert "".join(found) == "A list is. Use it.\n\n```python\nx = 1. y\n```\n\nEnd."
    assert len(found) == 4
    assert (await answer("再说一遍", language="zh")).startswith("我还没有说过什么")
    assert (await answer("repeat that", messages=messages[:1])).startswith("I have not said")
