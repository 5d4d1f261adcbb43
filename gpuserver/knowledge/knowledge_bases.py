"""What the server knows, by `kb_id`: courses of its configuration and what teachers upload."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from gpuserver.config import DEFAULTS, Settings
from gpuserver.course_errors import (
    DocumentNotFound,
    KnowledgeBaseExists,
    KnowledgeBaseReadOnly,
    PassageNotFound,
)
from gpuserver.documents.reading import read_document
from gpuserver.errors import GpuServerError, KnowledgeBaseNotFound
from gpuserver.knowledge import transfer
from gpuserver.knowledge.base_folder import BaseFolder
from gpuserver.knowledge.carrying import carry_out, given_away
from gpuserver.knowledge.changes import Changes
from gpuserver.knowledge.course_base import CourseBase
from gpuserver.knowledge.dictionaries import Dictionaries
from gpuserver.knowledge.disk import remove_all
from gpuserver.knowledge.index import Explained, Index
from gpuserver.knowledge.indexing import Indexing, Read
from gpuserver.knowledge.info import BaseInfo, Change, DocumentInfo, Removed, check_id, check_name
from gpuserver.knowledge.intake import take_document, take_export
from gpuserver.knowledge.opening import IMPORTS, open_all, open_busy
from gpuserver.knowledge.parts import Progress, make_parts
from gpuserver.knowledge.reranking import Reranking
from gpuserver.knowledge.uploaded_base import UploadedBase
from gpuserver.knowledge.vocabularies import Base, Vocabularies
from gpuserver.language import Language
from gpuserver.providers import Embeddings, Passage, VectorIndex, Vocabulary

_FOLDER: Final = "knowledge"


class KnowledgeBases:
    """Every knowledge base of this server.

    Used from the event loop, but for what says "Blocking", which any thread may call. Documents
    that were added are indexed while `running` is entered.
    """

    def __init__(
        self, root: Path, embeddings: Embeddings, index: Index, settings: Settings, read: Read
    ) -> None:
        """Empty; see `open`."""
        self._root, self._index, self._settings = root, index, settings
        self._embeddings = embeddings
        self._bases: dict[str, Base] = {}
        self._versions = itertools.count(1)
        self._vocabularies = Vocabularies()
        self._dictionaries = Dictionaries(root.parent)
        self._left_over: list[Path] = []
        self._changes = Changes()
        self._indexing = Indexing(embeddings, settings, read, self._tell)

    @classmethod
    def open(
        cls,
        courses: Mapping[str, Path],
        embeddings: Embeddings,
        data_dir: Path,
        progress: Progress,
        index: VectorIndex | None = None,
        settings: Settings = DEFAULTS,
        read: Read = read_document,
        reranking: Reranking | None = None,
    ) -> KnowledgeBases:
        """Read and index `courses` (kb_id → folder), and open what was uploaded. Blocking.

        `progress` is called with (passages done, passages) of the courses. Raises
        ConfigurationError for a malformed course, ProviderUnavailable for its vectors of another
        model that took long to make, EngineFailed from the embeddings. An uploaded base that can't
        be read is there with state `failed`.
        """
        found = Index(embeddings, index, reranking)
        knowledge = cls(data_dir / _FOLDER, embeddings, found, settings, read)
        bases = [CourseBase(kb_id, root, knowledge._next()) for kb_id, root in courses.items()]
        passages = [passage for base in bases for passage in base.passages()]
        found.put(make_parts(passages, embeddings, data_dir, progress))
        knowledge._bases.update({base.kb_id: base for base in bases})
        knowledge._open_uploaded()
        return knowledge

    def _open_uploaded(self) -> None:
        opened = open_all(self._root, list(self._bases), self._base_in)
        for base in opened.bases:
            self._bases[base.kb_id] = base
            for document_id in base.waiting():
                self._indexing.add(base, document_id)
        self._left_over = [*opened.left_over, *self._dictionaries.stale(self.known)]

    def _base_in(self, folder: BaseFolder) -> UploadedBase:
        return UploadedBase(folder, self._index, self._embeddings, self._next)

    def _next(self) -> int:
        return next(self._versions)

    def close(self) -> None:
        """Close the files. Blocking; `running` has been left."""
        for base in self._all_uploaded():
            base.close()

    def _all_uploaded(self) -> list[UploadedBase]:
        return [base for base in self._bases.values() if isinstance(base, UploadedBase)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Index in the background what waits for it, until the block is left.

        Another process may have opened the same folder, to ask questions; one alone may run.
        """
        try:
            await asyncio.to_thread(remove_all, self._left_over)
            async with self._indexing.running(), asyncio.TaskGroup() as group:
                retrying = group.create_task(open_busy(self._all_uploaded(), self._queue))
                yield
                retrying.cancel()
        finally:
            self._changes.close()

    # What there is

    def known(self, kb_id: str) -> bool:
        """Whether there is such a knowledge base, whatever its state."""
        return kb_id in self._bases

    def bases(self) -> list[BaseInfo]:
        """All of them, by id."""
        return [self._bases[kb_id].info() for kb_id in sorted(self._bases)]

    def base(self, kb_id: str) -> BaseInfo:
        """Raises KnowledgeBaseNotFound."""
        return self._find(kb_id).info()

    def documents(self, kb_id: str) -> list[DocumentInfo]:
        """By name. Raises KnowledgeBaseNotFound."""
        return self._find(kb_id).documents()

    def document(self, kb_id: str, document_id: str) -> DocumentInfo:
        """Raises KnowledgeBaseNotFound, DocumentNotFound."""
        return self._find(kb_id).document(document_id)

    def watch(self, kb_id: str | None = None) -> AsyncIterator[Change]:
        """Every change of one base or of all, beginning with the present state.

        A slow reader is told the newest state of each item only. Ends when the base of `kb_id` is
        removed, and when the server stops. Raises KnowledgeBaseNotFound (at once).
        """
        bases = list(self._bases.values()) if kb_id is None else [self._find(kb_id)]
        present: list[Change] = []
        for base in bases:
            present.append(base.info())
            present.extend((base.kb_id, info) for info in base.documents())
        return self._changes.watch(kb_id, present)

    def _find(self, kb_id: str) -> Base:
        if kb_id not in self._bases:
            raise KnowledgeBaseNotFound(kb_id=kb_id[:64])
        return self._bases[kb_id]

    def _uploaded(self, kb_id: str) -> UploadedBase:
        base = self._find(kb_id)
        if not isinstance(base, UploadedBase):
            raise KnowledgeBaseReadOnly(kb_id=kb_id)
        return base

    # What changes it

    async def create(self, kb_id: str, title: str = "") -> BaseInfo:
        """An empty knowledge base. Raises KnowledgeBaseIdInvalid, KnowledgeBaseExists, DiskFull."""
        check_id(kb_id)
        if kb_id.lower() in {other.lower() for other in self._bases}:
            raise KnowledgeBaseExists(kb_id=kb_id)
        return await carry_out(partial(self._make, kb_id, title), self._made)

    def _make(self, kb_id: str, title: str) -> UploadedBase:
        base = self._base_in(BaseFolder.make(self._root, kb_id, title))
        base.open()
        return base

    def _made(self, base: UploadedBase) -> BaseInfo:
        self._bases[base.kb_id] = base
        self._changes.tell(base.info())
        return base.info()

    async def delete(self, kb_id: str) -> None:
        """Nothing of it stays.

        Raises KnowledgeBaseNotFound, KnowledgeBaseReadOnly, KnowledgeBaseNotDeleted, DiskFull.
        """
        if not self.known(kb_id) and await asyncio.to_thread(
            BaseFolder.remove_nameless, self._root, kb_id
        ):
            return
        base = self._uploaded(kb_id)

        def delete() -> None:
            base.delete()
            self._dictionaries.forget(kb_id)

        await carry_out(delete, lambda _: self._deleted(base))

    def _deleted(self, base: UploadedBase) -> None:
        del self._bases[base.kb_id]
        self._indexing.forget(base)
        self._changes.tell(Removed(base.kb_id))

    def incoming(self, kb_id: str) -> Path:
        """A folder for scratch files of uploads, on the disk they are kept on.

        Raises KnowledgeBaseNotFound, KnowledgeBaseReadOnly, KnowledgeBaseDamaged.
        """
        return self._uploaded(kb_id).incoming

    async def add(self, kb_id: str, name: str, scratch: Path) -> list[DocumentInfo]:
        """Take a file over, to be indexed; the same name replaces, a zip gives many.

        `scratch` is gone afterwards, whatever happens. Raises KnowledgeBaseNotFound,
        KnowledgeBaseReadOnly, KnowledgeBaseDamaged, DocumentNameInvalid, DocumentTypeUnknown,
        DocumentUnreadable (a zip), DocumentTooLarge, TooManyDocuments, ArchiveUnsafe, DiskFull.
        """
        async with given_away(scratch):
            name = transfer.check_type(check_name(name))
            return await self._take(self._uploaded(kb_id), name, scratch)

    async def replace(self, kb_id: str, document_id: str, name: str, scratch: Path) -> DocumentInfo:
        """Another file for a document, of whatever name: it keeps its own id and gets that name.

        As `add`; a zip is refused (DocumentTypeUnknown), and so is a name that another document
        has (DocumentNameInvalid). Raises DocumentNotFound.
        """
        async with given_away(scratch):
            name = transfer.check_type(check_name(name), archives=False)
            base = self._uploaded(kb_id)
            base.find(document_id)
            (info,) = await self._take(base, name, scratch, document_id)
            return info

    async def _take(
        self, base: UploadedBase, name: str, scratch: Path, document_id: str = ""
    ) -> list[DocumentInfo]:
        take = partial(take_document, base, name, scratch, self._settings, document_id)
        return await carry_out(take, partial(self._queue, base))

    def _queue(self, base: UploadedBase, infos: list[DocumentInfo]) -> list[DocumentInfo]:
        """Index what is not yet, and tell of it."""
        if self._bases.get(base.kb_id) is base:  # not deleted meanwhile
            for info in infos:
                if info.state == "queued":
                    self._indexing.add(base, info.id)
                self._changes.tell((base.kb_id, info))
            self._changes.tell(base.info())
        return infos

    async def remove(self, kb_id: str, document_id: str) -> None:
        """Nothing of the document stays. Raises as `document` and `add`."""
        base = self._uploaded(kb_id)
        base.find(document_id)
        self._indexing.forget(base, document_id)

        def remove() -> None:
            base.remove(document_id)
            self._dictionaries.forget(kb_id)

        try:
            await carry_out(remove, lambda _: self._gone(base, document_id))
        except GpuServerError:
            if document_id in base.waiting():
                self._indexing.add(base, document_id)
            raise

    def _gone(self, base: UploadedBase, document_id: str) -> None:
        if self._bases.get(base.kb_id) is base:
            self._changes.tell(Removed(base.kb_id, document_id))
            self._changes.tell(base.info())

    async def reindex(self, kb_id: str, document_id: str) -> DocumentInfo:
        """Read the document's file again. Raises as `document` and `add`."""
        base = self._uploaded(kb_id)
        again = partial(base.again, document_id)
        return (await carry_out(lambda: [again()], partial(self._queue, base)))[0]

    def _tell(self, base: UploadedBase, document_id: str) -> None:
        """A document that is being indexed has come a step further."""
        if self._bases.get(base.kb_id) is base:
            with suppress(DocumentNotFound):
                self._changes.tell((base.kb_id, base.document(document_id)))
            self._changes.tell(base.info())

    # What it holds

    async def text(self, kb_id: str, document_id: str) -> str:
        """All that was extracted, as Markdown; "" before anything was. Raises as `document`."""
        return await asyncio.to_thread(self._find(kb_id).text, document_id)

    async def passage(
        self, kb_id: str, document_id: str, n: int
    ) -> tuple[Passage, Passage | None, Passage | None]:
        """The n-th passage (from 1), the one before it and the one after it.

        Raises as `document`, and PassageNotFound.
        """
        base = self._find(kb_id)
        base.document(document_id)
        near = {p.n: p for p in base.passages_of(document_id) if abs(p.n - n) <= 1}
        if n not in near:
            raise PassageNotFound(n=n)
        return near[n], near.get(n - 1), near.get(n + 1)

    async def original(self, kb_id: str, document_id: str) -> Path:
        """The file as it was uploaded; the next upload removes it. Raises as `document`."""
        return self._find(kb_id).original(document_id)

    async def export(self, kb_id: str, into: Path) -> Path:
        """A zip in the folder `into` of all the originals and a `manifest.json`: there is the whole
        or nothing. Raises KnowledgeBaseNotFound, KnowledgeBaseReadOnly, KnowledgeBaseDamaged,
        DiskFull."""
        base = self._uploaded(kb_id)
        base.opened()
        originals = [(info.name, base.original(info.id)) for info in base.documents()]
        return await asyncio.to_thread(transfer.write_export, base.info(), originals, into)

    def importing(self) -> Path:
        """A folder for the scratch files of exported knowledge bases that come in."""
        return self._root / IMPORTS

    async def import_(self, scratch: Path, kb_id: str | None = None) -> BaseInfo:
        """A knowledge base from what `export` wrote, under its own id or another; indexed anew.

        `scratch` is gone afterwards. Raises ArchiveUnsafe, KnowledgeBaseIdInvalid,
        KnowledgeBaseExists, TooManyDocuments, DocumentTooLarge, DiskFull.
        """
        async with given_away(scratch):
            most = self._settings.max_documents
            manifest = await asyncio.to_thread(transfer.read_manifest, scratch, most)
            made = await self.create(kb_id or manifest.kb_id, manifest.title)
            try:
                if manifest.documents:
                    base = self._uploaded(made.kb_id)
                    take = partial(take_export, base, scratch, self._settings)
                    await carry_out(take, partial(self._queue, base))
            except BaseException:
                await self.delete(made.kb_id)
                raise
            return self.base(made.kb_id)

    # What it is asked: these block

    def find(
        self, question: str, language: Language, kb_ids: Iterable[str]
    ) -> tuple[list[Passage], list[Passage]]:
        """The passages that answer a question, or those near it where none surely does.

        Unknown knowledge bases hold nothing. Blocking, as `Index.find`. Raises EngineFailed.
        """
        return self._index.find(question, language, kb_ids)

    def explain(
        self, question: str, language: Language, kb_ids: Iterable[str], k: int = 8
    ) -> list[Explained]:
        """The nearest passages, covered or not, and why they are. Blocking. Raises EngineFailed."""
        return self._index.explain(question, language, kb_ids, k)

    def likeness(
        self, sentence: str, others: Sequence[str], language: Language
    ) -> list[float] | None:
        """As `Index.likeness`."""
        return self._index.likeness(sentence, others, language)

    def vocabulary(self, kb_ids: Iterable[str]) -> Vocabulary:
        """The words to listen for, without pronunciations: those are the speech engine's to add.

        Blocking, for a moment, the first time for these `kb_ids` and after each change of them.
        """
        return self._vocabularies.of(self._chosen(kb_ids))

    def listened_for(self, vocabulary: Vocabulary, kb_ids: Iterable[str]) -> None:
        """Note that a recogniser keeps these words of those bases. Blocking."""
        self._dictionaries.note(vocabulary.digest, kb_ids)

    def version(self, kb_ids: Iterable[str]) -> tuple[int, ...]:
        """Changes with every change of what these hold: what caches are keyed by. Any thread."""
        return tuple(base.version for base in self._chosen(kb_ids))

    def _chosen(self, kb_ids: Iterable[str]) -> list[Base]:
        found = (self._bases.get(kb_id) for kb_id in sorted(set(kb_ids)))
        return [base for base in found if base is not None]
