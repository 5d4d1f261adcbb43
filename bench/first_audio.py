"""How soon a long answer begins to sound, against stages that run one after another."""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median
from typing import Final

from bench.common import Figure, Server, main, server
from bench.servers import PRODUCT
from gpuserver.client import Management, converse

BOUND, AIM = 0.1, 0.05
TOKENS: Final = 160
RATE: Final = 60


async def _first_audio(target: Server, count: int) -> list[float]:
    """Seconds from each question to the first piece of its answer's speech."""
    times = []
    async with (
        Management(target.url) as management,
        converse(await management.create_session()) as conversation,
    ):
        await conversation.until("session.ready")
        for _ in range(count):
            began = time.monotonic()
            await conversation.text("What is a list?")
            await conversation.until("audio.delta")
            times.append(time.monotonic() - began)
            await conversation.interrupt()
            await conversation.until("turn.done")
    return times


async def measure(quick: bool) -> list[Figure]:
    count = 2 if quick else 7
    answer = ("--tokens", str(TOKENS), "--rate", str(RATE), "--voice", "espeak")
    with ExitStack() as stack:
        streamed = stack.enter_context(server("bench.servers", PRODUCT, *answer))
        in_turn = stack.enter_context(server("bench.servers", PRODUCT, *answer, "--at-once"))
        ours, theirs = await _first_audio(streamed, count), await _first_audio(in_turn, count)
    return [
        Figure(
            "first audio ÷ one stage after another",
            median(a / b for a, b in zip(ours, theirs, strict=True)),
            "",
            BOUND,
            AIM,
        ),
        Figure("first audio", median(ours) * 1000, "ms"),
        Figure("first audio, one stage after another", median(theirs) * 1000, "ms"),
    ]


if __name__ == "__main__":
    main("first_audio", measure)
