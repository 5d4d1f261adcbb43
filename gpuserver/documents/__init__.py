"""A document of a course, read into text with pages and headings, and cut into pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gpuserver.language import Language

SUFFIXES: Final = (
    ".pdf", ".docx", ".pptx", ".md", ".markdown", ".html", ".htm", ".txt", ".csv",
)  # fmt: skip
"""What is read, by the end of its name; a `.zip` may hold them (see `archive`)."""


@dataclass(frozen=True, slots=True)
class Block:
    """One paragraph, list, table or code block as Markdown.

    `page` is the page or slide it begins on, from 1; `headings` are the titles above it, outermost
    first.
    """

    text: str
    page: int | None = None
    headings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a document says, in reading order.

    `pages` counts pages or slides and is None where there are none; `empty_pages` have pictures
    and no text: scans.
    """

    title: str
    blocks: tuple[Block, ...]
    pages: int | None = None
    empty_pages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage before it belongs to a knowledge base.

    `text` is Markdown; `heading` the nearest titles, "Chapter › Section", and never empty.
    """

    text: str
    heading: str
    page: int | None
    language: Language


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """A document that was read and cut; `text` is all of it, as Markdown, for its teacher."""

    title: str
    text: str
    pieces: tuple[Piece, ...]
    pages: int | None
    empty_pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReadingLimits:
    """What reading one document may take: time, memory, and how long the document may be."""

    seconds: float
    memory_mb: int
    pages: int
    characters: int
