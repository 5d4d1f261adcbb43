"""Running heads, feet and page numbers: what a PDF repeats from page to page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from gpuserver.documents.pdf_lines import Line

_OUTERMOST: Final = 3
"""Lines at the top and at the bottom of a page that may be running ones."""
_REPEATED: Final = 3
_NEAR: Final = 2
"""Pages before and behind; the heads of left and right pages often differ."""
_SAME_PLACE: Final = 4.0
_DIGITS = re.compile(r"\d+")
_ROMAN = re.compile(r"[ivxlc]{1,7}")
_PAGE_NUMBER = re.compile(
    r"(?:page|p\.|seite)\s*\d+(?:\s*(?:of|/)\s*\d+)?|[-–—]\s*\d+\s*[-–—]|\d+\s*/\s*\d+"
    r"|第\s*\d+\s*页(?:\s*[,，/]?\s*共\s*\d+\s*页)?",
    re.IGNORECASE,
)


def without_running_lines(pages: Sequence[Sequence[Line]], larger: float) -> list[list[Line]]:
    """Pages without the lines that stand at the same place of several, numbers aside.

    A line with letters from the size `larger` on may be a title, "Chapter 3" above its chapter: it
    goes only where a page close by has the very same.
    """
    seen = Counter(key for lines in pages for key in {_key(line) for line in _outer(lines)})
    titles = [
        {line.text for line in _outer(lines) if _may_be_title(line, larger)} for lines in pages
    ]
    kept = []
    for n, lines in enumerate(pages):
        near = [*titles[max(0, n - _NEAR) : n], *titles[n + 1 : n + 1 + _NEAR]]
        alone = titles[n].difference(*near)
        kept.append(_kept(lines, seen, alone))
    return kept


def _kept(
    lines: Sequence[Line], seen: Counter[tuple[str, int]], titles: Collection[str]
) -> list[Line]:
    running = {
        id(line)
        for line in _outer(lines)
        if _PAGE_NUMBER.fullmatch(line.text)
        or (line.text not in titles and _times(line, seen) >= _REPEATED)
    }
    return [line for line in lines if id(line) not in running]


def _may_be_title(line: Line, larger: float) -> bool:
    return line.size >= larger and any(map(str.isalpha, _ROMAN.sub("", line.text.lower())))


def _times(line: Line, seen: Counter[tuple[str, int]]) -> int:
    text, place = _key(line)
    return sum(seen[text, place + shift] for shift in (-1, 0, 1))


def _outer(lines: Sequence[Line]) -> Iterator[Line]:
    """The lines next to the page's edges, of every column."""
    heights = sorted({round(line.bottom) for line in lines})
    edges = {*heights[:_OUTERMOST], *heights[-_OUTERMOST:]}
    return (line for line in lines if round(line.bottom) in edges)


def _key(line: Line) -> tuple[str, int]:
    text = _DIGITS.sub("#", line.text.lower())
    if _ROMAN.fullmatch(text):
        text = "#"
    return text, round(line.bottom / _SAME_PLACE)
