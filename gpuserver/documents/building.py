"""Putting a document together: titles and blocks in reading order, cleaned and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpuserver.course_errors import DocumentTooLarge, DocumentUnreadable
from gpuserver.documents import Block, Extracted, ReadingLimits
from gpuserver.documents.cleaning import FENCES, clean, one_line, without_links

Told = Callable[[int, int], None]

_DEPTH: Final = 6


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read, what its teacher calls it, and how far the reader may go."""

    path: Path
    name: str
    limits: ReadingLimits
    told: Told

    @property
    def stem(self) -> str:
        return one_line(Path(self.name).stem) or "Document"

    def unreadable(self, problem: str, problem_zh: str) -> DocumentUnreadable:
        return DocumentUnreadable(name=self.name, problem=problem, problem_zh=problem_zh)

    def damaged(self) -> DocumentUnreadable:
        return self.unreadable("the file is damaged", "文件已损坏")

    def lies(self) -> DocumentUnreadable:
        suffix = Path(self.name).suffix.lower()
        return self.unreadable(
            f"its content is not what the ending {suffix} says", f"内容与扩展名 {suffix} 不符"
        )

    def too_many_pages(self) -> DocumentTooLarge:
        limit = self.limits.pages
        return DocumentTooLarge(name=self.name, limit=f"{limit} pages", limit_zh=f"{limit} 页")

    def too_many_characters(self) -> DocumentTooLarge:
        limit = self.limits.characters
        return DocumentTooLarge(
            name=self.name, limit=f"{limit} characters", limit_zh=f"{limit} 个字符"
        )


class Builder:
    """Takes a document's titles and blocks in reading order.

    Raises DocumentTooLarge when there is more text than the limits allow.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._blocks: list[Block] = []
        self._titles: list[tuple[int, str]] = []
        self._bare: int | None = None
        self._bare_page: int | None = None
        self._characters = 0

    def heading(self, level: int, text: str, page: int | None = None) -> None:
        """A title; smaller levels stand above larger ones."""
        title = one_line(text)
        if not title:
            return
        if self._bare is not None and level <= self._bare:
            self._keep_bare()
        while self._titles and self._titles[-1][0] >= level:
            self._titles.pop()
        self._titles.append((level, title))
        self._count(title)
        self._bare, self._bare_page = level, page

    def block(self, text: str, page: int | None = None) -> None:
        """A paragraph, list, table or fenced code, as Markdown."""
        text = clean(text).strip("\n").rstrip()
        if not text.startswith(FENCES):
            text = without_links(text).strip()
        if not text:
            return
        self._bare = None
        self._count(text)
        self._blocks.append(Block(text, page, self._headings()))

    def extracted(
        self, title: str = "", pages: int | None = None, empty_pages: tuple[int, ...] = ()
    ) -> Extracted:
        """All of it. The document's own title, where it has one, else its file's name."""
        self._keep_bare()
        title = one_line(title) or self._source.stem
        return Extracted(title, tuple(self._blocks), pages, empty_pages)

    def _headings(self) -> tuple[str, ...]:
        return tuple(title for _, title in self._titles[-_DEPTH:])

    def _keep_bare(self) -> None:
        """A title with nothing below it is all that is said there."""
        if self._bare is not None:
            self._blocks.append(Block(self._titles[-1][1], self._bare_page, self._headings()))
            self._bare = None

    def _count(self, text: str) -> None:
        self._characters += len(text)
        if self._characters > self._source.limits.characters:
            raise self._source.too_many_characters()
