"""Vectors on disk: made once for each text, kept with the name of the model that made them."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuserver.errors import ProviderUnavailable
from gpuserver.providers import Embeddings

log = logging.getLogger(__name__)

Matrix = NDArray[np.float32]
Told = Callable[[int, int], None]
"""Told how many texts have a vector, and how many there are."""

KEPT_SECONDS: Final = 60.0
"""Vectors of another model that took longer than this to make are not thrown away unasked."""
SAVED_SECONDS: Final = 120.0
"""So much work is lost at most when the server is stopped while it makes vectors."""

_CHUNK: Final = 64
_KEY_BYTES: Final = 16
_HEADER_BYTES: Final = 4096
_NOT_IN_NAME: Final = re.compile(r"[^\w-]+")
_SCRATCH: Final = re.compile(r"\..+\.vectors\.[0-9a-f]{32}")


def path_of(folder: Path, name: str) -> Path:
    """The file for a shelf of a name, which may hold any characters."""
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    return folder / f"{_NOT_IN_NAME.sub('-', name)[:40]}-{digest}.vectors"


def sweep(folder: Path) -> None:
    """Take away what a server left half-written when it was killed."""
    try:
        for path in folder.glob(".*.vectors.*"):
            if _SCRATCH.fullmatch(path.name):
                path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("half-written vectors in %s can't be taken away: %s", folder, error)


@dataclass(frozen=True, slots=True)
class _Header:
    """`seconds` is what making the vectors took; `digest` is of all that follows the header."""

    model: str
    rows: int
    dimension: int
    seconds: float
    digest: str


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a file holds: for each text its key and, as a row, its vector."""

    header: _Header
    keys: tuple[bytes, ...]
    matrix: Matrix


class VectorStore:
    """The vectors of one shelf's texts, in one file.

    A text that has not changed keeps its vector, so that an edited course is soon ready.
    """

    def __init__(
        self, path: Path, embeddings: Embeddings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._embeddings = embeddings
        self._clock = clock

    def vectors(self, texts: Sequence[str], told: Told) -> Matrix:
        """Unit vectors of all texts, as rows; those that are missing are made.

        Blocking. Raises ProviderUnavailable for vectors of another model that took long to make,
        EngineFailed.
        """
        keys = tuple(map(_key, texts))
        stored = self._usable(_read(self._path))
        if stored is not None and stored.keys == keys:
            return stored.matrix
        matrix = np.zeros((len(texts), self._embeddings.dimension), np.float32)
        known = {} if stored is None else {key: row for row, key in enumerate(stored.keys)}
        missing = []
        for row, key in enumerate(keys):
            if stored is not None and key in known:
                matrix[row] = stored.matrix[known[key]]
            else:
                missing.append(row)
        spent = 0.0
        if stored is not None:
            spent = stored.header.seconds * (len(texts) - len(missing)) / max(1, len(known))
        self._make(texts, keys, matrix, missing, spent, told)
        return matrix

    def _make(
        self,
        texts: Sequence[str],
        keys: Sequence[bytes],
        matrix: Matrix,
        missing: Sequence[int],
        spent: float,
        told: Told,
    ) -> None:
        """Fill the missing rows, saving now and then; `spent` went into the others.

        What was made stays made, also when the engine fails or `told` raises to make an end.
        """
        began = saved = self._clock()
        kept = len(texts) - len(missing)
        made = 0

        def save() -> None:
            waiting = set(missing[made:])
            done = [row for row in range(len(texts)) if row not in waiting]
            seconds = spent + self._clock() - began
            self._save([keys[row] for row in done], matrix[done], seconds)

        try:
            for begin in range(0, len(missing), _CHUNK):
                rows = missing[begin : begin + _CHUNK]
                matrix[rows] = self._embeddings.embed([texts[row] for row in rows])
                made += len(rows)
                told(kept + made, len(texts))
                if self._clock() - saved > SAVED_SECONDS:
                    saved = self._clock()
                    save()
        except BaseException:
            if made:
                save()
            raise
        save()

    def _save(self, keys: Sequence[bytes], matrix: Matrix, seconds: float) -> None:
        _write(self._path, self._embeddings.name, keys, matrix, seconds)

    def _usable(self, stored: _Stored | None) -> _Stored | None:
        """What is stored, if the present model made it; else it is made again, or refused."""
        if stored is None:
            return None
        header = stored.header
        if header.model == self._embeddings.name:
            return stored if header.dimension == self._embeddings.dimension else None
        made = f"{header.rows} vectors in {self._path.name} were made by {header.model}"
        if header.seconds <= KEPT_SECONDS:
            log.warning(
                "the %s and are made again by %s, which took %.0f s then",
                made,
                self._embeddings.name,
                header.seconds,
            )
            return None
        raise ProviderUnavailable(
            problem=f"The {made} in {header.seconds / 60:.0f} minutes, and the embedding model "
            f"is now {self._embeddings.name}.",
            fix="set EMBEDDINGS_PROVIDER and EMBEDDINGS_MODEL back, or delete "
            f"{self._path} to have them made again.",
        )


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[:_KEY_BYTES]


# A file: a line of JSON, the keys of the texts, the float32 values of the vectors


def _read(path: Path) -> _Stored | None:
    """What a file holds; None when there is none, or a bit of a vector is not as it was written."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    line, _, body = data[:_HEADER_BYTES].partition(b"\n")
    body = data[len(line) + 1 :]
    try:
        header = _Header(**json.loads(line))
        size = header.rows * (_KEY_BYTES + 4 * header.dimension)
        if len(body) != size or hashlib.sha256(body).hexdigest() != header.digest:
            raise ValueError("the content is not what the header says")
    except (ValueError, TypeError, RecursionError):
        log.warning("the vectors in %s are damaged and are made again", path)
        return None
    split = header.rows * _KEY_BYTES
    keys = tuple(body[at : at + _KEY_BYTES] for at in range(0, split, _KEY_BYTES))
    matrix = np.frombuffer(body, np.float32, offset=split).reshape(header.rows, header.dimension)
    return _Stored(header, keys, matrix)


def _write(path: Path, model: str, keys: Sequence[bytes], matrix: Matrix, seconds: float) -> None:
    """Whole or not at all. Without disk the server still answers, it only starts more slowly."""
    body = b"".join(keys) + np.ascontiguousarray(matrix, np.float32).tobytes()
    digest = hashlib.sha256(body).hexdigest()
    header = _Header(model, matrix.shape[0], matrix.shape[1], round(seconds, 1), digest)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.write_bytes(json.dumps(asdict(header)).encode() + b"\n" + body)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        log.warning("vectors can't be kept in %s and are made at each start: %s", path, error)
