"""Scores of a tutor's answers, from questions whose passages are known."""

from __future__ import annotations

import pytest

from gpuserver.course_errors import QuestionsInvalid
from gpuserver.providers import Passage
from gpuserver.tutor.evaluation import Ask, EvalQuestion, Reply, evaluate, read_questions


def passage(heading: str, page: int | None = None, document: str = "mechanics.pdf") -> Passage:
    return Passage(heading, "kb", document, heading, "Text.", "en", page, 0.5, "abc", 1)


def ask_of(replies: dict[str, Reply]) -> Ask:
    async def ask(question: EvalQuestion) -> Reply:
        return replies[question.question]

    return ask


def test_questions_come_from_a_table() -> None:
    text = (
        "\ufeffquestion,language,document,heading,page,outside\n"
        '"What is g, then?",,mechanics.pdf,,3,\n'
        "谁赢了？,,,,,true\n"
    )
    first, second = read_questions(text)
    assert (first.question, first.page, first.language) == ("What is g, then?", 3, "en")
    assert second.outside
    assert second.language == "zh"


def test_questions_come_from_json_lines() -> None:
    text = (
        '{"question": "What is g?", "heading": "Free fall"}\n\n{"question":"Who?","outside":true}'
    )
    first, second = read_questions(text)
    assert first.heading == "Free fall"
    assert second.outside


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("question,page\nWhat?,x\n", 2),
        ("question,page\nWhat?,\n", 2),
        ('{"question": "What?", "page": 1}\n{"question": \n', 2),
        ("[1, 2]\n", 1),
        ('{"page": 2}\n', 1),
    ],
)
def test_what_is_wrong_with_a_question_is_told(text: str, line: int) -> None:
    with pytest.raises(QuestionsInvalid) as refused:
        read_questions(text)
    assert refused.value.details["line"] == line


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({"heading": "free fall"}, True),
        ({"heading": "Motion"}, True),
        ({"heading": "Motion › Free fall"}, True),
        ({"heading": "Fall"}, False),
        ({"document": "Mechanics.pdf", "page": 3}, True),
        ({"document": "mechanics.pdf", "page": 4}, False),
        ({"document": "other.pdf"}, False),
        ({"outside": True}, False),
    ],
)
def test_a_passage_fits_all_that_is_given_of_it(given: dict[str, object], fits: bool) -> None:
    question = EvalQuestion.model_validate({"question": "What is g?", **given})
    assert question.fits(passage("Motion › Free fall", 3)) is fits


async def test_the_report_counts_what_was_found_cited_and_refused() -> None:
    fall, force, wave = passage("Free fall"), passage("Force"), passage("Waves")
    replies = {
        "first": Reply([fall, force], "It falls. [1] It is heavy. [2]"),
        "third": Reply([wave, force, fall], "It waves. [3] See `x[1]`."),
        "never": Reply([], "The course does not cover this."),
        "near": Reply([], "The course does not clearly cover this.", [wave, fall]),
        "谁": Reply([], "没有。"),
        "who": Reply([wave], "Somebody. [1]"),
    }
    questions = [
        *(
            EvalQuestion(question=q, heading="Free fall")
            for q in ("first", "third", "never", "near")
        ),
        EvalQuestion(question="谁", language="zh", outside=True),
        EvalQuestion(question="who", outside=True),
    ]
    report = await evaluate(questions, ask_of(replies))
    scores = report.all
    assert scores.recall(1) == pytest.approx(1 / 4)
    assert scores.recall(3) == scores.recall(5) == pytest.approx(3 / 4)
    assert scores.mrr == pytest.approx((1 + 1 / 3 + 1 / 2) / 4)
    assert scores.refused_inside == 2
    assert scores.citation_precision == pytest.approx(2 / 4)
    assert scores.refusal_rate == pytest.approx(1 / 2)
    assert report.by_language["zh"].refusal_rate == 1
    assert report.by_language["zh"].recall(1) is None
    worst = [poor.question.question for poor in report.worst]
    assert worst == ["who", "never", "third", "near", "first"]
    assert report.worst[2].rank == 3


async def test_a_passage_that_supports_the_sentence_is_rightly_cited() -> None:
    replies = {"q": Reply([passage("Force"), passage("Mass")], "A force pulls. [1][2] No. [7]")}
    questions = [EvalQuestion(question="q", heading="Free fall")]
    seen: list[str] = []

    def supports(sentence: str, cited: Passage) -> bool:
        seen.append(sentence)
        return cited.heading == "Force"

    report = await evaluate(questions, ask_of(replies), supports)
    assert report.all.citation_precision == pytest.approx(1 / 3)
    assert seen == ["A force pulls.", "A force pulls."]
