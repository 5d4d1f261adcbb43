"""What of an answer has been spoken, on the clock of its speech, so that it can be cut there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gpuserver.providers import WordTime

_NEAR: Final = 80
"""A spoken word is looked for within so many characters of the one before it: code, numbers and
abbreviations are said in other words than are written."""


@dataclass(slots=True)
class _Clause:
    """One clause as it was written, and its words, on the clock of the turn's speech."""

    markdown: str
    start_ms: int
    end_ms: int
    words: list[WordTime] = field(default_factory=list)


class Spoken:
    """The clauses of one answer and when each of their words sounds."""

    def __init__(self) -> None:
        self._clauses: list[_Clause] = []

    def begin(self, clause: str, at_ms: int) -> None:
        """The next clause, as written; clauses put together are the answer."""
        self._clauses.append(_Clause(clause, at_ms, at_ms))

    def add(self, words: Sequence[WordTime], start_ms: int, end_ms: int) -> None:
        """Speech of that clause, from `start_ms` to `end_ms`; the words count from its start."""
        clause = self._clauses[-1]
        clause.end_ms = end_ms
        clause.words += [
            WordTime(word.text, start_ms + word.start_ms, start_ms + word.end_ms) for word in words
        ]

    def until(self, ms: int) -> str:
        """The answer's Markdown up to the last word that had sounded by `ms`."""
        heard: list[str] = []
        for clause in self._clauses:
            if clause.start_ms >= ms:
                break
            heard.append(clause.markdown if clause.end_ms <= ms else _cut(clause, ms))
        return "".join(heard)

    def around(self, ms: int, before_ms: int) -> str:
        """The words that sound in the last `before_ms` milliseconds before `ms`."""
        return " ".join(
            word.text
            for clause in self._clauses
            if clause.end_ms >= ms - before_ms and clause.start_ms <= ms
            for word in clause.words
            if word.end_ms >= ms - before_ms and word.start_ms <= ms
        )


def _cut(clause: _Clause, ms: int) -> str:
    """A clause up to its last word that ends by `ms`."""
    if not clause.words:
        # A voice without word times: as much of the text as of the sound, in whole words.
        share = (ms - clause.start_ms) / max(1, clause.end_ms - clause.start_ms)
        text = clause.markdown[: int(len(clause.markdown) * share)]
        return text[: text.rfind(" ") + 1] if " " in clause.markdown.strip() else text
    at, text = 0, clause.markdown.lower()
    for word in clause.words:
        if word.end_ms > ms:
            break
        spoken = word.text.strip().lower()
        found = text.find(spoken, at, at + _NEAR + len(spoken))
        if spoken and found >= 0:
            at = found + len(spoken)
    return clause.markdown[:at]
