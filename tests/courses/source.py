"""The texts of the courses: a small Markdown, read line by line."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

TEXTS: Final = Path(__file__).parents[1] / "data" / "courses"

Kind = Literal["title", "heading", "text", "item", "quote", "row", "figure", "shape"]

_MARKS: Final[tuple[tuple[str, Kind], ...]] = (
    ("# ", "title"),
    ("## ", "heading"),
    ("- ", "item"),
    ("> ", "quote"),
    ("|", "row"),
    ("!figure ", "figure"),
    ("[Shape] ", "shape"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a text without its mark; `cells` only for the row of a table."""

    kind: Kind
    text: str
    cells: tuple[str, ...] = ()


def read(name: str) -> Iterator[Line]:
    """The lines of one file (by its path below the texts) that say something."""
    for raw in (TEXTS / name).read_text("utf-8").splitlines():
        if raw.strip() and not raw.startswith("| ---"):
            yield _line(raw)


def tables(lines: Iterator[Line]) -> Iterator[Line | list[tuple[str, ...]]]:
    """The lines, with the rows of each table together."""
    rows: list[tuple[str, ...]] = []
    for line in lines:
        if line.kind == "row":
            rows.append(line.cells)
            continue
        if rows:
            yield rows
            rows = []
        yield line
    if rows:
        yield rows


def settle(path: Path) -> None:
    """Take the times out of an office file, so that one text always gives the same bytes."""
    old = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name in source.namelist():
            made.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED)


def _line(raw: str) -> Line:
    for mark, kind in _MARKS:
        if raw.startswith(mark):
            cells = tuple(cell.strip() for cell in raw.strip("| ").split("|"))
            return Line(kind, raw.removeprefix(mark), cells if kind == "row" else ())
    return Line("text", raw)
