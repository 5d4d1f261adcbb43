"""What a tutor listens for: the words of its courses and of a session's own knowledge base."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from gpuserver.errors import GpuServerError
from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.observability import get_logger
from gpuserver.providers import ASR, TTS, Vocabulary

log = get_logger(__name__)

KEPT: Final = 16
"""Vocabularies of one tutor that are kept: one for each knowledge base its sessions bring."""
RENEW_SECONDS: Final = 30.0
"""While documents come in, one after another, the words are made anew no more often than this."""


@dataclass(slots=True, eq=False)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    vocabulary: Vocabulary | None = None
    version: tuple[int, ...] = ()
    made_at: float = 0.0


class CourseWords:
    """Vocabularies by knowledge bases, made when first asked for and anew when documents change."""

    def __init__(
        self,
        knowledge: KnowledgeBases,
        asr: ASR,
        tts: TTS | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tts` tells how words are pronounced; `clock` is monotonic, in seconds."""
        self._knowledge, self._asr, self._tts = knowledge, asr, tts
        self._clock = clock
        self._entries: OrderedDict[tuple[str, ...], _Entry] = OrderedDict()

    async def of(self, kb_ids: tuple[str, ...]) -> Vocabulary:
        """The words of these knowledge bases, and the recogniser ready for them.

        Whoever comes while they are made anew gets the ones before. Raises EngineFailed.
        """
        entry = self._entries.setdefault(kb_ids, _Entry())
        self._entries.move_to_end(kb_ids)
        if len(self._entries) > KEPT:
            self._entries.popitem(last=False)
        if entry.vocabulary is not None and (entry.lock.locked() or not self._due(entry, kb_ids)):
            return entry.vocabulary
        async with entry.lock:
            if entry.vocabulary is None or self._due(entry, kb_ids):
                await self._renew(entry, kb_ids)
        assert entry.vocabulary is not None
        return entry.vocabulary

    def _due(self, entry: _Entry, kb_ids: tuple[str, ...]) -> bool:
        if self._clock() - entry.made_at < RENEW_SECONDS:
            return False
        return entry.version != self._knowledge.version(kb_ids)

    async def _renew(self, entry: _Entry, kb_ids: tuple[str, ...]) -> None:
        version = self._knowledge.version(kb_ids)
        try:
            vocabulary = await self._make(kb_ids)
        except GpuServerError as error:
            if entry.vocabulary is None:
                raise
            log.warning("the words of a course can't be renewed", code=error.code)
        else:
            entry.vocabulary, entry.version = vocabulary, version
        entry.made_at = self._clock()

    async def _make(self, kb_ids: tuple[str, ...]) -> Vocabulary:
        # One that is deleted meanwhile is still one whose words these are.
        kb_ids = tuple(kb_id for kb_id in kb_ids if self._knowledge.known(kb_id))
        vocabulary = await asyncio.to_thread(self._knowledge.vocabulary, kb_ids)
        if self._tts is not None:
            spoken = await self._tts.pronounce(vocabulary.words)
            vocabulary = replace(vocabulary, pronunciations=spoken)
        await self._asr.prepare(vocabulary)
        await asyncio.to_thread(self._knowledge.listened_for, vocabulary, kb_ids)
        return vocabulary
