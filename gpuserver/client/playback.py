"""A loudspeaker without sound: how much of each answer has been heard by now."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

REPORT_SECONDS = 0.25


@dataclass(slots=True, eq=False)
class _Spoken:
    """The speech of one turn: what waits to be played, and the playhead on the turn's clock."""

    turn_id: str
    sample_rate: int
    waiting: deque[tuple[int, bytes]] = field(default_factory=deque)
    position: int = 0
    reported: int = -1

    @property
    def heard_ms(self) -> int:
        return self.position * 1000 // self.sample_rate

    def play(self, samples: int) -> tuple[int, bytes]:
        """Play at most so many samples: how many are left over, and the sound of the others."""
        out = []
        while samples and self.waiting:
            offset, pcm = self.waiting.popleft()
            cut = min(samples, len(pcm) // 2)
            out.append(pcm[: 2 * cut])
            samples -= cut
            # Skipped speech makes no sound: the playhead steps over it.
            self.position = offset + cut
            if 2 * cut < len(pcm):
                self.waiting.appendleft((offset + cut, pcm[2 * cut :]))
        return samples, b"".join(out)


class Playback:
    """Plays `audio.delta` on a clock as a browser would. Feed it every message of `events`.

    A turn is played after the one before it; where the speech runs dry the playhead waits for
    more; `audio.paused` holds it still, and an interruption throws away what is not played.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, keep: bool = False) -> None:
        """With `keep`, `recorded` collects the PCM16 of everything heard, in order."""
        self._clock = clock
        self._keep = keep
        self._turns: deque[_Spoken] = deque()
        self._last: dict[str, _Spoken] = {}
        self._paused = False
        self._now = clock()
        self._stopped = asyncio.Event()
        self.recorded = bytearray()
        self.sample_rate = 0

    def feed(self, message: dict[str, Any]) -> None:
        """Take any server message; those that are not about speech change nothing."""
        self._advance()
        match message["type"]:
            case "audio.delta" if message["pcm"]:
                self._add(message)
            case "audio.paused":
                self._paused = True
            case "audio.resumed":
                self._paused = False
            case "turn.done" if message["status"] == "interrupted":
                self._stop(message["turn_id"])
            case "session.ready" if not message.get("resumed"):
                self._turns.clear()
                self._last.clear()
                self._paused = False

    @property
    def idle(self) -> bool:
        """Whether everything that came has been played."""
        self._advance()
        return not any(spoken.waiting for spoken in self._turns)

    def heard_ms(self, turn_id: str) -> int:
        """How much of a turn's speech has been heard by now; 0 for a turn that it does not know."""
        self._advance()
        spoken = self._last.get(turn_id)
        return 0 if spoken is None else spoken.heard_ms

    async def report(
        self, playback: Callable[[str, int], Awaitable[None]], every: float = REPORT_SECONDS
    ) -> None:
        """Tell the server, by the verb `playback`, as the playhead moves; until cancelled.

        A stop is told at once: the tutor remembers what was heard.
        """
        while True:
            try:
                async with asyncio.timeout(every):
                    await self._stopped.wait()
            except TimeoutError:
                pass
            self._stopped.clear()
            for turn_id, heard_ms in self.due():
                await playback(turn_id, heard_ms)

    def due(self) -> list[tuple[str, int]]:
        """Turn ids and milliseconds heard that have changed since this was last asked."""
        self._advance()
        out = []
        for spoken in self._last.values():
            if spoken.position and spoken.heard_ms != spoken.reported:
                spoken.reported = spoken.heard_ms
                out.append((spoken.turn_id, spoken.heard_ms))
        playing = {spoken.turn_id: spoken for spoken in self._turns}
        latest = list(self._last)[-1:]
        self._last = {k: v for k, v in self._last.items() if k in playing or k in latest}
        return out

    def _add(self, message: dict[str, Any]) -> None:
        turn_id = message["turn_id"]
        spoken = self._last.get(turn_id)
        if spoken is None:
            self.sample_rate = message["sample_rate"]
            spoken = self._last[turn_id] = _Spoken(turn_id, self.sample_rate)
            self._turns.append(spoken)
            # One that is played holds the place only until the next one comes.
            while len(self._turns) > 1 and not self._turns[0].waiting:
                self._turns.popleft()
        spoken.waiting.append((message["offset"], message["pcm"]))

    def _stop(self, turn_id: str) -> None:
        spoken = self._last.get(turn_id)
        if spoken is not None:
            spoken.waiting.clear()
        self._paused = False
        self._stopped.set()

    def _advance(self) -> None:
        """Move the playhead to this moment."""
        now = self._clock()
        elapsed, self._now = now - self._now, now
        if self._paused:
            return
        for spoken in list(self._turns):
            samples = round(elapsed * spoken.sample_rate)
            left, pcm = spoken.play(samples)
            if self._keep:
                self.recorded += pcm
            if spoken.waiting:
                return
            elapsed = left / spoken.sample_rate
            if len(self._turns) > 1:
                self._turns.popleft()
