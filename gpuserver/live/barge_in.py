"""Whether what the student says during an answer pauses it, interrupts it, or lets it go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from gpuserver.language import Language, asks
from gpuserver.smalltalk import is_backchannel, is_stop, spoken_words

Verdict = Literal["pause", "resume", "interrupt"]

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
    grace_seconds: float = 1.0


class BargeIn:
    """Judges the speech of one session; it keeps no clock: the times are given to it.

    It is asked only while an answer is to be heard or is being prepared.
    """

    def __init__(self, rules: BargeInRules) -> None:
        self._rules = rules
        self._grace_until: float | None = None
        self._paused_at: float | None = None

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to say; None while nothing is paused."""
        return None if self._paused_at is None else self._paused_at + self._rules.wait_seconds

    def answer_started(self, now: float) -> None:
        """An answer has become audible. The first one starts the grace period."""
        self._paused_at = None
        if self._grace_until is None:
            self._grace_until = now + self._rules.grace_seconds

    def speech_started(self, now: float) -> Verdict | None:
        """The student begins to speak, or seems to, while the answer is to be heard."""
        if self._in_grace(now):
            return None
        self._paused_at = now
        return "pause"

    def judge(
        self,
        words: str,
        confidence: float,
        speech_seconds: float,
        now: float,
        *,
        ended: bool,
        said: str,
        language: Language,
    ) -> Verdict | None:
        """What the words mean that were recognised so far, or in the end.

        `said`: what the tutor has been saying recently. Words that have `ended` without being an
        interruption resume what was paused; what is None then is nothing to act upon either.
        """
        if not self._in_grace(now) and self._interrupts(
            words, confidence, speech_seconds, said, language
        ):
            self._paused_at = None
            return "interrupt"
        return self.nothing() if ended else self.tick(now)

    def nothing(self) -> Verdict | None:
        """It was sound without words."""
        paused, self._paused_at = self._paused_at is not None, None
        return "resume" if paused else None

    def tick(self, now: float) -> Verdict | None:
        """Time has passed. The speech that paused the answer may still interrupt it later."""
        deadline = self.deadline
        return self.nothing() if deadline is not None and now >= deadline else None

    def _in_grace(self, now: float) -> bool:
        return self._grace_until is not None and now < self._grace_until

    def _interrupts(
        self, words: str, confidence: float, speech_seconds: float, said: str, language: Language
    ) -> bool:
        if is_stop(words, language):
            return True
        return (
            speech_seconds >= self._rules.seconds
            and confidence >= self._rules.confidence
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
