"""Lines of a PDF put together: titles by their size, paragraphs, tables, divided words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import median
from typing import Final

from gpuserver.documents import Extracted
from gpuserver.documents.building import Builder, Source
from gpuserver.documents.cleaning import clean, table
from gpuserver.documents.pdf_lines import Line
from gpuserver.language import HAN

_LARGER: Final = 1.12
_LONGEST_TITLE: Final = 200
_LONGEST_BOLD_TITLE: Final = 90
_APART: Final = 1.45
"""Of the usual distance between lines: a new paragraph."""
_INDENT: Final = 0.8
_SHORT: Final = 2.0
_MOST_LINES: Final = 60
"""Of a paragraph that goes on over the end of a page."""
_TABLE_ROWS: Final = 3
_UNDER_BOOKMARKS: Final = 10
_BOLD_LEVEL: Final = 40
_ENDS = re.compile(r"[.!?。！？…:：;；][”’\"')\]）」』]*$")
_NO_TITLE_ENDS = re.compile(r"[.,;，。；、]$")
_ITEM = re.compile(
    r"(?P<sign>[•▪●○◦■□‣⁃·➢✓\uf0b7\uf0a7*–-])\s+|(?:\d{1,3}[.)、．]|[(（]\d{1,3}[)）]|[a-z][.)])\s*(?=\D)"
)
_DIVIDED = re.compile(r"[^\W\d_]{2,}[-\u2010\u00ad]$")
_LAST_WORD = re.compile(r"[^\W\d_]+$")
_FIRST_WORD = re.compile(r"[^\W\d_]+")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_NOT_A_LETTER = re.compile(r"[\W_]+")
_WIDE = re.compile(f"[{HAN}\u3000-\u303f\uff00-\uffef“”]")


@dataclass(frozen=True, slots=True)
class Bookmark:
    """An entry of the outline; `level` and `page` from 1."""

    title: str
    level: int
    page: int


class Composer:
    """Turns the lines of all pages, in reading order, into titles and blocks."""

    def __init__(
        self, source: Source, pages: Sequence[Sequence[Line]], bookmarks: Sequence[Bookmark]
    ) -> None:
        self._pages = [list(_rows(lines)) for lines in pages]
        self._builder = Builder(source)
        lines = [line for page in pages for line in page]
        self._body = _usual_size(lines)
        self._leading = _usual_leading(lines, self._body)
        self._levels = self._title_levels(lines, _UNDER_BOOKMARKS if bookmarks else 0)
        bold = sum(len(line.text) for line in lines if line.bold)
        self._bold_tells = bold * 4 < sum(len(line.text) for line in lines)
        self._words = Counter(word for line in lines for word in _WORD.findall(line.text.lower()))
        self._bookmarks: dict[int, list[Bookmark]] = {}
        for bookmark in bookmarks:
            self._bookmarks.setdefault(bookmark.page, []).append(bookmark)
        self._paragraph: list[Line] = []

    def compose(self, title: str, empty_pages: tuple[int, ...]) -> Extracted:
        """All of it. `title` is what the file says of itself; else what is largest in it."""
        for number, groups in enumerate(self._pages, start=1):
            self._compose_page(number, groups)
        self._flush()
        return self._builder.extracted(title or self._largest(), len(self._pages), empty_pages)

    def _largest(self) -> str:
        """What stands on the first page in a size of its own, above all other titles."""
        top = min(self._levels.values(), default=-1)
        lines = (group[0] for page in self._pages for group in page)
        titles = [line for line in lines if self._level(line) == top]
        return titles[0].text if len(titles) == 1 and titles[0].page == 1 else ""

    def _compose_page(self, number: int, groups: Sequence[Sequence[Line]]) -> None:
        marked = self._marked(number, groups)
        before: Line | None = None
        title: list[Line] = []
        title_level = 0
        for group in groups:
            line = group[0]
            level = 0
            if len(group) == 1:
                level = marked.get(id(line), 0) or self._level(line, before)
            goes_on = title and level == title_level and self._follows(title[-1], line)
            if title and not goes_on:
                self._title(title, title_level)
                title = []
            if level:
                title.append(line)
                title_level = level
            elif len(group) > 1:
                self._flush()
                self._builder.block(_as_table(group), number)
            else:
                self._add(line)
            before = group[-1]
        if title:
            self._title(title, title_level)

    def _marked(self, number: int, groups: Sequence[Sequence[Line]]) -> dict[int, int]:
        """Levels, by id, of the lines that the outline names; its other entries begin the page."""
        lines = [group[0] for group in groups if len(group) == 1]
        found: dict[int, int] = {}
        for entry in self._bookmarks.get(number, ()):
            named = [line for line in lines if id(line) not in found and _names(line, entry)]
            if named:
                found[id(max(named, key=lambda line: line.size))] = entry.level
            else:
                self._flush()
                self._builder.heading(entry.level, entry.title, number)
        return found

    def _title(self, lines: Sequence[Line], level: int) -> None:
        self._flush()
        self._builder.heading(level, self._joined(lines), lines[0].page)

    def _title_levels(self, lines: Sequence[Line], shift: int) -> dict[float, int]:
        larger = {
            _rounded(line.size)
            for line in lines
            if line.size >= _LARGER * self._body and _could_be_title(line, _LONGEST_TITLE)
        }
        return {size: shift + n for n, size in enumerate(sorted(larger, reverse=True), start=1)}

    def _level(self, line: Line, before: Line | None = None) -> int:
        """Of a title, from 1; 0 for what is none."""
        if line.size >= _LARGER * self._body and _could_be_title(line, _LONGEST_TITLE):
            return self._levels.get(_rounded(line.size), 0)
        if not (self._bold_tells and line.bold and _could_be_title(line, _LONGEST_BOLD_TITLE)):
            return 0
        apart = before is None or not self._follows(before, line)
        return _BOLD_LEVEL if apart and line.size >= 0.9 * self._body else 0

    def _follows(self, before: Line, line: Line) -> bool:
        """Whether a line stands right below another."""
        distance = before.bottom - line.bottom
        usual = self._leading * max(1.0, line.size / self._body)
        return 0 < distance <= _APART * usual and line.page == before.page

    def _add(self, line: Line) -> None:
        if self._paragraph and not self._continues(line):
            self._flush()
        self._paragraph.append(line)

    def _continues(self, line: Line) -> bool:
        first, last = self._paragraph[0], self._paragraph[-1]
        if last.hyphen:
            return True
        if _ITEM.match(line.text):
            return False
        ended = bool(_ENDS.search(last.text))
        if not self._follows(last, line):
            # The next column or page; or a gap.
            moved = line.page != last.page or line.bottom > last.bottom
            whole = ended or len(self._paragraph) >= _MOST_LINES or line.text[:1].isupper()
            return moved and not whole and not _is_item(first)
        if abs(line.size - last.size) > 0.15 * self._body:
            return False
        if ended and line.right > last.right + _SHORT * line.size:
            return False
        return _is_item(first) or line.left <= last.left + _INDENT * line.size

    def _flush(self) -> None:
        if self._paragraph:
            text = self._joined(self._paragraph)
            item = _ITEM.match(text)
            if item and item["sign"]:
                text = "- " + text[item.end() :]
            self._builder.block(text, self._paragraph[0].page)
            self._paragraph = []

    def _joined(self, lines: Sequence[Line]) -> str:
        text = ""
        divided = False
        for line in lines:
            if divided:
                text = self._undivided(text, line.text)
            elif text:
                glue = "" if _WIDE.match(line.text) and _WIDE.match(text[-1]) else " "
                text += glue + line.text
            else:
                text = line.text
            divided = line.hyphen or bool(_DIVIDED.search(line.text))
        return text

    def _undivided(self, text: str, rest: str) -> str:
        """The two halves of a word. A compound keeps its hyphen where the text writes it so."""
        text = text.rstrip("-\u2010\u00ad")
        begin, end = _LAST_WORD.search(text), _FIRST_WORD.match(rest)
        if not begin or not end or not rest[:1].islower():
            return f"{text}-{rest}"
        one, two = begin.group().lower(), end.group().lower()
        compound = self._words[f"{one}-{two}"] > self._words[one + two]
        return f"{text}-{rest}" if compound else text + rest


def _rows(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Each line alone; the cells of several rows with as many cells each, together as one table."""
    rows = [list(cells) for _, cells in groupby(lines, key=lambda line: line.row)]
    for count, group in groupby(rows, key=len):
        same = list(group)
        if count > 1 and len(same) >= _TABLE_ROWS:
            yield [cell for row in same for cell in row]
            continue
        for row in same:
            text = " ".join(cell.text for cell in row)
            yield [replace(row[-1], text=text, left=row[0].left, bold=all(c.bold for c in row))]


def _as_table(cells: Sequence[Line]) -> str:
    rows = [[clean(cell.text) for cell in row] for _, row in groupby(cells, key=lambda c: c.row)]
    return table(rows)


def title_size(lines: Sequence[Line]) -> float:
    """From this size on a line is larger than the body."""
    return _LARGER * _usual_size(lines)


def _usual_size(lines: Sequence[Line]) -> float:
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[_rounded(line.size)] += len(line.text)
    return max(1.0, sizes.most_common(1)[0][0]) if sizes else 1.0


def _usual_leading(lines: Sequence[Line], body: float) -> float:
    distances = [
        before.bottom - line.bottom
        for before, line in zip(lines, lines[1:], strict=False)
        if before.page == line.page and 0.5 * body < before.bottom - line.bottom < 2.5 * body
    ]
    return median(distances) if distances else 1.2 * body


def _rounded(size: float) -> float:
    return round(size * 2) / 2


def _could_be_title(line: Line, longest: int) -> bool:
    text = line.text
    letters = sum(character.isalpha() for character in text)
    return letters >= 2 and len(text) <= longest and not _NO_TITLE_ENDS.search(text)


def _is_item(line: Line) -> bool:
    return _ITEM.match(line.text) is not None


def _names(line: Line, entry: Bookmark) -> bool:
    """Whether a line is the title of an entry; one of them may have a number in front."""
    text, title = _bare(line.text), _bare(entry.title)
    if len(text) < 2 or len(title) < 2:
        return text == title != ""
    longer, shorter = (text, title) if len(text) > len(title) else (title, text)
    return longer.endswith(shorter) and len(shorter) * 2 > len(longer)


def _bare(text: str) -> str:
    return _NOT_A_LETTER.sub("", text.lower())
