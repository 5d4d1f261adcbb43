"""What three real courses answer, by questions that were written before any search saw them."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from gpuserver.client import Management
from gpuserver.providers import Passage
from gpuserver.tutor.evaluation import EvalQuestion, Reply, Report, Scores, Supports, evaluate
from tests import courses
from tests.real_course import TUTOR, answers, bare_server, put_in, reply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COURSES: Final = {
    "physics": "physics.pdf",
    "biology": "biology.pptx",
    "chemistry": "chemistry.docx",
}
_NOT_LETTERS = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of the file, as the evaluation reads it, and what the student got."""

    row: dict[str, Any]
    question: EvalQuestion
    reply: Reply


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """All questions, each in a session of its own, after those that come before it."""
    with bare_server(tmp_path_factory.mktemp("school")) as running:
        done = asyncio.run(_ask_all(running.url))
    sys.stdout.write(_told(done))
    return done


async def _ask_all(url: str) -> list[Asked]:
    files = courses.built()
    async with Management(url) as management:
        ids = {}
        for kb_id, name in COURSES.items():
            ids[name] = await put_in(management, kb_id, name, files[name].read_bytes())
        rows = [*courses.questions(), *courses.outside()]
        return [await _ask(management, row, ids) for row in rows]


async def _ask(management: Management, row: dict[str, Any], ids: dict[str, str]) -> Asked:
    said = [*row.get("before", ()), row["question"]]
    turns = await answers(management, said, row["course"], TUTOR[row["language"]])
    got = reply(turns[-1])
    passages = []
    for passage in got.passages:
        whole = (await management.get(passage.id)).json()
        passages.append(replace(passage, text=whole["text"]))
    question = EvalQuestion(
        question=row["question"],
        language=row["language"],
        document=ids[row["document"]] if "document" in row else "",
        heading=row.get("heading", ""),
        outside="document" not in row,
    )
    return Asked(row, question, replace(got, passages=passages))


def _report(asked: Sequence[Asked], supports: Supports | None = None) -> Report:
    replies = {each.question: each.reply for each in asked}

    async def ask(question: EvalQuestion) -> Reply:
        return replies[question]

    return asyncio.run(evaluate(replies, ask, supports))


def _scores(asked: Sequence[Asked], **wanted: object) -> Scores:
    """The scores of the questions with these fields."""
    return _report([each for each in asked if wanted.items() <= each.row.items()]).all


def _told(asked: Sequence[Asked]) -> str:
    """A table, and what went wrong."""
    groups: list[Mapping[str, object]] = [
        {},
        *({"language": language} for language in TUTOR),
        *({"course": course} for course in COURSES),
        *({"language": x, "shares_words": y} for x in TUTOR for y in (True, False)),
    ]
    lines = [
        "",
        "shown:                     recall@1  @3     @5(4)  MRR    its section  refused  declined",
    ]
    for group in groups:
        scores = _scores(asked, **group)
        shares = (scores.recall(1), scores.recall(3), scores.recall(5), scores.mrr)
        told = "  ".join(f"{share:.3f}" for share in shares)
        name = " ".join(f"{value}" for value in group.values()) or "all"
        lines.append(
            f"{name:17} {scores.asked:2} asked  {told}  {scores.right_markers:3}/{scores.markers:3}"
            f" {scores.citation_precision:.3f}  {scores.refused:2}/{scores.outside:2}"
            f"    {scores.refused_inside:2}/{scores.asked}"
        )
    for each in asked:
        rank = next((n for n, p in enumerate(each.reply.shown, 1) if each.question.fits(p)), 0)
        if (each.question.outside and each.reply.passages) or not (
            each.question.outside or 0 < rank <= 3
        ):
            found = [passage.heading for passage in each.reply.shown] or "nothing"
            lines.append(f"{each.row['id']}: {each.question.question} -> {found}")
    return "\n".join([*lines, ""])


# What is reached with the embedded MiniLM, which reads Chinese by a dictionary. Asked for: 0.95,
# as far as the embedding model permits. 33 of the 60 questions share a word with their passage: all
# are found and none declined, in both languages. MiniLM finds 15 of the 27 that share none.
# The bounds leave room for one question more: cosines differ a little between processors.
RECALL_AT_3: Final = {"physics": 18 / 25, "biology": 11 / 15, "chemistry": 16 / 20}
"""Shown among the first three, beside a refusal too; reached: 19 / 25, 12 / 15, 17 / 20."""
RIGHT_SECTION: Final = 0.85
"""Reached: 106 of 117. Every marker's sentence is its passage's own, below; the others are of
another passage than the one the question was written from, found in its place or beside it."""
REFUSED: Final = 18 / 20
"""Asked for: 0.9; reached: 19 of 20."""


@pytest.mark.parametrize("course", COURSES)
def test_the_right_passage_is_among_the_first_three(asked: list[Asked], course: str) -> None:
    recall = _scores(asked, course=course).recall(3)
    assert recall is not None
    assert recall >= RECALL_AT_3[course]


def test_markers_stand_for_passages_that_answer_the_question(asked: list[Asked]) -> None:
    scores = _scores(asked)
    assert scores.markers >= 60
    assert scores.right_markers / scores.markers >= RIGHT_SECTION


def test_what_is_marked_stands_in_the_passage(asked: list[Asked]) -> None:
    """Each sentence is the passage's own: the engine that ships quotes."""
    scores = _report(asked, _stands_in).all
    assert scores.citation_precision == 1


def test_what_no_course_teaches_is_declined(asked: list[Asked]) -> None:
    rate = _scores(asked).refusal_rate
    assert rate is not None
    assert rate >= REFUSED


def test_a_source_names_the_page_of_its_section(asked: list[Asked]) -> None:
    right = [
        (each.row["id"], passage.page, each.row.get("page"))
        for each in asked
        for passage in each.reply.passages
        if each.question.fits(passage)
    ]
    assert len(right) >= 30
    assert [each for each in right if each[1] != each[2]] == []


def _stands_in(sentence: str, passage: Passage) -> bool:
    said, text = (_NOT_LETTERS.sub("", each) for each in (sentence, passage.text))
    return said in text
