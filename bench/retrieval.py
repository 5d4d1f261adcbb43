"""How long a question searches in small and large courses, and what a page more costs."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.common import ROOT, Figure, main
from gpuserver.knowledge.course import load
from gpuserver.knowledge.index import Index
from gpuserver.knowledge.parts import Part, texts_to_embed
from gpuserver.knowledge.terms import make_terms
from gpuserver.language import Language
from gpuserver.providers import Passage, Place, Scale
from gpuserver.providers.minilm import MiniLMEmbeddings
from gpuserver.providers.numpy import NumpyIndex
from tests.vectors import about, recall, unit

QUERY_BOUND, PAUSE_BOUND, PAGE_BOUND, RECALL_BOUND = 50.0, 5.0, 0.01, 0.99
SIZES: Final = (1_000, 10_000, 100_000, 200_000)
"""Passages, one vector each. The last are more than are compared exactly."""
EXACT: Final = SIZES[-2]
GROWN: Final = 10_000
"""Passages of the course that a page is added to."""
PASSAGES: Final = 50
"""In a document."""
_DIMENSION: Final = 384
_VOCABULARY: Final = 50_000
_WORDS, _HEADING_WORDS, _ASKED_WORDS = 40, 3, 8
_SHIPPED: Final = ROOT / "gpuserver" / "courses" / "python"
_QUESTIONS: Final = ROOT / "tests" / "data" / "questions.en.jsonl"
_SAMPLE: Final = 50
"""Passages that MiniLM embeds, to tell how long a course takes."""
_ROUNDS: Final = 7
_BEAT: Final = 0.001

Vector = NDArray[np.float32]


class _Directions:
    """Random unit vectors in no time: a model's own is measured apart."""

    languages: frozenset[str] = frozenset({"en"})
    dimension = _DIMENSION
    name = "random"
    scale: Mapping[Language, Scale] = {}

    def __init__(self) -> None:
        self._random = np.random.default_rng(2)

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        rows = self._random.standard_normal((len(texts), _DIMENSION), np.float32)
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


class _Course:
    """Documents of words as frequent as words are (Zipf), a random vector for each passage."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)
        letters = self._random.integers(97, 123, (_VOCABULARY, 7), np.uint8)
        self._words = np.array([bytes(row).decode() for row in letters])
        frequent = 1 / np.arange(1, _VOCABULARY + 1)
        self._until = np.cumsum(frequent / frequent.sum())
        self._directions = _Directions()

    def document(self, name: str, passages: int) -> Part:
        made = tuple(
            Passage(f"{name}#{n}", "kb", name, self.said(_HEADING_WORDS), f"{self.said(_WORDS)}.",
                    "en", document_id=name, n=n + 1)
            for n in range(passages)
        )  # fmt: skip
        vectors = self._directions.embed([passage.id for passage in made])
        return Part("kb", name, "en", made, make_terms(made), vectors, np.arange(passages))

    def said(self, words: int) -> str:
        places = np.searchsorted(self._until[:-1], self._random.random(words))
        return " ".join(self._words[places].tolist())


def _median(rounds: int, work: Callable[[int], object]) -> tuple[float, float]:
    """Median seconds of the wall clock, and of CPU, of calling it."""
    times = []
    for number in range(rounds):
        began, cpu = time.perf_counter(), time.process_time()
        work(number)
        times.append((time.perf_counter() - began, time.process_time() - cpu))
    return median(wall for wall, _ in times), median(cpu for _, cpu in times)


async def _longest_pause(work: Callable[[], object]) -> float:
    """Seconds by which the event loop is late at most, while a thread works."""
    clock = asyncio.get_running_loop().time
    working = asyncio.ensure_future(asyncio.to_thread(work))
    longest = 0.0
    while not working.done():
        began = clock()
        await asyncio.sleep(_BEAT)
        longest = max(longest, clock() - began - _BEAT)
    await working
    return longest


@contextmanager
def _minilm() -> Iterator[MiniLMEmbeddings]:
    with tempfile.TemporaryDirectory(prefix="gpuserver-bench-") as folder:
        model = MiniLMEmbeddings("", Place(Path(folder)))
        model.load()
        yield model
        model.close()


def _shipped_texts(passages: int | None = None) -> list[str]:
    """What is embedded of the shipped course."""
    shipped = [item for item in load("python", _SHIPPED).passages if item.language == "en"]
    return texts_to_embed(shipped[:passages])[0]


def _embedding_seconds() -> float:
    """CPU seconds in which MiniLM embeds a passage of the shipped course, on average."""
    texts = _shipped_texts(_SAMPLE)
    with _minilm() as model:
        model.embed(texts[:20])
        _, cpu = _median(1, lambda _: model.embed(texts))
    return cpu / _SAMPLE


def _sentences(rows: int) -> tuple[Vector, Vector]:
    """So many vectors between and about those of the shipped course, and of questions to it."""
    asked = [str(orjson.loads(x)["question"]) for x in _QUESTIONS.read_text("utf-8").splitlines()]
    with _minilm() as model:
        own, questions = model.embed(_shipped_texts()), model.embed(asked, query=True)
    random = np.random.default_rng(3)
    one, other = random.integers(0, len(own), (2, rows))
    share = random.uniform(0.5, 1, (rows, 1)).astype(np.float32)
    return about(own[one] * share + own[other] * (1 - share), seed=4), questions


def _chosen() -> list[Figure]:
    """What a coarse look at all rows misses, and what it saves, without words."""
    rows = SIZES[-1]
    matrix, questions = _sentences(rows)
    vectors = NumpyIndex().hold(matrix)
    found = recall(vectors, matrix, questions)
    _, cpu = _median(len(questions), lambda number: vectors.cosines(questions[number]))
    _, exact = _median(len(questions), lambda number: matrix @ questions[number])
    held, _ = _median(3, lambda _: NumpyIndex().hold(matrix))
    far = unit(len(questions), _DIMENSION, seed=5)
    matrix = unit(rows, _DIMENSION)
    hostile = recall(NumpyIndex().hold(matrix), matrix, far)
    return [
        Figure(f"recall at 8, {rows:,} sentences", found, "", RECALL_BOUND, at_least=True),
        Figure(f"recall at 8, {rows:,} random directions", hostile),
        Figure(f"vectors alone, {rows:,} sentences, CPU", cpu * 1000, "ms"),
        Figure("the same, all compared exactly, CPU", exact * 1000, "ms"),
        Figure("making them searchable", held * 1000, "ms"),
    ]


async def measure(quick: bool) -> list[Figure]:
    course, index = _Course(), Index(_Directions())
    sizes = SIZES[:2] if quick else SIZES
    figures: list[Figure] = []
    held = 0
    for size in sizes:
        index.put(
            [course.document(f"{size}-{n}", PASSAGES) for n in range((size - held) // PASSAGES)]
        )
        held = size
        figures += await _asked(course, index, size, late=size in {EXACT, sizes[-1]})
        if size == GROWN:
            figures += _grown(course, index)
    return figures if quick else figures + _chosen()


async def _asked(course: _Course, index: Index, size: int, *, late: bool) -> list[Figure]:
    questions = [course.said(_ASKED_WORDS) for _ in range(40)]
    index.search(questions[0], "en", ["kb"])
    wall, cpu = _median(40, lambda number: index.search(questions[number], "en", ["kb"]))

    def ask() -> None:
        for question in questions[:20]:
            index.search(question, "en", ["kb"])

    paused = min([await _longest_pause(ask) for _ in range(_ROUNDS)])
    idle = min([await _longest_pause(lambda: time.sleep(20 * wall)) for _ in range(_ROUNDS)])
    bound = QUERY_BOUND if size >= EXACT else None
    figures = [
        Figure(f"question, {size:,} passages", wall * 1000, "ms", bound),
        Figure(f"question, {size:,} passages, CPU", cpu * 1000, "ms"),
    ]
    if late:
        figures += [
            Figure(
                f"event loop late by at most, {size:,} passages", paused * 1000, "ms", PAUSE_BOUND
            ),
            Figure("event loop late by at most, nobody asking", idle * 1000, "ms"),
        ]
    return figures


def _grown(course: _Course, index: Index) -> list[Figure]:
    """A page more, and the same page again, against a course that is embedded and joined."""
    page = course.document("page", 1)
    index.put([page])
    wall, cpu = _median(_ROUNDS, lambda _: index.put([page]))
    index.drop("kb", "page")
    whole = _embedding_seconds() * GROWN
    return [
        Figure(f"a page added to {GROWN:,} passages ÷ building them", cpu / whole, "", PAGE_BOUND),
        Figure("a page added, without embedding it", wall * 1000, "ms"),
        Figure(f"embedding {GROWN:,} passages, CPU", whole, "s"),
    ]


if __name__ == "__main__":
    main("retrieval", measure)
