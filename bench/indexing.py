"""What it costs to index a book, from its PDF until it answers, and a page more."""

from __future__ import annotations

import asyncio
import io
import os
import random
import time
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reportlab.lib.pagesizes import A5
from reportlab.lib.utils import simpleSplit
from reportlab.pdfgen.canvas import Canvas

from bench.common import ROOT, SERVE, Figure, Process, main, server
from bench.growth import exponent
from gpuserver.client import Management
from gpuserver.knowledge.course import load

GROWTH_BOUND, PAGE_BOUND = 1.05, 0.01
SIZES: Final = (125, 250, 500, 1_000)
"""Pages."""
_PARAGRAPHS, _SENTENCES = 3, 6
"""On a page, below a heading: some 250 words."""
_HEADING_WORDS, _WORDS = 3, 14
_BOLD, _PLAIN = ("Helvetica-Bold", 16), ("Helvetica", 11)
_MARGIN, _WIDTH = 40, A5[0] - 80
_SHIPPED: Final = ROOT / "gpuserver" / "courses" / "python"
_READER: Final = b"gpuserver.documents"
_POLL_SECONDS: Final = 0.02
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds, of the clock and of CPU, and the most MB of the process that read the file."""

    wall: float
    server: float
    reader: float
    reader_mb: float

    @property
    def cpu(self) -> float:
        return self.server + self.reader


class _Books:
    """PDFs of any length in the words of the shipped course, as frequent as they are there."""

    def __init__(self) -> None:
        self._random = random.Random(1)
        passages = [item for item in load("python", _SHIPPED).passages if item.language == "en"]
        self._words = [
            word for item in passages for word in item.text.lower().split() if word.isalpha()
        ]

    def book(self, pages: int) -> bytes:
        written = io.BytesIO()
        canvas = Canvas(written, A5, invariant=1)
        for _ in range(pages):
            self._page(canvas)
            canvas.showPage()
        canvas.save()
        return written.getvalue()

    def _page(self, canvas: Canvas) -> None:
        y = A5[1] - _MARGIN
        for text, (font, size) in self._paragraphs():
            canvas.setFont(font, size)
            for line in simpleSplit(text, font, size, _WIDTH):
                y -= 1.3 * size
                canvas.drawString(_MARGIN, y, line)
            y -= size

    def _paragraphs(self) -> Iterator[tuple[str, tuple[str, int]]]:
        yield self._said(_HEADING_WORDS), _BOLD
        for _ in range(_PARAGRAPHS):
            said = [f"{self._said(_WORDS)}." for _ in range(_SENTENCES)]
            yield " ".join(said), _PLAIN

    def _said(self, words: int) -> str:
        return " ".join(self._random.choices(self._words, k=words)).capitalize()


async def _cost(process: Process, work: Coroutine[Any, Any, None]) -> Cost:
    """Of a server, while it does something."""
    began, cpu, ended = time.perf_counter(), process.cpu_seconds(), _ended_seconds(process)
    working, peak = asyncio.ensure_future(work), 0.0
    while not working.done():
        peak = max(peak, _reader_mb(process))
        await asyncio.sleep(_POLL_SECONDS)
    await working
    return Cost(
        time.perf_counter() - began,
        process.cpu_seconds() - cpu,
        _ended_seconds(process) - ended,
        peak,
    )


def _ended_seconds(process: Process) -> float:
    """CPU time of children that have ended."""
    # After the name, which may hold anything: see proc(5), cutime and cstime.
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / _TICKS


def _reader_mb(process: Process) -> float:
    """The most that a document's reader has held until now; 0 where there is none."""
    with suppress(OSError, AssertionError):  # it ends at any moment
        for child in process.children():
            # Before it is one, it is a copy of the server.
            if _READER in Path(f"/proc/{child.pid}/cmdline").read_bytes():
                return child.peak_mb()
    return 0.0


async def _index(management: Management, kb_id: str, name: str, content: bytes) -> None:
    await management.add_document(kb_id, name, content)
    states = {item["name"]: item["state"] for item in await management.indexed(kb_id)}
    assert states[name] == "ready", f"{name} is {states[name]}"


async def measure(quick: bool) -> list[Figure]:
    sizes = (25, 50, 100) if quick else SIZES
    books, costs = _Books(), {}
    with server(*SERVE) as target:
        async with Management(target.url) as management:
            # The first of its kind loads what later ones find.
            await management.create_knowledge_base("first")
            await _index(management, "first", "first.pdf", books.book(5))
            resting, before = target.process.rss_mb(), target.process.peak_mb()
            for pages in sizes:
                kb_id = f"book-{pages}"
                await management.create_knowledge_base(kb_id)
                indexed = _index(management, kb_id, "book.pdf", books.book(pages))
                costs[pages] = await _cost(target.process, indexed)
            peak = target.process.peak_mb()
            more = _index(management, kb_id, "page.pdf", books.book(1))
            page = await _cost(target.process, more)
    return _figures(costs, page, [("resting", resting), ("peak before", before), ("peak", peak)])


def _figures(costs: dict[int, Cost], page: Cost, memory: list[tuple[str, float]]) -> list[Figure]:
    sizes, last = list(costs), max(costs)
    whole = costs[last]
    growth = exponent({pages: [cost.cpu] for pages, cost in costs.items()})
    # Of a short book, a page is more than a hundredth.
    bound = PAGE_BOUND if last == SIZES[-1] else None
    return [
        Figure(f"growth of CPU, pages {sizes[0]} → {last:,}", growth, "", GROWTH_BOUND),
        Figure(f"a page added to {last:,} ÷ building them, CPU", page.cpu / whole.cpu, "", bound),
        Figure(f"{last:,} pages, from the upload to the answer", whole.wall, "s"),
        *(Figure(f"{pages:,} pages, CPU", cost.cpu, "s") for pages, cost in costs.items()),
        Figure(f"{last:,} pages, CPU of reading alone", whole.reader, "s"),
        Figure("a page added, from the upload to the answer", page.wall, "s"),
        Figure("reader of the file, peak", whole.reader_mb, "MB"),
        *(Figure(f"server, {when}", most, "MB") for when, most in memory),
    ]


if __name__ == "__main__":
    main("indexing", measure)
