"""Mouth shapes: of sounds in IPA or pinyin, guessed from English spelling, and put in time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from gpuserver.providers import Viseme, VisemeMark

CLOSED: Final[Viseme] = "sil"
_LEAST_MS: Final = 10  # what a mouth shape lasts

# IPA as espeak writes it, which for Mandarin has letters of its own ("ts.", "o-").
_IPA: Final[Mapping[Viseme, str]] = {
    "PP": "p b m",
    "FF": "f v",
    "TH": "θ ð",
    "DD": "t d ɾ",
    "kk": "k ɡ g x",
    "CH": "tʃ dʒ ʃ ʒ tɕ ɕ ts. s.",
    "SS": "s z ts",
    "nn": "n l ŋ ɬ",
    "RR": "ɹ r ʐ ɜ ɚ ɝ i.",
    "aa": "a ɑ æ ɐ ʌ",
    "E": "e ɛ ə o-",
    "I": "i ɪ ᵻ j i̪",
    "O": "o ɔ ɒ",
    "U": "u ʊ w y",
}
# Without an "h", which takes the shape of what follows. A digit stands for its open vowel.
_SPELLING: Final[Mapping[Viseme, str]] = {
    "PP": "p b m pp bb mm",
    "FF": "f v ff ph",
    "TH": "th",
    "DD": "t d tt dd",
    "kk": "k g c x q ck gg cc",
    "CH": "ch sh j tch dge",
    "SS": "s z ss ce ci zz",
    "nn": "n l ng nn ll kn",
    "RR": "r rr wr er ir ur",
    "aa": "a u 0 1 2 3 4 5 6 7 8 9",
    "E": "e ai ay",
    "I": "i y ee ea",
    "O": "o aw au",
    "U": "w oo ew wh",
}
_PINYIN: Final[Mapping[Viseme, str]] = {
    "PP": "b p m",
    "FF": "f",
    "DD": "d t",
    "kk": "g k h",
    "CH": "zh ch sh j q x",
    "SS": "z c s",
    "nn": "n l ng",
    "RR": "r er",
    "aa": "a",
    "E": "e",
    "I": "i y",
    "O": "o",
    "U": "u v w ü",
}


class _Table:
    def __init__(self, sounds: Mapping[Viseme, str]) -> None:
        self._shapes = {sound: shape for shape, some in sounds.items() for sound in some.split()}
        longest_first = sorted(self._shapes, key=len, reverse=True)
        self._sound = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, text: str) -> list[Viseme]:
        return [self._shapes[sound] for sound in self._sound.findall(text)]


of_ipa: Final = _Table(_IPA)
"""The shapes of sounds in IPA, as espeak writes it; those that show no shape are left out."""
of_pinyin: Final = _Table(_PINYIN)
"""The shapes of one syllable in pinyin without its tone."""
_of_letters: Final = _Table(_SPELLING)


def of_word(word: str) -> list[Viseme]:
    """The shapes of an English word, guessed from how it is written."""
    # The "e" of "take" is silent, that of "the" is not.
    return _of_letters(re.sub(r"(?<=[aeiouy][^aeiouy])e$", "", word.lower()))


def changes(shapes: Iterable[tuple[int, Viseme]], last: VisemeMark) -> Iterator[VisemeMark]:
    """Shapes, each with the millisecond it begins at, without those that change nothing.

    `last` is the mark before them; every mark comes a little later than the one before it.
    """
    for ms, shape in shapes:
        if shape != last.viseme:
            last = VisemeMark(max(ms, last.ms + _LEAST_MS), shape)
            yield last
