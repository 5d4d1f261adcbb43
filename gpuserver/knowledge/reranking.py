"""A second reading of the best passages, by a model that sees question and passage together."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuserver.errors import GpuServerError
from gpuserver.language import Language
from gpuserver.observability import get_logger
from gpuserver.providers import Passage, Reranker
from gpuserver.providers.circuit_breaker import CircuitBreaker

log = get_logger(__name__)

LOOKED_AT: Final = 12
"""So many of the best passages are read again: three times as many as a tutor is given."""
AT_ONCE: Final = 3
"""Questions that it is asked together. Each holds one of the few threads in which the server does
whatever blocks: with more of them, a slow one would hold up all else."""
COVERED: Final = 0.5
"""From this share on a passage answers the question: the middle between answers and other texts."""

_PAUSE_SECONDS: Final = (10.0, 300.0)


class Reranking:
    """Passages judged by a re-ranker, as long as it works; any thread.

    One that fails is left alone for a while, and then tried with one question.
    """

    def __init__(self, reranker: Reranker, clock: Callable[[], float] = time.monotonic) -> None:
        self._reranker = reranker
        self._breaker = CircuitBreaker(1, *_PAUSE_SECONDS, clock)
        self._telling = threading.Lock()
        self._free = threading.Semaphore(AT_ONCE)
        self.problem = ""
        """Why the last question was searched without it; "" if it was not."""

    def shares(
        self, question: str, language: Language, passages: Sequence[Passage]
    ) -> list[float] | None:
        """How well each passage answers, from 0 to 1; None where it has no say.

        That is for a question or passages in a language that it does not serve, while it does not
        work, and while enough others ask it. Blocking.
        """
        scale = self._reranker.scale.get(language)
        if scale is None or any(item.language not in self._reranker.scale for item in passages):
            return None
        if not passages or not self._free.acquire(blocking=False):
            return None
        try:
            scores = self._scores(question, list(map(text_of, passages)))
        finally:
            self._free.release()
        if scores is None:
            return None
        return [_share(float(score)) for score in scale.of(scores)]

    def _scores(self, question: str, texts: Sequence[str]) -> NDArray[np.float32] | None:
        """On the model's scale; None where it does not work, or is left alone."""
        caller = object()
        with self._telling:
            if not self._breaker.admits(caller):
                return None
        try:
            scores = self._reranker.score(question, texts)
        except GpuServerError as error:
            self._failed(caller, error)
            return None
        finally:
            with self._telling:
                self._breaker.left(caller)
        self._works()
        return scores

    def _failed(self, caller: object, error: GpuServerError) -> None:
        with self._telling:
            self._breaker.failed(caller)
            if not self.problem:
                log.warning("searching without the re-ranker", code=error.code)
            self.problem = error.sentence("en")

    def _works(self) -> None:
        with self._telling:
            self._breaker.succeeded()
            if self.problem:
                log.info("the re-ranker works again")
            self.problem = ""


def text_of(passage: Passage) -> str:
    """What is read of it."""
    return f"{passage.heading}\n{passage.text}"


def _share(score: float) -> float:
    """A score on the model's scale as a share: 0 becomes `COVERED`."""
    return 1 / (1 + math.exp(-min(max(score, -30.0), 30.0)))
