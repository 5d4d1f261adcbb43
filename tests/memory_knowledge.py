"""Knowledge bases in memory that index nothing: documents are ready when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gpuserver.course_errors import (
    DocumentNotFound,
    KnowledgeBaseExists,
    KnowledgeBaseReadOnly,
    PassageNotFound,
)
from gpuserver.errors import GpuServerError, KnowledgeBaseNotFound
from gpuserver.knowledge.index import Explained
from gpuserver.knowledge.info import BaseInfo, Change, DocumentInfo, Removed, check_id, said
from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.language import Language
from gpuserver.providers import Passage
from tests.conftest import Scripted

NOW = datetime(2026, 11, 21, tzinfo=UTC)


class MemoryKnowledge(KnowledgeBases):
    """Bases and documents as dictionaries, and the scratch files of uploads in `folder`.

    `refusals` are raised by the method of that name, one after another; with `gate`, a file is
    taken when it is set. With `indexes`, documents are ready at once.
    """

    def __init__(self, folder: Path, real: KnowledgeBases) -> None:
        self.folder = folder
        self._real = real
        self.refusals: dict[str, list[GpuServerError]] = {}
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []
        self.watchers: set[asyncio.Queue[Change]] = set()
        self.gate: asyncio.Event | None = None
        self.indexes = False
        self._infos: dict[str, BaseInfo] = {}
        self._held: dict[str, dict[str, DocumentInfo]] = {}
        self._content: dict[tuple[str, str], bytes] = {}
        self.put_base("loops", course=True)
        self.put_document("loops", "en/lists", b"first second third", "lists.md")

    # What a test does

    def put_base(self, kb_id: str, title: str = "", *, course: bool = False) -> BaseInfo:
        info = BaseInfo(
            kb_id=kb_id,
            title=title or kb_id,
            origin="course" if course else "uploaded",
            documents=0,
            passages=0,
            bytes=0,
            state="ready",
            problem=None,
            problem_zh="",
            created_at=None if course else NOW,
            languages=("en",),
        )
        self._infos[kb_id] = info
        self._held.setdefault(kb_id, {})
        self._publish(info)
        return info

    def put_document(self, kb_id: str, document_id: str, content: bytes, name: str) -> DocumentInfo:
        """Its words are its passages."""
        info = DocumentInfo(
            id=document_id,
            name=name,
            state="queued",
            done=0,
            total=0,
            bytes=len(content),
            pages=None,
            passages=0,
            empty_pages=(),
            problem=None,
            problem_zh="",
            updated_at=NOW,
            answers=False,
        )
        self._held[kb_id][document_id] = info
        self._content[kb_id, document_id] = content
        self._publish((kb_id, info))
        if self.indexes:
            self.index(kb_id, document_id)
        return info

    def index(self, kb_id: str, document_id: str, error: GpuServerError | None = None) -> None:
        """The document is ready, or failed."""
        info = self._held[kb_id][document_id]
        if error is None:
            words = len(self._content[kb_id, document_id].split())
            info = replace(info, state="ready", passages=words, answers=True)
        else:
            problem, problem_zh = said(error)
            info = replace(info, state="failed", problem=problem, problem_zh=problem_zh)
        self._held[kb_id][document_id] = info
        self._publish((kb_id, info))

    def scratch(self) -> list[Path]:
        """What lies about of uploads. Blocking."""
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def content(self, kb_id: str, document_id: str) -> bytes:
        return self._content[kb_id, document_id]

    # What the server and its doors ask

    def close(self) -> None:
        self._real.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._real.running():
            yield

    def known(self, kb_id: str) -> bool:
        return kb_id in self._infos

    def bases(self) -> list[BaseInfo]:
        return [self.base(kb_id) for kb_id in sorted(self._infos)]

    def base(self, kb_id: str) -> BaseInfo:
        if kb_id not in self._infos:
            raise KnowledgeBaseNotFound(kb_id=kb_id)
        return replace(self._infos[kb_id], documents=len(self._held[kb_id]))

    def documents(self, kb_id: str) -> list[DocumentInfo]:
        return list(self._held[self.base(kb_id).kb_id].values())

    def document(self, kb_id: str, document_id: str) -> DocumentInfo:
        try:
            return self._held[self.base(kb_id).kb_id][document_id]
        except KeyError:
            raise DocumentNotFound(document_id=document_id) from None

    def watch(self, kb_id: str | None = None) -> AsyncIterator[Change]:
        return self._following([self.base(kb_id)] if kb_id is not None else self.bases(), kb_id)

    async def _following(self, bases: list[BaseInfo], kb_id: str | None) -> AsyncIterator[Change]:
        with self._watcher() as changes:
            for base in bases:
                yield base
                for document in self.documents(base.kb_id):
                    yield base.kb_id, document
            while True:
                change = await changes.get()
                whose = change[0] if isinstance(change, tuple) else change.kb_id
                if kb_id in (None, whose):
                    yield change
                    if kb_id is not None and change == Removed(kb_id):
                        return

    @contextmanager
    def _watcher(self) -> Iterator[asyncio.Queue[Change]]:
        changes: asyncio.Queue[Change] = asyncio.Queue()
        self.watchers.add(changes)
        try:
            yield changes
        finally:
            self.watchers.discard(changes)

    def _publish(self, change: Change) -> None:
        for watcher in self.watchers:
            watcher.put_nowait(change)

    async def create(self, kb_id: str, title: str = "") -> BaseInfo:
        self._refuse("create")
        if check_id(kb_id) in self._infos:
            raise KnowledgeBaseExists(kb_id=kb_id)
        return self.put_base(kb_id, title)

    async def delete(self, kb_id: str) -> None:
        self._check_writable(kb_id)
        del self._infos[kb_id], self._held[kb_id]
        self._publish(Removed(kb_id))

    def incoming(self, kb_id: str) -> Path:
        self._check_writable(kb_id)
        return self.folder

    async def add(self, kb_id: str, name: str, scratch: Path) -> list[DocumentInfo]:
        content = await self._taken_over("add", scratch)
        same = [info.id for info in self.documents(kb_id) if info.name == name]
        document_id = same[0] if same else f"{len(self._content):016x}"
        return [self.put_document(kb_id, document_id, content, name)]

    async def replace(self, kb_id: str, document_id: str, name: str, scratch: Path) -> DocumentInfo:
        content = await self._taken_over("replace", scratch)
        return self.put_document(kb_id, document_id, content, name)

    async def remove(self, kb_id: str, document_id: str) -> None:
        self._check_writable(kb_id)
        self.document(kb_id, document_id)
        del self._held[kb_id][document_id]
        self._publish(Removed(kb_id, document_id))

    async def reindex(self, kb_id: str, document_id: str) -> DocumentInfo:
        info = self.document(kb_id, document_id)
        return self.put_document(kb_id, document_id, self._content[kb_id, info.id], info.name)

    async def text(self, kb_id: str, document_id: str) -> str:
        return self._content[kb_id, self.document(kb_id, document_id).id].decode()

    async def passage(
        self, kb_id: str, document_id: str, n: int
    ) -> tuple[Passage, Passage | None, Passage | None]:
        info = self.document(kb_id, document_id)
        words = self._content[kb_id, info.id].decode().split()

        def passage(at: int) -> Passage | None:
            if not 1 <= at <= len(words):
                return None
            where = (f"{info.id}-{at}", kb_id, info.name, "Part")
            return Passage(*where, words[at - 1], "en", at, 0.0, info.id, at)

        found = passage(n)
        if found is None:
            raise PassageNotFound(n=n)
        return found, passage(n - 1), passage(n + 1)

    async def export(self, kb_id: str, into: Path) -> Path:
        self._refuse("export")
        parcel = into / "parcel.zip"
        await asyncio.to_thread(parcel.write_bytes, kb_id.encode())
        return parcel

    def importing(self) -> Path:
        return self.folder

    async def import_(self, scratch: Path, kb_id: str | None = None) -> BaseInfo:
        content = await self._taken_over("import_", scratch)
        return await self.create(kb_id or content.decode(), "imported")

    def explain(
        self, question: str, language: Language, kb_ids: Iterable[str], k: int = 8
    ) -> list[Explained]:
        self._refuse("explain")
        self.asked.append((question, language, tuple(kb_ids)))
        passage = Passage("a", "loops", "lists.md", "Lists", "A list.", "en", 3, 0.5, "en/lists", 2)
        return [Explained(passage, 0.75, None, 0.5, 0.25, "list" in question)]

    async def _taken_over(self, method: str, scratch: Path) -> bytes:
        """A scratch file's content; it is gone afterwards, whatever happens."""
        content = await asyncio.to_thread(scratch.read_bytes)
        await asyncio.to_thread(scratch.unlink)
        if self.gate is not None:
            await self.gate.wait()
        self._refuse(method)
        return content

    def _check_writable(self, kb_id: str) -> None:
        if self.base(kb_id).origin == "course":
            raise KnowledgeBaseReadOnly(kb_id=kb_id)

    def _refuse(self, method: str) -> None:
        if self.refusals.get(method):
            raise self.refusals[method].pop(0)


def in_memory(server: Scripted, folder: Path) -> MemoryKnowledge:
    """Knowledge bases in the place of the server's own."""
    folder.mkdir()
    knowledge = MemoryKnowledge(folder, server.state.tutoring.knowledge)
    server.state.tutoring._knowledge = knowledge
    return knowledge
