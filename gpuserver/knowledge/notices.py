"""What a student should know of the knowledge base that a session brings, where it can't answer."""

from __future__ import annotations

from typing import Final

from gpuserver.course_errors import KnowledgeBaseUnprepared, KnowledgeBaseUnreadable
from gpuserver.errors import GpuServerError, KnowledgeBaseNotFound
from gpuserver.knowledge.knowledge_bases import KnowledgeBases

_SHOWN: Final = 80


def notice_of(knowledge: KnowledgeBases, kb_id: str) -> GpuServerError | None:
    """None where something of it is searched."""
    shown = kb_id[:_SHOWN]
    if not knowledge.known(kb_id):
        return KnowledgeBaseNotFound(kb_id=shown)
    base = knowledge.base(kb_id)
    if any(document.answers for document in knowledge.documents(kb_id)):
        return None
    if base.state == "indexing" or (base.state == "ready" and not base.documents):
        return KnowledgeBaseUnprepared(kb_id=shown)
    return KnowledgeBaseUnreadable(kb_id=shown)
