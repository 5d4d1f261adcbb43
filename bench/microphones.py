"""How many open microphones one core can listen to while nobody speaks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import cycle, islice
from statistics import median
from typing import Final

import numpy as np

from bench.clients import Client, clients, speech_frame
from bench.common import Figure, Pace, Server, main, server
from bench.servers import PRODUCT

BOUND, AIM = 20, 200
MICROPHONES: Final = 8
_RATE: Final = 16_000
_FRAME_MS: Final = 20
_ROOM: Final = 60
"""How loud a quiet room is, of 32768: digital silence would be told from speech for nothing."""
_LISTEN: Final = {
    "type": "session.update",
    "turn_detection": "server",
    "input_audio_format": {"encoding": "pcm16", "sample_rate": _RATE},
}


def _room_noise() -> list[bytes]:
    """A second of a quiet room, framed."""
    noise = np.random.default_rng(1).normal(
        0, _ROOM, (1000 // _FRAME_MS, _RATE * _FRAME_MS // 1000)
    )
    return [speech_frame(frame.tobytes()) for frame in noise.astype("<i2")]


async def _stream(open_: Sequence[Client], seconds: float) -> None:
    """Every microphone sends its frames in real time, each a little after the one before."""
    frames = cycle(_room_noise())
    pace = Pace(1000 / _FRAME_MS * len(open_))
    for frame, client in zip(
        islice(frames, round(seconds * 1000 / _FRAME_MS) * len(open_)), cycle(open_), strict=False
    ):
        await pace.beat()
        client.hear(frame)


async def _cores(target: Server, open_: Sequence[Client], seconds: float) -> float:
    """CPU seconds a second while they are open."""
    clock = asyncio.get_running_loop().time
    began, cpu = clock(), target.process.cpu_seconds()
    if open_:
        await _stream(open_, seconds)
    else:
        await asyncio.sleep(seconds)
    return (target.process.cpu_seconds() - cpu) / (clock() - began)


async def measure(quick: bool) -> list[Figure]:
    rounds, seconds = (2, 2.0) if quick else (5, 3.0)
    with server("bench.servers", PRODUCT, "--hears", max_sessions=MICROPHONES) as target:
        async with clients(target, MICROPHONES, Client, ours=True) as connected:
            for client in connected:
                client.tell(_LISTEN)
            await _cores(target, connected, 1.0)
            heard = [client.frames for client in connected]
            idle = await _cores(target, (), 1.0)
            costs = [await _cores(target, connected, seconds) - idle for _ in range(rounds)]
            said = sum(c.frames for c in connected) - sum(heard)
    each = median(costs) / MICROPHONES
    return [
        Figure("open microphones a core", 1 / each, "", BOUND, AIM, at_least=True),
        Figure("CPU of an open microphone", each * 1000, "ms a second"),
        Figure("messages about the silence", said),
    ]


if __name__ == "__main__":
    main("microphones", measure)
