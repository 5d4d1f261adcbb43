"""The words of one document's passages: counted once, kept as bytes, joined with others' later.

A word is a number (`key_of`), so that documents are joined without looking at a single text.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpuserver.knowledge.postings import Keys, Postings, Rows, Tally
from gpuserver.language import FUNCTION_CHARACTERS, HAN, code_blocks, is_han, keywords, terms
from gpuserver.providers import Passage

HEADING_WEIGHT: Final = 2
"""A word in the heading counts as often as this in the text."""

VERSION: Final = 2
"""Of what is kept. A change in how texts become words (here, or in `language`), or in which texts
are embedded (`parts`), must raise it."""

_HAN_RUN = re.compile(f"[{HAN}]+")
_PIECE: Final = 64
_HASHED: Final = 1 << 63
_PAIR: Final = 1 << 16
_FUNCTION: Final = np.array(sorted(map(ord, FUNCTION_CHARACTERS)), np.uint64)


# Words as numbers


@lru_cache(1 << 16)
def key_of(word: str) -> int:
    """A word's number: of one or two Chinese characters these themselves, else a hash."""
    if is_han(word):
        return int.from_bytes(word.encode("utf-16-be"))
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return int.from_bytes(digest) | _HASHED


def pair_parts(pairs: Keys) -> tuple[Keys, Keys]:
    """The two characters of each pair."""
    return pairs >> np.uint64(16), pairs & np.uint64(_PAIR - 1)


def is_single(keys: Keys) -> NDArray[np.bool_]:
    """Which are one Chinese character."""
    single: NDArray[np.bool_] = keys < np.uint64(_PAIR)
    return single


def is_candidate(keys: Keys) -> NDArray[np.bool_]:
    """Which are pairs with a function character: words only where the material says so."""
    paired = ~is_single(keys) & (keys < np.uint64(_HASHED))
    first, second = pair_parts(keys)
    return paired & (np.isin(first, _FUNCTION) | np.isin(second, _FUNCTION))


def compound_candidates(text: str) -> list[str]:
    """The pairs of a text that `is_candidate` is about."""
    return [term for term in dict.fromkeys(terms(text)) if _may_be_compound(term)]


def _may_be_compound(term: str) -> bool:
    return len(term) == 2 and is_han(term) and not FUNCTION_CHARACTERS.isdisjoint(term)


# The words of a document


@dataclass(frozen=True, slots=True, eq=False)
class PartTerms:
    """What the search needs of the words of a document in one language.

    `words` counts those of heading and text in each passage, pairs that may be no words among
    them; `lengths` (passages,) counts without these. `han` counts Chinese characters and those
    pairs, by which it is decided.
    """

    lengths: Rows
    words: Postings
    headings: Postings
    han: Tally

    @property
    def passages(self) -> int:
        return len(self.lengths)

    def encode(self) -> bytes:
        """For keeping: about 10 bytes for each word of each passage."""
        body = b"".join(
            np.ascontiguousarray(array, kind).tobytes()
            for array, kind in zip(self._arrays(), _KINDS, strict=True)
        )
        sizes = (
            len(self.lengths), len(self.words.keys), len(self.words.rows),
            len(self.headings.keys), len(self.headings.rows), len(self.han.keys),
        )  # fmt: skip
        return _HEADER.pack(_MAGIC, VERSION, *sizes, zlib.crc32(body)) + body

    @classmethod
    def decode(cls, data: bytes) -> PartTerms:
        """What `encode` gave, looking into `data` without copying it.

        Raises ValueError for damaged bytes, and for those of another version: both are mended by
        `make_terms`.
        """
        if len(data) < _HEADER.size:
            raise ValueError("the kept words of a document are cut off")
        magic, version, count, keys, held, titles, titled, han, checked = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != VERSION:
            raise ValueError("the kept words of a document are of another version of the server")
        sizes = (
            keys, titles, han, keys + 1, titles + 1, held, titled, count, han, held, titled
        )  # fmt: skip
        wanted = sum(n * np.dtype(kind).itemsize for n, kind in zip(sizes, _KINDS, strict=True))
        body = memoryview(data)[_HEADER.size :]
        if len(body) != wanted or zlib.crc32(body) != checked:
            raise ValueError("the kept words of a document are damaged")
        arrays: list[NDArray[Any]] = []
        at = 0
        for size, kind in zip(sizes, _KINDS, strict=True):
            array = np.frombuffer(body, kind, size, at)
            arrays.append(array)
            at += array.nbytes
        (
            word_keys, heading_keys, han_keys, word_starts, heading_starts, word_rows,
            heading_rows, lengths, han_counts, word_counts, heading_counts,
        ) = arrays  # fmt: skip
        return cls(
            lengths,
            Postings(word_keys, word_starts, word_rows, word_counts),
            Postings(heading_keys, heading_starts, heading_rows, heading_counts),
            Tally(han_keys, han_counts),
        )

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        """In the order of `_KINDS`."""
        words, headings, han = self.words, self.headings, self.han
        return (
            words.keys, headings.keys, han.keys, words.starts, headings.starts, words.rows,
            headings.rows, self.lengths, han.counts, words.counts, headings.counts,
        )  # fmt: skip


# What is kept: this header, then the arrays, those of wide numbers first so that all are aligned.
# The header holds the numbers of passages, words, places of words, the two last of headings, and
# Chinese characters and pairs; at the end the checksum of the arrays.
_HEADER: Final = struct.Struct("<8sI6II")
_MAGIC: Final = b"gs-terms"
_KINDS: Final = ("<u8",) * 3 + ("<i4",) * 6 + ("<u2",) * 2


def make_terms(passages: Sequence[Passage]) -> PartTerms:
    """Count the words of a document's passages. Blocking: about 0.3 ms a passage, in Python.

    Piece by piece: making arrays of many numbers holds up every other thread.
    """
    pieces = [_counted(passages[at : at + _PIECE]) for at in range(0, len(passages), _PIECE)]
    if len(pieces) < 2:
        return pieces[0] if pieces else _counted([])
    offsets = range(0, len(passages), _PIECE)
    return PartTerms(
        np.concatenate([piece.lengths for piece in pieces]),
        Postings.join([piece.words for piece in pieces], offsets),
        Postings.join([piece.headings for piece in pieces], offsets),
        Tally.join([piece.han for piece in pieces]),
    )


def _counted(passages: Sequence[Passage]) -> PartTerms:
    words: list[Counter[int]] = []
    headings: list[Counter[int]] = []
    lengths: list[int] = []
    han: Counter[int] = Counter()
    for passage in passages:
        text = _without_samples(passage.text)
        title, said = _candidates_too(passage.heading), _candidates_too(text)
        counted = Counter(title * HEADING_WEIGHT + said)
        words.append(Counter({key_of(word): count for word, count in counted.items()}))
        headings.append(Counter(key_of(word) for word in title))
        lengths.append(sum(n for word, n in counted.items() if not _may_be_compound(word)))
        for term in (*terms(passage.heading), *terms(text)):
            if is_han(term) and (len(term) == 1 or _may_be_compound(term)):
                han[key_of(term)] += 1
    return PartTerms(
        np.array(lengths, np.int32), Postings.of(words), Postings.of(headings), Tally.of(han)
    )


def _candidates_too(text: str) -> list[str]:
    return keywords(text, frozenset(compound_candidates(text)))


def _without_samples(markdown: str) -> str:
    """A text without the Chinese in its code, which is no command: 你好，世界 is about no world."""
    for block in code_blocks(markdown):
        markdown = markdown.replace(block, _HAN_RUN.sub(" ", block))
    return markdown
