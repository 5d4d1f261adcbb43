"""What was said in one session, bounded, and what a follow-up question refers to."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gpuserver.language import Language, terms

# Words that point back to what was said before, and openings that carry a question on.
_POINTS_BACK: Final[dict[Language, re.Pattern[str]]] = {
    "en": re.compile(
        r"\b(it|its|one|ones|they|them|their|this|that|these|those|another|the same)\b"
        r"|^(and|but|so|then|why|what about|how about|for example|an example|which)\b"
        r"|\b(more|example|examples|again|else)\b",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        "它|这个|那个|这种|那种|这些|那些|呢[？?]?$|^(那|还有|为什么|怎么写|举例|举个例子|再)"
    ),
}
# A question with more terms than this names its own subject even if it says "it" somewhere.
_SHORT: Final[dict[Language, int]] = {"en": 9, "zh": 24}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer; `topic` is what it was about, `""` when nothing was found."""

    question: str
    answer: str
    topic: str = ""


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

    def whole_question(self, question: str, language: Language) -> str:
        """The question made whole: a follow-up carries the topic it refers to.

        "And how do I write one?" after "What is a list?" becomes "And how do I write one? (Lists)".
        """
        topic = next((e.topic for e in reversed(self._exchanges) if e.topic), "")
        if not topic or len(terms(question)) > _SHORT[language]:
            return question
        if not _POINTS_BACK[language].search(question.strip()):
            return question
        return f"{question} ({topic})"
