"""What is known about knowledge bases and their documents, and what they may be called."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal

from gpuserver.course_errors import DocumentNameInvalid, KnowledgeBaseIdInvalid
from gpuserver.documents.naming import MAX_NAME
from gpuserver.errors import GpuServerError
from gpuserver.language import Language

DocumentState = Literal["queued", "reading", "indexing", "ready", "failed"]
BaseState = Literal["ready", "indexing", "failed"]
UNFINISHED: Final[frozenset[DocumentState]] = frozenset({"queued", "reading", "indexing"})

MAX_TITLE: Final = 200

# ASCII alone: a look-alike letter must not name a second base that seems to be the first.
_ID: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?")
# They stand where an id does in the paths of the API.
_RESERVED: Final = frozenset({"events", "import"})


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """A document of a knowledge base as it is now.

    `id` has 16 hexadecimal characters and stays when another file of that `name` replaces it.
    `done` of `total` are pages while it is read and passages while it is indexed. `problem` is a
    code and an English sentence, `problem_zh` the same in Chinese, "" where there is none.
    `answers` says whether a version of it is being searched: the old one, while a new one is
    indexed or after that failed. `pages`, `passages` and `empty_pages` (scans) are of the version
    that was indexed last.
    """

    id: str
    name: str
    state: DocumentState
    done: int
    total: int
    bytes: int
    pages: int | None
    passages: int
    empty_pages: tuple[int, ...]
    problem: tuple[str, str] | None
    problem_zh: str
    updated_at: datetime
    answers: bool


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """A knowledge base as it is now; a course has no `created_at`, and is changed in its folder.

    `problem` and `problem_zh` are as in `DocumentInfo`, and are of the base: those of its documents
    are theirs.
    """

    kb_id: str
    title: str
    origin: Literal["uploaded", "course"]
    documents: int
    passages: int
    bytes: int
    state: BaseState
    problem: tuple[str, str] | None
    problem_zh: str
    created_at: datetime | None
    languages: tuple[Language, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """A document, or with `document_id` None a whole knowledge base, is no longer there."""

    kb_id: str
    document_id: str | None = None


Change = BaseInfo | tuple[str, DocumentInfo] | Removed
"""What a watcher is told; a document comes with the id of its knowledge base."""


def said(error: GpuServerError) -> tuple[tuple[str, str], str]:
    """An error as `problem` and `problem_zh`."""
    return (error.code, error.sentence("en")), error.sentence("zh")


def failed(info: DocumentInfo, error: GpuServerError) -> DocumentInfo:
    """The document after it could not be indexed."""
    problem, problem_zh = said(error)
    return replace(
        info, state="failed", done=0, total=0, problem=problem, problem_zh=problem_zh,
        updated_at=datetime.now(UTC),
    )  # fmt: skip


def is_id(kb_id: str) -> bool:
    """Whether a knowledge base can have this id."""
    return _ID.fullmatch(kb_id) is not None and not is_reserved(kb_id)


def is_reserved(kb_id: str) -> bool:
    """Whether something else of the API has this name."""
    return kb_id.lower() in _RESERVED


def check_id(kb_id: str) -> str:
    """The id itself. Raises KnowledgeBaseIdInvalid."""
    if not is_id(kb_id):
        raise KnowledgeBaseIdInvalid
    return kb_id


def folder_name(kb_id: str) -> str:
    """Of the folder that keeps a base: no id is ever a path, nor do two that differ in case only
    have two folders."""
    return hashlib.sha256(kb_id.lower().encode()).hexdigest()[:32]


def check_name(name: str) -> str:
    """A document's name, without the folders an upload may put before it.

    Raises DocumentNameInvalid.
    """
    last = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1]).strip()
    if last in {"", ".", ".."} or len(last) > MAX_NAME or not last.isprintable():
        raise DocumentNameInvalid
    return last


def clean_title(title: str, kb_id: str) -> str:
    """A title of one bounded line; a base without one is called by its id."""
    return " ".join(title.split())[:MAX_TITLE] or kb_id
