"""What is searched of a base that is opened again, and what of it another model had made."""

from __future__ import annotations

from dataclasses import dataclass

from gpuserver.course_errors import KnowledgeBaseOutdated
from gpuserver.knowledge.base_file import Stored
from gpuserver.knowledge.kept_parts import fits, restored
from gpuserver.knowledge.parts import Part
from gpuserver.knowledge.vector_store import KEPT_SECONDS
from gpuserver.providers import Embeddings


@dataclass(frozen=True, slots=True)
class Restored:
    """`outdated` documents are indexed again by themselves; `unsearched` ones have a `problem`:
    indexing them took so long that it is not done unasked."""

    parts: list[Part]
    outdated: frozenset[str] = frozenset()
    unsearched: frozenset[str] = frozenset()
    problem: KnowledgeBaseOutdated | None = None


def restored_base(stored: Stored, kb_id: str, embeddings: Embeddings) -> Restored:
    """Of all that a base's file holds. Raises ValueError where parts are not of their passages."""
    parts: list[Part] = []
    outdated: set[str] = set()
    wasted: dict[str, float] = {}
    for document_id, kept in stored.parts.items():
        passages = stored.passages[document_id]
        for item in kept:
            part, whole = restored(item, kb_id, document_id, passages, embeddings)
            parts.append(part)
            if not whole:
                outdated.add(document_id)
            if not fits(item, embeddings):
                wasted[item.model] = wasted.get(item.model, 0.0) + item.seconds
    if sum(wasted.values()) <= KEPT_SECONDS:
        return Restored(parts, outdated=frozenset(outdated))
    problem = KnowledgeBaseOutdated(
        kb_id=kb_id, made_by=max(wasted, key=wasted.__getitem__),
        minutes=round(sum(wasted.values()) / 60), model=embeddings.name,
    )  # fmt: skip
    searched = [part for part in parts if part.document_id not in outdated]
    return Restored(searched, unsearched=frozenset(outdated), problem=problem)
