"""The JSON of knowledge bases: what the door to them is told and what it answers."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from gpuserver.knowledge.index import Explained
from gpuserver.knowledge.info import BaseInfo, BaseState, DocumentInfo, DocumentState
from gpuserver.language import Language
from gpuserver.providers import Passage


class NewBase(BaseModel):
    """A knowledge base to make. What its id may be is said by the refusal of one that isn't."""

    kb_id: Annotated[str, Field(max_length=4096)]
    title: Annotated[str, Field(max_length=200)] = ""


class Problem(BaseModel):
    """What went wrong, in both languages."""

    code: str
    detail: str
    detail_zh: str

    @classmethod
    def of(cls, info: BaseInfo | DocumentInfo) -> Problem | None:
        if info.problem is None:
            return None
        code, detail = info.problem
        return cls(code=code, detail=detail, detail_zh=info.problem_zh)


class Base(BaseModel):
    """A knowledge base. `indexing`: something in it is on its way; what was there answers."""

    kb_id: str
    title: str
    origin: Literal["uploaded", "course"]
    documents: int
    passages: int
    bytes: int
    state: BaseState
    problem: Problem | None
    created_at: datetime | None
    languages: list[Language]

    @classmethod
    def of(cls, info: BaseInfo) -> Base:
        return cls(**fields_of(info))


class BaseList(BaseModel):
    total: int
    knowledge_bases: list[Base]


class Document(BaseModel):
    """A document. `done` of `total`: pages while it is read, passages while it is indexed."""

    id: str
    name: str
    state: DocumentState
    done: int
    total: int
    bytes: int
    pages: int | None
    passages: int
    empty_pages: list[int]
    problem: Problem | None
    updated_at: datetime
    answers: bool

    @classmethod
    def of(cls, info: DocumentInfo) -> Document:
        return cls(**fields_of(info))


class DocumentList(BaseModel):
    total: int
    documents: list[Document]


class Taken(BaseModel):
    """What an upload gave: documents that are about to be indexed."""

    documents: list[Document]


class Excerpt(BaseModel):
    """A passage beside another one."""

    n: int
    heading: str
    page: int | None
    text: str

    @classmethod
    def of(cls, passage: Passage | None) -> Excerpt | None:
        if passage is None:
            return None
        return cls(n=passage.n, heading=passage.heading, page=passage.page, text=passage.text)


class PassageInfo(BaseModel):
    """A passage, Markdown; null beside it where its document begins or ends."""

    kb_id: str
    document_id: str
    n: int
    document: str
    heading: str
    page: int | None
    text: str
    before: Excerpt | None
    after: Excerpt | None


class Question(BaseModel):
    """A question to try. With `tutor_id`, that tutor's own courses are searched as well."""

    question: str
    language: Language | None = None
    tutor_id: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


class Found(BaseModel):
    """A passage and why it was found; the parts that make its `similarity`, none above 1.

    `by_meaning` is null where the question was searched for by its words alone. `by_reranker`,
    which alone decides where there is one, is null where none read the passage.
    """

    kb_id: str
    document_id: str
    n: int
    document: str
    heading: str
    page: int | None
    text: str
    language: Language
    similarity: float
    by_meaning: float | None
    by_words: float
    by_heading: float
    by_reranker: float | None
    covered: bool
    near: bool

    @classmethod
    def of(cls, found: Explained) -> Found:
        passage = found.passage
        return cls(
            kb_id=passage.kb_id,
            document_id=passage.document_id,
            n=passage.n,
            document=passage.document,
            heading=passage.heading,
            page=passage.page,
            text=passage.text,
            language=passage.language,
            similarity=found.similarity,
            by_meaning=found.by_meaning,
            by_words=found.by_words,
            by_heading=found.by_heading,
            by_reranker=found.by_reranker,
            covered=found.covered,
            near=found.near,
        )


class Answer(BaseModel):
    """What a question finds. Not `covered`: a student would be told so, and shown what is `near`,
    three passages at most."""

    covered: bool
    passages: list[Found]


class ToldDocument(Document):
    """A document, and where it is, as an event tells it."""

    kb_id: str


class ToldRemoval(BaseModel):
    """What is no longer there; a whole knowledge base where `document_id` is null."""

    kb_id: str
    document_id: str | None


def fields_of(info: BaseInfo | DocumentInfo) -> dict[str, Any]:
    """The fields of a body, by name."""
    return {**asdict(info), "problem": Problem.of(info)}
