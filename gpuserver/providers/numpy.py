"""The vector index that needs no library: rows in main memory, compared with the question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpuserver.providers import Place
from gpuserver.providers.coarse import (
    EXACT_ROWS,
    BitCodes,
    candidates,
    compared,
    compares_exactly,
)


class NumpyVectors:
    """`Vectors`: a matrix in memory, about 20 ms of one core for 100,000 rows of 384.

    With codes they choose which rows are compared, and all others count as 0.
    """

    def __init__(self, matrix: NDArray[np.float32], codes: BitCodes | None = None) -> None:
        self._matrix, self._codes = matrix, codes

    def cosines(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        matrix, codes = self._matrix, self._codes
        found: NDArray[np.float32]
        if codes is None:
            found = matrix @ query
            return found
        rows = codes.nearest(query, candidates(len(matrix)))
        found = np.zeros(len(matrix), np.float32)
        found[rows] = compared(matrix, rows, query)
        return found


class NumpyIndex:
    """`VectorIndex` and `Runtime`. It holds nothing of its own: vectors go with their owner.

    More than `exact_rows` rows get codes as well, a thirtieth more memory.
    """

    def __init__(
        self,
        model: str = "",
        place: Place = Place(Path()),  # noqa: B008
        exact_rows: int = EXACT_ROWS,
    ) -> None:
        self._exact_rows = exact_rows

    def load(self) -> None:
        pass

    def close(self) -> None:
        pass

    def hold(self, matrix: NDArray[np.float32]) -> NumpyVectors:
        exact = compares_exactly(matrix, self._exact_rows)
        return NumpyVectors(matrix, None if exact else BitCodes(matrix))
