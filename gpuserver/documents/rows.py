"""CSV: each row said in words, "column: value; column: value"."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final

from gpuserver.documents import Extracted
from gpuserver.documents.building import Builder, Source
from gpuserver.documents.cleaning import clean, one_line
from gpuserver.documents.plain import text_of

_SAMPLE: Final = 20_000
_DELIMITERS: Final = ",;\t|"
_COLUMNS: Final = 500
_GROUP: Final = 20


def read(source: Source) -> Extracted:
    """Raises DocumentUnreadable, DocumentTooLarge."""
    text = clean(text_of(source))
    builder = Builder(source)
    csv.field_size_limit(max(1, source.limits.characters))
    try:
        rows = _rows(text)
        header = next(rows, [])
        if len(header) > _COLUMNS:
            raise source.unreadable(f"it has more than {_COLUMNS} columns", f"列数超过 {_COLUMNS}")
        first = next(rows, None)
        if first is None:  # one row only: it is what the file says
            builder.block("; ".join(filter(None, header)))
        else:
            builder.heading(1, " · ".join(filter(None, header)))
            _say(builder, header, chain([first], rows))
    except csv.Error as error:
        raise source.damaged() from error
    source.told(1, 1)
    return builder.extracted()


def _rows(text: str) -> Iterator[list[str]]:
    """Rows that say something, their cells in one line each."""
    sample = text[:_SAMPLE]
    delimiter = max(_DELIMITERS, key=sample.split("\n", 1)[0].count)
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
        cells = [one_line(cell, len(cell) + 1) for cell in row]
        if any(cells):
            yield cells


def _say(builder: Builder, header: list[str], rows: Iterator[list[str]]) -> None:
    while group := list(islice(rows, _GROUP)):
        builder.block("\n".join(f"- {_row(header, row)}" for row in group))


def _row(header: list[str], row: list[str]) -> str:
    names = header + [""] * (len(row) - len(header))
    pairs = zip(names, row, strict=False)
    return "; ".join(f"{name}: {cell}" if name else cell for name, cell in pairs if cell)
