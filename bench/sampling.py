"""Where a process's CPU time goes: its stack, sampled at every tick of the kernel's clock."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

_INTERVAL: Final = 0.001
_ROWS: Final = 45


@contextmanager
def sampled(report: Path) -> Iterator[None]:
    """Sample the main thread while the block runs, then write two tables of functions.

    *own*: share of the samples in which it was running; *with callees*: in which it was anywhere
    on the stack. C functions count as the Python function that called them.
    """
    own: Counter[CodeType] = Counter()
    whole: Counter[CodeType] = Counter()

    def sample(number: int, frame: FrameType | None) -> None:
        if frame is not None:
            own[frame.f_code] += 1
        seen: set[CodeType] = set()
        while frame is not None:
            seen.add(frame.f_code)
            frame = frame.f_back
        whole.update(seen)

    def end(number: int, frame: FrameType | None) -> None:
        # uvicorn sends itself the signal again once it has stopped, which would end us unreported.
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL, _INTERVAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        report.write_text(
            "\n\n".join([_table("own", own, own), _table("with callees", whole, own)])
        )


def _table(title: str, counted: Counter[CodeType], own: Counter[CodeType]) -> str:
    total = max(1, own.total())
    rows = [
        f"{count / total:6.1%}  {code.co_qualname}  {code.co_filename}:{code.co_firstlineno}"
        for code, count in counted.most_common(_ROWS)
    ]
    return "\n".join([f"{title} ({total} samples)", *rows])
