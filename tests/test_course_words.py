"""The words that are listened for: by knowledge base, anew after a change, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import pytest

from gpuserver.errors import EngineFailed
from gpuserver.providers import Vocabulary
from gpuserver.tutor.course_words import KEPT, RENEW_SECONDS, CourseWords
from tests.fakes import Clock, ScriptedASR, ToneTTS


class Shelves:
    """Knowledge bases that have a version and a word of that name."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.made = 0
        self.listened: list[tuple[str, tuple[str, ...]]] = []

    def known(self, kb_id: str) -> bool:
        return not kb_id.startswith("unknown")

    def listened_for(self, vocabulary: Vocabulary, kb_ids: Iterable[str]) -> None:
        self.listened.append((vocabulary.digest, tuple(kb_ids)))

    def version(self, kb_ids: Iterable[str]) -> tuple[int, ...]:
        return tuple(self.versions.get(kb_id, 0) for kb_id in kb_ids)

    def vocabulary(self, kb_ids: Iterable[str]) -> Vocabulary:
        self.made += 1
        words = tuple(f"{kb_id}{self.versions.get(kb_id, 0)}" for kb_id in kb_ids)
        return Vocabulary(words, words)


class Speller(ToneTTS):
    fails: Exception | None = None

    async def pronounce(self, words: Sequence[str]) -> Mapping[str, str]:
        if self.fails is not None:
            raise self.fails
        await asyncio.sleep(0)
        return {word: f"/{word}/" for word in words}


class Made:
    def __init__(self) -> None:
        self.shelves, self.asr, self.tts, self.clock = Shelves(), ScriptedASR(), Speller(), Clock()
        self.words = CourseWords(self.shelves, self.asr, self.tts, self.clock)  # type: ignore[arg-type]


@pytest.fixture
def made() -> Made:
    return Made()


async def test_they_are_made_once_and_the_recogniser_is_ready_for_them(made: Made) -> None:
    first, second = await asyncio.gather(made.words.of(("a", "b")), made.words.of(("a", "b")))
    assert first is second
    assert first.pronunciations == {"a0": "/a0/", "b0": "/b0/"}
    assert made.asr.prepared == [first]
    assert (await made.words.of(("a",))).words == ("a0",)
    assert made.shelves.made == 2


async def test_it_is_noted_whose_words_the_recogniser_keeps(made: Made) -> None:
    words = await made.words.of(("a", "unknown"))
    assert words.words == ("a0",)
    assert made.shelves.listened == [(words.digest, ("a",))]


async def test_a_changed_document_brings_its_words(made: Made) -> None:
    await made.words.of(("a",))
    made.shelves.versions["a"] = 1
    assert (await made.words.of(("a",))).words == ("a0",), "not while many documents come in"
    made.clock.now += RENEW_SECONDS
    assert (await made.words.of(("a",))).words == ("a1",)
    made.clock.now += RENEW_SECONDS
    await made.words.of(("a",))
    assert made.shelves.made == 2


async def test_what_can_not_be_renewed_stays_as_it_was(made: Made) -> None:
    await made.words.of(("a",))
    made.shelves.versions["a"] = 1
    made.clock.now += RENEW_SECONDS
    made.tts.fails = EngineFailed(engine="tts")
    assert (await made.words.of(("a",))).words == ("a0",)
    with pytest.raises(EngineFailed):
        await made.words.of(("b",))
    made.tts.fails = None
    assert (await made.words.of(("b",))).words == ("b0",)


async def test_only_so_many_are_kept(made: Made) -> None:
    for n in range(KEPT + 1):
        await made.words.of((str(n),))
    await made.words.of((str(KEPT),))
    assert made.shelves.made == KEPT + 1
    await made.words.of(("0",))
    assert made.shelves.made == KEPT + 2
