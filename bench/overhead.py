"""Server CPU of a streamed frame, text and speech: ours against the least that sends the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from bench.clients import SPEECH_ONLY, Client, clients
from bench.common import Figure, Server, main, server
from bench.servers import BARE, PRODUCT, WEBSOCKETS

RATE: Final = 50
SESSIONS: Final = 100
TEXT_BOUND, TEXT_AIM = 2.0, 1.0
SPEECH_BOUND: Final = 1.5
_KINDS: Final = (PRODUCT, BARE, WEBSOCKETS)
_LEAD_FRAMES: Final = 20
"""Speech begins with a burst, the lead; what is measured comes after it."""
_IDLE_SECONDS: Final = 1.0
_SLACK_SECONDS: Final = 1.0
"""On a busy machine the last client asks, and warms up, late."""
_TURN_SECONDS: Final = 60.0


class SpeechClient(Client):
    warm_frames = _LEAD_FRAMES


@dataclass
class Load:
    """The clients of one server, and what its answers to them cost."""

    server: Server
    clients: Sequence[Client]
    idle: float = 0.0
    """CPU seconds a second while the sockets are open and nobody asks."""
    costs: list[float] = field(default_factory=list)
    """Microseconds a frame, one for each round."""

    async def measure_idle(self) -> None:
        self.idle = (await self._spent(_IDLE_SECONDS))[0]

    async def measure(self, seconds: float) -> None:
        """One answer to every client: the CPU of its middle, over the frames of its middle."""
        async with asyncio.timeout(_TURN_SECONDS):
            await ask_all(self.clients)
            for client in self.clients:
                await client.warm.wait()
            used, frames = await self._spent(seconds)
            assert not any(client.done.is_set() for client in self.clients), "answers too short"
            self.costs.append((used - self.idle) / frames * 1e6)
            for client in self.clients:
                await client.done.wait()

    async def _spent(self, seconds: float) -> tuple[float, float]:
        """CPU seconds a second, and frames a second."""
        clock = asyncio.get_running_loop().time
        began, cpu, frames = clock(), self.server.process.cpu_seconds(), self._frames()
        await asyncio.sleep(seconds)
        used, came, took = (
            self.server.process.cpu_seconds() - cpu,
            self._frames() - frames,
            clock() - began,
        )
        return used / took, came / took

    def _frames(self) -> int:
        return sum(client.frames for client in self.clients)


async def ask_all(asking: Sequence[Client]) -> None:
    """Spread over one beat, so that the answers do not march in step."""
    step = max(1, len(asking) // 16)
    for first in range(0, len(asking), step):
        for client in asking[first : first + step]:
            client.ask()
        await asyncio.sleep(1 / RATE / 16)


@asynccontextmanager
async def _load(kind: str, target: Server, *, speech: bool) -> AsyncIterator[Load]:
    wanted = SpeechClient if speech else Client
    async with clients(target, SESSIONS, wanted, ours=kind == PRODUCT) as connected:
        if speech and kind == PRODUCT:
            for client in connected:
                client.tell(SPEECH_ONLY)
        yield Load(target, connected)


async def _loads(*, speech: bool, rounds: int, seconds: float) -> dict[str, Load]:
    """Rounds of every server in turn, the order changing, so that noise meets them alike."""
    frames = round(RATE * (seconds + _SLACK_SECONDS)) + (_LEAD_FRAMES if speech else 0)
    answer = ["--tokens", str(frames), "--rate", str(RATE)]
    answer += ["--speech", "--voice", "auto"] if speech else []
    async with AsyncExitStack() as stack:
        loads = {}
        for kind in _KINDS:
            target = stack.enter_context(
                server("bench.servers", kind, *answer, max_sessions=SESSIONS)
            )
            loads[kind] = await stack.enter_async_context(_load(kind, target, speech=speech))
        await asyncio.sleep(0.3)
        await asyncio.gather(*(each.measure_idle() for each in loads.values()))
        for number in range(rounds):
            order = list(loads.values())
            for each in order if number % 2 else reversed(order):
                await each.measure(seconds)
    return loads


def _figures(loads: dict[str, Load], what: str, bound: float, aim: float | None) -> list[Figure]:
    ours = loads[PRODUCT]

    def ratio(kind: str) -> float:
        return median(a / b for a, b in zip(ours.costs, loads[kind].costs, strict=True))

    return [
        Figure(f"CPU of a {what} frame ÷ bare FastAPI", ratio(BARE), "", bound, aim),
        Figure(f"CPU of a {what} frame ÷ bare websockets", ratio(WEBSOCKETS)),
        *(Figure(f"{what}: {k}", median(x.costs), "µs a frame") for k, x in loads.items()),
        Figure(f"{what}: product, idle", ours.idle * 1e6 / SESSIONS, "µs a session and second"),
    ]


async def measure(quick: bool) -> list[Figure]:
    rounds, seconds = (3, 0.5) if quick else (5, 0.8)
    text = await _loads(speech=False, rounds=rounds, seconds=seconds)
    speech = await _loads(speech=True, rounds=rounds, seconds=seconds)
    return [
        *_figures(text, "text", TEXT_BOUND, TEXT_AIM),
        *_figures(speech, "speech", SPEECH_BOUND, None),
    ]


if __name__ == "__main__":
    main("overhead", measure)
