"""The door to course material: knowledge bases, their documents, uploads, search, events."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response, status
from fastapi.responses import FileResponse, PlainTextResponse
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from gpuserver.api.knowledge_bodies import (
    Answer,
    Base,
    BaseList,
    Document,
    DocumentList,
    Excerpt,
    Found,
    NewBase,
    PassageInfo,
    Question,
    Taken,
)
from gpuserver.api.knowledge_events import Events
from gpuserver.api.security import Guarded, bearer, guard
from gpuserver.api.state import State, state_of
from gpuserver.api.uploads import Rules, received
from gpuserver.course_errors import PassageNotFound
from gpuserver.errors import (
    GpuServerError,
    KnowledgeBaseNotFound,
    TextEmpty,
    TextTooLong,
    TokenRefused,
)
from gpuserver.knowledge.info import check_name, is_id
from gpuserver.knowledge.intake import import_megabytes
from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.knowledge.transfer import check_type
from gpuserver.language import detect
from gpuserver.threads import finish_in_thread

_SHOWN: Final = 64
"""Of an id that is not known so much is repeated."""
_BASES: Final = "/knowledge-bases"
_BASE: Final = f"{_BASES}/{{kb_id}}"
# A course's documents are named by their files, with a slash: en/lists.
_DOCUMENT: Final = f"{_BASE}/documents/{{document_id:path}}"
_UPLOADS: Final = re.compile(
    r"/(?:mgmt/)?v1/knowledge-bases/(?:import|[^/]+/documents(?:/[^/]+)?)", re.DOTALL
)


def is_upload(scope: Scope) -> bool:
    """Whether the request is one whose body is read here, as it comes."""
    return scope["method"] in {"POST", "PUT"} and bool(_UPLOADS.fullmatch(scope["path"]))


def _knowledge(request: Request, _: Guarded) -> KnowledgeBases:
    return state_of(request).tutoring.knowledge


def _known(kb_id: str, knowledge: Known) -> str:
    """An id from a path; one that nobody has goes no further. Raises KnowledgeBaseNotFound."""
    if not knowledge.known(kb_id):
        raise KnowledgeBaseNotFound(kb_id=kb_id[:_SHOWN])
    return kb_id


def _bounded(document_id: str) -> str:
    """A document's id from a path: no longer than any that a base can have."""
    return document_id[:400]


Known = Annotated[KnowledgeBases, Depends(_knowledge)]
KbId = Annotated[str, Depends(_known)]
DocumentId = Annotated[str, Depends(_bounded)]

router = APIRouter()


@router.post(_BASES, status_code=status.HTTP_201_CREATED)
async def create_base(new: NewBase, knowledge: Known) -> Base:
    """Make an empty knowledge base."""
    return Base.of(await knowledge.create(new.kb_id, new.title))


@router.get(_BASES)
async def list_bases(knowledge: Known) -> BaseList:
    """Every knowledge base: those uploaded, and the courses of the tutors file."""
    bases = [Base.of(info) for info in knowledge.bases()]
    return BaseList(total=len(bases), knowledge_bases=bases)


@router.post(f"{_BASES}/import", status_code=status.HTTP_201_CREATED)
async def import_base(request: Request, knowledge: Known) -> Base:
    """Take in an exported knowledge base (`file`), under its own id or the field `kb_id`."""
    state = state_of(request)
    rules = Rules(
        import_megabytes(state.settings), lambda name: None, state.closing, files=1,
        fields=frozenset({"kb_id"}), large=True,
    )  # fmt: skip
    async with received(request, knowledge.importing(), rules) as form:
        kb_id = form.fields.get("kb_id") or None
        return Base.of(await knowledge.import_(form.files[0].path, kb_id))


@router.get(f"{_BASES}/events", response_class=EventSourceResponse)
async def all_events(request: Request, knowledge: Known) -> Events:
    """Every change of every knowledge base, as server-sent events."""
    return Events(knowledge.watch(), state_of(request).closing)


@router.get(_BASE)
async def get_base(kb_id: KbId, knowledge: Known) -> Base:
    """One knowledge base."""
    return Base.of(knowledge.base(kb_id))


@router.delete(_BASE, status_code=status.HTTP_204_NO_CONTENT)
async def delete_base(kb_id: str, knowledge: Known) -> Response:
    """Delete a knowledge base with all its documents, also one that can't be read any more."""
    if not is_id(kb_id):
        raise KnowledgeBaseNotFound(kb_id=kb_id[:_SHOWN])
    await knowledge.delete(kb_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.get(f"{_BASE}/events", response_class=EventSourceResponse)
async def base_events(kb_id: KbId, request: Request, knowledge: Known) -> Events:
    """Every change of one knowledge base, as server-sent events; its present state first."""
    return Events(knowledge.watch(kb_id), state_of(request).closing)


@router.post(f"{_BASE}/search")
async def search(kb_id: KbId, asked: Question, request: Request, knowledge: Known) -> Answer:
    """What a question finds, and why: for the teacher to try."""
    state = state_of(request)
    if not asked.question.strip():
        raise TextEmpty
    if len(asked.question) > state.settings.max_text_chars:
        raise TextTooLong(limit=state.settings.max_text_chars)
    tutors = state.tutoring.catalogue
    tutor = tutors.default if asked.tutor_id is None else tutors.resolve(asked.tutor_id)
    courses = () if asked.tutor_id is None else tutor.knowledge
    language = asked.language or detect(asked.question, tutor.language)
    found = await asyncio.to_thread(
        knowledge.explain, asked.question, language, tuple(dict.fromkeys((kb_id, *courses)))
    )
    covered = any(one.covered for one in found)
    return Answer(covered=covered, passages=[Found.of(one) for one in found])


@router.get(f"{_BASE}/export", response_class=FileResponse)
async def export_base(kb_id: KbId, request: Request, knowledge: Known) -> FileResponse:
    """The whole knowledge base as one zip, which `import` takes."""
    # A folder of its own: the same base may be on its way to somebody else.
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=knowledge.importing()))
    try:
        parcel = await knowledge.export(kb_id, folder)
    except BaseException:
        await finish_in_thread(rmtree, folder, True)
        raise
    return _Parcel(parcel, media_type="application/zip", filename=f"{kb_id}.zip")


@router.get(f"{_BASE}/documents")
async def list_documents(kb_id: KbId, knowledge: Known) -> DocumentList:
    """The documents of a knowledge base, by name."""
    documents = [Document.of(info) for info in knowledge.documents(kb_id)]
    return DocumentList(total=len(documents), documents=documents)


@router.post(f"{_BASE}/documents", status_code=status.HTTP_202_ACCEPTED)
async def add_documents(kb_id: KbId, request: Request, knowledge: Known) -> Taken:
    """Upload documents, or zips of them: multipart, field `file`, several allowed.

    One of the same name is replaced. They are indexed after the answer. The first that is refused
    ends it: those before it are kept.
    """
    taken: list[Document] = []
    rules = _rules(state_of(request), partial(_check_document, archives=True))
    async with received(request, knowledge.incoming(kb_id), rules) as form:
        for file in form.files:
            added = await knowledge.add(kb_id, check_name(file.name), file.path)
            taken += [Document.of(info) for info in added]
    return Taken(documents=taken)


@router.get(f"{_DOCUMENT}/text", response_class=PlainTextResponse)
async def get_text(kb_id: KbId, document_id: DocumentId, knowledge: Known) -> PlainTextResponse:
    """All that was extracted of a document, as Markdown."""
    return PlainTextResponse(
        await knowledge.text(kb_id, document_id), media_type="text/markdown; charset=utf-8"
    )


@router.post(f"{_DOCUMENT}/reindex", status_code=status.HTTP_202_ACCEPTED)
async def reindex(kb_id: KbId, document_id: DocumentId, knowledge: Known) -> Document:
    """Read a document again."""
    return Document.of(await knowledge.reindex(kb_id, document_id))


@router.get(f"{_DOCUMENT}/passages/{{n}}")
async def get_passage(
    kb_id: str,
    document_id: DocumentId,
    n: str,
    request: Request,
    session_id: Annotated[str | None, Query(max_length=64)] = None,
) -> PassageInfo:
    """A passage and its neighbours: what a citation leads to.

    With `session_id` and that session's engine token as bearer it is a student who asks: passages
    of the session's knowledge base and of its tutor's courses are shown, and nothing is told of
    others.
    """
    if session_id is None:
        guard(request)
        knowledge = state_of(request).tutoring.knowledge
        return await _passage(knowledge, _known(kb_id, knowledge), document_id, n)
    try:
        knowledge = _readable_by_student(request, kb_id, session_id)
        return await _passage(knowledge, kb_id, document_id, n)
    except GpuServerError as error:
        if error.status < 500:
            raise PassageNotFound(n=n[:_SHOWN]) from None
        raise


@router.get(_DOCUMENT)
async def get_document(kb_id: KbId, document_id: DocumentId, knowledge: Known) -> Document:
    """One document."""
    return Document.of(knowledge.document(kb_id, document_id))


@router.put(_DOCUMENT, status_code=status.HTTP_202_ACCEPTED)
async def replace_document(
    kb_id: KbId, document_id: DocumentId, request: Request, knowledge: Known
) -> Document:
    """Upload another file for a document; the old one answers until the new one is indexed."""
    knowledge.document(kb_id, document_id)
    rules = _rules(state_of(request), partial(_check_document, archives=False), files=1)
    async with received(request, knowledge.incoming(kb_id), rules) as form:
        file = form.files[0]
        name = check_name(file.name)
        return Document.of(await knowledge.replace(kb_id, document_id, name, file.path))


@router.delete(_DOCUMENT, status_code=status.HTTP_204_NO_CONTENT)
async def remove_document(kb_id: KbId, document_id: DocumentId, knowledge: Known) -> Response:
    """Delete a document."""
    await knowledge.remove(kb_id, document_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.api_route(
    f"{_BASES}/{{odd:path}}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False
)
async def no_such_base(odd: str, knowledge: Known) -> None:
    """An id that is a path, `..%2f..%2fetc`, leads nowhere else."""
    if knowledge.known(odd.partition("/")[0]):
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    raise KnowledgeBaseNotFound(kb_id=odd[:_SHOWN])


async def _passage(
    knowledge: KnowledgeBases, kb_id: str, document_id: str, number: str
) -> PassageInfo:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", number):
        raise PassageNotFound(n=number[:_SHOWN])
    passage, before, after = await knowledge.passage(kb_id, document_id, int(number))
    return PassageInfo(
        kb_id=kb_id,
        document_id=document_id,
        n=passage.n,
        document=passage.document,
        heading=passage.heading,
        page=passage.page,
        text=passage.text,
        before=Excerpt.of(before),
        after=Excerpt.of(after),
    )


def _readable_by_student(request: Request, kb_id: str, session_id: str) -> KnowledgeBases:
    """The knowledge bases, for a student of a live session who may read of this base.

    Raises TokenRefused, TutorNotFound.
    """
    state = state_of(request)
    session = state.sessions.authenticate(session_id, bearer(request))
    if kb_id != session.kb_id:
        tutor = state.tutoring.catalogue.resolve(session.tutor_id)
        if kb_id not in tutor.knowledge:
            raise TokenRefused
    return state.tutoring.knowledge


def _check_document(name: str, *, archives: bool) -> None:
    """Raises DocumentNameInvalid, DocumentTypeUnknown."""
    check_type(check_name(name), archives=archives)


def _rules(state: State, accept: Callable[[str], object], **given: Any) -> Rules:
    return Rules(state.settings.max_upload_mb, accept, state.closing, **given)


class _Parcel(FileResponse):
    """A file that is deleted with its folder once it has been sent, or can't be."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await finish_in_thread(rmtree, Path(self.path).parent, True)
