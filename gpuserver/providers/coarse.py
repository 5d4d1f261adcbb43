"""Of very many vectors, the few that may be near a question: found by a coarse look at all."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

EXACT_ROWS: Final = 100_000
"""So many rows are compared exactly; of more, a coarse look chooses which are."""
FEWEST_DIMENSIONS: Final = 64
"""Fewer are compared exactly: that is quick, and a coarse look at them would tell little."""
_SAMPLE: Final = 8192
"""Rows that tell how the values of a dimension are spread."""
_SHARE: Final = 32
"""One row in so many is compared exactly: a share finds no less where there are more rows. It also
leaves room for passages that their words bring up from far down."""
_ROWS_AT_ONCE: Final = 1024
_BLOCK: Final = 1 << 13
"""Rows whose codes are met at a time: they stay in the processor's cache."""
_PLANES: Final = 3
_LEVELS: Final = 1 << _PLANES
_REACH: Final = 2.0
"""How many standard deviations of a question's values its levels span, to either side."""


def compares_exactly(matrix: NDArray[np.float32], exact_rows: int) -> bool:
    """Whether every row is compared; otherwise a coarse look chooses which are."""
    rows, dimension = matrix.shape
    return bool(rows <= exact_rows or dimension < FEWEST_DIMENSIONS)


def candidates(rows: int) -> int:
    """How many of so many rows a coarse look chooses."""
    return -(-rows // _SHARE)


def sample(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Some rows, evenly taken; what no unit vector has in it must not spoil what all rows share."""
    taken = np.nan_to_num(matrix[:: max(1, len(matrix) // _SAMPLE)], nan=0.0)
    return np.clip(taken, -1, 1)


def compared(
    matrix: NDArray[np.float32], rows: NDArray[np.intp], query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The exact products of these rows, in their order, with a question."""
    found = np.empty(len(rows), np.float32)
    # A bounded copy, however many rows and however many students ask.
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        last = first + _ROWS_AT_ONCE
        found[first:last] = matrix[rows[first:last]] @ query
    return found


class BitCodes:
    """One bit for each value of each row: whether it is above the middle of its dimension.

    A question keeps three bits a value, weighed by how far the rows spread, and its levels meet a
    row's bits 64 at a time. That reads a thirty-second of what comparing exactly reads.
    """

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        """`matrix`: (rows, dimension), one row at least; it is not kept."""
        some = sample(matrix)
        self._middle = some.mean(axis=0)
        self._spread = np.abs(some - self._middle).mean(axis=0)
        blocks = (matrix[first : first + _BLOCK] for first in range(0, len(matrix), _BLOCK))
        self._blocks = [_words(block > self._middle) for block in blocks]
        self._ones = [_ones(words) for words in self._blocks]

    def nearest(self, query: NDArray[np.float32], count: int) -> NDArray[np.intp]:
        """The rows (count,) that seem to be nearest to a question, in no order."""
        planes, spare = self._planes(query), np.empty_like(self._blocks[0])
        # Of levels from -3.5 to 3.5, the sum where a bit is set.
        scores = np.concatenate(
            [
                _met(words, planes, spare) - ones * np.float32((_LEVELS - 1) / 2)
                for words, ones in zip(self._blocks, self._ones, strict=True)
            ]
        )
        rows: NDArray[np.intp] = np.argpartition(scores, len(scores) - count)[-count:]
        return rows

    def _planes(self, query: NDArray[np.float32]) -> NDArray[np.uint64]:
        """The bits (_PLANES, words) of a question's levels, the highest first."""
        weights = np.nan_to_num(query * self._spread, nan=0.0, posinf=0.0, neginf=0.0)
        reach = _REACH * float(weights.std()) or 1.0
        share = np.clip(weights / (2 * reach) + 0.5, 0, 1)
        levels = np.rint(share * (_LEVELS - 1)).astype(np.uint8)
        places = np.arange(_PLANES - 1, -1, -1, dtype=np.uint8)
        return _words((levels >> places[:, None]) & 1).T


def _words(bits: NDArray[np.bool] | NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Bits (rows, dimension) as words (words, rows), what is missing in the last one being 0."""
    packed = np.packbits(bits, axis=1)
    whole = np.zeros((len(packed), -(-packed.shape[1] // 8) * 8), np.uint8)
    whole[:, : packed.shape[1]] = packed
    return np.ascontiguousarray(whole.view(np.uint64).T)


def _ones(words: NDArray[np.uint64]) -> NDArray[np.uint16]:
    ones: NDArray[np.uint16] = np.bitwise_count(words).sum(axis=0, dtype=np.uint16)
    return ones


def _met(
    words: NDArray[np.uint64], planes: NDArray[np.uint64], spare: NDArray[np.uint64]
) -> NDArray[np.uint16]:
    """For each row, the sum of a question's levels where the row's bit is set."""
    both = spare[:, : words.shape[1]]
    met = np.zeros(words.shape[1], np.uint16)
    for plane in planes:
        np.bitwise_and(words, plane[:, None], out=both)
        met = met * np.uint16(2) + _ones(both)
    return met
