"""How one turn's speech goes out, a little ahead of real time, and how much of it was heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from gpuserver.providers import Speech
from gpuserver.tutor.events import SpeechChunk

PIECE_MS: Final = 100
"""Speech is sent in pieces of this length: what an interruption can waste, and a message's size."""
_REPORT_HOLDS_MS: Final = 1000
"""Reports come several times a second; without a new one, the clock is trusted no further."""


class Playout:
    """The clock of one turn's speech, in milliseconds from its start.

    Playing begins with the first piece sent. `lead_ms` is how far ahead of it speech may be sent.
    """

    def __init__(self, lead_ms: int, clock: Callable[[], float]) -> None:
        self._lead_ms = lead_ms
        self._batch_ms = min(PIECE_MS, lead_ms // 3)
        self._clock = clock
        self._began: float | None = None
        """When the speech's first sample would have sounded, had nothing held it up."""
        self.started_at: float | None = None
        """When the first piece went out."""
        self._sent_ms = 0
        self._paused_at: float | None = None
        self._moving = asyncio.Event()
        self._moving.set()
        self._report: tuple[int, float] | None = None

    @property
    def audible(self) -> bool:
        """Whether speech has been sent that the student is hearing, or is held still."""
        return self._began is not None and (
            self._paused_at is not None or self._position(self._clock()) < self._sent_ms
        )

    @property
    def paused(self) -> bool:
        return self._paused_at is not None

    async def wait_for(self, start_ms: int, end_ms: int) -> None:
        """Wait until the piece from `start_ms` to `end_ms` may be sent; it then counts as sent."""
        while True:
            await self._moving.wait()
            now = self._clock()
            if self._began is None:
                self._began = now - start_ms / 1000
                self.started_at = now
            position = self._position(now)
            if position > self._sent_ms and start_ms >= self._sent_ms:
                # The voice was too slow: the student heard silence, and the clock stood still.
                self._began += (position - self._sent_ms) / 1000
                position = self._sent_ms
            early = start_ms - self._lead_ms - position
            # Timers may come a hair early; sleeping again for that would cost another turn.
            if early < 1:
                self._sent_ms = max(self._sent_ms, end_ms)
                return
            # A voice that speaks in smaller pieces has several of them sent in one go: waking for
            # each costs more than sending it.
            several = max(0, self._batch_ms - (end_ms - start_ms))
            await asyncio.sleep((early + several) / 1000)

    async def until_moving(self) -> None:
        """Wait while the speech is held still."""
        await self._moving.wait()

    def pause(self) -> None:
        """The student may be interrupting: send nothing, and let the clock stand still."""
        if self._paused_at is None:
            self._paused_at = self._clock()
            self._moving.clear()

    def resume(self) -> None:
        """It was no interruption."""
        if self._paused_at is not None:
            if self._began is not None:
                self._began += self._clock() - self._paused_at
            if self._report is not None:
                heard, _ = self._report
                self._report = heard, self._clock()
            self._paused_at = None
            self._moving.set()

    def report(self, heard_ms: int) -> int:
        """The client says how much has been heard; returns that, or what was sent if it is less."""
        heard_ms = min(heard_ms, self._sent_ms)
        self._report = heard_ms, self._clock()
        return heard_ms

    def heard_ms(self) -> int:
        """How much has been heard by now: by the client's reports, without any by the clock."""
        if self._report is None:
            if self._began is None:
                return 0
            return min(self._sent_ms, round(self._position(self._clock())))
        heard, at = self._report
        until = self._clock() if self._paused_at is None else max(at, self._paused_at)
        return min(self._sent_ms, heard + min(_REPORT_HOLDS_MS, round((until - at) * 1000)))

    def _position(self, now: float) -> float:
        """The millisecond that sounds at a time, had it been sent."""
        assert self._began is not None
        until = now if self._paused_at is None else self._paused_at
        return (until - self._began) * 1000


def pieces(chunk: SpeechChunk) -> Iterator[SpeechChunk]:
    """A chunk in pieces of 100 ms; the first has the words and mouth shapes of the whole."""
    speech = chunk.speech
    size = speech.sample_rate * PIECE_MS // 1000 * 2
    if len(speech.pcm) <= size:
        yield chunk
        return
    for at in range(0, len(speech.pcm), size):
        pcm = speech.pcm[at : at + size]
        words, visemes = (speech.words, speech.visemes) if at == 0 else ((), ())
        yield SpeechChunk(Speech(pcm, speech.sample_rate, words, visemes), chunk.offset + at // 2)
