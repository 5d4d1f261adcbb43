"""What a student sees of an answer: in order, with its markers, and in clauses to the voice."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from gpuserver.tutor import events
from gpuserver.tutor.citations import Citations
from gpuserver.tutor.claims import Part
from gpuserver.tutor.sentences import Clauses

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Voice:
    """The line of clauses to a voice that speaks them, and what cuts an answer into them."""

    clauses: asyncio.Queue[str | None]
    splitter: Clauses = field(default_factory=Clauses)


class Written:
    """The text of one answer as it goes out."""

    def __init__(self, sink: events.Sink, mark: Callable[[str], None]) -> None:
        """`mark` notes when a stage was first reached."""
        self._sink, self._mark = sink, mark
        self._pieces: list[str] = []
        self.chars = 0
        self.beyond = False
        """Whether it is not from the course, which is told before its first text."""

    @property
    def text(self) -> str:
        """All that has gone out."""
        return "".join(self._pieces)

    async def give(self, parts: Iterable[Part], cited: Citations, voice: Voice | None) -> None:
        """Text, and the markers of the sentences that have ended in it."""
        text = ""
        for part in parts:
            mark = part if isinstance(part, str) else cited.judge(part)
            if not isinstance(mark, str):
                # The sentence does not wait for its marker.
                await self._show(text, voice)
                text, mark = "", await cited.settle(mark)
            text += mark
        await self._show(text, voice)

    async def end(self, cited: Citations, voice: Voice | None) -> None:
        """The model has written all."""
        await self.give(cited.flush(), cited, voice)
        if voice is not None:
            self._say(voice.splitter.flush(), voice)
            voice.clauses.put_nowait(None)
        await self._sink.write(events.TextDone(self.text))

    async def _show(self, text: str, voice: Voice | None) -> None:
        if not text:
            return
        if self.beyond:
            self.beyond = False
            await self._sink.write(events.BeyondCourse())
        self._pieces.append(text)
        self.chars += len(text)
        await self._sink.write(events.TextDelta(text))
        if voice is not None:
            self._say(voice.splitter.feed(text), voice)

    def _say(self, clauses: Iterable[str], voice: Voice) -> None:
        for clause in clauses:
            self._mark("first_clause")
            voice.clauses.put_nowait(clause)


def whole_characters(text: str) -> tuple[str, str]:
    """Text without lone surrogates, and the half of a character that the next delta completes."""
    if not _SURROGATE.search(text):
        return text, ""
    half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
    whole = text[: len(text) - len(half)].encode("utf-16-le", "surrogatepass")
    return whole.decode("utf-16-le", "replace"), half
