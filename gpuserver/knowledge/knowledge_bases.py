"""What the server knows, by `kb_id`: built once at start, then searched and listened for."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from gpuserver.knowledge import vocabulary
from gpuserver.knowledge.course import KnowledgeBase, load
from gpuserver.knowledge.index import Index, Progress
from gpuserver.language import Language
from gpuserver.providers import Embeddings, Passage, VectorIndex, Vocabulary

CACHED_VOCABULARIES: Final = 32


class KnowledgeBases:
    """Every knowledge base of this server. Safe to use from several threads."""

    def __init__(self, bases: Mapping[str, KnowledgeBase], index: Index) -> None:
        self._bases = bases
        self._index = index
        self._vocabularies: dict[frozenset[str], Vocabulary] = {}
        self._lock = threading.Lock()

    @classmethod
    def build(
        cls,
        folders: Mapping[str, Path],
        embeddings: Embeddings,
        cache_dir: Path,
        progress: Progress,
        index: VectorIndex | None = None,
    ) -> KnowledgeBases:
        """Read and index `folders` (kb_id → course folder). Blocking: call it in a thread.

        Raises ConfigurationError for a malformed course, ProviderUnavailable for vectors of
        another model that took long to make, EngineFailed from the embeddings.
        """
        bases = {kb_id: load(kb_id, folder) for kb_id, folder in folders.items()}
        passages = [passage for base in bases.values() for passage in base.passages]
        return cls(bases, Index.build(passages, embeddings, cache_dir, progress, index))

    def known(self, kb_id: str) -> bool:
        return kb_id in self._bases

    def search(self, question: str, language: Language, kb_ids: Iterable[str]) -> list[Passage]:
        """The passages that answer a question, best first; unknown knowledge bases hold nothing.

        Blocking (a few milliseconds). Raises EngineFailed.
        """
        return self._index.search(question, language, kb_ids)

    def vocabulary(self, kb_ids: Iterable[str]) -> Vocabulary:
        """The words to listen for, without pronunciations: those are the speech engine's to add.

        Blocking for a moment the first time for these `kb_ids`.
        """
        chosen = frozenset(kb_id for kb_id in kb_ids if self.known(kb_id))
        with self._lock:
            if chosen not in self._vocabularies:
                passages = [p for kb_id in sorted(chosen) for p in self._bases[kb_id].passages]
                headings = [passage.heading for passage in passages]
                if len(self._vocabularies) >= CACHED_VOCABULARIES:
                    del self._vocabularies[next(iter(self._vocabularies))]
                readings = {
                    word: said
                    for kb_id in sorted(chosen)
                    for word, said in self._bases[kb_id].readings.items()
                }
                self._vocabularies[chosen] = vocabulary.build(passages, headings, readings)
            return self._vocabularies[chosen]
