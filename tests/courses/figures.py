"""The book's drawings: lines, boxes and labels in a frame as wide as a column."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from reportlab.graphics.shapes import Circle, Drawing, Line, PolyLine, Rect, String
from reportlab.lib.colors import black, lightgrey, white

_WIDTH: Final = 190


def _frame(height: float) -> Drawing:
    return Drawing(_WIDTH, height)


def _label(drawing: Drawing, x: float, y: float, text: str) -> None:
    drawing.add(String(x, y, text, fontName="Helvetica", fontSize=7.5))


def _line(drawing: Drawing, *points: float) -> None:
    drawing.add(PolyLine(list(points), strokeColor=black))


def _arrow(drawing: Drawing, x1: float, y1: float, x2: float, y2: float) -> None:
    drawing.add(Line(x1, y1, x2, y2))
    turn = math.atan2(y2 - y1, x2 - x1)
    for side in (-0.4, 0.4):
        drawing.add(Line(x2, y2, x2 - 6 * math.cos(turn + side), y2 - 6 * math.sin(turn + side)))


def _box(drawing: Drawing, x: float, y: float, width: float, height: float) -> None:
    drawing.add(Rect(x, y, width, height, fillColor=lightgrey, strokeColor=black))


def _dot(drawing: Drawing, x: float, y: float, radius: float) -> None:
    drawing.add(Circle(x, y, radius, fillColor=white, strokeColor=black))


def _wave(drawing: Drawing, left: float, middle: float, height: float, waves: float) -> None:
    points: list[float] = []
    for step in range(81):
        points += [left + step * 2, middle + height * math.sin(step / 80 * waves * math.tau)]
    _line(drawing, *points)


def graph() -> Drawing:
    """Distance against time with a flat stretch."""
    drawing = _frame(100)
    _arrow(drawing, 20, 15, 180, 15)
    _arrow(drawing, 20, 15, 20, 92)
    _line(drawing, 20, 15, 70, 45, 115, 45, 160, 88)
    _label(drawing, 120, 4, "time in minutes")
    _label(drawing, 24, 88, "distance in metres")
    _label(drawing, 80, 50, "waiting")
    return drawing


def forces() -> Drawing:
    """A box with four arrows."""
    drawing = _frame(100)
    _box(drawing, 75, 40, 40, 20)
    _arrow(drawing, 95, 50, 95, 8)
    _arrow(drawing, 95, 60, 95, 95)
    _arrow(drawing, 115, 50, 165, 50)
    _arrow(drawing, 75, 42, 40, 42)
    for x, y, text in ((100, 8, "weight"), (100, 88, "support"), (140, 56, "pull")):
        _label(drawing, x, y, text)
    _label(drawing, 35, 48, "friction")
    return drawing


def lever() -> Drawing:
    """A bar on a pivot with two weights."""
    drawing = _frame(80)
    _line(drawing, 15, 40, 175, 40)
    _line(drawing, 110, 40, 102, 22, 118, 22, 110, 40)
    _arrow(drawing, 25, 40, 25, 12)
    _arrow(drawing, 152, 40, 152, 2)
    _label(drawing, 5, 46, "300 N")
    _label(drawing, 142, 46, "600 N")
    _label(drawing, 60, 46, "2 m")
    _label(drawing, 122, 46, "1 m")
    return drawing


def particles() -> Drawing:
    """Three boxes of dots."""
    drawing = _frame(80)
    orderly = [(10 + n % 6 * 7.5, 22 + n // 6 * 7.5) for n in range(30)]
    jostling = [
        (8.0 + n % 6 * 8 + n // 6 % 2 * 3, 21.0 + n // 6 * 8 + n % 2 * 3) for n in range(18)
    ]
    flying = [(12.0, 30.0), (40.0, 24.0), (25.0, 52.0), (48.0, 60.0)]
    kinds = (("solid", orderly), ("liquid", jostling), ("gas", flying))
    for place, (text, dots) in enumerate(kinds):
        left = 3 + place * 63
        _box(drawing, left, 15, 58, 56)
        _label(drawing, left + 18, 4, text)
        for x, y in dots:
            _dot(drawing, left + x, y, 3.5)
    return drawing


def convection() -> Drawing:
    """Air going round between the land and the sea."""
    drawing = _frame(80)
    _box(drawing, 5, 5, 90, 14)
    _label(drawing, 35, 9, "warm land")
    _label(drawing, 125, 3, "cool sea")
    _line(drawing, 95, 12, 185, 12)
    _arrow(drawing, 45, 22, 45, 62)
    _arrow(drawing, 45, 66, 140, 66)
    _arrow(drawing, 140, 62, 140, 26)
    _arrow(drawing, 135, 24, 50, 24)
    _label(drawing, 75, 30, "breeze")
    return drawing


def flask() -> Drawing:
    """Two walls with nothing between them."""
    drawing = _frame(110)
    _line(drawing, 60, 95, 60, 10, 120, 10, 120, 95)
    _line(drawing, 68, 95, 68, 18, 112, 18, 112, 95)
    _box(drawing, 68, 88, 44, 16)
    for y, text, x in ((95, "stopper", 112), (60, "silvered walls", 120), (14, "vacuum", 116)):
        _line(drawing, x, y, 130, y)
        _label(drawing, 133, y - 3, text)
    return drawing


def wave() -> Drawing:
    """Two waves with their measures."""
    drawing = _frame(80)
    _line(drawing, 10, 40, 180, 40)
    _wave(drawing, 15, 40, 25, 2)
    _arrow(drawing, 35, 40, 35, 64)
    _label(drawing, 40, 46, "amplitude")
    _arrow(drawing, 35, 70, 115, 70)
    _label(drawing, 55, 73, "wavelength")
    return drawing


def sonar() -> Drawing:
    """A ship, a pulse down and its echo."""
    drawing = _frame(90)
    _line(drawing, 5, 70, 185, 70)
    _line(drawing, 70, 75, 78, 62, 118, 62, 126, 75, 70, 75)
    _arrow(drawing, 92, 62, 92, 12)
    _arrow(drawing, 104, 10, 104, 60)
    _line(drawing, 5, 8, 185, 8)
    for x, y, text in ((62, 35, "pulse"), (110, 35, "echo"), (140, 12, "sea bed")):
        _label(drawing, x, y, text)
    return drawing


def circuit() -> Drawing:
    """A battery, a resistor and two meters."""
    drawing = _frame(100)
    _line(drawing, 30, 85, 30, 30, 160, 30, 160, 85, 30, 85)
    _line(drawing, 70, 30, 70, 10, 120, 10, 120, 30)
    _box(drawing, 80, 26, 30, 8)
    for x, y, text in ((160, 58, "A"), (95, 10, "V")):
        _dot(drawing, x, y, 8)
        _label(drawing, x - 3, y - 3, text)
    _label(drawing, 82, 38, "resistor")
    _label(drawing, 80, 90, "battery")
    return drawing


def coil() -> Drawing:
    """Turns of wire round a bar."""
    drawing = _frame(70)
    _box(drawing, 35, 28, 120, 14)
    for turn in range(10):
        _line(drawing, 42 + turn * 11, 22, 48 + turn * 11, 48)
    _label(drawing, 22, 32, "N")
    _label(drawing, 160, 32, "S")
    _label(drawing, 75, 54, "iron core")
    _label(drawing, 70, 8, "many turns of wire")
    return drawing


def transformer() -> Drawing:
    """A square core with two coils."""
    drawing = _frame(90)
    drawing.add(Rect(60, 15, 70, 60, fillColor=None, strokeColor=black, strokeWidth=5))
    for turn in range(9):
        _line(drawing, 52, 22 + turn * 6, 68, 24 + turn * 6)
    for turn in range(3):
        _line(drawing, 122, 38 + turn * 6, 138, 40 + turn * 6)
    _label(drawing, 5, 42, "primary")
    _label(drawing, 143, 42, "secondary")
    return drawing


def mirror() -> Drawing:
    """A ray that comes and goes at one angle."""
    drawing = _frame(80)
    _line(drawing, 15, 12, 175, 12)
    _arrow(drawing, 30, 68, 95, 12)
    _arrow(drawing, 95, 12, 160, 68)
    _line(drawing, 95, 12, 95, 75)
    for x, y, text in ((80, 34, "i"), (106, 34, "r"), (99, 70, "normal"), (150, 3, "mirror")):
        _label(drawing, x, y, text)
    return drawing


def lens() -> Drawing:
    """Two rays from an object to its image."""
    drawing = _frame(90)
    _line(drawing, 5, 45, 185, 45)
    _line(drawing, 95, 10, 95, 80)
    _arrow(drawing, 25, 45, 25, 70)
    _arrow(drawing, 155, 45, 155, 23)
    _line(drawing, 25, 70, 95, 70, 155, 23)
    _line(drawing, 25, 70, 155, 23)
    for x, y, text in (
        (10, 74, "object"),
        (145, 12, "image"),
        (90, 82, "lens"),
        (125, 49, "focus"),
    ):
        _label(drawing, x, y, text)
    return drawing


FIGURES: Final[Mapping[str, Callable[[], Drawing]]] = {
    draw.__name__: draw
    for draw in (
        *(graph, forces, lever, particles, convection, flask),
        *(wave, sonar, circuit, coil, transformer, mirror, lens),
    )
}
