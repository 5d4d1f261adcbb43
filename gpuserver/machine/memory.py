"""Memory that runs out, as the libraries tell of it."""

from __future__ import annotations

import re
from typing import Final, Literal

from gpuserver.errors import OutOfMemory

_NO_MEMORY: Final = re.compile(
    r"out of memory|no available memory|free memory|can't allocate memory|bad_alloc|ALLOC_FAILED",
    re.IGNORECASE,
)
"""How the libraries' errors speak of memory; none has a type that all of them share."""

Device = Literal["cpu", "cuda"]


def no_memory(error: BaseException) -> bool:
    """Whether memory is what was wanting, by the error or by what caused it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OutOfMemory | MemoryError) or _NO_MEMORY.search(str(cause)):
            return True
        cause = cause.__cause__
    return False


def memory_of(device: Device) -> str:
    """Whose memory it is, in sentences of either language."""
    return "CPU" if device == "cpu" else "GPU"
