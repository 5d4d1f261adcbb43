"""The reading order of a page: columns one after the other, rows of a table kept together."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from gpuserver.documents.pdf_lines import Line

_FEWEST: Final = 4
"""Lines that make a column."""
_STEP: Final = 4.0
_LEAST_WIDTH: Final = 0.18
_LEAST_CHARACTERS: Final = 10
_MOST_ACROSS: Final = 0.45
_LEAST_BESIDE: Final = 0.3
_DEPTH: Final = 2


def in_reading_order(lines: Sequence[Line], depth: int = _DEPTH) -> list[Line]:
    """Where a page has columns, all of the left one before the right one.

    A line across both, such as a title, stands between what is above and below it. A page without
    columns keeps the order in which it was written.
    """
    gutter = _gutter(lines) if depth else None
    if gutter is None:
        return list(lines)
    ordered: list[Line] = []
    left: list[Line] = []
    right: list[Line] = []
    for line in sorted(lines, key=lambda line: -(line.top + line.bottom)):
        if line.right <= gutter:
            left.append(line)
        elif line.left >= gutter:
            right.append(line)
        else:
            ordered += _columns(left, right, depth)
            ordered.append(line)
            left, right = [], []
    return ordered + _columns(left, right, depth)


def _columns(left: list[Line], right: list[Line], depth: int) -> list[Line]:
    return in_reading_order(left, depth - 1) + in_reading_order(right, depth - 1)


def _gutter(lines: Sequence[Line]) -> float | None:
    """Where the white space between two columns of running text lies, if there is one."""
    if len(lines) < 2 * _FEWEST:
        return None
    begin, end = min(line.left for line in lines), max(line.right for line in lines)
    width = end - begin
    # A gutter ends where lines begin.
    candidates = {round((line.left - 1) / _STEP) * _STEP for line in lines}
    best, most = None, 0
    for place in sorted(candidates):
        if not begin + 0.2 * width < place < end - 0.2 * width:
            continue
        left = [line for line in lines if line.right <= place]
        right = [line for line in lines if line.left >= place]
        inside = len(left) + len(right)
        if inside <= most or inside < (1 - _MOST_ACROSS) * len(lines):
            continue
        if _is_column(left, width) and _is_column(right, width) and _beside(left, right):
            best, most = place, inside
    return best


def _is_column(lines: Sequence[Line], width: float) -> bool:
    """Running text: the cells of a table are shorter."""
    if len(lines) < _FEWEST:
        return False
    wide = fmean(line.right - line.left for line in lines) >= _LEAST_WIDTH * width
    return wide and fmean(len(line.text) for line in lines) >= _LEAST_CHARACTERS


def _beside(left: Sequence[Line], right: Sequence[Line]) -> bool:
    """Whether two groups of lines stand side by side rather than one below the other."""
    (low, high), (low_other, high_other) = _extent(left), _extent(right)
    shared = min(high, high_other) - max(low, low_other)
    return shared >= _LEAST_BESIDE * min(high - low, high_other - low_other)


def _extent(lines: Sequence[Line]) -> tuple[float, float]:
    return min(line.bottom for line in lines), max(line.top for line in lines)
