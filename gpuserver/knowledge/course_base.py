"""A course folder as a knowledge base: it is read at the start, and changed in its folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from gpuserver.course_errors import DocumentNotFound
from gpuserver.knowledge.course import load
from gpuserver.knowledge.info import BaseInfo, DocumentInfo
from gpuserver.language import LANGUAGES
from gpuserver.providers import Passage


class CourseBase:
    """Never changes, and may be asked from any thread; only making it blocks."""

    def __init__(self, kb_id: str, root: Path, version: int) -> None:
        """Raises ConfigurationError for a malformed course."""
        course = load(kb_id, root)
        self.kb_id = kb_id
        self.version = version
        self.readings: Mapping[str, tuple[str, ...]] = course.readings
        self._passages = course.passages
        self._files = course.files
        self._documents = {
            document_id: _info(document_id, path, self.passages_of(document_id))
            for document_id, path in course.files.items()
        }
        held = {passage.language for passage in course.passages}
        self._info = BaseInfo(
            kb_id=kb_id, title=course.title, origin="course", documents=len(course.files),
            passages=len(course.passages),
            bytes=sum(info.bytes for info in self._documents.values()), state="ready",
            problem=None, problem_zh="", created_at=None,
            languages=tuple(language for language in LANGUAGES if language in held),
        )  # fmt: skip

    def info(self) -> BaseInfo:
        return self._info

    def documents(self) -> list[DocumentInfo]:
        return list(self._documents.values())

    def document(self, document_id: str) -> DocumentInfo:
        """Raises DocumentNotFound."""
        if document_id not in self._documents:
            raise DocumentNotFound(document_id=document_id)
        return self._documents[document_id]

    def passages(self) -> list[Passage]:
        return list(self._passages)

    def passages_of(self, document_id: str) -> tuple[Passage, ...]:
        """Of one document, in reading order; () for one that there is not."""
        return tuple(p for p in self._passages if p.document_id == document_id)

    def text(self, document_id: str) -> str:
        """A document as its passages have it. Raises DocumentNotFound."""
        self.document(document_id)
        passages = self.passages_of(document_id)
        sections = [f"## {passage.heading}\n\n{passage.text}" for passage in passages]
        return "\n\n".join([f"# {passages[0].document}", *sections])

    def original(self, document_id: str) -> Path:
        """Raises DocumentNotFound."""
        self.document(document_id)
        return self._files[document_id]


def _info(document_id: str, path: Path, passages: tuple[Passage, ...]) -> DocumentInfo:
    stat = path.stat()
    return DocumentInfo(
        id=document_id, name=f"{document_id}{path.suffix}", state="ready", done=len(passages),
        total=len(passages), bytes=stat.st_size, pages=None, passages=len(passages),
        empty_pages=(), problem=None, problem_zh="",
        updated_at=datetime.fromtimestamp(stat.st_mtime, UTC), answers=True,
    )  # fmt: skip
