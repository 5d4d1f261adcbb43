"""How good a tutor's answers are: questions with known passages in, a report out."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gpuserver.course_errors import QuestionsInvalid
from gpuserver.language import LANGUAGES, Language, detect
from gpuserver.providers import Passage

MAX_QUESTIONS: Final = 10_000
WORST: Final = 20
"""Questions that a report names."""
_MARKER = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|\[(\d{1,3})\]", re.S)


class EvalQuestion(BaseModel):
    """A question and where its answer stands: in a passage that fits all that is given of it.

    A heading fits a passage below it too. With `outside` the material has no answer.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, str_strip_whitespace=True)
    question: Annotated[str, Field(min_length=1, max_length=2000)]
    language: Language = "en"
    document: Annotated[str, Field(max_length=300)] = ""
    heading: Annotated[str, Field(max_length=300)] = ""
    page: Annotated[int, Field(ge=1)] | None = None
    outside: bool = False

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        """An empty cell of a table is one that was left out."""
        if not isinstance(value, dict):
            return value
        given = {k: v for k, v in value.items() if k is not None and v not in (None, "")}
        given.setdefault("language", detect(str(given.get("question", "")), "en"))
        return given

    @model_validator(mode="after")
    def _has_a_place(self) -> EvalQuestion:
        if not self.outside and not (self.document or self.heading or self.page):
            raise ValueError("say document, heading or page, or outside")
        return self

    def fits(self, passage: Passage) -> bool:
        """Whether a passage is one that answers it."""
        if self.outside:
            return False
        document = self.document.casefold()
        if document and document not in {passage.document.casefold(), passage.document_id}:
            return False
        steps = [_plain(step) for step in passage.heading.split("›")]
        wanted = [_plain(step) for step in self.heading.split("›") if step.strip()]
        width = len(wanted)
        under = any(steps[at : at + width] == wanted for at in range(len(steps) - width + 1))
        return under and self.page in (None, passage.page)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def read_questions(text: str) -> list[EvalQuestion]:
    """The questions of a CSV with a header row, or of JSON Lines. Raises QuestionsInvalid."""
    rows = list(_rows(text.removeprefix("\ufeff")))
    if not rows or len(rows) > MAX_QUESTIONS:
        raise QuestionsInvalid(line=1, problem=f"it should hold 1 to {MAX_QUESTIONS} questions")
    found = []
    for line, row in rows:
        try:
            found.append(EvalQuestion.model_validate(row))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            problem = f"{where}: {first['msg']}".lstrip(": ")
            raise QuestionsInvalid(line=line, problem=problem) from None
    return found


def _rows(text: str) -> Iterable[tuple[int, Any]]:
    """Each question as it was written, with its line."""
    if not text.lstrip().startswith("{"):
        reader = csv.DictReader(io.StringIO(text))
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise QuestionsInvalid(line=reader.line_num, problem=str(error)) from None
        return
    for line, written in enumerate(text.splitlines(), start=1):
        if not written.strip():
            continue
        try:
            yield line, orjson.loads(written)
        except orjson.JSONDecodeError as error:
            raise QuestionsInvalid(line=line, problem=str(error)) from None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a tutor made of a question: the passages it found, best first, and its answer.

    Where it declined there are none, and `near` are those that it named as worth a look.
    """

    passages: Sequence[Passage]
    answer: str
    near: Sequence[Passage] = ()

    @property
    def shown(self) -> Sequence[Passage]:
        """What the student may open."""
        return self.passages or self.near


Ask = Callable[[EvalQuestion], Awaitable[Reply]]
Supports = Callable[[str, Passage], bool]


@dataclass(slots=True)
class Scores:
    """Counts over some questions; a share of nothing is None."""

    asked: int = 0
    found_at: dict[int, int] = field(default_factory=lambda: {1: 0, 3: 0, 5: 0})
    reciprocal: float = 0.0
    markers: int = 0
    right_markers: int = 0
    outside: int = 0
    refused: int = 0
    refused_inside: int = 0

    def recall(self, k: int) -> float | None:
        """Share of the inside questions with a right passage among the first 1, 3 or 5 shown,
        those shown beside a refusal included."""
        return _share(self.found_at[k], self.asked)

    @property
    def mrr(self) -> float | None:
        """Mean of 1/rank of the first right passage, 0 where none was found."""
        return _share(self.reciprocal, self.asked)

    @property
    def citation_precision(self) -> float | None:
        """Share of the markers that stand for a right passage, or one that supports them."""
        return _share(self.right_markers, self.markers)

    @property
    def refusal_rate(self) -> float | None:
        """Share of the outside questions that no passage was taken to answer."""
        return _share(self.refused, self.outside)


def _share(count: float, total: int) -> float | None:
    return count / total if total else None


@dataclass(frozen=True, slots=True)
class Poor:
    """A question that went wrong, and how: `rank` of the right passage, 0 for not found."""

    question: EvalQuestion
    rank: int
    wrong_markers: int
    headings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Scores over all questions and by language, and the questions that went worst, worst first."""

    all: Scores
    by_language: dict[Language, Scores]
    worst: tuple[Poor, ...]


async def evaluate(
    questions: Iterable[EvalQuestion], ask: Ask, supports: Supports | None = None
) -> Report:
    """Ask them one after another. Raises what `ask` raises.

    `supports` says whether a passage supports the sentence before its marker; without it only
    markers of right passages count as right.
    """
    everything, poor = Scores(), []
    by_language = {language: Scores() for language in LANGUAGES}
    for question in questions:
        reply = await ask(question)
        ranks = (rank for rank, p in enumerate(reply.shown, start=1) if question.fits(p))
        rank = next(ranks, 0)
        right, wrong = _markers(question, reply, supports)
        for scores in (everything, by_language[question.language]):
            _count(scores, question, reply, rank)
            scores.right_markers += right
            scores.markers += right + wrong
        failed = bool(reply.passages) if question.outside else rank != 1
        if failed or wrong:
            headings = tuple(passage.heading for passage in reply.shown)
            poor.append(Poor(question, rank, wrong, headings))
    poor.sort(key=_badness)
    used = {language: s for language, s in by_language.items() if s.asked or s.outside}
    return Report(everything, used, tuple(poor[:WORST]))


def _badness(poor: Poor) -> tuple[bool, int, int]:
    """Not found first, then by rank; of one rank those with more wrong markers first."""
    return poor.rank != 0, -poor.rank, -poor.wrong_markers


def _count(scores: Scores, question: EvalQuestion, reply: Reply, rank: int) -> None:
    if question.outside:
        scores.outside += 1
        scores.refused += not reply.passages
        return
    scores.asked += 1
    scores.refused_inside += not reply.passages
    for k in scores.found_at:
        scores.found_at[k] += 0 < rank <= k
    scores.reciprocal += 1 / rank if rank else 0.0


def _markers(question: EvalQuestion, reply: Reply, supports: Supports | None) -> tuple[int, int]:
    """How many markers of the answer are right, and how many wrong."""
    right = wrong = begin = 0
    sentence = ""
    for match in _MARKER.finditer(reply.answer):
        if match.group(1) is None:
            continue
        between = reply.answer[begin : match.start()]
        # Of two markers in a row both are of the same sentence.
        sentence = between.strip() or sentence
        begin, n = match.end(), int(match.group(1))
        passage = reply.passages[n - 1] if 0 < n <= len(reply.passages) else None
        if passage is None:
            wrong += 1
        elif question.fits(passage) or (supports is not None and supports(sentence, passage)):
            right += 1
        else:
            wrong += 1
    return right, wrong
