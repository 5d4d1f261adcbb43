"""A tutor's chat models in order: the next one answers when the one before it can't."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from gpuserver.errors import EngineBusy, EngineFailed, EngineStalled, PromptTooLong
from gpuserver.observability import get_logger
from gpuserver.providers import LINE_SECONDS, LLM, Delta, Fallback, Piece, Request, Waiting
from gpuserver.providers.circuit_breaker import CircuitBreaker

log = get_logger(__name__)

_FAILURES: Final = (EngineFailed, EngineBusy, EngineStalled, PromptTooLong)
_PAUSES: Final = (30.0, 300.0)
"""For which a model that hung is passed over, at first and at most, in seconds."""


@dataclass(frozen=True, slots=True)
class _Link:
    provider: str
    model: LLM
    hung: CircuitBreaker


class Chain:
    """`LLM`. Once a model has said a word, its failure is the answer's: nothing is said twice.

    All models together have the time of one to begin: each but the last is left after its share.
    One that hung is passed over for a while, so that not every student waits for it; of other
    failures models tell at once, so nothing is remembered of them.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, LLM]],
        first_token_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`models` are (provider, model) pairs, the tutor's own first."""
        self._links = [
            _Link(provider, model, CircuitBreaker(1, *_PAUSES, clock)) for provider, model in models
        ]
        self._share = first_token_seconds / len(models)

    async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Says first when a model answers in place of the tutor's own. Raises what the last raised,
        or the one that had begun."""
        caller = object()
        for link in self._links:
            last = link is self._links[-1]
            if not last and not link.hung.admits(caller):
                continue
            said = False
            try:
                async with aclosing(self._ask(link, request, caller)) as pieces:
                    async for piece in pieces:
                        said = said or _is_word(piece)
                        yield piece
                if said or last:
                    return
                log.warning("model says nothing", provider=link.provider)
            except _FAILURES as error:
                if said or last:
                    raise
                log.warning("model can't answer", provider=link.provider, code=error.code)
            finally:
                link.hung.left(caller)

    async def _ask(
        self, link: _Link, request: Request, caller: object
    ) -> AsyncGenerator[Piece, None]:
        """The answer of one model. Raises EngineStalled when its time to begin is over."""
        own = told = link is self._links[0]
        # An adapter fits the tutor's own model only.
        asking = link.model.generate(request if own else replace(request, adapter=""))
        async with aclosing(asking) as pieces:
            piece: Piece | None = None
            while piece := await self._next(link, pieces, isinstance(piece, Waiting), caller):
                if not told and isinstance(piece, Delta):
                    told = True
                    yield Fallback(link.provider)
                yield piece
                if _is_word(piece):
                    link.hung.succeeded()
                    break
            async for piece in pieces:
                yield piece

    async def _next(
        self, link: _Link, pieces: AsyncGenerator[Piece, None], in_line: bool, caller: object
    ) -> Piece | None:
        share: float | None = max(self._share, LINE_SECONDS) if in_line else self._share
        if link is self._links[-1]:
            share = None  # After the last there is no other: the turn's own deadline is enough.
        try:
            async with asyncio.timeout(share):
                return await anext(pieces, None)
        except TimeoutError:
            link.hung.failed(caller)
            raise EngineStalled(engine="llm", limit=f"{share:g}") from None


def _is_word(piece: Piece) -> bool:
    return isinstance(piece, Delta) and not piece.thought and bool(piece.text)
