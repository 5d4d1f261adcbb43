"""Indexing in the background: one document at a time, the bases in turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from gpuserver.config import Settings
from gpuserver.course_errors import (
    DocumentEmpty,
    DocumentNotFound,
    DocumentUnreadable,
    KnowledgeBaseBusy,
)
from gpuserver.documents import ReadDocument, ReadingLimits
from gpuserver.errors import GpuServerError
from gpuserver.knowledge import kept_parts
from gpuserver.knowledge.base_file import StoredDocument
from gpuserver.knowledge.info import DocumentState
from gpuserver.knowledge.kept_parts import Indexed
from gpuserver.knowledge.uploaded_base import UploadedBase
from gpuserver.observability import get_logger
from gpuserver.providers import Embeddings, Passage

log = get_logger(__name__)

_T = TypeVar("_T")

MAX_CHARACTERS: Final = 20_000_000
"""Of one document: a book has one million."""
BUSY_TRIES: Final = 12
"""To index a document, which takes long, while another process holds the file."""


class Read(Protocol):
    """How a file is read; see `documents.reading.read_document`."""

    def __call__(
        self, path: Path, name: str, limits: ReadingLimits, told: Callable[[int, int], None]
    ) -> Awaitable[ReadDocument]: ...


class Indexing:
    """What waits to be indexed, and the document that is. Used from the event loop alone."""

    def __init__(
        self,
        embeddings: Embeddings,
        settings: Settings,
        read: Read,
        told: Callable[[UploadedBase, str], None],
    ) -> None:
        """`told` hears of every step of a document, by its id."""
        self._embeddings, self._read, self._told = embeddings, read, told
        self._limits = ReadingLimits(
            settings.indexing_seconds,
            settings.indexing_memory_mb,
            settings.max_pages,
            MAX_CHARACTERS,
        )
        # The base that is next stands first.
        self._waiting: OrderedDict[UploadedBase, dict[str, None]] = OrderedDict()
        self._bell = asyncio.Event()
        self._job: tuple[UploadedBase, str, asyncio.Task[None]] | None = None

    def add(self, base: UploadedBase, document_id: str) -> None:
        """Index a document when it is its turn; what is made of an older file of it is given up."""
        self.forget(base, document_id)
        self._waiting.setdefault(base, {})[document_id] = None
        self._bell.set()

    def forget(self, base: UploadedBase, document_id: str | None = None) -> None:
        """Do not index a document, or with None a whole base, any further."""
        if document_id is None:
            self._waiting.pop(base, None)
        elif base in self._waiting:
            self._waiting[base].pop(document_id, None)
        if self._job is not None and self._job[0] is base and document_id in {None, self._job[1]}:
            self._job[2].cancel()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Index what waits, and what comes, while the block runs."""
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._run_forever(group))
            yield
            work.cancel()
            if self._job is not None:
                self._job[2].cancel()

    async def _run_forever(self, group: asyncio.TaskGroup) -> None:
        while True:
            found = self._next()
            if found is None:
                self._bell.clear()
                await self._bell.wait()
                continue
            job = group.create_task(self._index(*found))
            self._job = (*found, job)
            await asyncio.wait([job])
            self._job = None

    def _next(self) -> tuple[UploadedBase, str] | None:
        """A document of the base whose turn it is; that base comes last then."""
        while self._waiting:
            base, documents = self._waiting.popitem(last=False)
            if documents:
                document_id = next(iter(documents))
                del documents[document_id]
                if documents:
                    self._waiting[base] = documents
                return base, document_id
        return None

    async def _index(self, base: UploadedBase, document_id: str) -> None:
        try:
            document = base.find(document_id)
        except DocumentNotFound:
            return
        try:
            await self._make(base, document)
        except GpuServerError as error:
            log.warning(
                "document not indexed", kb_id=base.kb_id, document=document_id, code=error.code
            )
            await asyncio.to_thread(base.fail, document, error)
        # The last stop of a job: a bug in one document must not end the others', nor the server.
        except Exception as error:
            log.exception("document not indexed", kb_id=base.kb_id, document=document_id)
            await asyncio.to_thread(base.fail, document, _bug(error))
        with suppress(DocumentNotFound):
            self._told(base, document_id)

    async def _make(self, base: UploadedBase, document: StoredDocument) -> None:
        """Read and index a document, and let it answer."""
        info = document.info
        found: ReadDocument | None = None
        if base.outdated(info.id):
            passages = base.passages_of(info.id)
        else:
            found = await self._read_file(base, document)
            passages = _passages(base.kb_id, document, found)
        self._step(base, document, "indexing", 0, len(passages))

        def told(done: int, total: int) -> None:
            self._step(base, document, "indexing", done, total)

        old = await _patiently(base.opened().parts, info.id)
        made = await kept_parts.make(passages, old, self._embeddings, told)
        stored, parts = tuple(kept for kept, _ in made), tuple(part for _, part in made)
        new = Indexed(passages, stored, parts, old)
        if found is not None:
            new = replace(new, text=found.text, pages=found.pages, empty_pages=found.empty_pages)
        await _patiently(base.publish, document, new)

    async def _read_file(self, base: UploadedBase, document: StoredDocument) -> ReadDocument:
        name, path = document.info.name, base.original(document.info.id)
        self._step(base, document, "reading", 0, 0)

        def told(done: int, total: int) -> None:
            self._step(base, document, "reading", done, total)

        if not await asyncio.to_thread(path.is_file):
            raise DocumentUnreadable(
                name=name, problem="the uploaded file is gone", problem_zh="上传的文件已不存在"
            )
        found = await self._read(path, name, self._limits, told)
        if not found.pieces:
            raise DocumentEmpty(name=name)
        return found

    def _step(
        self,
        base: UploadedBase,
        document: StoredDocument,
        state: DocumentState,
        done: int,
        total: int,
    ) -> None:
        if base.progress(document, state, done, total):
            self._told(base, document.info.id)


async def _patiently(work: Callable[..., _T], *args: Any) -> _T:
    """Do what blocks; each try waits a while for a file that another process holds."""
    for _ in range(BUSY_TRIES - 1):
        try:
            return await asyncio.to_thread(work, *args)
        except KnowledgeBaseBusy as error:
            log.warning("knowledge base is busy", kb_id=error.details["kb_id"])
    return await asyncio.to_thread(work, *args)


def _passages(kb_id: str, document: StoredDocument, found: ReadDocument) -> tuple[Passage, ...]:
    document_id = document.info.id
    return tuple(
        Passage(
            f"{document_id}#{n}", kb_id, found.title or document.info.name, piece.heading,
            piece.text, piece.language, piece.page, document_id=document_id, n=n,
        )
        for n, piece in enumerate(found.pieces, start=1)
    )  # fmt: skip


def _bug(error: Exception) -> GpuServerError:
    failed = GpuServerError()
    failed.__cause__ = error
    return failed
