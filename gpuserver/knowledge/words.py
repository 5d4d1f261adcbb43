"""How well passages answer a question by their words alone: rare shared words against missing ones.

The measure has to bear chatter ("救命，我的程序一直跑停不下来了") and still tell a course from the
world outside it, so it is no share of the question's words: what is shared counts whole, what is
missing counts in part, and one shared word alone convinces nobody.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

import bm25s
import numpy as np
from numpy.typing import NDArray

from gpuserver.language import FUNCTION_CHARACTERS, HAN, code_blocks, is_han, keywords, terms
from gpuserver.providers import Passage

Scores = NDArray[np.float32]

# Passages are short and say a term once or twice: a second mention adds little (K1 below the usual
# 1.2) and length says little (B below the usual 0.75).
K1: Final = 0.5
B: Final = 0.3
HEADING_WEIGHT: Final = 2
"""A word in the heading counts as often as this in the text."""
SINGLE_HAN_WEIGHT: Final = 0.25
"""One Chinese character says little beside a pair, which is mostly a word."""
UNKNOWN_HAN_WEIGHT: Final = 0.4
"""A pair that the material lacks may be the end of one word and the beginning of the next."""
COHESION: Final = 0.3
"""Share of a character's places in the material in which a pair is held to be a word (调用, 对象)
although it holds a function character (用, 对)."""

# What counts against the words shared, in shares of a word that one passage holds.
DOUBT: Final = 0.8
"""Before anything is shared: a single common word is no evidence."""
ELSEWHERE: Final = 0.1
"""For each word of the question that only other passages hold: mostly chatter."""
UNKNOWN: Final = 0.65
"""For each word that no passage holds: the name of another subject, or chatter."""

_HAN_RUN = re.compile(f"[{HAN}]+")
# "What is the difference between a list and a tuple?" names two things.
_BETWEEN_NAMES = re.compile(r"\b(?:and|or|between|versus|vs|than)\b|[、和与跟或比]|还是", re.I)
MAX_NAMES: Final = 4
_TOPIC = re.compile(r"[(（]([^()（）]+)[)）]\s*$")
TOPIC_WEIGHT: Final = 0.2
"""Of a heading that the topic of the conversation names, beside one that the question names: enough
for "And how do I write one?", and little enough for "And what about tuples?"."""


class Words:
    """The words of a shelf's passages. Safe to use from several threads."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        texts = [(passage.heading, _without_samples(passage.text)) for passage in passages]
        self._compounds = _compounds(chain.from_iterable(texts))
        headings = [self._of(heading) for heading, _ in texts]
        documents = [
            heading * HEADING_WEIGHT + self._of(text)
            for heading, (_, text) in zip(headings, texts, strict=True)
        ]
        # The empty string, which no question holds, keeps the library from an empty vocabulary.
        self._bm25: Any = bm25s.BM25(
            k1=K1, b=B, method="lucene", backend="numpy", auto_compile=False
        )
        self._bm25.index([document or [""] for document in documents], show_progress=False)
        held = Counter(word for document in documents for word in set(document))
        self._rarity = {word: _rarity(len(texts), count) for word, count in held.items()}
        self._rare = _rarity(len(texts), 1)
        # Which headings hold a word, and what all the words of a heading weigh.
        self._named_by: dict[str, list[int]] = {}
        self._in_heading: Scores = np.zeros(len(texts), np.float32)
        for row, heading in enumerate(headings):
            for word in set(heading):
                self._named_by.setdefault(word, []).append(row)
                self._in_heading[row] += self._weight(word)

    def of_question(self, question: str, only_latin: bool = False) -> list[str]:
        """What a question asks for, each word once; what two languages share is code and names."""
        words = dict.fromkeys(self._of(question))
        return [word for word in words if not (only_latin and is_han(word))]

    def scores(self, words: Sequence[str]) -> Scores:
        """Of each passage, from 0 to below 1, how much the question's words speak for it."""
        shared: Scores = np.zeros_like(self._in_heading)
        known = [word for word in words if word in self._rarity]
        for single in (False, True):
            group = [word for word in known if _is_single(word) == single]
            if group:
                shared += (SINGLE_HAN_WEIGHT if single else 1.0) * self._bm25.get_scores(group)
        total = sum(self._weight(word) for word in known)
        unknown = sum(_kind_weight(word, known=False) for word in words if word not in self._rarity)
        against = (DOUBT + UNKNOWN * unknown) * self._rare
        elsewhere = np.maximum(np.float32(total) - shared, 0)
        score: Scores = shared / (shared + np.float32(against) + np.float32(ELSEWHERE) * elsewhere)
        return score

    def headings(self, question: str, only_latin: bool = False) -> Scores:
        """Of each passage, from 0 to 1, how exactly its heading is what the question names.

        A topic in brackets at the end ("And how do I write one? (Lists)") counts for itself.
        Cubed, because naming half a heading is no naming: "list" asks for "Lists", and leaves
        "List indexing" to the other scores.
        """
        topic = _TOPIC.search(question)
        asked = question[: topic.start()] if topic else question
        names = dict.fromkeys([asked, *_BETWEEN_NAMES.split(asked, MAX_NAMES)], 1.0)
        if topic:
            names.setdefault(topic.group(1), TOPIC_WEIGHT)
        best = np.zeros_like(self._in_heading)
        for name, weight in names.items():
            words = self.of_question(name, only_latin)
            if words:
                best = np.maximum(best, weight * self._named(words) ** 3)
        return best

    def _named(self, words: Sequence[str]) -> Scores:
        """Twice what question and heading share, by all that both hold."""
        asked = sum(self._weight(word) for word in words)
        both: Scores = np.zeros_like(self._in_heading)
        for word in words:
            both[self._named_by.get(word, [])] += self._weight(word)
        named: Scores = 2 * both / (asked + self._in_heading)
        return named

    def _of(self, text: str) -> list[str]:
        return keywords(text, self._compounds)

    def _weight(self, word: str) -> float:
        return _kind_weight(word, word in self._rarity) * self._rarity.get(word, self._rare)


def _is_single(word: str) -> bool:
    return len(word) == 1 and is_han(word)


def _kind_weight(word: str, known: bool) -> float:
    if not is_han(word):
        return 1.0
    return SINGLE_HAN_WEIGHT if len(word) == 1 else 1.0 if known else UNKNOWN_HAN_WEIGHT


def _rarity(documents: int, holding: int) -> float:
    """BM25's weight of a word (inverse document frequency), as the library computes it."""
    return float(np.log(1 + (documents - holding + 0.5) / (holding + 0.5)))


def _without_samples(markdown: str) -> str:
    """A text without the Chinese in its code, which is no command: 你好，世界 is about no world."""
    for block in code_blocks(markdown):
        markdown = markdown.replace(block, _HAN_RUN.sub(" ", block))
    return markdown


def _compounds(texts: Iterable[str]) -> frozenset[str]:
    """The pairs with a function character in them that are words of these texts."""
    found = Counter(term for text in texts for term in terms(text) if is_han(term))
    return frozenset(
        pair
        for pair, count in found.items()
        if len(pair) == 2
        and not FUNCTION_CHARACTERS.isdisjoint(pair)
        and count > 1
        and count >= COHESION * min(found[pair[0]], found[pair[1]])
    )
