"""One uploaded knowledge base: its documents as they are now, on the disk and in the index."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from gpuserver.course_errors import (
    DiskFull,
    DocumentNameInvalid,
    DocumentNotFound,
    KnowledgeBaseBusy,
    KnowledgeBaseDamaged,
    KnowledgeBaseOutdated,
    TooManyDocuments,
)
from gpuserver.errors import GpuServerError, KnowledgeBaseNotFound, ProviderUnavailable
from gpuserver.knowledge.base_file import BaseFile, StoredDocument, StoredPart, uploaded
from gpuserver.knowledge.base_folder import BaseFolder, prepared
from gpuserver.knowledge.disk import full_disk_told, remove_all
from gpuserver.knowledge.index import Index
from gpuserver.knowledge.info import UNFINISHED, BaseInfo, DocumentInfo, DocumentState, failed, said
from gpuserver.knowledge.kept_parts import Indexed, restored
from gpuserver.knowledge.restoring import restored_base
from gpuserver.language import LANGUAGES, Language
from gpuserver.providers import Embeddings, Passage


class UploadedBase:
    """A base that teachers change. Any thread may call.

    What blocks is done one at a time, and what it changes is seen at once: on the disk, in memory
    and in the index.
    """

    readings: Mapping[str, tuple[str, ...]] = {}

    def __init__(
        self, folder: BaseFolder, index: Index, embeddings: Embeddings, count: Callable[[], int]
    ) -> None:
        """Not opened yet. `count` gives a number that no version had before."""
        self.kb_id = folder.kb_id
        self._folder, self._index, self._count = folder, index, count
        self._embeddings = embeddings
        self._problem: GpuServerError | None = None
        self._file: BaseFile | None = None
        # `_changing` is held while the disk is written; `_table` for a moment, also by the loop.
        self._changing, self._table = threading.RLock(), threading.Lock()
        self._documents: dict[str, StoredDocument] = {}
        self._passages: dict[str, tuple[Passage, ...]] = {}
        self._languages: dict[str, frozenset[Language]] = {}
        # Of another embedding model: what is indexed again by itself, and what is not searched.
        self._outdated: set[str] = set()
        self._unsearched: frozenset[str] = frozenset()
        self._info: BaseInfo | None = None
        self.left_over: list[Path] = []
        """Files that a server that was killed left behind."""
        self.version = count()
        """Another number after each change of what is searched."""

    # Start and end: these block

    def open(self) -> None:
        """Read everything back and make it searchable.

        A base that can't be read has a problem from now on, and nothing to search.
        """
        with self._changing:
            try:
                file = BaseFile(self._folder.file, self.kb_id)
                stored = file.load()
                known = {document.file for document in stored.documents}
                self.left_over = self._folder.left_over(known)
                found = restored_base(stored, self.kb_id, self._embeddings)
                self._index.put(found.parts)
            except (ValueError, OSError):
                self._fail(KnowledgeBaseDamaged(kb_id=self.kb_id))
            except GpuServerError as error:
                self._fail(error)
            else:
                with self._table:
                    self._file, self._problem = file, found.problem
                    self._outdated, self._unsearched = set(found.outdated), found.unsearched
                    self._documents = {item.info.id: self._found(item) for item in stored.documents}
                    for document_id, kept in stored.passages.items():
                        self._hold(document_id, tuple(kept))
                    self._changed()

    @property
    def busy(self) -> bool:
        """Whether another process held the file when it was opened."""
        return isinstance(self._problem, KnowledgeBaseBusy)

    def open_again(self) -> None:
        """Open a base that was busy, if it was not deleted since, and sweep it."""
        with self._changing:
            if self.busy:
                self.open()
                remove_all(self.left_over)

    def _hold(self, document_id: str, passages: tuple[Passage, ...]) -> None:
        self._passages[document_id] = passages
        self._languages[document_id] = frozenset(passage.language for passage in passages)

    def _found(self, document: StoredDocument) -> StoredDocument:
        if document.info.state in UNFINISHED:
            self._outdated.discard(document.info.id)
        if document.info.id in self._outdated:
            return replace(document, info=replace(document.info, state="queued"))
        return document

    def _fail(self, error: GpuServerError) -> None:
        with self._table:
            self._problem, self._info = error, None
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Write what is being written, and close the file."""
        with self._changing:
            if self._file is not None:
                self._file.close()

    def delete(self) -> None:
        """Nothing of it stays. Raises KnowledgeBaseNotFound, KnowledgeBaseNotDeleted."""
        with self._changing:
            if isinstance(self._problem, KnowledgeBaseNotFound):  # another was faster
                raise self._problem
            left = self._folder.delete()
            self._fail(KnowledgeBaseNotFound(kb_id=self.kb_id))
            self._index.drop_base(self.kb_id)
            with self._table:
                self._documents, self._passages, self._languages = {}, {}, {}
                self._changed()
        remove_all(left)

    # What there is: at once

    def info(self) -> BaseInfo:
        """The base as it is now."""
        with self._table:
            if self._info is None:
                self._info = self._describe()
            return self._info

    def _describe(self) -> BaseInfo:
        infos = [document.info for document in self._documents.values()]
        held = frozenset[Language]().union(*self._languages.values())
        problem, problem_zh = said(self._problem) if self._problem else (None, "")
        busy = any(info.state in UNFINISHED for info in infos)
        return BaseInfo(
            kb_id=self.kb_id, title=self._folder.title, origin="uploaded", documents=len(infos),
            passages=sum(info.passages for info in infos), bytes=sum(info.bytes for info in infos),
            state="failed" if self._problem else "indexing" if busy else "ready",
            problem=problem, problem_zh=problem_zh, created_at=self._folder.created_at,
            languages=tuple(language for language in LANGUAGES if language in held),
        )  # fmt: skip

    def documents(self) -> list[DocumentInfo]:
        """By name."""
        with self._table:
            infos = [self._shown(document.info) for document in self._documents.values()]
        return sorted(infos, key=lambda info: info.name)

    def document(self, document_id: str) -> DocumentInfo:
        """Raises DocumentNotFound."""
        return self._shown(self.find(document_id).info)

    def _shown(self, info: DocumentInfo) -> DocumentInfo:
        return replace(info, answers=False) if info.id in self._unsearched else info

    def find(self, document_id: str) -> StoredDocument:
        """Raises DocumentNotFound."""
        with self._table:
            if document_id not in self._documents:
                raise DocumentNotFound(document_id=document_id)
            return self._documents[document_id]

    def passages(self) -> list[Passage]:
        """All that is searched."""
        with self._table:
            return [p for kept in self._passages.values() for p in kept]

    def passages_of(self, document_id: str) -> tuple[Passage, ...]:
        """Of the version that answers. Raises DocumentNotFound."""
        self.find(document_id)
        with self._table:
            return self._passages.get(document_id, ())

    def waiting(self) -> list[str]:
        """The ids of the documents that are not indexed yet."""
        with self._table:
            return [k for k, kept in self._documents.items() if kept.info.state in UNFINISHED]

    def outdated(self, document_id: str) -> bool:
        """Whether its index alone is to be made again, from the passages there are."""
        with self._table:
            return document_id in self._outdated

    def text(self, document_id: str) -> str:
        """What was extracted. Blocking. Raises DocumentNotFound."""
        self.find(document_id)
        return self.opened().text(document_id)

    def original(self, document_id: str) -> Path:
        """Raises DocumentNotFound."""
        return self._folder.original(self.find(document_id).file)

    @property
    def incoming(self) -> Path:
        """The folder for scratch files. Raises what is wrong with a base that can't be read."""
        self.opened()
        return self._folder.incoming

    def opened(self) -> BaseFile:
        """The base's file. Raises what is wrong with a base that can't be read."""
        if self._file is None:
            raise self._problem or KnowledgeBaseDamaged(kb_id=self.kb_id)
        return self._file

    def progress(
        self, document: StoredDocument, state: DocumentState, done: int, total: int
    ) -> bool:
        """Note how far a document is; False when it is no longer what is being indexed."""
        with self._table:
            now = self._documents.get(document.info.id)
            if now is None or now.file != document.file:
                return False
            info = replace(now.info, state=state, done=done, total=total)
            self._documents[info.id] = replace(now, info=info)
            if state != now.info.state:
                self._info = None
            return True

    def _changed(self) -> None:
        """Something that is searched is not as it was; `_table` is held."""
        self._info = None
        self.version = self._count()

    # What changes it: these block

    def take(
        self, uploads: Sequence[tuple[str, Path]], most: int, document_id: str = ""
    ) -> list[DocumentInfo]:
        """Move files into the base, to be indexed, all or none; `document_id` is to be replaced.

        A file that is there already under its name is not indexed again. Raises TooManyDocuments,
        DocumentNotFound, DocumentNameInvalid, DiskFull.
        """
        with full_disk_told():
            digests = [prepared(scratch) for _, scratch in uploads]
        with self._changing:
            file = self.opened()
            by_name = {kept.info.name: kept for kept in self._documents.values()}
            if document_id:
                by_name = self._renaming(by_name, document_id, uploads[0][0])
            taken, moved = [], []
            for (name, scratch), digest in zip(uploads, digests, strict=True):
                before = by_name.get(name)
                if before and before.sha256 == digest and before.info.state != "failed":
                    now = replace(before, info=replace(before.info, name=name))
                else:
                    now = uploaded(before, name, digest, scratch.stat().st_size)
                    moved.append((scratch, self._folder.original(now.file)))
                by_name[name] = now
                taken.append(now)
            if len(by_name) > max(most, len(self._documents)):
                raise TooManyDocuments(limit=most)
            self._keep(file, taken, moved)
        return [self.document(now.info.id) for now in taken]

    def _renaming(
        self, by_name: dict[str, StoredDocument], document_id: str, name: str
    ) -> dict[str, StoredDocument]:
        """The documents by name, with the one to be replaced under its new name."""
        before = self.find(document_id)
        if name in by_name and by_name[name] is not before:
            raise DocumentNameInvalid
        rest = {key: kept for key, kept in by_name.items() if kept is not before}
        return {**rest, name: before}

    def _keep(
        self, file: BaseFile, taken: list[StoredDocument], moved: list[tuple[Path, Path]]
    ) -> None:
        try:
            with full_disk_told():
                for scratch, original in moved:
                    scratch.replace(original)
            file.save(taken)
        except BaseException:
            for _, original in moved:
                original.unlink(missing_ok=True)
            raise
        with self._table:
            before = {now.info.id: self._documents.get(now.info.id) for now in taken}
            self._documents.update({now.info.id: now for now in taken})
            gone = {old.file for old in before.values() if old} - {now.file for now in taken}
            self._outdated -= {key for key, old in before.items() if old and old.file in gone}
            self._info = None
        remove_all(self._folder.original(name) for name in gone)

    def again(self, document_id: str) -> DocumentInfo:
        """Have the document's file read again, if it is not waiting for that already."""
        with self._changing:
            file = self.opened()
            now = self.find(document_id)
            if now.info.state not in UNFINISHED:
                info = replace(
                    now.info, state="queued", done=0, total=0, problem=None, problem_zh="",
                    updated_at=datetime.now(UTC),
                )  # fmt: skip
                self._keep(file, [replace(now, info=info)], [])
        return self.document(document_id)

    def publish(self, document: StoredDocument, new: Indexed) -> None:
        """The new version answers from now on; nothing happens to a document that has changed.

        Raises DiskFull, KnowledgeBaseBusy, ProviderUnavailable (no room for its vectors); the
        version before answers then, here and after a restart.
        """
        with self._changing:
            file, passages = self.opened(), new.passages
            now = self._documents.get(document.info.id)
            if now is None or now.file != document.file:
                return
            info = new.ready(now.info)
            now = replace(now, info=info)
            search = partial(self._index.put, new.parts)
            with self._put_back(info.id, new.before):
                file.publish(now, new.text, passages, new.stored, search)
            with self._table:
                self._documents[info.id] = now
                self._hold(info.id, passages)
                self._outdated.discard(info.id)
                self._unsearched -= {info.id}
                if isinstance(self._problem, KnowledgeBaseOutdated) and not self._unsearched:
                    self._problem = None
                self._changed()

    @contextmanager
    def _put_back(self, document_id: str, before: Sequence[StoredPart]) -> Iterator[None]:
        """Where the file could not be written, search the document as it still is there."""
        try:
            yield
        except (KnowledgeBaseBusy, ProviderUnavailable):  # the index is as it was
            raise
        except BaseException:
            passages = self._passages.get(document_id, ())
            stored = () if document_id in self._unsearched else before
            found = [
                restored(item, self.kb_id, document_id, passages, self._embeddings)
                for item in stored
            ]
            if found:
                self._index.put(part for part, _ in found)
            else:
                self._index.drop(self.kb_id, document_id)
            raise

    def fail(self, document: StoredDocument, error: GpuServerError) -> None:
        """The document could not be indexed; the version before it goes on answering."""
        with self._changing:
            with self._table:
                now = self._documents.get(document.info.id)
                if now is None or now.file != document.file:
                    return
                now = replace(now, info=failed(now.info, error))
                self._documents[now.info.id] = now
                self._outdated.discard(now.info.id)
                self._info = None
            # Where that can't be written, it is tried again after a restart.
            with suppress(DiskFull, KnowledgeBaseBusy, KnowledgeBaseDamaged):
                self.opened().save([now])

    def remove(self, document_id: str) -> None:
        """Nothing of the document stays. Raises DocumentNotFound and as `publish`."""
        with self._changing:
            original, file = self.original(document_id), self.opened()
            with self._put_back(document_id, file.parts(document_id)):
                file.remove(document_id, partial(self._index.drop, self.kb_id, document_id))
            remove_all([original])
            with self._table:
                del self._documents[document_id]
                self._passages.pop(document_id, None)
                self._languages.pop(document_id, None)
                self._outdated.discard(document_id)
                self._unsearched -= {document_id}
                self._changed()
