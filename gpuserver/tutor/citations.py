"""Which passages support a sentence: what an answer's `[n]` stand on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from gpuserver.errors import EngineFailed
from gpuserver.language import Language, detect, keywords, prose, sentences
from gpuserver.observability import get_logger
from gpuserver.providers import Passage
from gpuserver.smalltalk import is_small_talk
from gpuserver.tutor.claims import Claim, Claims, Part, without_links

log = get_logger(__name__)

# Topic alone is no support: "Tuples are faster to create than lists" is as near to a passage on
# tuples as what that passage says. So a sentence needs the passage's words and its meaning. On the
# author's own development sentences about the shipped course (20 English ones that a passage
# supports and 21 on its topic that it does not) the two bars let 12 and 0 through; by words alone,
# of 7 and 9 in Chinese, 7 and 0.
SUPPORT: Final = 0.6
"""Mean of a sentence's cosine to the passage's nearest sentence, on MiniLM's scale, and of the
share of its content words there; the share alone where the embedding model lacks the language."""
SHARED: Final = 0.5
"""More than this share of its content words must stand in the passage, whatever the cosine."""
MARKERS: Final = 2
"""Most markers behind one sentence."""
WINDOW: Final = 3
"""A sentence is held against so many of a passage's together, not against pages of words."""
CANDIDATES: Final = 2
CHECK_SECONDS: Final = 2.0
"""An answer does not wait longer for its markers."""
_LEAST_WORDS: Final = 2

_NOT_LETTERS = re.compile(r"[\W_]+")
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_LIST_MARK = re.compile(r"^\s*(?:[-*+]\s+|\d{1,3}[.)]\s+|>\s?)+")
_NO_STATEMENT = re.compile(r"^\s*(?:#|\|)|[?？:：][\"'”’』」）)*_]*$")
# "The passages do not say …", "I can't find that": what an answer says of the material itself.
_REFUSAL = re.compile(
    r"\b(?:passages?|materials?|course|texts?|documents?|sources?|information)\b.*"
    r"\b(?:not?|nothing|n['’]t|[a-z]+n['’]t)\b"
    r"|\b(?:not?|nothing|[a-z]+n['’]t)\b.*\b(?:passages?|materials?|course|documents?|sources?)\b"
    r"|\bI (?:can(?:no|['’])t|do(?: not|n['’]t) know)"
    r"|(?:资料|课程|段落|材料|文档|课文).*(?:没有|未|不)|没有(?:相关|答案)|我不知道|无法回答",
    re.I,
)

Likeness = Callable[[str, Sequence[str], Language], Awaitable[list[float] | None]]
"""The cosines of a sentence to others, on MiniLM's scale; None for a language the model lacks."""


class Citations:
    """Sets the markers of one answer."""

    def __init__(self, passages: Sequence[Passage], likeness: Likeness, own: str = "") -> None:
        """`own`: what the student wrote, whose addresses may be shown again."""
        self._pages = [_Page(passage) for passage in passages]
        self._likeness = likeness
        self._claims = Claims(own, self._quotes)
        self._fails = False

    def feed(self, delta: str) -> list[Part]:
        """What can go out now, a claim as its marker. Quick: for every token."""
        return self._claims.feed(delta)

    def flush(self) -> list[Part]:
        """What is left when the answer ends."""
        return self._claims.flush()

    def _quotes(self, text: str, n: int) -> bool:
        return 0 < n <= len(self._pages) and self._pages[n - 1].holds(text)

    def judge(self, claim: Claim) -> str | Doubt:
        """` [1]` for a sentence that the first passage supports, "" for one that none does; or what
        its meaning must decide."""
        named = [n for n in claim.named if 0 < n <= len(self._pages)]
        quoted = [n for n in named if self._quotes(claim.text, n)]
        if quoted or not self._pages:
            return _marker(claim, quoted)
        text = _LIST_MARK.sub("", claim.text)
        words = frozenset(keywords(text))
        language = detect(text, self._pages[0].passage.language)
        if len(words) < _LEAST_WORDS or not _states(text, language):
            return ""
        rest = [n for n in range(1, len(self._pages) + 1) if n not in named]
        for n in rest:
            if self._quotes(text, n):
                return _marker(claim, [n])
        near = self._near(words, frozenset(_NUMBERS.findall(text)))
        order = sorted(near, key=lambda n: (n not in named, -near[n].share))[:CANDIDATES]
        return Doubt(claim, text, language, [near[n] for n in order]) if order else ""

    def _near(self, words: frozenset[str], numbers: frozenset[str]) -> dict[int, _Near]:
        """The passages with enough of a sentence's words, and with its figures."""
        near = {}
        for n, page in enumerate(self._pages, start=1):
            share, window = page.share(words)
            if share > SHARED and numbers <= page.numbers:
                near[n] = _Near(n, share, window)
        return near

    async def settle(self, doubt: Doubt) -> str:
        """The marker of a sentence whose meaning decides; a check that fails sets none."""
        if self._fails:
            return ""
        others = [sentence for near in doubt.near for sentence in near.sentences]
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                cosines = await self._likeness(doubt.text, others, doubt.language)
        except (EngineFailed, TimeoutError) as error:
            self._fails = True
            log.warning("citations can't be checked", reason=type(error).__name__)
            return ""
        found, at = [], 0
        for near in doubt.near:
            degree = near.share
            if cosines is not None:
                degree = (degree + max(cosines[at : at + len(near.sentences)], default=0.0)) / 2
            at += len(near.sentences)
            if degree >= SUPPORT:
                found.append(near.n)
        named = sorted(n for n in found if n in doubt.claim.named)
        return _marker(doubt.claim, named or found[:1])


@dataclass(frozen=True, slots=True)
class _Near:
    """Those of a passage's sentences that share most words with another one, and what share."""

    n: int
    share: float
    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Doubt:
    """A sentence that shares words with passages, and may say something else with them."""

    claim: Claim
    text: str
    language: Language
    near: Sequence[_Near]


def _marker(claim: Claim, numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    return " " + "".join(f"[{n}]" for n in numbers[:MARKERS]) + (" " if claim.touches else "")


def _states(text: str, language: Language) -> bool:
    """Whether a sentence says something about the subject: no question, greeting or refusal."""
    if _NO_STATEMENT.search(text) or _REFUSAL.search(text):
        return False
    return not is_small_talk(text, language)


def _letters(text: str) -> str:
    return _NOT_LETTERS.sub("", text).casefold()


class _Page:
    """A passage as sentences are held against it; each view of it is made when first needed."""

    _LONG: Final = 16
    """Letters, or half as many Chinese characters, that no two texts share by chance."""

    def __init__(self, passage: Passage) -> None:
        self.passage = passage

    @cached_property
    def _sentences(self) -> list[str]:
        return list(sentences(without_links(prose(self.passage.text))))

    @cached_property
    def _spelled(self) -> frozenset[str]:
        return frozenset(_letters(sentence) for sentence in self._sentences)

    @cached_property
    def _whole(self) -> str:
        return _letters(" ".join(self._sentences))

    @cached_property
    def _words(self) -> list[frozenset[str]]:
        return [frozenset(keywords(sentence)) for sentence in self._sentences]

    @cached_property
    def numbers(self) -> frozenset[str]:
        text = f"{self.passage.heading} {self.passage.text}"
        return frozenset(_NUMBERS.findall(text))

    def holds(self, text: str) -> bool:
        """Whether it holds the text word for word; also behind the words that lead to it."""
        for said in (text, re.split("[:：]", text, maxsplit=1)[-1]):
            letters = _letters(said)
            length = len(letters) * (1 if letters.isascii() else 2)
            if letters in self._spelled or (length >= self._LONG and letters in self._whole):
                return True
        return False

    def share(self, words: frozenset[str]) -> tuple[float, Sequence[str]]:
        """The greatest share of the words that a few of its sentences hold, and those sentences."""
        heading = frozenset(keywords(self.passage.heading))
        best, near = 0.0, self._sentences[:WINDOW]
        for start in range(max(1, len(self._words) - WINDOW + 1)):
            held = heading.union(*self._words[start : start + WINDOW])
            share = len(words & held) / len(words)
            if share > best:
                best, near = share, self._sentences[start : start + WINDOW]
        return best, [sentence.replace("`", "") for sentence in near]
