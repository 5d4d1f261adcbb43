"""From streamed Markdown to speech: clauses as they become complete, and what is said of each."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from gpuserver.language import HAN, Language, ends_sentence, spoken_code

# Lengths are counted in tenths of the time they take to say: a Chinese character lasts about as
# long as three and a third Latin letters.
_HAN_WEIGHT: Final = 10
_OTHER_WEIGHT: Final = 3
FIRST_MINIMUM: Final = 75
"""The first clause may end at a comma after this much: 25 letters or 8 Chinese characters."""
MAXIMUM: Final = 600
"""A sentence is cut at this much: 200 letters or 60 Chinese characters."""
MAX_SPAN: Final = 120
"""Code and links longer than this, in characters, are not waited for."""
MAX_INFO: Final = 60
"""Most characters after ``` that can name a language."""

_HAN = re.compile(f"[{HAN}]")
_CHINESE_END = "。！？"
_WESTERN_END = ".!?…"
_CLOSING = "\"'”’』」）)]*_"
_SOFT_CHINESE = "，；：、"
_SOFT_WESTERN = ",;:"
_AFTER = re.compile(r"(?:[ \t]*\[\d{1,3}\])*\s*")
_AFTER_OPEN = re.compile(r"[ \t]*\[\d{0,3}\Z")
_MEANS_SOMETHING = re.compile(r"[^\W_]")


class Clauses:
    """Splits a streamed answer into clauses. Their concatenation is the answer, unchanged.

    The cuts do not depend on how the text arrives in pieces: a place is decided only when what
    follows can't change the decision any more. A code block is one clause.
    """

    def __init__(self) -> None:
        self._buffer = ""
        self._first = True
        self._line_start = True

    def feed(self, delta: str) -> list[str]:
        """The clauses that `delta` completes, as Markdown."""
        self._buffer += delta
        return list(self._take(final=False))

    def flush(self) -> list[str]:
        """What is left when the answer ends; an open code block ends here too."""
        return list(self._take(final=True))

    def _take(self, *, final: bool) -> Iterator[str]:
        while self._buffer:
            end = _Cut(self._buffer, self._first, self._line_start, final).find()
            if end is None:
                if not final:
                    return
                end = len(self._buffer)
            clause, self._buffer = self._buffer[:end], self._buffer[end:]
            self._line_start = clause.rstrip(" \t").endswith("\n")
            if _MEANS_SOMETHING.search(clause):
                self._first = False
            yield clause


class _Undecided(Exception):
    """What follows decides whether this place is a cut."""


class _Cut:
    """Looks for the end of the first clause of `text`."""

    def __init__(self, text: str, first: bool, line_start: bool, final: bool) -> None:
        self._text = text
        self._first = first
        self._line_start = line_start
        self._final = final

    def find(self) -> int | None:
        """Where the clause ends; None while that is open."""
        try:
            return self._scan()
        except _Undecided:
            return None

    def _scan(self) -> int | None:
        text = self._text
        at = len(text) - len(text.lstrip())
        if at < len(text) and (self._line_start or "\n" in text[:at]):
            block = self._block(at)
            if block:
                return block
        weight, comma, space = 0, 0, 0
        while at < len(text):
            step = self._span(at)
            if step == at + 1:
                end = self._end(at)
                if end:
                    return end
                if self._soft(at):
                    if self._first and weight >= FIRST_MINIMUM:
                        return self._whole(at + 1)
                    comma = at + 1 if weight >= MAXIMUM / 3 else comma
                elif text[at].isspace():
                    space = at + 1
            weight += sum(
                _HAN_WEIGHT if _HAN.match(letter) else _OTHER_WEIGHT for letter in text[at:step]
            )
            at = step
            if weight > MAXIMUM:
                return comma or space or at
        return None

    def _more(self, at: int) -> bool:
        """Whether the character at `at` is there, or none will come. Raises _Undecided."""
        if at < len(self._text):
            return True
        if self._final:
            return False
        raise _Undecided

    def _whole(self, end: int) -> int:
        """`end`, moved behind the citation markers and the white space that follow."""
        match = _AFTER.match(self._text, end)
        stop = match.end() if match else end
        if not self._final and (stop == len(self._text) or _AFTER_OPEN.match(self._text, stop)):
            raise _Undecided
        return stop

    def _end(self, at: int) -> int | None:
        """Where a sentence ends whose final punctuation begins at `at`."""
        text = self._text
        if text[at] == "\n":
            return self._whole(at)
        marks = _CHINESE_END if text[at] in _CHINESE_END else _WESTERN_END
        if text[at] not in marks or (at and text[at - 1] in _WESTERN_END):
            return None
        stop = at + 1
        while self._more(stop) and text[stop] in marks:
            stop += 1
        punctuation = stop
        while self._more(stop) and text[stop] in _CLOSING:
            stop += 1
        if marks is _CHINESE_END:
            return self._whole(stop)
        if self._more(stop) and not text[stop].isspace():
            return None
        end = self._whole(stop)
        return end if ends_sentence(text[:punctuation].lstrip(), text[end : end + 1]) else None

    def _soft(self, at: int) -> bool:
        """Whether the sign at `at` is a pause inside a sentence."""
        sign = self._text[at]
        if sign in _SOFT_CHINESE:
            return True
        return sign in _SOFT_WESTERN and self._more(at + 1) and self._text[at + 1].isspace()

    def _span(self, at: int) -> int:
        """The end of the code or link that begins at `at`, which is never cut; else `at + 1`."""
        if self._text[at] == "`":
            return self._code(at)
        return self._link(at) if self._text[at] == "[" else at + 1

    def _code(self, at: int) -> int:
        text, stop = self._text, at
        while self._more(stop) and text[stop] == "`":
            stop += 1
        ticks = text[at:stop]
        closing = re.compile(rf"(?<!`){ticks}(?!`)")
        end = self._within(stop, closing)
        if end is None:
            return at + 1
        # Another backtick may follow and make the run a longer one.
        self._more(end)
        return end

    def _link(self, at: int) -> int:
        end = self._within(at + 1, re.compile(r"\]"))
        if end is None or not self._more(end) or self._text[end] != "(":
            return at + 1
        return self._within(end + 1, re.compile(r"\)")) or at + 1

    def _within(self, start: int, closing: re.Pattern[str]) -> int | None:
        """The end of `closing` on this line and not far from `start`. Raises _Undecided."""
        line_end = self._text.find("\n", start)
        limit = start + MAX_SPAN
        stop = min(limit, len(self._text) if line_end < 0 else line_end)
        known = self._final or stop == limit or line_end >= 0
        match = closing.search(self._text, start, stop)
        if match and (known or match.end() < stop):
            return match.end()
        if known:
            return None
        raise _Undecided

    def _block(self, at: int) -> int | None:
        """The end of the fenced code block that begins at `at`; None for no such block."""
        text, stop = self._text, at
        while text[at] in "`~" and self._more(stop) and text[stop] == text[at]:
            stop += 1
        fence = text[at:stop]
        if len(fence) < 3:
            return None
        line_end = text.find("\n", stop)
        info = text[stop : line_end if line_end >= 0 else len(text)]
        if "`" in info or len(info) > MAX_INFO:
            return None
        if line_end < 0:
            if self._final:
                return len(text)
            raise _Undecided
        closing = re.compile(rf"^[ \t]*{fence}[`~]*[ \t]*\n", re.M)
        match = closing.search(text, line_end + 1)
        if match:
            return self._whole(match.end())
        if self._final:
            return len(text)
        raise _Undecided


# What is said of a piece of Markdown

_ON_SCREEN: Final = {"en": "The example is on your screen.", "zh": "示例代码请看屏幕。"}
_BLOCK = re.compile(
    r"^[ \t]*(?P<fence>```+|~~~+)[^`\n]*(?:\n.*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)|\Z)",
    re.S | re.M,
)
_CODE = re.compile(r"(`+)(?!`)([^\n]*?)(?<!`)\1(?!`)")
_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\([^()\n]*\)")
_CITATION = re.compile(r"[ \t]*\[[1-9]\d{0,2}(?:,[ \t]*[1-9]\d{0,2})*\]")
_ADDRESS = re.compile(r"<?\b(?:https?|ftp)://(?:www\.)?([^\s/?#<>]+)[^\s<>，。；、]*>?")
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,80}>")
_LINE_START = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]?|[-*+][ \t]+)+", re.M)
_RULE = re.compile(r"^[ \t]*(?:[-*_=][ \t]*){3,}$|^[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*\|)+.*$", re.M)
_OPERATOR = re.compile(r"[=!<>]=|->|(?<=\s)(?:\*\*?|//)(?=\s)|(?<=\w)_+(?=\w)")
_TABLE_EDGE = re.compile(r"^[ \t]*\||\|[ \t]*$", re.M)
_ORPHAN = re.compile(r"\s+([,.;:!?，。；：！？、])")
_SPOKEN_SIGNS: Final = frozenset(" .,;:!?'\"()，。；：！？、“”‘’（）《》—–-…%+=<>$€£¥°/&@#")


def speakable(markdown: str, language: Language) -> str:
    """What a voice says of a piece of Markdown; empty when there is nothing to say."""
    text = _BLOCK.sub(f"\n{_ON_SCREEN[language]}\n", markdown)
    text = _CODE.sub(lambda match: f" {spoken_code(match.group(2), language)} ", text)
    text = _LINK.sub(r"\1", text)
    text = _CITATION.sub("", text)
    text = _TAG.sub(" ", _ADDRESS.sub(r" \1 ", text))
    text = _TABLE_EDGE.sub("", _LINE_START.sub("", _RULE.sub("", text))).replace("|", ", ")
    text = _OPERATOR.sub(lambda match: _operator(match.group(), language), text)
    text = "".join(_audible(letter) for letter in unicodedata.normalize("NFC", text))
    text = _ORPHAN.sub(r"\1", " ".join(text.split()))
    # No space between Chinese and what stood beside it in code: the voice pauses at spaces.
    text = re.sub(rf"(?<=[{HAN}，。；：！？、]) (?=[{HAN}])", "", text)
    return text.strip() if _MEANS_SOMETHING.search(text) else ""


def _operator(sign: str, language: Language) -> str:
    """An operator between two operands; an underscore is a space."""
    return spoken_code(f"1{sign}1", language)[1:-1] if sign.strip("_") else " "


def _audible(letter: str) -> str:
    """A character a voice knows what to do with, or a space, or nothing."""
    kind = unicodedata.category(letter)[0]
    if kind in "LN" or letter in _SPOKEN_SIGNS:
        return letter
    if kind == "M":
        # Accents belong to their letter; marks that only choose how an emoji looks do not.
        return "" if "VARIATION SELECTOR" in unicodedata.name(letter, "") else letter
    return " " if kind == "Z" or letter.isspace() or letter in "[]{}\\^~" else ""
