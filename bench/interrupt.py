"""What an interrupted answer still costs: frames after the acknowledgement, tokens of the model."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Final

import orjson

from bench.clients import Client, connect
from bench.common import Figure, main, server
from bench.servers import PRODUCT
from gpuserver.client import Management

FRAMES_BOUND, TOKENS_BOUND = 0, 1
RATE: Final = 60
_TOKENS: Final = 600
_LISTEN_SECONDS: Final = 0.4
_UPDATE: Final = {"type": "session.update", "audio_format": "binary"}


class Interrupter(Client):
    """Counts what comes after the acknowledgement."""

    after = 0
    acknowledged = 0

    def take(self, kind: int, payload: bytes) -> None:
        if self.done.is_set():
            self.after += 1
        super().take(kind, payload)
        if self.done.is_set() and not self.acknowledged:
            self.acknowledged = time.monotonic_ns()


async def _interrupt(client: Interrupter, management: Management) -> tuple[int, int, float]:
    """Frames after the acknowledgement, tokens after the interrupt, ms between the two."""
    client.after = client.acknowledged = 0
    client.ask("What is a list?")
    await client.warm.wait()
    await asyncio.sleep(0.3)
    sent = time.monotonic_ns()
    client.tell({"type": "interrupt"})
    await client.done.wait()
    assert b'"interrupted"' in client.last, client.last
    await asyncio.sleep(_LISTEN_SECONDS)
    made = orjson.loads((await management.get("/bench/tokens")).content)
    return client.after, sum(at > sent for at in made), (client.acknowledged - sent) / 1e6


async def measure(quick: bool) -> list[Figure]:
    answer = ("--tokens", str(_TOKENS), "--rate", str(RATE), "--voice", "auto")
    with server("bench.servers", PRODUCT, *answer) as target:
        async with Management(target.url) as management:
            client = await connect(target, Interrupter, await management.create_session())
            client.tell(_UPDATE)
            results = [await _interrupt(client, management) for _ in range(4 if quick else 20)]
            client.close()
    frames, made, waits = zip(*results, strict=True)
    return [
        Figure("frames after the acknowledgement, most", max(frames), "", FRAMES_BOUND),
        Figure("tokens after the interrupt, most", max(made), "", TOKENS_BOUND),
        Figure("interrupt → acknowledgement", median(waits), "ms"),
    ]


if __name__ == "__main__":
    main("interrupt", measure)
