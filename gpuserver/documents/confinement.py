"""What a process may still take once it reads a stranger's file; it takes these limits itself."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import Final

_NICENESS: Final = 10
_FILES: Final = 64
_PARENT_DEATH_SIGNAL: Final = 1
"""PR_SET_PDEATHSIG of Linux."""


def confine(memory_mb: int, seconds: float) -> None:
    """Bound memory (address space) and CPU time; write no file; give way to the server."""
    os.nice(_NICENESS)
    cpu = max(1, round(seconds))
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NOFILE, _FILES, _FILES),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_AS, memory_mb << 20, memory_mb << 20),
    ):
        resource.setrlimit(kind, (soft, hard))


def die_with_parent(parent: int) -> None:
    """End this process when the one with this id is gone, however it went.

    Elsewhere than on Linux the limit on CPU time ends it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it went before this was set
        os._exit(1)
