"""Ends vLLM's processes when the one that started them is gone, however it went.

Without it a server that is killed leaves them behind, and with them the GPU's memory. vLLM loads it
in each of its processes, by its entry point, so it imports nothing but the standard library.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import Final

_EVERY_SECONDS: Final = 0.5
_GRACE_SECONDS: Final = 2.0
_NAME: Final = "orphan-guard"


def install() -> None:
    """Watch the parent from a thread. For vLLM to call; does nothing in a process of its user."""
    parent = multiprocessing.parent_process()
    watched = any(thread.name == _NAME for thread in threading.enumerate())
    if parent is None or parent.pid is None or watched:
        return
    threading.Thread(target=_watch, args=(parent.pid,), name=_NAME, daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
