"""How soon a long answer begins to sound, against how long its whole speech takes to come."""

from __future__ import annotations

import time
from statistics import median
from typing import Final

from bench.common import Figure, Server, main, server
from gpuserver.client import Conversation, Management, converse

BOUND: Final = 0.2
TOKENS: Final = 160
RATE: Final = 60


async def _answer(conversation: Conversation) -> tuple[float, float]:
    """Seconds from a question to the first and to the last piece of the answer's speech."""
    began = time.monotonic()
    await conversation.text("What is a list?")
    came: list[float] = []
    while (message := await conversation.receive())["type"] != "turn.done":
        if message["type"] == "audio.delta":
            came.append(time.monotonic() - began)
    assert message["status"] == "completed", message
    return came[0], came[-1]


async def _answers(target: Server, count: int) -> list[tuple[float, float]]:
    async with (
        Management(target.url) as management,
        converse(await management.create_session()) as conversation,
    ):
        await conversation.until("session.ready")
        return [await _answer(conversation) for _ in range(count)]


async def measure(quick: bool) -> list[Figure]:
    answer = ("--tokens", str(TOKENS), "--rate", str(RATE), "--voice", "espeak")
    with server("bench.servers", "product", *answer) as target:
        times = await _answers(target, 2 if quick else 7)
    return [
        Figure("first audio ÷ whole answer's audio", median(a / b for a, b in times), bound=BOUND),
        Figure("first audio", median(first for first, _ in times) * 1000, "ms"),
        Figure("whole answer's audio", median(last for _, last in times) * 1000, "ms"),
        Figure(f"the model alone ({TOKENS} tokens)", TOKENS / RATE * 1000, "ms"),
    ]


if __name__ == "__main__":
    main("first_audio", measure)
