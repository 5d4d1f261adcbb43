"""The vector index of large knowledge bases: faiss, on a GPU where its GPU build finds one."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final
from weakref import WeakSet

import faiss
import numpy as np
from numpy.typing import NDArray

from gpuserver.errors import EngineFailed, ProviderUnavailable
from gpuserver.providers import Place
from gpuserver.providers.coarse import (
    EXACT_ROWS,
    candidates,
    compared,
    compares_exactly,
    sample,
)

NEAREST: Final = 1024
"""Rows that a search finds; a GPU finds 2048 at most. Four passages are quoted, so this leaves room
for those that their words bring up from far down: on the shipped course 64 would do."""
_SCRATCH_BYTES: Final = 64 << 20
"""GPU memory to work in; the library's own choice is 1.5 GB."""
_STEPS: Final = np.array([-1.5104, -0.4528, 0.4528, 1.5104], np.float32)
"""What four levels of a normal distribution stand for (Lloyd and Max), in standard deviations."""


class FaissVectors:
    """`Vectors`: an index of inner products, exact or of codes."""

    def __init__(
        self,
        index: Any,
        lock: AbstractContextManager[object],
        matrix: NDArray[np.float32] | None = None,
    ) -> None:
        """`lock`: of a GPU's resources, which one thread at a time may use.

        `matrix`: the rows whose codes are in the index, to compare what it finds exactly.
        """
        # Together, so that a search has both or neither.
        self._held: tuple[Any, NDArray[np.float32] | None] | None = index, matrix
        self._lock = lock

    def cosines(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        held = self._held
        if held is None:
            raise EngineFailed(engine="index")
        index, matrix = held
        try:
            if matrix is None:
                nearest, rows = self._search(index, query, min(NEAREST, index.ntotal))
            else:
                _, rows = self._search(index, query, candidates(index.ntotal))
                nearest = compared(matrix, rows, query)
        except RuntimeError as error:
            raise EngineFailed(engine="index") from error
        cosines = np.zeros(index.ntotal, np.float32)
        cosines[rows] = nearest
        return cosines

    def drop(self) -> None:
        """Let the vectors go, once a search that is under way has ended."""
        with self._lock:
            self._held = None

    # A shelf that changes lets go of what it had; the memory is given back through the resources.
    __del__ = drop

    def _search(
        self, index: Any, query: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        with self._lock:
            nearest, rows = index.search(query[None], count)
        return nearest[0], rows[0]


class FaissIndex:
    """`VectorIndex` and `Runtime`. On a GPU exact, which is quick there however many rows.

    On a CPU more than `exact_rows` rows are looked at as codes, a sixteenth of their size, and the
    best of them compared exactly. The codes need no training, which would be done anew whenever a
    document comes or goes.

    Up to `NEAREST` rows it gives what numpy gives. Beyond, what is not among the nearest counts as
    having nothing to do with the question.
    """

    def __init__(self, model: str, place: Place, exact_rows: int = EXACT_ROWS) -> None:
        self._exact_rows = exact_rows
        self._device, self._gpu = place.settings.device, place.gpu or 0
        self._resources: Any = None
        # Of one thread at a time; again of the same one, which may free an index at any moment.
        self._lock: AbstractContextManager[object] = nullcontext()
        # Weak, because a shelf that changes is held anew and lets what it had go.
        self._held: WeakSet[FaissVectors] = WeakSet()

    def load(self) -> None:
        """Blocking. Raises ProviderUnavailable."""
        # The CPU build has no such name. Without a GPU the index is on the CPU, whatever it is.
        if self._device == "cpu" or not hasattr(faiss, "StandardGpuResources"):
            return
        if faiss.get_num_gpus() == 0:
            return
        try:
            self._resources = faiss.StandardGpuResources()
            self._lock = threading.RLock()
            self._resources.setTempMemory(_SCRATCH_BYTES)
        except RuntimeError as error:
            raise _no_room(error) from error

    def close(self) -> None:
        for vectors in list(self._held):
            vectors.drop()
        self._held.clear()
        self._resources = None

    def hold(self, matrix: NDArray[np.float32]) -> FaissVectors:
        dimension, kept = matrix.shape[1], None
        try:
            if self._resources is None:
                # A code is of two dimensions together.
                if dimension % 2 or compares_exactly(matrix, self._exact_rows):
                    index = faiss.IndexFlatIP(dimension)
                else:
                    index, kept = _of_codes(sample(matrix)), matrix
                index.add(matrix)
            else:
                where = faiss.GpuIndexFlatConfig()
                where.device = self._gpu
                with self._lock:  # documents come in while others are searched
                    index = faiss.GpuIndexFlatIP(self._resources, dimension, where)
                    index.add(matrix)
        except (RuntimeError, MemoryError) as error:
            raise _no_room(error) from error
        vectors = FaissVectors(index, self._lock, kept)
        self._held.add(vectors)
        return vectors


def _of_codes(some: NDArray[np.float32]) -> Any:
    """An empty index that keeps two bits of a value, in levels spread as those of `some` are."""
    pairs = some.shape[1] // 2
    index = faiss.IndexPQFastScan(2 * pairs, pairs, 4, faiss.METRIC_INNER_PRODUCT)
    levels = some.mean(axis=0)[:, None] + some.std(axis=0)[:, None] * _STEPS
    codes = np.empty((pairs, 4, 4, 2), np.float32)
    codes[..., 0] = levels[0::2, :, None]
    codes[..., 1] = levels[1::2, None, :]
    faiss.copy_array_to_vector(codes.ravel(), index.pq.centroids)
    index.is_trained = True
    return index


def _no_room(error: BaseException) -> ProviderUnavailable:
    why = str(error).strip().splitlines()[-1:] or ["out of memory"]
    return ProviderUnavailable(
        problem=f"The faiss index can't hold the course's vectors: {why[0][:200]}.",
        fix="free GPU memory, or set INDEX_PROVIDER=numpy to keep them in main memory.",
    )
