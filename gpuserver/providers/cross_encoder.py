"""Re-ranking by any cross-encoder that sentence-transformers reads, on a GPU or the CPU."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from transformers.utils import logging as transformers_logging

from gpuserver.errors import EngineFailed, EngineStalled, ProviderUnavailable
from gpuserver.language import Language
from gpuserver.providers import Place, Scale, Status, weights
from gpuserver.providers.calibration import answer_scales
from gpuserver.providers.sentence_transformers import device_of, loading, readable

log = logging.getLogger(__name__)

MAX_TOKENS: Final = 512
"""Of a question and a text together; what comes behind is not read."""
BATCH: Final = 4
"""Texts that are read together: few, for nothing can end a batch that is under way."""
PATIENCE_SECONDS: Final = 4.0
"""A student waits: an answer without the re-ranker is better than one that comes later still."""


class CrossEncoderReranker:
    """`Reranker`, `Runtime` and `Watched`. `model`: a folder or a hub name.

    One batch at a time: a tokenizer of this library may not be shared between threads.
    """

    def __init__(self, model: str, place: Place, patience: float = PATIENCE_SECONDS) -> None:
        """`patience`: so many seconds after a question comes no batch for it is begun."""
        self._model, self._place, self._patience = model, place, patience
        self._encoder: CrossEncoder | None = None
        self._working = threading.Lock()
        self.scale: Mapping[Language, Scale] = {}

    def load(self) -> None:
        if not self._model:
            raise ProviderUnavailable(
                problem="RERANKER_PROVIDER is sentence-transformers, and no model is named.",
                fix="set RERANKER_MODEL to a folder or a hub name, or RERANKER_PROVIDER=none.",
            )
        place = self._place
        folder = weights.folder(self._model, place.settings, place.on_progress)
        transformers_logging.disable_progress_bar()
        device = device_of(place, "the re-ranker")
        with loading(folder, device, _unusable):
            self._encoder = CrossEncoder(str(folder), device=device, local_files_only=True)
            longest = self._encoder.max_seq_length or MAX_TOKENS
            self._encoder.max_seq_length = min(longest, MAX_TOKENS)
            if self._encoder.num_labels == 1:
                self.scale = answer_scales(self._calmly, lambda x: place.on_progress("warming", x))
        if not self.scale:
            raise _unusable(folder, "it can't tell which answer belongs to which question")
        served = ", ".join(sorted(self.scale))
        log.info("re-ranking by %s on %s, for %s", folder.name, device, served)

    def close(self) -> None:
        with self._working:
            self._encoder = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def score(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        until = time.monotonic() + self._patience
        done: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
        for begin in range(0, len(texts), BATCH):
            with self._turn(until):
                done.append(self._read(question, texts[begin : begin + BATCH]))
        return np.concatenate(done)

    def status(self) -> Status:
        return Status(running=int(self._working.locked()))

    async def probe(self) -> None:
        await asyncio.to_thread(self.score, "a", ["a"])

    def _calmly(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `score`, while nobody waits."""
        with self._working:
            return self._read(question, texts)

    @contextmanager
    def _turn(self, until: float) -> Iterator[None]:
        """The model to oneself. Raises EngineStalled when there is no time left for it."""
        asked = time.monotonic()
        if asked >= until or not self._working.acquire(timeout=until - asked):
            raise EngineStalled(engine="reranker", limit=f"{self._patience:g}")
        try:
            self._place.meter.waited(time.monotonic() - asked)
            yield
        finally:
            self._working.release()

    def _read(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """The scores by whoever holds the lock."""
        if self._encoder is None:
            raise EngineFailed(engine="reranker")
        pairs = [(readable(question), readable(text)) for text in texts]
        try:
            # Its own scores: squeezed between 0 and 1, what is good and what is best look the same.
            found = self._encoder.predict(
                pairs, batch_size=BATCH, show_progress_bar=False, activation_fn=torch.nn.Identity()
            )
            scores = np.asarray(found, np.float32).reshape(len(texts))
            if not np.isfinite(scores).all():
                raise ValueError("not a number")
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            self._place.meter.failed()
            # Not its message, which may hold what a student asked.
            log.warning("the re-ranker failed: %s", type(error).__name__)
            raise EngineFailed(engine="reranker") from error
        self._place.meter.batch(len(texts))
        return scores


def _unusable(folder: Path, why: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        problem=f"The re-ranker in {folder} can't be used: {why}.",
        fix="fetch it again (gpuserver models pull), or set RERANKER_MODEL to another "
        "cross-encoder or to nothing.",
    )
