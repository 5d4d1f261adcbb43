"""A marker stands behind a sentence only if a passage supports it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gpuserver.errors import EngineFailed
from gpuserver.knowledge import course
from gpuserver.language import Language
from gpuserver.providers import Message, Passage, Place, Request
from gpuserver.providers.extractive import ExtractiveLLM
from gpuserver.tutor.citations import Citations
from gpuserver.tutor.claims import Part

SHIPPED = Path(__file__).resolve().parent.parent / "gpuserver" / "courses" / "python"
COURSE = {item.id: item for item in course.load("python", SHIPPED).passages}
LIST = COURSE["en/06-collections#lists"]
TUPLES = COURSE["en/06-collections#tuples"]
LISTE = COURSE["zh/06-collections#列表"]


class Meaning:
    """Every sentence is as near to every other one as it is told; Chinese it does not know."""

    def __init__(self, cosine: float | Exception = 0.0) -> None:
        self.cosine = cosine
        self.asked: list[str] = []

    async def __call__(
        self, sentence: str, others: Sequence[str], language: Language
    ) -> list[float] | None:
        self.asked.append(sentence)
        assert 0 < len(others) <= 6
        if isinstance(self.cosine, Exception):
            raise self.cosine
        return None if language == "zh" else [self.cosine] * len(others)


async def cited(
    answer: str, passages: Sequence[Passage] = (LIST, TUPLES), meaning: Meaning | None = None
) -> str:
    citations = Citations(passages, meaning or Meaning(), "")
    out: list[Part] = []
    for at in range(0, len(answer), 4):
        out += citations.feed(answer[at : at + 4])
    out += citations.flush()
    said = ""
    for part in out:
        mark = part if isinstance(part, str) else citations.judge(part)
        said += mark if isinstance(mark, str) else await citations.settle(mark)
    return said


PARAPHRASED = "Lists keep many values together in order under one name."


async def test_a_supported_sentence_gets_its_marker_though_the_model_set_none() -> None:
    assert await cited(f"{PARAPHRASED} Well then.", meaning=Meaning(0.8)) == (
        f"{PARAPHRASED} [1] Well then."
    )


@pytest.mark.parametrize(
    ("answer", "cosine"),
    [
        (PARAPHRASED, 0.2),
        ("Lists were invented by Guido and are stored in hash tables. [1]", 0.9),
        ("A list keeps 7 values in order under one name. [1]", 0.9),
        ("Does a list keep many values in order under one name? [1]", 0.9),
        ("The passages do not say how many values a list keeps in order. [1]", 0.9),
        ("Hello! [1] Thank you. [1]", 0.9),
        ("# Lists keep many values in order", 0.9),
        ("Lists [99].", 0.9),
    ],
)
async def test_a_sentence_that_is_not_supported_gets_none(answer: str, cosine: float) -> None:
    assert "[" not in await cited(answer, meaning=Meaning(cosine))


async def test_the_passage_that_the_model_named_comes_first() -> None:
    words = "To write it, put the values between brackets with commas between the values."
    assert (await cited(f"{words} [1]", meaning=Meaning(0.9))).endswith("[1]")
    assert (await cited(f"{words} [2]", meaning=Meaning(0.9))).endswith("[2]")
    assert (await cited(f"{words} [1][2]", meaning=Meaning(0.9))).endswith(" [1][2]")


async def test_a_wrong_name_is_put_right() -> None:
    said = "A tuple can be unpacked into separate variables in one line."
    assert (await cited(f"{said} [1]", meaning=Meaning(0.9))).endswith("line. [2]")


async def test_chinese_is_held_against_the_words_where_the_model_does_not_know_it() -> None:
    supported, not_supported = (
        "写列表要用方括号，值之间用逗号分开。",
        "两个列表可以用加号连接起来。",
    )
    found = await cited(f"{supported}{not_supported}[1]", [LISTE])
    assert found == f"{supported} [1] {not_supported}"


async def test_what_is_word_for_word_needs_no_model() -> None:
    meaning = Meaning()
    said = "A list is a collection that keeps many values in order under one name."
    assert await cited(f"{said} Yes!", meaning=meaning) == f"{said} [1] Yes!"
    assert meaning.asked == []


async def test_a_failing_check_sets_no_marker_and_is_not_asked_again() -> None:
    meaning = Meaning(EngineFailed(engine="embeddings"))
    assert await cited(f"{PARAPHRASED} [1] {PARAPHRASED} [1]", meaning=meaning) == (
        f"{PARAPHRASED} {PARAPHRASED}"
    )
    assert len(meaning.asked) == 1


@pytest.mark.parametrize(("question", "language"), [("how do I use {}", "en"), ("{}", "zh")])
async def test_the_extractive_engines_answers_stay_as_they_are(
    question: str, language: Language
) -> None:
    engine, meaning = ExtractiveLLM("", Place(Path())), Meaning()
    for item in COURSE.values():
        passages = [item, TUPLES if item.language == "en" else LISTE]
        asked = question.format(item.heading)
        request = Request([Message("user", asked)], asked, passages, language)
        answer = "".join([delta.text async for delta in engine.generate(request)])
        assert await cited(answer, passages, meaning) == answer
    assert meaning.asked == []


async def test_bullets_without_full_stops_keep_their_markers() -> None:
    slide = Passage("s", "kb", "Slides", "Newton", "- inertia of a body\n- force and mass", "en")
    engine = ExtractiveLLM("", Place(Path()))
    request = Request([], "what is inertia", [slide], "en")
    answer = "".join([delta.text async for delta in engine.generate(request)])
    assert "- inertia of a body [1]\n- force and mass [1]" in answer
    assert await cited(answer, [slide]) == answer


async def test_a_table_is_read_row_by_row() -> None:
    text = "| Name | Age |\n| --- | --- |\n| Ada | 36 |\n| Alan | 41 |"
    table = Passage("t", "kb", "People", "People", text, "en")
    engine = ExtractiveLLM("", Place(Path()))
    request = Request([], "how old is Ada", [table], "en")
    answer = "".join([delta.text async for delta in engine.generate(request)])
    assert "Ada, 36 [1]" in answer
    assert "|" not in answer
    assert await cited(answer, [table]) == answer
