"""An open microphone made of recordings: PCM16 mono at 16 kHz, 20 ms at a time, in real time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

SAMPLE_RATE: Final = 16_000
FRAME_SECONDS: Final = 0.02
FRAME_BYTES: Final = 640
_SILENT_FRAME: Final = bytes(FRAME_BYTES)
_LATE_SECONDS: Final = 0.5
"""Sound that is later than this is not hurried after: the server hears in real time."""

Append = Callable[[bytes], Awaitable[None]]


class Microphone:
    """A microphone that stays open: silence, and over it the recordings as they are said."""

    def __init__(self, append: Append, clock: Callable[[], float] = time.monotonic) -> None:
        """`append` takes each frame, such as `LiveConversation.append`."""
        self._append, self._clock = append, clock
        self._said: deque[tuple[Iterator[bytes], asyncio.Event]] = deque()

    async def run(self) -> None:
        """Stream until cancelled."""
        pace = _Pace(self._clock)
        while True:
            await self._append(self._next())
            await pace.wait()

    async def say(self, pcm: bytes) -> None:
        """Say a recording after those before it; returns when its last frame has been sent."""
        said = asyncio.Event()
        self._said.append((_frames(pcm), said))
        await said.wait()

    def _next(self) -> bytes:
        while self._said:
            frames, said = self._said[0]
            frame = next(frames, None)
            if frame is not None:
                return frame
            self._said.popleft()
            said.set()
        return _SILENT_FRAME


async def speak(
    append: Append, pcm: bytes, *, realtime: bool, silence: float, clock: Callable[[], float]
) -> None:
    """Say one recording and the silence after it, in seconds."""
    pace = _Pace(clock)
    quiet = bytes(round(silence / FRAME_SECONDS) * FRAME_BYTES)
    for sound in (pcm, quiet):
        for frame in _frames(sound):
            await append(frame)
            if realtime:
                await pace.wait()


def _frames(pcm: bytes) -> Iterator[bytes]:
    """Whole frames; the last one is filled up with silence."""
    for at in range(0, len(pcm), FRAME_BYTES):
        yield pcm[at : at + FRAME_BYTES].ljust(FRAME_BYTES, b"\0")


class _Pace:
    """One frame a frame's length, however late the wake-ups are."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due = clock()

    async def wait(self) -> None:
        now = self._clock()
        self._due = max(self._due + FRAME_SECONDS, now - _LATE_SECONDS)
        await asyncio.sleep(max(0.0, self._due - now))
