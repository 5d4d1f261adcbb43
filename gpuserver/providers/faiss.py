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

NEAREST: Final = 1024
"""Rows that a search finds; a GPU finds 2048 at most. Four passages are quoted, so this leaves room
for those that their words bring up from far down: on the shipped course 64 would do."""
_SCRATCH_BYTES: Final = 64 << 20
"""GPU memory to work in; the library's own choice is 1.5 GB."""


class FaissVectors:
    """`Vectors`: an exact index of inner products."""

    def __init__(self, index: Any, lock: AbstractContextManager[object]) -> None:
        """`lock`: of a GPU's resources, which one thread at a time may use."""
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
        with self._lock:
            self._index = None

    # A shelf that changes lets go of what it had; the memory is given back through the resources.
    __del__ = drop

    def _search(
        self, index: Any, query: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        count = min(NEAREST, index.ntotal)
        with self._lock:
            nearest, rows = index.search(query[None], count)
        return nearest[0], rows[0]


class FaissIndex:
    """`VectorIndex` and `Runtime`. Exact: an approximate index answers sooner and misses rows.

    It would also have to be trained or grown anew whenever a document comes or goes, which copying
    rows into an exact one is not.

    Up to `NEAREST` rows it gives what numpy gives. Beyond, what is not among the nearest counts as
    having nothing to do with the question.
    """

    def __init__(self, model: str, place: Place) -> None:
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
        dimension = matrix.shape[1]
        try:
            if self._resources is None:
                index = faiss.IndexFlatIP(dimension)
                index.add(matrix)
            else:
                where = faiss.GpuIndexFlatConfig()
                where.device = self._gpu
                with self._lock:  # documents come in while others are searched
                    index = faiss.GpuIndexFlatIP(self._resources, dimension, where)
                    index.add(matrix)
        except (RuntimeError, MemoryError) as error:
            raise _no_room(error) from error
        vectors = FaissVectors(index, self._lock)
        self._held.add(vectors)
        return vectors


def _no_room(error: BaseException) -> ProviderUnavailable:
    why = str(error).strip().splitlines()[-1:] or ["out of memory"]
    return ProviderUnavailable(
        problem=f"The faiss index can't hold the course's vectors: {why[0][:200]}.",
        fix="free GPU memory, or set INDEX_PROVIDER=numpy to keep them in main memory.",
    )
