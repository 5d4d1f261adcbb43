"""Sentence embeddings by any model that sentence-transformers reads, on a GPU or the CPU."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from transformers.utils import logging as transformers_logging

from gpuserver.errors import EngineFailed, OutOfMemory, ProviderUnavailable
from gpuserver.language import Language
from gpuserver.machine.memory import memory_of, no_memory
from gpuserver.providers import Place, Scale, Status, minilm, weights
from gpuserver.providers.calibration import scales

log = logging.getLogger(__name__)

MAX_CHARS: Final = 2000
"""Of a text; what comes behind is not read. Memory grows with the longest of a batch."""
BATCH: Final = 32
"""Texts that are embedded together."""

_LOAD_ERRORS: Final = (
    *(OSError, RuntimeError, MemoryError, ImportError, SafetensorError, EngineFailed),
    *(ValueError, TypeError, LookupError, AttributeError),
)
"""What a damaged model, or one that does not fit, ends in."""
_MODULES: Final = "modules.json"
_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 64 << 10
_WEIGHTS: Final = frozenset({".safetensors", ".bin"})
_READ_WHOLE: Final = frozenset({".json", ".txt", ".model"})


@dataclass(slots=True, eq=False)
class _Asked:
    """A question that waits; `done` without a vector, the model failed."""

    text: str
    since: float
    vector: NDArray[np.float32] | None = None
    done: bool = False


class SentenceTransformersEmbeddings:
    """`Embeddings`, `Runtime` and `Watched`. `model`: a folder or a hub name; empty: MiniLM.

    One batch at a time: a tokenizer of this library may not be shared between threads. Questions
    that come in meanwhile are embedded together, as soon as the batch is through.
    """

    def __init__(self, model: str, place: Place) -> None:
        self._model = model
        self._place = place
        self._encoder: SentenceTransformer | None = None
        self._working = threading.Lock()
        self._line: list[_Asked] = []
        self._line_lock = threading.Lock()
        self.languages: frozenset[str] = frozenset()
        self.scale: Mapping[Language, Scale] = {}
        self.dimension = 0
        self.name = model

    def load(self) -> None:
        folder = self._folder()
        transformers_logging.disable_progress_bar()
        device = device_of(self._place, "the embeddings")
        with loading(folder, device, _unusable):
            self._encoder = SentenceTransformer(str(folder), device=device, local_files_only=True)
            self.scale = scales(lambda texts, query: self._batches(texts, query=query))
            digest = _digest(folder)
        if not self.scale:
            raise _unusable(folder, "it can't tell which answer belongs to which question")
        self.languages = frozenset(self.scale)
        self.dimension = self._batches(["a"], query=False).shape[1]
        known_as = folder.name if self._model else minilm.BUNDLED
        self.name = f"{known_as}-{digest[:12]}"
        served = ", ".join(sorted(self.languages))
        log.info("embeddings by %s on %s, for %s", self.name, device, served)

    def close(self) -> None:
        with self._working:
            self._encoder = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        if query and len(texts) == 1:
            return self._together(texts[0])[None]
        return self._batches(texts, query=query)

    def status(self) -> Status:
        return Status(running=int(self._working.locked()), waiting=len(self._line))

    async def probe(self) -> None:
        await asyncio.to_thread(self.embed, ["a"], query=True)

    def _folder(self) -> Path:
        place = self._place
        if self._model:
            folder = weights.folder(self._model, place.settings, place.on_progress)
        else:
            folder = minilm.bundled()
        if not (folder / _MODULES).is_file():
            # The library would take any transformer and average what comes out.
            raise _unusable(folder, f"{_MODULES} is missing, so it is no sentence-embedding model")
        return folder

    def _together(self, text: str) -> NDArray[np.float32]:
        """The vector of a question. Whoever gets to work does so for all that are waiting."""
        asked = _Asked(text, time.monotonic())
        with self._line_lock:
            self._line.append(asked)
        while not asked.done:
            with self._working:
                self._serve_line()
        if asked.vector is None:
            raise EngineFailed(engine="embeddings")
        return asked.vector

    def _serve_line(self) -> None:
        with self._line_lock:
            batch, self._line = self._line[:BATCH], self._line[BATCH:]
        if not batch:
            return
        now = time.monotonic()
        for asked in batch:
            self._place.meter.waited(now - asked.since)
        vectors: Sequence[NDArray[np.float32]] = ()
        try:
            with suppress(EngineFailed):
                vectors = list(self._encode([asked.text for asked in batch], query=True))
        finally:
            # Whatever happened, nobody may wait for it any longer.
            for asked, vector in zip_longest(batch, vectors):
                asked.vector, asked.done = vector, True

    def _batches(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        # The lock is let go between batches, so that a question need not wait for a whole course.
        done: list[NDArray[np.float32]] = [np.empty((0, self.dimension), np.float32)][: not texts]
        for begin in range(0, len(texts), BATCH):
            with self._working:
                done.append(self._encode(texts[begin : begin + BATCH], query=query))
        return np.concatenate(done)

    def _encode(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        """One batch, by whoever holds the lock."""
        if self._encoder is None:
            raise EngineFailed(engine="embeddings")
        encode = self._encoder.encode_query if query else self._encoder.encode_document
        try:
            found = encode(list(map(readable, texts)), batch_size=BATCH, show_progress_bar=False)
        except (RuntimeError, ValueError, IndexError) as error:
            self._place.meter.failed()
            # Not its message, which may hold what a student asked.
            log.warning("the embedding model failed: %s", type(error).__name__)
            raise EngineFailed(engine="embeddings") from error
        self._place.meter.batch(len(texts))
        return _unit(np.asarray(found, np.float32))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Not every model norms its vectors, and one in half precision does so roughly."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(norms, 1e-12)
    return unit


# What the models of this library share


def device_of(place: Place, whose: str) -> str:
    """Where the library puts a model. Raises ProviderUnavailable."""
    if place.gpu is not None and torch.cuda.is_available():
        return f"cuda:{place.gpu}"
    if place.settings.device == "cuda":
        raise ProviderUnavailable(
            problem=f"DEVICE is cuda, but there is no GPU that {whose} can use.",
            fix="set DEVICE=auto or cpu, or install the GPU's driver.",
        )
    return "cpu"


@contextmanager
def loading(
    folder: Path, device: str, unusable: Callable[[Path, str], ProviderUnavailable]
) -> Iterator[None]:
    """Makes of whatever a load in the block ends in OutOfMemory, or what `unusable` makes of it."""
    try:
        yield
    except _LOAD_ERRORS as error:
        cause = error.__cause__ or error
        if no_memory(cause):
            memory = memory_of("cpu" if device == "cpu" else "cuda")
            raise OutOfMemory(model=str(folder), device=memory) from error
        raise unusable(folder, _first_line(cause)) from error


def readable(text: str) -> str:
    """As much of a text as is read. Half a surrogate pair, which JSON can carry, is no text."""
    return text[:MAX_CHARS].encode("utf-8", "replace").decode()


# What a model is


def _digest(folder: Path) -> str:
    """What vectors of this model are known by, whatever its folder is called.

    Settings and vocabularies count whole. Of weights, which may be gigabytes, samples: training
    moves all of them.
    """
    digest = hashlib.sha256()
    for path in _model_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            if path.suffix in _READ_WHOLE:
                digest.update(file.read())
                continue
            for number in range(_SAMPLES):
                file.seek(number * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _model_files(folder: Path) -> Iterator[Path]:
    """The folder's own and those of its modules, which are one level down."""
    for path in sorted((*folder.glob("*"), *folder.glob("*/*"))):
        known = path.suffix in _WEIGHTS | _READ_WHOLE and not path.name.startswith(".")
        if known and path.is_file():
            yield path


# What can go wrong


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".")


def _unusable(folder: Path, why: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        problem=f"The embedding model in {folder} can't be used: {why}.",
        fix="fetch it again (gpuserver models pull), or set EMBEDDINGS_MODEL to another "
        "sentence-embedding model or to nothing.",
    )
