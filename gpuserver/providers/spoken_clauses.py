"""A clause on its way through a voice: cut where it is too long, its words found and timed."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuserver.language import HAN
from gpuserver.providers import Speech, Viseme, VisemeMark, WordTime
from gpuserver.providers.visemes import CLOSED, changes, of_pinyin, of_word

TOKEN: Final = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
"""A written word, with what is written on to it; each Chinese character is one."""
EDGES: Final = re.compile(r"^\W+|\W+$")
"""What of a token is no part of its word."""
UNIT_MS: Final = 75.0
"""About how long a sound lasts, where nothing better is known."""

_HAN_RUN: Final = re.compile(rf"[{HAN}]+")
_SYLLABLE: Final = 2.8  # sounds
_DIGIT: Final = 3.5
_PAUSE: Final = 3.0
_LONG_PAUSE: Final = 5.0
_STOPS: Final = frozenset(".!?。！？…")
_CLOSING: Final = "\"'”’»)]）」』"
_AUDIBLE: Final = 0.02  # of the loudest sample
_LEAST_AUDIBLE: Final = 50  # of 32,767
_SILENT_FROM_MS: Final = 50
_SHAPE_MS: Final = 30  # quicker than this no mouth moves

Syllables = Callable[[str], Sequence[str]]
"""The pinyin, without tones, of each of some Chinese characters."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word as it is written; `weight` and the `pause` after it are counted in sounds."""

    text: str
    shapes: tuple[Viseme, ...]
    weight: float
    pause: float = 0.0


Span = tuple[Word, float, float]
"""A word with its start and end, in milliseconds."""


def portions(clause: str, limit: int) -> Iterator[str]:
    """The clause, cut between words into pieces of at most `limit` characters."""
    rest = clause.strip()
    while len(rest) > limit:
        cuts = re.finditer(r"[\s，。！？；：、,.;:!?]+", rest[:limit])
        cut = max((match.end() for match in cuts), default=0) or limit
        yield rest[:cut]
        rest = rest[cut:].lstrip()
    if rest:
        yield rest


def words_of(text: str, syllables: Syllables) -> list[Word]:
    """The words of a text, each with a guess at its mouth shapes and its length."""
    pinyin = {
        run.start() + index: syllable
        for run in _HAN_RUN.finditer(text)
        for index, syllable in enumerate(syllables(run.group()))
    }
    words: list[Word] = []
    for token in TOKEN.finditer(text):
        written = EDGES.sub("", token.group())
        if written:
            words.append(_word(written, pinyin.get(token.start())))
        if words and (pause := _pause(token.group())) > words[-1].pause:
            last = words.pop()
            words.append(Word(last.text, last.shapes, last.weight, pause))
    return words


def _word(written: str, pinyin: str | None) -> Word:
    if pinyin is not None:
        return Word(written, tuple(of_pinyin(pinyin)), _SYLLABLE)
    shapes = tuple(of_word(written))
    digits = sum(map(str.isdigit, written))
    return Word(written, shapes, max(1.0, len(shapes) - digits + digits * _DIGIT))


def _pause(token: str) -> float:
    end = token.rstrip(_CLOSING)[-1:]
    if not end or end.isalnum():
        return 0.0
    return _LONG_PAUSE if end in _STOPS else _PAUSE


class Clause:
    """One clause's words and mouth shapes in time, while its sound comes in.

    Where a voice does not tell when its words sound, they share the time between the first and
    the last audible sample by their lengths; before the last sample is there, by `unit_ms`. Then
    the last word is kept back for the end, so that an estimate which is too fast or too slow is
    made up for there.
    """

    def __init__(self, words: Sequence[Word], sample_rate: int, unit_ms: float = UNIT_MS) -> None:
        self._words = deque(words)
        self._sounds = sum(word.weight + word.pause for word in words)
        self._rate = sample_rate
        self._samples = 0
        self._began: float | None = None
        self._at = 0.0
        self._mouth: VisemeMark | None = None
        self.unit_ms = unit_ms
        """How long a sound lasts; measured, once the last sample has come."""

    def add(
        self, samples: NDArray[np.int16], *, last: bool, spans: Sequence[Span] | None = None
    ) -> Speech:
        """The next stretch of sound with its words; `spans`, on the clause's clock, if known."""
        start = self._ms
        self._samples += len(samples)
        first_heard, last_heard = _audible(samples)
        silent_from = start + last_heard * 1000 / self._rate
        if self._began is None and (last_heard or last):
            self._began = self._at = start + first_heard * 1000 / self._rate
        if spans is None:
            until = silent_from if last else self._ms
            self._at = min(max(self._at, start), until)
            spans = list(self._take(until, last=last)) if self._began is not None else []
        shapes = list(_shapes(spans))
        if last:
            shapes.append((round(silent_from), CLOSED))
            if self._began is not None and silent_from > self._began and self._sounds:
                self.unit_ms = (silent_from - self._began) / self._sounds
        return self._speech(samples, spans, shapes, round(start))

    @property
    def _ms(self) -> float:
        return self._samples * 1000 / self._rate

    def _take(self, until: float, *, last: bool) -> Iterator[Span]:
        """The next words, as many as begin before `until`; at last all that are left."""
        unit = self.unit_ms
        if last and self._words:
            left = sum(word.weight + word.pause for word in self._words) - self._words[-1].pause
            unit = (until - self._at) / left
        while self._words and (last or (len(self._words) > 1 and self._at < until)):
            word = self._words.popleft()
            start, self._at = self._at, min(self._at + word.weight * unit, until)
            yield word, start, self._at
            self._at += word.pause * unit

    def _speech(
        self,
        samples: NDArray[np.int16],
        spans: Iterable[Span],
        shapes: Iterable[tuple[int, Viseme]],
        start: int,
    ) -> Speech:
        marks = [VisemeMark(0, CLOSED)] if self._mouth is None else []
        marks += changes(shapes, self._mouth or marks[0])
        self._mouth = marks[-1] if marks else self._mouth
        return Speech(
            samples.astype("<i2").tobytes(),
            self._rate,
            tuple(WordTime(w.text, round(a) - start, round(b) - start) for w, a, b in spans),
            tuple(VisemeMark(mark.ms - start, mark.viseme) for mark in marks),
        )


def _audible(samples: NDArray[np.int16]) -> tuple[int, int]:
    """Where sound begins and where it ends, in samples; (0, 0) for silence."""
    loudness = np.abs(samples.astype(np.int32))
    least = max(_LEAST_AUDIBLE, _AUDIBLE * int(loudness.max(initial=0)))
    heard = np.flatnonzero(loudness > least)
    return (int(heard[0]), int(heard[-1]) + 1) if len(heard) else (0, 0)


def _shapes(spans: Sequence[Span]) -> Iterator[tuple[int, Viseme]]:
    following = [*(start for _, start, _ in spans[1:]), 0.0]
    for (word, start, end), then in zip(spans, following, strict=False):
        count = min(len(word.shapes), int((end - start) / _SHAPE_MS))
        for index in range(count):
            shape = word.shapes[index * len(word.shapes) // count]
            yield round(start + (end - start) * index / count), shape
        if then - end >= _SILENT_FROM_MS:
            yield round(end), CLOSED
