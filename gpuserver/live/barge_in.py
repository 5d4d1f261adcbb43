"""Whether what the student says during an answer pauses it, interrupts it, or lets it go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gpuserver.language import Language, asks
from gpuserver.smalltalk import is_backchannel, is_stop, spoken_words

_ECHO: Final = 0.8
"""Of the words heard, the share that the tutor said too, in one stretch and in order."""
_ECHO_WORDS: Final = 3
_ECHO_SLACK: Final = 2  # words of the tutor's that were not heard


@dataclass(frozen=True, slots=True)
class BargeInRules:
    """What an interruption is: so much speech, recognised so surely."""

    seconds: float = 0.5
    confidence: float = 0.35
    wait_seconds: float = 2.0
    """How long an answer is held still for speech in which nothing is recognised."""
    grace_seconds: float = 1.0


class BargeIn:
    """Judges the speech of one session; it keeps no clock: the times are given to it.

    It is asked only while an answer is to be heard or is being prepared.
    """

    def __init__(self, rules: BargeInRules) -> None:
        self.rules = rules
        self._grace_until: float | None = None

    def answer_started(self, now: float) -> None:
        """An answer has become audible. The first one starts the grace period."""
        if self._grace_until is None:
            self._grace_until = now + self.rules.grace_seconds

    def pauses(self, now: float) -> bool:
        """Whether the student's beginning to speak, or seeming to, holds the answer still."""
        return self._grace_until is None or now >= self._grace_until

    def interrupts(
        self,
        words: str,
        confidence: float,
        speech_seconds: float,
        now: float,
        *,
        said: str,
        language: Language,
    ) -> bool:
        """Whether the words recognised so far, or in the end, are an interruption.

        `said`: what the tutor has been saying recently.
        """
        if not self.pauses(now):
            return False
        if is_stop(words, language):
            return True
        return (
            speech_seconds >= self.rules.seconds
            and confidence >= self.rules.confidence
            and bool(spoken_words(words))
            and not is_backchannel(words, language)
            and not is_echo(words, said)
        )


def is_echo(words: str, said: str) -> bool:
    """Whether these words are the tutor's own, come back through the microphone.

    They are if nearly all of them stand in one stretch of what was said, in order. A question
    about what was said shares words with it too: one that begins as the tutor did not ("is a
    list …" of "a list is …"), or with a word of asking that was not said, is a question. Fewer
    than three words must all be there.
    """
    heard, spoken = spoken_words(words), spoken_words(said)
    if not heard:
        return False
    if len(heard) < _ECHO_WORDS:
        return heard in _runs(spoken, len(heard))
    if asks(heard[0]) and heard[:2] not in _runs(spoken, 2):
        return False
    if any(asks(word) and word not in spoken for word in heard):
        return False
    width = len(heard) + _ECHO_SLACK
    return any(
        _common(heard, spoken[at : at + width]) >= _ECHO * len(heard) for at in range(len(spoken))
    )


def _runs(words: tuple[str, ...], length: int) -> Iterator[tuple[str, ...]]:
    return (words[at : at + length] for at in range(len(words) - length + 1))


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """How many words both have in the same order, others between them left out."""
    row = [0] * (len(b) + 1)
    for word in a:
        above, row = row, [0]
        for column, other in enumerate(b):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
    return row[-1]
