"""The lines of a PDF's page with their places and sizes, as pdfium sees them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pypdfium2.raw as pdfium

# pdfium writes these in the place of a hyphen at a line's end, and no line break after it.
_HYPHENS: Final = "\x02\ufffe"
_LINE = re.compile(f"[^\r\n{_HYPHENS}]+([{_HYPHENS}])?")
_WORD_GAP = re.compile(r"\s+")
_UNKNOWN = re.compile("[\ufffd\ue000-\uf8ff]")
_WIDE_GAP: Final = 1.5
"""Of the letters' height: more than a space, so that something else begins behind it."""
_NAME_BYTES: Final = 128
_BOLD: Final = ("bold", "black", "heavy", "semibold", "demi")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of one column, or one cell of a row; lengths in points from the page's lower left.

    `row` numbers what pdfium takes for one line; `hyphen`: a word goes on in the next line.
    """

    text: str
    left: float
    right: float
    bottom: float
    top: float
    bold: bool
    row: int
    page: int
    hyphen: bool = False

    @property
    def size(self) -> float:
        return self.top - self.bottom


class PageText:
    """Asks pdfium about the characters of one page."""

    def __init__(self, text_page: Any, page: int) -> None:
        self._raw = text_page.raw
        self._page = page
        self._box = pdfium.FS_RECTF()
        self._box_address = ctypes.byref(self._box)
        self._name = ctypes.create_string_buffer(_NAME_BYTES)
        self._flags = ctypes.c_int()
        self.text = self._all()

    def lines(self) -> Iterator[Line]:
        """In pdfium's order, split where a wide gap lies between two words."""
        for row, match in enumerate(_LINE.finditer(self.text)):
            start, end = match.span()
            end -= len(match[1] or "")
            cuts = [start, *self._gaps(start, end), end]
            for here, there in zip(cuts, cuts[1:], strict=False):
                line = self._line(here, there, row, bool(match[1]) and there == end)
                if line is not None:
                    yield line

    def _all(self) -> str:
        """A character for each that pdfium counts, so that they can be asked for by their place."""
        count = max(0, pdfium.FPDFText_CountChars(self._raw))
        buffer = (ctypes.c_ushort * (2 * count + 2))()
        written = pdfium.FPDFText_GetText(self._raw, 0, count, buffer) if count else 1
        text = bytes(memoryview(buffer)[: written - 1]).decode("utf-16-le", "replace")
        if len(text) != count:  # some have no place in pdfium's text
            text = "".join(map(self._character, range(count)))
        return text

    def _character(self, index: int) -> str:
        code = pdfium.FPDFText_GetUnicode(self._raw, index)
        return chr(code) if 0 < code < 0x110000 else " "

    def _place(self, index: int) -> tuple[float, float, float, float]:
        """Left, right, bottom, top of a character; its height is the font's."""
        pdfium.FPDFText_GetLooseCharBox(self._raw, index, self._box_address)
        box = self._box
        return box.left, box.right, box.bottom, box.top

    def _gaps(self, start: int, end: int) -> Iterator[int]:
        for match in _WORD_GAP.finditer(self.text, start, end):
            before, after = match.start() - 1, match.end()
            if before < start or after >= end:
                continue
            _, right, bottom, top = self._place(before)
            if self._place(after)[0] - right > _WIDE_GAP * max(1.0, top - bottom):
                yield after

    def _line(self, start: int, end: int, row: int, hyphen: bool) -> Line | None:
        said = self.text[start:end]
        text = said.strip()
        if not text or len(_UNKNOWN.findall(text)) * 2 > len(text):
            return None
        first = start + len(said) - len(said.lstrip())
        last = start + len(said.rstrip()) - 1
        # A symbol's own font or a raised figure at one end says nothing of the line's size.
        places = [self._place(index) for index in (first, self._middle(first, last), last)]
        left, right = min(place[0] for place in places), places[-1][1]
        _, _, bottom, top = sorted(places, key=_height)[1]
        bold = self._is_bold(first) and self._is_bold(last)
        return Line(text, left, right, bottom, top, bold, row, self._page, hyphen)

    def _middle(self, first: int, last: int) -> int:
        """A character about half way that is no space."""
        half = (first + last) // 2
        return next((n for n in range(half, last) if not self.text[n].isspace()), last)

    def _is_bold(self, index: int) -> bool:
        length = pdfium.FPDFText_GetFontInfo(
            self._raw, index, self._name, _NAME_BYTES, ctypes.byref(self._flags)
        )
        name = self._name.value.decode("ascii", "ignore").lower() if length else ""
        return any(word in name for word in _BOLD)


def _height(place: tuple[float, float, float, float]) -> float:
    return place[3] - place[2]
