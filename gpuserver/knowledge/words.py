"""How well passages answer a question by their words alone: rare shared words against missing ones.

The measure has to bear chatter ("救命，我的程序一直跑停不下来了") and still tell a course from the
world outside it, so it is no share of the question's words: what is shared counts whole, what is
missing counts in part, and one shared word alone convinces nobody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuserver.knowledge.postings import Keys, Postings, Tally, spans
from gpuserver.knowledge.terms import (
    PartTerms,
    compound_candidates,
    is_candidate,
    is_single,
    key_of,
    pair_parts,
)
from gpuserver.language import is_han, keywords

Scores = NDArray[np.float32]

# Passages are short and say a term once or twice: a second mention adds little (K1 below the usual
# 1.2) and length says little (B below the usual 0.75).
K1: Final = 0.5
B: Final = 0.3
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

SHORT_WORDS: Final = 6
"""Of a question, words like "what" and "is" left out: with more of them it tells a story."""

# "What is the difference between a list and a tuple?" names two things.
_BETWEEN_NAMES = re.compile(r"\b(?:and|or|between|versus|vs|than)\b|[、和与跟或比]|还是", re.I)
MAX_NAMES: Final = 4
_TOPIC = re.compile(r"[(（]([^()（）]+)[)）]\s*$")
TOPIC_WEIGHT: Final = 0.2
"""Of a heading that the topic of the conversation names, beside one that the question names: enough
for "And how do I write one?", and little enough for "And what about tuples?"."""


class Words:
    """The words of a shelf's passages, joined from its documents'. Any number of threads may ask.

    The formula is BM25's (Lucene's), with what the question lacks counted against it.
    """

    def __init__(self, documents: Sequence[PartTerms]) -> None:
        """`documents`: one at least."""
        sizes = [terms.passages for terms in documents]
        offsets = (np.cumsum(sizes) - sizes).tolist()
        self._count = sum(sizes)
        self._han = Tally.join([terms.han for terms in documents])
        self._words = Postings.join([terms.words for terms in documents], offsets)
        self._rarity = _rarity(self._count, self._words.sizes)
        self._rare = float(_rarity(self._count, np.ones(1))[0])
        lengths = np.concatenate([terms.lengths for terms in documents])
        self._shares = self._saturated(lengths)
        # Which headings hold a word, and what all the words of a heading weigh.
        self._headings = Postings.join([terms.headings for terms in documents], offsets)
        self._in_heading = self._heading_weights()

    def of_question(self, question: str, only_latin: bool = False) -> list[str]:
        """What a question asks for, each word once; what two languages share is code and names."""
        words = dict.fromkeys(keywords(question, self._compounds_in(question)))
        return [word for word in words if not (only_latin and is_han(word))]

    def scores(self, words: Sequence[str]) -> Scores:
        """Of each passage, from 0 to below 1, how much the question's words speak for it."""
        shared: Scores = np.zeros(self._count, np.float32)
        total = unknown = 0.0
        for word in words:
            place = self._place(word)
            if place < 0:
                unknown += _kind_weight(word, known=False)
                continue
            weight = _kind_weight(word, known=True) * float(self._rarity[place])
            total += weight
            at = self._words.at(place)
            shared[self._words.rows[at]] += np.float32(weight) * self._shares[at]
        against = (DOUBT + UNKNOWN * unknown) * self._rare
        elsewhere = np.maximum(np.float32(total) - shared, 0)
        score: Scores = shared / (shared + np.float32(against) + np.float32(ELSEWHERE) * elsewhere)
        return score

    def strangeness(self, words: Sequence[str]) -> float:
        """The share of a short question's words that no passage holds; 0 for a long question.

        In a short one such a word is the name of what is asked for, in a long one it is chatter.
        """
        counted = [word for word in words if len(word) > 1 or not is_han(word)]
        # Two pairs of Chinese characters make up about as much as a word.
        sizes = [0.5 if is_han(word) else 1.0 for word in counted]
        if not counted or sum(sizes) > SHORT_WORDS:
            return 0.0
        return sum(self._place(word) < 0 for word in counted) / len(counted)

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
        best: Scores = np.zeros(self._count, np.float32)
        for name, weight in names.items():
            words = self.of_question(name, only_latin)
            if words:
                best = np.maximum(best, np.float32(weight) * self._named(words) ** 3)
        return best

    def _named(self, words: Sequence[str]) -> Scores:
        """Twice what question and heading share, by all that both hold."""
        asked = 0.0
        both: Scores = np.zeros(self._count, np.float32)
        for word in words:
            known = self._place(word)
            rarity = self._rare if known < 0 else float(self._rarity[known])
            weight = _kind_weight(word, known >= 0) * rarity
            asked += weight
            place = self._headings.find(key_of(word))
            if place >= 0:
                both[self._headings.rows[self._headings.at(place)]] += np.float32(weight)
        named: Scores = 2 * both / (np.float32(asked) + self._in_heading)
        return named

    def _place(self, word: str) -> int:
        return self._words.find(key_of(word))

    def _compounds_in(self, text: str) -> frozenset[str]:
        """The pairs of a text with a function character in them that are words of the material."""
        pairs = compound_candidates(text)
        if not pairs:
            return frozenset()
        chosen = self._compound(np.array([key_of(pair) for pair in pairs], np.uint64))
        return frozenset(pair for pair, taken in zip(pairs, chosen.tolist(), strict=True) if taken)

    def _compound(self, pairs: Keys) -> NDArray[np.bool_]:
        together = self._han.counted(pairs)
        first, second = (self._han.counted(part) for part in pair_parts(pairs))
        chosen: NDArray[np.bool_] = together >= COHESION * np.minimum(first, second)
        return chosen & (together > 1)

    def _saturated(self, lengths: NDArray[np.int32]) -> Scores:
        """What each place of the postings adds, before the rarity of its word."""
        words = self._words
        chosen = np.flatnonzero(is_candidate(words.keys))
        chosen = chosen[self._compound(words.keys[chosen])]
        # What a passage's length is without them was counted in its document.
        places = spans(words.starts[chosen], words.sizes[chosen])
        lengths = lengths.copy()
        np.add.at(lengths, words.rows[places], words.counts[places])
        mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
        norm = (K1 * (1 - B + B * lengths / mean)).astype(np.float32)
        shares: Scores = words.counts / (words.counts + norm[words.rows])
        return shares

    def _heading_weights(self) -> Scores:
        held = self._headings
        weights = self._rarity[np.searchsorted(self._words.keys, held.keys)]
        weights = weights * np.where(is_single(held.keys), np.float32(SINGLE_HAN_WEIGHT), 1)
        candidates = np.flatnonzero(is_candidate(held.keys))
        weights[candidates] *= self._compound(held.keys[candidates])
        each = weights[np.searchsorted(held.starts, np.arange(len(held.rows)), "right") - 1]
        return np.bincount(held.rows, each, self._count).astype(np.float32)


def _kind_weight(word: str, known: bool) -> float:
    if not is_han(word):
        return 1.0
    return SINGLE_HAN_WEIGHT if len(word) == 1 else 1.0 if known else UNKNOWN_HAN_WEIGHT


def _rarity(passages: int, holding: NDArray[np.generic]) -> Scores:
    """BM25's weight of a word that so many passages hold (inverse document frequency)."""
    held = holding.astype(np.float64)
    return np.log(1 + (passages - held + 0.5) / (held + 0.5)).astype(np.float32)
