"""A whole spoken turn with the engines that ship, stage by stage."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson

from bench.common import SERVE, Figure, main, server
from gpuserver.client import Management, converse
from tests.speech import flite, webm_opus

BOUND_MS: Final = 600
STAGES: Final = ("transcript", "passages", "first_token", "first_clause", "first_audio")
_QUESTIONS: Final = Path(__file__).parent.parent / "tests" / "data" / "spoken.en.jsonl"


def _questions(count: int) -> list[str]:
    lines = _QUESTIONS.read_text(encoding="utf-8").splitlines()[:count]
    return [str(orjson.loads(line)["question"]) for line in lines]


async def _ask(management: Management, clip: bytes) -> dict[str, float] | None:
    """Milliseconds to each stage, and, as the client sees it, to the first sound; None if silent.

    The client's clock starts before the clip is sent: its student has just stopped speaking.
    """
    ticket = await management.create_session()
    async with converse(ticket) as conversation:
        await conversation.until("session.ready")
        began = time.monotonic()
        await conversation.audio(clip)
        heard = await conversation.until("audio.delta", "turn.done")
        if heard["type"] == "turn.done":
            return None
        seen = (time.monotonic() - began) * 1000
        # The rest would take as long as it takes to speak.
        await conversation.interrupt()
        done = await conversation.until("turn.done")
    await management.delete_session(ticket.session_id)
    return {**done["timeline"], "seen": seen}


async def measure(quick: bool, **settings: Any) -> list[Figure]:
    clips = [webm_opus(flite(question)) for question in _questions(3 if quick else 10)]
    with server(*SERVE, **settings) as target:
        async with Management(target.url) as management:
            turns = [await _ask(management, clip) for clip in clips]
    spoken = [turn for turn in turns if turn is not None]
    if not spoken:
        return [Figure("questions without a spoken answer", len(turns), bound=0)]
    return _figures(spoken, len(turns))


def _figures(spoken: list[dict[str, float]], asked: int) -> list[Figure]:
    # A question without passages (small talk) skips that stage: it took no time.
    for turn in spoken:
        for before, stage in pairwise(STAGES):
            turn.setdefault(stage, turn.get(before, 0))

    def stage_of(before: str, stage: str) -> float:
        return median(turn[stage] - turn.get(before, 0) for turn in spoken)

    return [
        Figure("end of clip → first audio, at the client", _median(spoken, "seen"), "ms", BOUND_MS),
        Figure("clip received → first audio", _median(spoken, "first_audio"), "ms"),
        *(
            Figure(f"{before} → {stage}", stage_of(before, stage), "ms")
            for before, stage in pairwise(("clip received", *STAGES))
        ),
        Figure("slowest first audio, at the client", max(turn["seen"] for turn in spoken), "ms"),
        Figure(f"of {asked} questions, without a spoken answer", asked - len(spoken), bound=2),
    ]


def _median(turns: list[dict[str, float]], stage: str) -> float:
    return median(turn[stage] for turn in turns)


if __name__ == "__main__":
    main("spoken_turn", measure)
