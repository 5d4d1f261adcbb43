"""The vector index of large knowledge bases: faiss, on a GPU where its GPU build finds one."""

from __future__ import annotations

import threading
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from gpuserver.errors import EngineFailed, ProviderUnavailable
from gpuserver.providers import Place

NEAREST: Final = 1024
"""Rows that a search finds; a GPU finds 2048 at most. Four passages are quoted, so this leaves room
for those that their words bring up from far down: on the shipped course 64 would do."""
_SCRATCH_BYTES: Final = 64 << 20
"""GPU memory to work in; the library's own choice is 1.5 GB."""


class FaissVectors:
    """`Vectors`: an exact index of inner products."""

    def __init__(self, index: Any, lock: threading.Lock | None) -> None:
        """`lock`: of a GPU's resources, which one search at a time may use."""
        self._index = index
        self._lock = lock

    def cosines(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        index = self._index
        if index is None:
            raise EngineFailed(engine="index")
        try:
            nearest, rows = self._search(index, query)
        except RuntimeError as error:
            raise EngineFailed(engine="index") from error
        cosines = np.zeros(index.ntotal, np.float32)
        cosines[rows] = nearest
        return cosines

    def drop(self) -> None:
        """Let the vectors go, once a search that is under way has ended."""
        self._index = None

    def _search(
        self, index: Any, query: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        count = min(NEAREST, index.ntotal)
        if self._lock is None:
            nearest, rows = index.search(query[None], count)
        else:
            with self._lock:
                nearest, rows = index.search(query[None], count)
        return nearest[0], rows[0]


class FaissIndex:
    """`VectorIndex` and `Runtime`. Exact: an approximate index answers sooner and misses rows.

    Up to `NEAREST` rows it gives what numpy gives. Beyond, what is not among the nearest counts as
    having nothing to do with the question.
    """

    def __init__(self, model: str, place: Place) -> None:
        self._device, self._gpu = place.settings.device, place.gpu or 0
        self._resources: Any = None
        self._searching = threading.Lock()
        self._held: list[FaissVectors] = []

    def load(self) -> None:
        """Blocking. Raises ProviderUnavailable."""
        # The CPU build has no such name. Without a GPU the index is on the CPU, whatever it is.
        if self._device == "cpu" or not hasattr(faiss, "StandardGpuResources"):
            return
        if faiss.get_num_gpus() == 0:
            return
        try:
            self._resources = faiss.StandardGpuResources()
            self._resources.setTempMemory(_SCRATCH_BYTES)
        except RuntimeError as error:
            raise _no_room(error) from error

    def close(self) -> None:
        for vectors in self._held:
            vectors.drop()
        self._held.clear()
        self._resources = None

    def hold(self, matrix: NDArray[np.float32]) -> FaissVectors:
        dimension = matrix.shape[1]
        try:
            if self._resources is None:
                index = faiss.IndexFlatIP(dimension)
            else:
                where = faiss.GpuIndexFlatConfig()
                where.device = self._gpu
                index = faiss.GpuIndexFlatIP(self._resources, dimension, where)
            index.add(matrix)
        except (RuntimeError, MemoryError) as error:
            raise _no_room(error) from error
        vectors = FaissVectors(index, None if self._resources is None else self._searching)
        self._held.append(vectors)
        return vectors


def _no_room(error: BaseException) -> ProviderUnavailable:
    why = str(error).strip().splitlines()[-1:] or ["out of memory"]
    return ProviderUnavailable(
        problem=f"The faiss index can't hold the course's vectors: {why[0][:200]}.",
        fix="free GPU memory, or set INDEX_PROVIDER=numpy to keep them in main memory.",
    )
