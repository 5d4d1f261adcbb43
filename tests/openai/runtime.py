"""The `openai` provider as tests use it, and a student beside it who must miss nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from gpuserver.config import Settings
from gpuserver.metrics import Meter
from gpuserver.providers import Delta, Message, Piece, Place, Request
from gpuserver.providers.openai import OpenAILLM
from tests.chat_server import DONE, Answer, ChatServer, event

KEY: Final = "sk-very-secret-key-0123456789"
ASKED: Final = Message("user", "What is a list?")
REQUEST: Final = Request((Message("system", "Be kind."), ASKED), "What is a list?", (), "en")

Use = Callable[..., AbstractAsyncContextManager[OpenAILLM]]


@dataclass
class Notes(Meter):
    """What a runtime counts."""

    token_counts: list[tuple[int, int, int]] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    failures: int = 0

    def tokens(self, made: int, prompt: int = 0, cached: int = 0) -> None:
        self.token_counts.append((made, prompt, cached))

    def first_token(self, seconds: float) -> None:
        self.firsts.append(seconds)

    def failed(self) -> None:
        self.failures += 1


def using(server: ChatServer, make_settings: Callable[..., Settings], notes: Notes) -> Use:
    """`async with use(llm_running=2) as llm:` is the provider, loaded, with those settings."""

    @asynccontextmanager
    async def run(
        model: str = "tiny", adapters: tuple[str, ...] = (), **given: Any
    ) -> AsyncIterator[OpenAILLM]:
        settings = make_settings(**{"llm_base_url": server.url, **given})
        llm = OpenAILLM(model, Place(settings.data_dir, settings, adapters, notes))
        try:
            await asyncio.to_thread(llm.load)
            yield llm
        finally:
            await asyncio.to_thread(llm.close)
            await asyncio.to_thread(llm.close)

    return run


async def ask(llm: OpenAILLM, request: Request = REQUEST) -> list[Piece]:
    async with asyncio.timeout(20), aclosing(llm.generate(request)) as pieces:
        return [piece async for piece in pieces]


def text(pieces: Sequence[Piece]) -> str:
    return "".join(x.text for x in pieces if isinstance(x, Delta) and not x.thought)


def thought(pieces: Sequence[Piece]) -> str:
    return "".join(x.text for x in pieces if isinstance(x, Delta) and x.thought)


@asynccontextmanager
async def bystander(server: ChatServer, llm: OpenAILLM) -> AsyncIterator[None]:
    """While the block runs, another student is being answered by the same runtime, whole."""
    gate = asyncio.Event()
    server.scripts.insert(
        0, Answer([event("One. "), gate, event("Two."), event(finish="stop"), DONE])
    )
    async with aclosing(llm.generate(REQUEST)) as pieces:
        assert await anext(pieces) == Delta("One. ")
        yield
        gate.set()
        assert [piece async for piece in pieces] == [Delta("Two.")]
