"""Embeddings and a reader of documents that do what a test says, and knowledge bases over them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpuserver.config import DEFAULTS, Settings
from gpuserver.documents import Piece, ReadDocument, ReadingLimits
from gpuserver.knowledge.info import DocumentInfo
from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.language import Language, keywords
from gpuserver.providers import Scale, VectorIndex

SHIPPED = Path(__file__).resolve().parent.parent / "gpuserver" / "courses" / "python"
MECHANICS = "Friction slows a moving sledge.\n\nGravity pulls every apple down."
OPTICS = "Lenses bend light towards a focus."


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def word_vectors(texts: Sequence[str], dimension: int) -> NDArray[np.float32]:
    """Of length 1, (texts, dimension): each keyword has its own direction."""
    vectors = np.zeros((len(texts), dimension), np.float32)
    for row, text in enumerate(texts):
        for word in keywords(text) or ["?"]:
            vectors[row, sum(word.encode()) % dimension] += 1
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


class WordEmbeddings:
    """Texts with words in common are near.

    While `gate` is closed, what is embedded waits.
    """

    languages: frozenset[str] = frozenset({"en"})
    dimension = 64
    scale: Mapping[Language, Scale] = {}

    def __init__(self, name: str = "words") -> None:
        self.name = name
        self.texts: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        if not query:
            assert self.gate.wait(30)
            self.texts.extend(texts)
        return word_vectors(texts, self.dimension)


class ScriptedReader:
    """Reads text files whose paragraphs are the passages, in the process of the test.

    A name in `failures` is refused as that says, and one in `gates` waits for its event first.
    """

    def __init__(self) -> None:
        self.read: list[str] = []
        self.failures: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}

    async def __call__(
        self, path: Path, name: str, limits: ReadingLimits, told: Callable[[int, int], None]
    ) -> ReadDocument:
        self.read.append(name)
        text = await asyncio.to_thread(path.read_text, "utf-8")
        paragraphs = [line for line in text.split("\n\n") if line.strip()]
        told(0, len(paragraphs))
        if name in self.gates:
            await self.gates[name].wait()
        if name in self.failures:
            raise self.failures[name]
        told(len(paragraphs), len(paragraphs))
        title = name.partition(".")[0]
        pieces = tuple(
            Piece(line, f"{title} › {line.split()[0]}", page, "en" if line.isascii() else "zh")
            for page, line in enumerate(paragraphs, start=1)
        )
        return ReadDocument(title, text, pieces, len(paragraphs), ())


@dataclass
class School:
    """A data folder, and a server's knowledge bases over it, which can be closed and reopened."""

    folder: Path
    embeddings: WordEmbeddings = field(default_factory=WordEmbeddings)
    reader: ScriptedReader = field(default_factory=ScriptedReader)
    settings: Settings = DEFAULTS
    courses: dict[str, Path] = field(default_factory=dict)
    index: VectorIndex | None = None
    knowledge: KnowledgeBases = field(init=False)

    @asynccontextmanager
    async def open(self, *, working: bool = True) -> AsyncIterator[KnowledgeBases]:
        """The knowledge bases of a server that runs; without `working` nothing is indexed."""
        self.knowledge = await asyncio.to_thread(
            KnowledgeBases.open, self.courses, self.embeddings, self.folder, quiet, self.index,
            self.settings, self.reader,
        )  # fmt: skip
        try:
            if working:
                async with self.knowledge.running():
                    yield self.knowledge
            else:
                yield self.knowledge
        finally:
            await asyncio.to_thread(self.knowledge.close)

    async def upload(self, kb_id: str, name: str, text: str | bytes) -> DocumentInfo:
        scratch = self.knowledge.incoming(kb_id) / "scratch"
        content = text.encode() if isinstance(text, str) else text
        await asyncio.to_thread(scratch.write_bytes, content)
        (info,) = await self.knowledge.add(kb_id, name, scratch)
        assert not await asyncio.to_thread(scratch.exists)
        return info

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not check():
                await asyncio.sleep(0.01)

    async def indexed(self, kb_id: str) -> list[DocumentInfo]:
        """The documents, once none waits any more."""
        waiting = {"queued", "reading", "indexing"}
        knowledge = self.knowledge
        await self.until(lambda: not waiting & {d.state for d in knowledge.documents(kb_id)})
        return knowledge.documents(kb_id)

    def find(self, question: str, *kb_ids: str) -> list[str]:
        return [
            found.text for found in self.knowledge.find(question, "en", kb_ids or ["physics"])[0]
        ]

    def on_disk(self, words: str) -> bool:
        """Whether anything kept under the data folder holds these words."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return any(words.encode() in path.read_bytes() for path in files)
