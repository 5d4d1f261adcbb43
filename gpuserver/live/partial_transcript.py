"""The words of speech that is still going on: those that stay, and those that may yet change."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gpuserver.language import HAN
from gpuserver.providers import Transcript, WordTime

_SETTLED_MS: Final = 700
"""How long before the end of the sound a word must be over that is to stay."""
_UNSETTLED_WORDS: Final = 2
"""Without times: the last ones of a hypothesis, which may be cut in half."""
_LONG_MS: Final = 4000
_UNTIMED: Final = -1
_TOKEN: Final = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
_HAN: Final = re.compile(rf"[{HAN}]")
_NOT_HEARD: Final = re.compile(r"\W+")
_NO_SPACE: Final = re.compile(rf"[{HAN}，。！？、；：]")


@dataclass(slots=True)
class PartialTranscript:
    """Grows with each hypothesis about the sound so far. Times are ms from the utterance's start.

    A word is stable once two hypotheses in succession agree on it and on all before it, and it
    was over well before the end of the sound. A stable word is never taken back.
    """

    confidence: float = 0.0
    """Of all that was heard so far."""
    cut_ms: int = 0
    """From where on the next hypothesis must be about: what lies before is settled."""
    _stable: list[WordTime] = field(default_factory=list)
    _rest: list[WordTime] = field(default_factory=list)
    _cut_words: int = 0
    _cut_confidence: float = 1.0

    @property
    def stable(self) -> str:
        return joined(self._stable)

    @property
    def tentative(self) -> str:
        return joined(self._rest)

    def hear(self, transcript: Transcript, end_ms: int) -> None:
        """The next hypothesis, about the sound from `cut_ms` to `end_ms`."""
        words = self._beyond(transcript)
        timed = bool(transcript.words)
        limit = len(words) if timed else _settled(words)
        count = 0
        for word, before in zip(words[:limit], self._rest, strict=False):
            if _plain(word) != _plain(before) or (timed and word.end_ms > end_ms - _SETTLED_MS):
                break
            count += 1
        self._stable += words[:count]
        self._rest = words[count:]
        self.confidence = self._overall(transcript)
        if timed and end_ms - self.cut_ms > _LONG_MS:
            self._cut(transcript.confidence)

    def whole(self, transcript: Transcript) -> Transcript:
        """All the words, of which these last ones begin at `cut_ms`; it starts with the stable."""
        words = [*self._stable, *self._beyond(transcript)]
        own = transcript.text.strip()
        text = own if not self.cut_ms and own.startswith(self.stable) else joined(words)
        times = tuple(words) if all(word.end_ms != _UNTIMED for word in words) else ()
        return Transcript(text, times, self._overall(transcript))

    def _beyond(self, transcript: Transcript) -> list[WordTime]:
        """The words of a hypothesis that come after the stable ones."""
        if transcript.words:
            words = [
                WordTime(w.text, w.start_ms + self.cut_ms, w.end_ms + self.cut_ms)
                for w in transcript.words
            ]
            again = [*map(_plain, self._stable[self._cut_words :])]
            if again == [*map(_plain, words[: len(again)])]:
                return words[len(again) :]  # whatever became of their times
            end = self._stable[-1].end_ms if self._stable else 0
            return [word for word in words if (word.start_ms + word.end_ms) / 2 > end]
        words = [WordTime(text, _UNTIMED, _UNTIMED) for text in _TOKEN.findall(transcript.text)]
        return words[_aligned([*map(_plain, self._stable)], [*map(_plain, words)]) :]

    def _cut(self, confidence: float) -> None:
        """Settle the stable words: what was said in them is not listened to again."""
        end = self._stable[-1].end_ms if self._stable else 0
        if end <= self.cut_ms:
            return
        following = self._rest[0].start_ms if self._rest else end
        self._cut_confidence = _mean(
            (self._cut_confidence, self._cut_words),
            (confidence, len(self._stable) - self._cut_words),
        )
        self._cut_words = len(self._stable)
        self.cut_ms = (end + max(end, following)) // 2

    def _overall(self, transcript: Transcript) -> float:
        """Of all words, where the last hypothesis is only about those after the cut."""
        if not transcript.text.strip():
            return self.confidence if self._stable else 0.0
        count = len(transcript.words) if self._cut_words else 1
        return _mean((self._cut_confidence, self._cut_words), (transcript.confidence, count))


def _settled(words: Sequence[WordTime]) -> int:
    """How many are left without the last two words: the last four characters in Chinese."""
    limit, left = len(words), float(_UNSETTLED_WORDS)
    while limit and left > 0:
        limit -= 1
        left -= 0.5 if _HAN.match(words[limit].text) else 1
    return limit


def joined(words: Sequence[WordTime]) -> str:
    """Words as text: Chinese without spaces."""
    text = ""
    for word in words:
        tight = text and _NO_SPACE.match(text[-1]) and _NO_SPACE.match(word.text)
        text += word.text if tight or not text else f" {word.text}"
    return text


def _plain(word: WordTime) -> str:
    return _NOT_HEARD.sub("", word.text.lower())


def _mean(*parts: tuple[float, int]) -> float:
    """The geometric mean of confidences, weighted by words."""
    count = sum(words for _, words in parts)
    if not count:
        return 0.0
    return math.exp(sum(words * math.log(max(c, 1e-30)) for c, words in parts if words) / count)


def _aligned(stable: list[str], words: list[str]) -> int:
    """How many of `words` are the stable ones again, as best they fit (least edits)."""
    if words[: len(stable)] == stable:
        return len(stable)
    row = list(range(len(words) + 1))
    for at, word in enumerate(stable, 1):
        diagonal, row[0] = row[0], at
        for column, other in enumerate(words, 1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (word != other)),
            )
    return min(range(len(row)), key=row.__getitem__)
