"""From the command to `/ready` with the shipped course, and the memory that it takes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from bench.common import SERVE, Figure, Process, main, server

BOUND_SECONDS: Final = 6
BOUND_MB: Final = 350
_WORKERS: Final[Mapping[str, str]] = {"pocketsphinx": "recogniser", "espeak": "voice"}
"""A library that only one kind of worker maps → what the worker is."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start: its time, and the memory in MB right after it."""

    seconds: float
    rss: float
    peak: float
    whole: float
    """Main process and workers, with shared memory counted once."""
    workers: Mapping[str, float] = field(default_factory=dict)


def _start(folder: Path) -> Start:
    with server(*SERVE, folder=folder) as target:
        process, children = target.process, target.process.children()
        return Start(
            target.seconds_to_ready,
            process.rss_mb(),
            process.peak_mb(),
            sum(each.pss_mb() for each in [process, *children]),
            {_name(child): child.rss_mb() for child in children},
        )


def _name(child: Process) -> str:
    return next((name for library, name in _WORKERS.items() if child.loads(library)), "helper")


async def measure(quick: bool) -> list[Figure]:
    fresh: list[Start] = []
    warm: list[Start] = []
    for _ in range(1 if quick else 5):
        with tempfile.TemporaryDirectory(prefix="gpuserver-bench-") as folder:
            fresh.append(_start(Path(folder)))
            warm.append(_start(Path(folder)))
    both = [*fresh, *warm]
    return [
        Figure("fresh DATA_DIR → ready", median(s.seconds for s in fresh), "s", BOUND_SECONDS),
        Figure("warm caches → ready", median(s.seconds for s in warm), "s", BOUND_SECONDS),
        Figure(
            "main process, peak (most of all starts)", max(s.peak for s in both), "MB", BOUND_MB
        ),
        Figure("main process, resident", median(s.rss for s in both), "MB"),
        *(
            Figure(f"worker: {name}, resident", median(s.workers[name] for s in both), "MB")
            for name in sorted(set.intersection(*(set(s.workers) for s in both)))
        ),
        Figure("all processes, shared counted once", median(s.whole for s in both), "MB"),
    ]


if __name__ == "__main__":
    main("start_up", measure)
