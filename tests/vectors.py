"""Made unit vectors, as models and as nobody gives them, and how well an index searches them."""

import threading
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpuserver.providers import Vectors

Matrix = NDArray[np.float32]


def unit(rows: int, dimension: int, seed: int = 1) -> Matrix:
    """Directions of no order at all, which no model gives: every row is far from every other."""
    return _unit(np.random.default_rng(seed).standard_normal((rows, dimension), np.float32))


@lru_cache(maxsize=2)
def topics(rows: int, dimension: int) -> Matrix:
    """Rows as sentences have them: each near a few of three hundred topics, some more common.

    Made once, and so not to be written to.
    """
    random = np.random.default_rng(1)
    centres = unit(300, dimension) * np.linspace(0.3, 1, dimension, dtype=np.float32)
    mixed = centres[random.integers(0, 300, (rows, 3))]
    weights = random.random((rows, 3, 1), np.float32)
    made = about((mixed * weights).sum(axis=1), seed=4)
    made.flags.writeable = False
    return made


def one_sided(rows: int, dimension: int) -> Matrix:
    """Rows of which any two have a cosine above 0.7, some dimensions being much larger."""
    matrix = topics(rows, dimension).copy()
    matrix[:, 7] += 1.8
    matrix[:, 9] *= 5
    return _unit(matrix)


def about(matrix: Matrix, seed: int) -> Matrix:
    """Rows near these."""
    return _unit(_unit(matrix) + unit(len(matrix), matrix.shape[1], seed) * np.float32(0.5))


def recall(vectors: Vectors, matrix: Matrix, questions: Matrix, k: int = 8) -> float:
    """Which share of the nearest `k` rows an index knows the cosine of."""
    exact = matrix @ questions.T
    found = np.stack([vectors.cosines(question) for question in questions], axis=1)
    nearest = np.argsort(-exact, axis=0)[:k]
    known = np.take_along_axis(np.abs(found - exact) < 1e-4, nearest, axis=0)
    return float(known.mean())


def _unit(matrix: Matrix) -> Matrix:
    found: Matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return found


def missed_by_threads(vectors: Vectors, matrix: Matrix) -> list[int]:
    """The rows, of eight that eight threads search for at once, that were not their own nearest."""
    wrong: list[int] = []

    def work(row: int) -> None:
        wrong.extend(row for _ in range(20) if int(vectors.cosines(matrix[row]).argmax()) != row)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
