"""What was said in one session, bounded, and what a follow-up question refers to."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import orjson

from gpuserver.language import Language, is_han, keywords

# Words that stand for what was said before.
_POINTS_BACK: Final[dict[Language, re.Pattern[str]]] = {
    "en": re.compile(r"\b(it|its|they|them|their|these|those)\b", re.IGNORECASE),
    "zh": re.compile("它|这个|那个|这种|那种|这些|那些"),
}
# These mostly do, and may also lead to what follows ("Is there", "so that").
_MAY_POINT_BACK: Final[dict[Language, re.Pattern[str]]] = {
    "en": re.compile(
        r"\b(that|this|others?|opposite|ones?|there|then|he|she|him|his|her|same|first|second|last)\b",
        re.IGNORECASE,
    ),
    "zh": re.compile("他|她|这|那|其|另|还有|后来|结果|后者|前者"),
}
# Stems and characters that ask for more without saying of what.
_STEMS: Final = (
    "and but so then again also writ us mak do work mean exampl cod creat try need say call one"
)
_CHARACTERS: Final = "写举例子再讲一遍说用做代码呢继续"
_OF_NO_SUBJECT: Final = frozenset([*_STEMS.split(), *_CHARACTERS])
# With more words of its own than this, a question names its subject even if it says "it".
_OWN_WORDS: Final[dict[Language, int]] = {"en": 3, "zh": 6}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer; `topic` is what it was about, `""` when nothing was found.

    Of an answer that was `interrupted`, only what the student heard.
    """

    question: str
    answer: str
    topic: str = ""
    interrupted: bool = False

    def encode(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def decode(cls, data: bytes) -> Exchange | None:
        """What `encode` wrote; None for what another version wrote, or is damaged."""
        try:
            return cls(**orjson.loads(data))
        except (TypeError, orjson.JSONDecodeError):
            return None


class Conversation:
    """The last exchanges of one session, oldest first. Each session has its own."""

    def __init__(self, limit: int) -> None:
        self._exchanges: deque[Exchange] = deque(maxlen=limit)

    def __iter__(self) -> Iterator[Exchange]:
        return iter(self._exchanges)

    def __len__(self) -> int:
        return len(self._exchanges)

    def add(self, exchange: Exchange) -> None:
        self._exchanges.append(exchange)

    def amend(self, before: Exchange, after: Exchange) -> bool:
        """Correct the last exchange; False if another has followed it."""
        if not self._exchanges or self._exchanges[-1] is not before:
            return False
        self._exchanges[-1] = after
        return True

    def whole_question(self, question: str, language: Language, *, loosely: bool = False) -> str:
        """The question made whole: a follow-up carries the topic it refers to.

        "And how do I write one?" after "What is a list?" becomes "And how do I write one? (Lists)".
        A question with a subject of its own stays as it is: it may be about anything. `loosely`
        takes "and the other one" for a follow-up too, for a question that finds nothing by itself.
        """
        topic = next((e.topic for e in reversed(self._exchanges) if e.topic), "")
        if not topic:
            return question
        own = own_words(question)
        points_back = _POINTS_BACK[language].search(question) or (
            loosely and _MAY_POINT_BACK[language].search(question)
        )
        if own and not (points_back and len(own) <= _OWN_WORDS[language]):
            return question
        # The chapters above it are about much else.
        return f"{question} ({topic.rsplit(' › ', 1)[-1]})"


def own_words(question: str) -> list[str]:
    """The words that say what a question is about; "Go on" and "Show me an example" have none."""
    return [word for word in keywords(question) if not _OF_NO_SUBJECT.issuperset(_parts(word))]


def _parts(word: str) -> Iterable[str]:
    """An English stem as it is, a Chinese word by its characters."""
    return word if is_han(word) else (word,)
