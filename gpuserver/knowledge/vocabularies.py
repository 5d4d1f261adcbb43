"""Vocabularies of several knowledge bases together, kept until one of them changes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from gpuserver.knowledge import vocabulary
from gpuserver.knowledge.course_base import CourseBase
from gpuserver.knowledge.uploaded_base import UploadedBase
from gpuserver.providers import Passage, Vocabulary

KEPT: Final = 32
MOST_PASSAGES: Final = 3000
"""That words are taken from: with all those of a library a recogniser hears none of them well."""

Base = CourseBase | UploadedBase


class Vocabularies:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], tuple[tuple[int, ...], Vocabulary]] = {}
        self._lock = threading.Lock()

    def of(self, bases: Sequence[Base]) -> Vocabulary:
        """The words of these bases. Blocking, where they are not kept: 0.5 s for 1,000 passages."""
        key = tuple(base.kb_id for base in bases)
        versions = tuple(base.version for base in bases)
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is None or kept[0] != versions:
                kept = versions, _make(bases)
            self._kept[key] = kept
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
            return kept[1]


def _make(bases: Sequence[Base]) -> Vocabulary:
    passages = _some([base.passages() for base in bases])
    # "Motion › Free fall" are two things to ask about.
    headings = [part.strip() for p in passages for part in p.heading.split("›")]
    readings = {word: said for base in bases for word, said in base.readings.items()}
    return vocabulary.build(passages, dict.fromkeys(headings), readings)


def _some(held: Sequence[Sequence[Passage]]) -> list[Passage]:
    """As many as a recogniser can bear: of each large base evenly, of small ones all."""
    some: list[Passage] = []
    for place, passages in enumerate(sorted(held, key=len)):
        share = (MOST_PASSAGES - len(some)) // (len(held) - place)
        count = min(share, len(passages))
        some.extend(passages[row * len(passages) // count] for row in range(count))
    return some
