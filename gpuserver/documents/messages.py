"""What the process that reads a document writes to the server: one JSON list a line.

`["progress", done, total]` · `["document", title, pages]` · `["empty", pages]` · `["text", part]` ·
`["piece", text, heading, page, language]` · and last one of `["done"]`, `["refused", error,
details]`, `["memory"]`, `["failed", where]`. Lines are short, so that the server's event loop
never works on one for long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from gpuserver.documents import Extracted, Piece

LINE_BYTES: Final = 1 << 16
"""Longest line."""
BYTES_PER_CHARACTER: Final = 16
"""Of the document, for all lines together: text and pieces, UTF-8, overlap."""
_PART: Final = 8000
_HEADING_CHARACTERS: Final = 500
_PIECE_CHARACTERS: Final = 12_000


def encode(*message: Any) -> bytes:
    return orjson.dumps(message) + b"\n"


def encode_document(extracted: Extracted, text: str, pieces: tuple[Piece, ...]) -> Iterator[bytes]:
    yield encode("document", extracted.title, extracted.pages)
    for start in range(0, len(extracted.empty_pages), _PART):
        yield encode("empty", extracted.empty_pages[start : start + _PART])
    for start in range(0, len(text), _PART):
        yield encode("text", text[start : start + _PART])
    for piece in pieces:
        heading, said = piece.heading[:_HEADING_CHARACTERS], piece.text[:_PIECE_CHARACTERS]
        yield encode("piece", said, heading, piece.page, piece.language)
    yield encode("done")


def decode(line: bytes) -> list[Any]:
    """Raises ValueError for what `encode` did not write."""
    message = orjson.loads(line)
    if not isinstance(message, list) or not message:
        raise ValueError("no message")
    return message
