"""A deck of slides with bullets, tables, drawn shapes and speaker notes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pptx
from pptx.enum.shapes import MSO_SHAPE
from pptx.util import Cm

from tests.courses.source import Line, read, settle, tables


def write(path: Path) -> None:
    """Write the deck as PPTX."""
    deck = pptx.Presentation()
    slide: Any = None
    for part in tables(read("biology/slides.md")):
        if isinstance(part, list):
            _table(slide, part)
        elif part.kind == "title":
            slide = deck.slides.add_slide(deck.slide_layouts[1 if slide else 0])
            slide.shapes.title.text = part.text
        else:
            _add(slide, part)
    deck.save(str(path))
    settle(path)


def _add(slide: Any, line: Line) -> None:
    match line.kind:
        case "item":
            body = slide.placeholders[1].text_frame
            (body.add_paragraph() if body.text else body.paragraphs[0]).text = line.text
        case "quote":
            slide.notes_slide.notes_text_frame.text = line.text
        case "shape":
            box = (Cm(2), Cm(15.5), Cm(21), Cm(2))
            slide.shapes.add_shape(MSO_SHAPE.RIGHT_ARROW, *box).text_frame.text = line.text
        case other:
            raise ValueError(f"A slide has no {other}: {line.text}")


def _table(slide: Any, rows: Sequence[Sequence[str]]) -> None:
    frame = slide.shapes.add_table(len(rows), len(rows[0]), Cm(2), Cm(13), Cm(21), Cm(4))
    for y, row in enumerate(rows):
        for x, text in enumerate(row):
            frame.table.cell(y, x).text = text
