"""Scripted models: they write and speak at a steady pace, whatever they are asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from bench.common import Pace, tokens
from gpuserver.language import Language
from gpuserver.providers import Delta, Place, Request, Speech

SAMPLE_RATE: Final = 24_000
FRAME_MS: Final = 20
PCM: Final = bytes(SAMPLE_RATE * FRAME_MS // 1000 * 2)
"""One frame of speech."""
Stamp = Literal["none", "made", "due"]
_BUILD_SECONDS: Final = 0.3
PERSONA: Final = " ".join(
    [
        "You are a patient tutor.",
        *(f"Rule {n}: explain in short, plain sentences, one idea at a time." for n in range(60)),
    ]
)
"""A long one: with course and history it makes a prompt that prefix caching is for."""


@dataclass(frozen=True)
class Script:
    """What every server answers to every question: so many tokens at this rate a second.

    With `stamp` a token is the time at which it was made, or due, as `@nanoseconds@`. With `speech`
    the answer is a word and that many frames of speech. With `at_once` the tokens come together,
    when the last of them is due.
    """

    count: int
    rate: float
    stamp: Stamp = "none"
    speech: bool = False
    at_once: bool = False
    texts: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tokens(self.count))

    async def paced(self) -> AsyncGenerator[str, None]:
        """The tokens, each when it is due."""
        pace = Pace(self.rate)
        for text in self.texts:
            due = await pace.beat()
            yield self._stamped(text, due)

    def _stamped(self, text: str, due: float) -> str:
        if self.stamp == "none":
            return text
        return f"@{time.monotonic_ns() if self.stamp == 'made' else round(due * 1e9)}@"


class PacedLLM:
    """Writes the script, and notes when. Takes a moment to load, as a model does."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.made: list[int] = []
        """When each token of the last answer was made, in nanoseconds of the monotonic clock."""

    def __call__(self, model: str, place: Place) -> PacedLLM:
        return self

    def load(self) -> None:
        time.sleep(_BUILD_SECONDS)

    def close(self) -> None:
        pass

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        script, self.made = self._script, []
        if not request.messages:
            return  # the warm-up, which is no question
        if script.speech:
            yield Delta("Yes.")
        elif script.at_once:
            await asyncio.sleep(script.count / script.rate)
            yield Delta("".join(script.texts))
        else:
            async for text in script.paced():
                self.made.append(time.monotonic_ns())
                yield Delta(text)


class FrameTTS:
    """Says any clause as so many frames of silence, all at once: the server sets the pace."""

    sample_rate = SAMPLE_RATE
    voices: Mapping[Language, str] = MappingProxyType({"en": "", "zh": ""})

    def __init__(self, frames: int) -> None:
        self._frames = frames

    def __call__(self, model: str, place: Place) -> FrameTTS:
        return self

    def load(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def speak(
        self, clause: str, language: Language, voice: str, speed: float
    ) -> AsyncGenerator[Speech, None]:
        for _ in range(self._frames):
            yield Speech(PCM, SAMPLE_RATE)

    async def pronounce(self, words: Sequence[str]) -> Mapping[str, str]:
        return {}
