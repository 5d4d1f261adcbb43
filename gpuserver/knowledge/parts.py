"""What the search needs of one document in one language: its passages, words and vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpuserver.knowledge.terms import PartTerms, make_terms
from gpuserver.knowledge.vector_store import Matrix, VectorStore, path_of, sweep
from gpuserver.language import Language, prose, sentences
from gpuserver.providers import Embeddings, Passage

Progress = Callable[[int, int], None]
"""Told how many passages are done, and how many there are."""


def _none() -> NDArray[np.intp]:
    return np.zeros(0, np.intp)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A document in one language, as the index takes it; never changed.

    `vectors` are unit rows, float32 of shape (sentences, dimension), and `starts` (passages,) is
    the row of each passage's first sentence. Without vectors it is searched by its words alone.
    Raises ValueError where these are not of the same passages.
    """

    kb_id: str
    document_id: str
    language: Language
    passages: tuple[Passage, ...]
    terms: PartTerms
    vectors: Matrix | None = None
    starts: NDArray[np.intp] = field(default_factory=_none)

    def __post_init__(self) -> None:
        count = len(self.passages)
        if self.terms.passages != count:
            raise ValueError("the words are not of these passages")
        if self.vectors is None:
            return
        # Each passage has a row at least, and the first row is of the first one.
        begins = np.append(self.starts, len(self.vectors))
        if len(self.starts) != count or begins[0] != 0 or np.any(np.diff(begins) < 1):
            raise ValueError("the vectors are not of these passages")


def texts_to_embed(passages: Sequence[Passage]) -> tuple[list[str], NDArray[np.intp]]:
    """The texts whose vectors are a part's rows, and the row of each passage's first one.

    A passage is as near to a question as its nearest sentence: a question asks for one thing, a
    passage says five. Headings are compared by their words: a chapter's name before each sentence
    brings all of its sentences nearer to each other.
    """
    texts: list[str] = []
    starts: list[int] = []
    for passage in passages:
        starts.append(len(texts))
        said = [text.replace("`", "") for text in sentences(prose(passage.text))]
        texts.extend(said or [passage.heading])
    return texts, np.array(starts, np.intp)


def make_parts(
    passages: Iterable[Passage], embeddings: Embeddings, cache_dir: Path, progress: Progress
) -> list[Part]:
    """The parts of course folders, their vectors kept in files below `cache_dir`.

    Blocking: embedding takes about 10 ms a passage the first time, then it is read back. Raises
    ProviderUnavailable for vectors of another model that took long to make, EngineFailed.
    """
    folder = cache_dir / "vectors"
    sweep(folder)
    shelves: dict[tuple[str, Language], dict[str, list[Passage]]] = {}
    for passage in passages:
        shelf = shelves.setdefault((passage.kb_id, passage.language), {})
        shelf.setdefault(passage.document_id, []).append(passage)
    total = sum(len(document) for shelf in shelves.values() for document in shelf.values())
    done = 0
    parts: list[Part] = []
    for (kb_id, language), documents in shelves.items():
        count = sum(map(len, documents.values()))
        store = None
        if language in embeddings.languages:
            store = VectorStore(path_of(folder, f"{kb_id}.{language}"), embeddings)
        told = _shifted(progress, done, count, total)
        parts.extend(_of_shelf(kb_id, language, documents, store, told))
        done += count
        progress(done, total)
    return parts


def _of_shelf(
    kb_id: str,
    language: Language,
    documents: dict[str, list[Passage]],
    store: VectorStore | None,
    told: Progress,
) -> Iterator[Part]:
    ordered = [passage for document in documents.values() for passage in document]
    matrix = None
    if store is not None:
        texts, starts = texts_to_embed(ordered)
        matrix = store.vectors(texts, told)
        rows = np.append(starts, len(texts))
    first = 0
    for document_id, document in documents.items():
        passages, last = tuple(document), first + len(document)
        terms = make_terms(passages)
        if matrix is None:
            yield Part(kb_id, document_id, language, passages, terms)
        else:
            own = matrix[rows[first] : rows[last]]
            begins = rows[first:last] - rows[first]
            yield Part(kb_id, document_id, language, passages, terms, own, begins)
        first = last


def _shifted(progress: Progress, before: int, count: int, total: int) -> Progress:
    return lambda done, texts: progress(before + count * done // texts, total)
