"""From streamed Markdown to speech: clauses as they become complete, and what is said of each."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Generator
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

_HAN = re.compile(f"[{HAN}]+")
_CHINESE_END = "。！？"
_WESTERN_END = ".!?…"
_END = f"\n{_CHINESE_END}{_WESTERN_END}"
_SOFT_CHINESE = "，；：、"
_SOFT_WESTERN = ",;:"
# No more than one clause can hold: a long text is not searched again for each of its clauses.
_PLAIN = re.compile(
    rf"[^\n`\[{_CHINESE_END}{_WESTERN_END}{_SOFT_CHINESE}{_SOFT_WESTERN}]"
    rf"{{0,{MAXIMUM // _OTHER_WEIGHT + 1}}}"
)
_CHINESE_ENDS = re.compile(f"[{_CHINESE_END}]*")
_WESTERN_ENDS = re.compile(f"[{_WESTERN_END}]*")
_CLOSINGS = re.compile(r"[\"'”’』」）)\]*_]*")
_SPACES = re.compile(r"\s*")
_UP_TO_SPACE = re.compile(r".*\s", re.S)
_FENCES = {"`": re.compile("`*"), "~": re.compile("~*")}
_FENCE_LINE = re.compile(r"^[ \t]*([`~]+)[ \t]*\n", re.M)
_CITATIONS = re.compile(r"(?:[ \t]*\[\d{1,3}\])*[ \t]*")
_OPEN_CITATION = re.compile(r"\[\d{0,3}\Z")
_MEANS_SOMETHING = re.compile(r"[^\W_]")

_Place = Generator[None, None, int]
"""Finds a place in the text, 0 for none; yields while what follows can change the decision."""


class Clauses:
    """Splits a streamed answer into clauses. Their concatenation is the answer, unchanged.

    The cuts do not depend on how the text arrives in pieces: a place is decided only when what
    follows can't change the decision any more. A code block is one clause. The scan is a generator
    that goes on where the text ended, so the time is linear in the text, however it arrives.
    """

    def __init__(self) -> None:
        self._text = ""
        self._final = False
        self._first = True
        self._line_start = True
        self._long_runs: dict[re.Pattern[str], tuple[int, int]] = {}
        self._next = self._split().__next__

    def feed(self, delta: str) -> list[str]:
        """The clauses that `delta` completes, as Markdown."""
        # A text with one reference grows in place. The scan keeps none while it waits.
        text, self._text = self._text, ""
        text += delta
        self._text = text
        return list(iter(self._next, None))

    def flush(self) -> list[str]:
        """What is left when the answer ends; an open code block ends here too."""
        self._final = True
        clauses = list(iter(self._next, None))
        self._final = False
        return clauses

    def _split(self) -> Generator[str | None, None, None]:
        """Each clause; None while the next one is open."""
        begin = 0
        while True:
            while begin == len(self._text):
                yield None
            end = yield from self._clause_end(begin)
            clause = self._text[begin:end]
            self._line_start = clause.rstrip(" \t").endswith("\n")
            if self._first and _MEANS_SOMETHING.search(clause):
                self._first = False
            yield clause
            begin = end
            # Not after every clause: one delta can hold thousands of them.
            if begin > len(self._text) // 2:
                self._text, begin = self._text[begin:], 0
                self._long_runs.clear()

    def _clause_end(self, begin: int) -> _Place:
        at = yield from self._run(_SPACES, begin)
        if self._text[at : at + 1] in _FENCES and (
            self._line_start or "\n" in self._text[begin:at]
        ):
            block = yield from self._block(at)
            if block:
                return block
        return (yield from self._prose_end(at, begin))

    def _prose_end(self, lead: int, begin: int) -> _Place:
        """The end of the clause that begins at `begin` with white space up to `lead`."""
        at = spaces_from = lead
        weight = comma = space = 0
        while True:
            stop = _past(_PLAIN, self._text, at)
            plain = self._text[at:stop]
            added = _weight(plain)
            if weight + added > MAXIMUM:
                stop = at + _too_long(plain, MAXIMUM - weight)
                return comma or self._last_space(spaces_from, stop) or space or stop
            weight, at = weight + added, stop
            if at == len(self._text):
                if self._final:
                    return at
                yield
                continue
            sign = self._text[at]
            stop = (yield from self._span(at)) if sign in "`[" else 0
            if stop:
                space = self._last_space(spaces_from, at) or space
                weight += _weight(self._text[at:stop])
                at = spaces_from = stop
                continue
            if sign in _SOFT_CHINESE or sign in _SOFT_WESTERN and (yield from self._space(at + 1)):
                if self._first and weight >= FIRST_MINIMUM:
                    return (yield from self._whole(at + 1))
                comma = at + 1 if weight >= MAXIMUM / 3 else comma
            elif sign in _END:
                end = yield from self._sentence_end(at, lead, begin)
                if end:
                    return end
            weight, at = weight + _OTHER_WEIGHT, at + 1

    def _last_space(self, begin: int, end: int) -> int:
        """The end of the last white space in this part of the text; 0 for none."""
        match = _UP_TO_SPACE.match(self._text, begin, end)
        return match.end() if match else 0

    def _more(self, at: int) -> Generator[None, None, bool]:
        """Whether there is a character at `at`."""
        while at >= len(self._text):
            if self._final:
                return False
            yield
        return True

    def _space(self, at: int) -> Generator[None, None, bool]:
        """Whether there is white space at `at`."""
        return (yield from self._more(at)) and self._text[at].isspace()

    def _run(self, letters: re.Pattern[str], at: int) -> _Place:
        """The end of the run of `letters` at `at`."""
        begin = at
        if self._long_runs:
            known_begin, known_end = self._long_runs.get(letters, (0, 0))
            if known_begin <= at < known_end:
                begin, at = known_begin, known_end
        while True:
            at = _past(letters, self._text, at)
            if at < len(self._text) or self._final:
                break
            yield
        if at - begin > MAX_SPAN:
            # It may be longer than a clause and be met again in the next one.
            self._long_runs[letters] = begin, at
        return at

    def _whole(self, end: int) -> _Place:
        """`end`, moved behind the citation markers and the white space that follow."""
        for following in (_CITATIONS, _SPACES):
            while True:
                end = _past(following, self._text, end)
                if self._final or not self._citation_may_follow(end):
                    break
                yield
        return end

    def _citation_may_follow(self, at: int) -> bool:
        if at == len(self._text):
            return True
        return self._text[at] == "[" and bool(_OPEN_CITATION.match(self._text, at))

    def _sentence_end(self, at: int, lead: int, begin: int) -> _Place:
        """Where a sentence ends whose final punctuation begins at `at`."""
        sign = self._text[at]
        if sign == "\n":
            return (yield from self._whole(at))
        if at > begin and self._text[at - 1] in _WESTERN_END:
            return 0
        chinese = sign in _CHINESE_END
        stop = yield from self._run(_CHINESE_ENDS if chinese else _WESTERN_ENDS, at + 1)
        punctuation = stop
        stop = yield from self._run(_CLOSINGS, stop)
        if chinese:
            return (yield from self._whole(stop))
        if stop < len(self._text) and not self._text[stop].isspace():
            return 0
        end = yield from self._whole(stop)
        # The last word decides, and whether it is the first one too: "2." begins a list item.
        *others, word = self._text[lead:punctuation].rsplit(None, 1)
        before = f"- {word}" if others else word
        return end if ends_sentence(before, self._text[end : end + 1]) else 0

    def _span(self, at: int) -> _Place:
        """The end of the code or link that begins at `at`, which is never cut."""
        if self._text[at] == "`":
            stop = yield from self._run(_FENCES["`"], at + 1)
            end = yield from self._within(stop, "`" * min(stop - at, MAX_SPAN + 1))
            # Another backtick may follow and make the run a longer one.
            yield from self._more(end)
            return end
        end = yield from self._within(at + 1, "]")
        if not end or not (yield from self._more(end)) or self._text[end] != "(":
            return 0
        return (yield from self._within(end + 1, ")"))

    def _within(self, start: int, closing: str) -> _Place:
        """The end of `closing` on this line and not far from `start`."""
        limit = start + MAX_SPAN
        while True:
            line_end = self._text.find("\n", start, limit)
            stop = min(limit, len(self._text)) if line_end < 0 else line_end
            known = self._final or stop == limit or line_end >= 0
            end = self._closing(closing, start, stop)
            if known or 0 < end < stop:
                return end
            yield

    def _closing(self, mark: str, begin: int, end: int) -> int:
        """The end of the first `mark` here; a longer run of backticks is another mark."""
        while True:
            at = self._text.find(mark, begin, end)
            if at < 0:
                return 0
            begin = at + len(mark)
            if mark[0] != "`" or begin == end or self._text[begin] != "`":
                return begin
            begin = _past(_FENCES["`"], self._text, begin)

    def _block(self, at: int) -> _Place:
        """The end of the fenced code block that begins at `at`."""
        stop = yield from self._run(_FENCES[self._text[at]], at + 1)
        fence = self._text[at:stop]
        if len(fence) < 3:
            return 0
        while True:
            info, line_end, _ = self._text[stop : stop + MAX_INFO + 1].partition("\n")
            if "`" in info or len(info) > MAX_INFO:
                return 0
            if line_end:
                break
            if self._final:
                return len(self._text)
            yield
        line = seen = stop + len(info) + 1
        while True:
            lines_end = self._text.rfind("\n", seen) + 1
            seen = len(self._text)
            if lines_end:
                end = self._closing_line(fence, line, lines_end)
                if end:
                    return (yield from self._whole(end))
                line = lines_end
            if self._final:
                return seen
            yield

    def _closing_line(self, fence: str, begin: int, end: int) -> int:
        """The end of the first of these lines that closes the block; 0 for none."""
        for match in _FENCE_LINE.finditer(self._text, begin, end):
            if match.group(1).startswith(fence):
                return match.end()
        return 0


def _past(letters: re.Pattern[str], text: str, at: int) -> int:
    match = letters.match(text, at)
    return match.end() if match else at


def _weight(text: str) -> int:
    others = len(text) if text.isascii() else len(_HAN.sub("", text))
    return others * _OTHER_WEIGHT + (len(text) - others) * _HAN_WEIGHT


def _too_long(text: str, limit: int) -> int:
    """The least number of characters that weigh more than `limit`; `text` does."""
    return bisect_right(range(len(text)), limit, key=lambda count: _weight(text[:count]))


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
