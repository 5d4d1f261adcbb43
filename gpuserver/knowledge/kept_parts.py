"""The parts of an uploaded document: made from its passages, or brought back from the disk."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuserver.knowledge.base_file import StoredPart
from gpuserver.knowledge.info import DocumentInfo
from gpuserver.knowledge.parts import Part, texts_to_embed
from gpuserver.knowledge.terms import PartTerms, make_terms
from gpuserver.language import LANGUAGES
from gpuserver.providers import Embeddings, Passage

CHUNK: Final = 32
"""Texts that are embedded at a time, in half a second: so soon a server that is stopped stops."""
_KEY_BYTES: Final = 16

Made = tuple[StoredPart, Part]


@dataclass(frozen=True, slots=True)
class Indexed:
    """A new version of a document. `text` is None where only its index is made again."""

    passages: tuple[Passage, ...]
    stored: tuple[StoredPart, ...]
    parts: tuple[Part, ...]
    before: Sequence[StoredPart] = ()
    """The parts of the version that it replaces."""
    text: str | None = None
    pages: int | None = None
    empty_pages: tuple[int, ...] = ()

    def ready(self, info: DocumentInfo) -> DocumentInfo:
        """The document once this version of it answers."""
        count = len(self.passages)
        info = replace(
            info, state="ready", done=count, total=count, passages=count, answers=True,
            updated_at=datetime.now(UTC),
        )  # fmt: skip
        if self.text is not None:
            return replace(
                info, problem=None, problem_zh="", pages=self.pages, empty_pages=self.empty_pages
            )
        if info.problem:  # that of a newer file stays
            return replace(info, state="failed", done=0, total=0)
        return info


def fits(part: StoredPart, embeddings: Embeddings) -> bool:
    """Whether a part has the vectors that this model makes. Where it makes none, those of another
    one are left alone: they are of use again when that is back."""
    if part.language not in embeddings.languages:
        return True
    return (part.model, part.dimension) == (embeddings.name, embeddings.dimension)


def restored(
    part: StoredPart, kb_id: str, document_id: str, passages: Sequence[Passage],
    embeddings: Embeddings,
) -> tuple[Part, bool]:  # fmt: skip
    """What is searched of a part, and whether that is all there should be.

    Raises ValueError for a part that is not of these passages.
    """
    own = tuple(p for p in passages if p.language == part.language)
    whole = fits(part, embeddings)
    try:
        terms = PartTerms.decode(part.terms)
    except ValueError:  # an older version of this program wrote them
        terms = make_terms(own)
        whole = False
    usable = part.model and part.language in embeddings.languages and fits(part, embeddings)
    if not usable:
        return Part(kb_id, document_id, part.language, own, terms), whole
    vectors, starts = _vectors(part), np.frombuffer(part.starts, np.int64).astype(np.intp)
    return Part(kb_id, document_id, part.language, own, terms, vectors, starts), whole


async def make(
    passages: Sequence[Passage],
    old: Iterable[StoredPart],
    embeddings: Embeddings,
    told: Callable[[int, int], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Made]:
    """The parts of one document's passages, with the vectors of texts that have not changed.

    `told` is called with (passages done, passages). Raises EngineFailed.
    """
    kept = {part.language: part for part in old if part.model and fits(part, embeddings)}
    made: list[Made] = []
    done = 0
    for language in LANGUAGES:
        own = tuple(p for p in passages if p.language == language)
        if not own:
            continue
        terms = await asyncio.to_thread(make_terms, own)
        stored = StoredPart(language, terms.encode(), b"")
        part = Part(own[0].kb_id, own[0].document_id, language, own, terms)
        if language in embeddings.languages:
            before = done

            def shifted(share: float, before: int = before, size: int = len(own)) -> None:
                told(before + round(share * size), len(passages))

            vectors = _Vectors(embeddings, kept.get(language), clock)
            stored, part = await vectors.fill(stored, part, shifted)
        made.append((stored, part))
        done += len(own)
        told(done, len(passages))
    return made


class _Vectors:
    """The vectors of a part's texts: those that are known, and the others in chunks."""

    def __init__(
        self, embeddings: Embeddings, old: StoredPart | None, clock: Callable[[], float]
    ) -> None:
        self._embeddings, self._old, self._clock = embeddings, old, clock
        self._seconds = 0.0

    async def fill(self, stored: StoredPart, part: Part, told: Callable[[float], None]) -> Made:
        """Both with vectors; `told` hears the share of texts that have one."""
        texts, starts = await asyncio.to_thread(texts_to_embed, part.passages)
        keys = [_key(text) for text in texts]
        vectors, missing = self._known(keys)
        for begin in range(0, len(missing), CHUNK):
            rows = missing[begin : begin + CHUNK]
            began = self._clock()
            chunk = [texts[row] for row in rows]
            vectors[rows] = await asyncio.to_thread(self._embeddings.embed, chunk)
            self._seconds += self._clock() - began
            told((len(texts) - len(missing) + begin + len(rows)) / len(texts))
        full = replace(
            stored, starts=starts.astype(np.int64).tobytes(), keys=b"".join(keys),
            vectors=vectors.tobytes(), model=self._embeddings.name,
            dimension=self._embeddings.dimension, seconds=self._seconds,
        )  # fmt: skip
        return full, replace(part, vectors=vectors, starts=starts)

    def _known(self, keys: Sequence[bytes]) -> tuple[NDArray[np.float32], list[int]]:
        """Rows for all texts, filled where the old version had the text; and the others."""
        vectors = np.zeros((len(keys), self._embeddings.dimension), np.float32)
        if self._old is None:
            return vectors, list(range(len(keys)))
        old = _vectors(self._old)
        places = _places(self._old.keys)
        found = {row: places[key] for row, key in enumerate(keys) if key in places}
        vectors[list(found)] = old[list(found.values())]
        # What they cost then is still what it would cost to make them again.
        self._seconds += self._old.seconds * len(found) / max(1, len(old))
        return vectors, [row for row in range(len(keys)) if row not in found]


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[:_KEY_BYTES]


def _places(keys: bytes) -> Mapping[bytes, int]:
    return {keys[at : at + _KEY_BYTES]: at // _KEY_BYTES for at in range(0, len(keys), _KEY_BYTES)}


def _vectors(part: StoredPart) -> NDArray[np.float32]:
    return np.frombuffer(part.vectors, np.float32).reshape(-1, part.dimension)
