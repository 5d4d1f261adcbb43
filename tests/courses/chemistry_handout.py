"""A Chinese handout with units, sections, lists and a table: as DOCX, and typeset as PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import docx
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.pdfmetrics import registerFont
from reportlab.platypus import Flowable, Paragraph, SimpleDocTemplate, Table

from tests.courses.source import read, settle, tables

TITLE: Final = "初中化学讲义"

_TEXT: Final = "chemistry/handout.md"
_FONT: Final = "STSong-Light"


def write_docx(path: Path) -> None:
    """Write the handout as DOCX, its headings in Word's heading styles."""
    document = docx.Document()
    document.add_heading(TITLE, 0)
    for part in tables(read(_TEXT)):
        if isinstance(part, list):
            _word_table(document, part)
        elif part.kind in ("title", "heading"):
            document.add_heading(part.text, 1 if part.kind == "title" else 2)
        else:
            style = "List Bullet" if part.kind == "item" else None
            document.add_paragraph(part.text, style)
    document.save(str(path))
    settle(path)


def write_pdf(path: Path) -> None:
    """Typeset the handout in a font that every PDF reader brings, so none is embedded."""
    registerFont(UnicodeCIDFont(_FONT))
    story: list[Flowable] = [Paragraph(TITLE, _style("title"))]
    for part in tables(read(_TEXT)):
        if isinstance(part, list):
            story.append(Table(part, style=[("FONT", (0, 0), (-1, -1), _FONT, 11)]))
        else:
            bullet = "•" if part.kind == "item" else None
            story.append(Paragraph(part.text, _style(part.kind), bulletText=bullet))
    SimpleDocTemplate(str(path), pagesize=A4, title=TITLE, invariant=1).build(story)


def _word_table(document: Any, rows: list[tuple[str, ...]]) -> None:
    table = document.add_table(len(rows), len(rows[0]))
    for y, row in enumerate(rows):
        for x, text in enumerate(row):
            table.cell(y, x).text = text


def _style(kind: str) -> ParagraphStyle:
    size = {"title": 17, "heading": 13}.get(kind, 11)
    return ParagraphStyle(
        kind,
        fontName=_FONT,
        bulletFontName=_FONT,
        fontSize=size,
        leading=size * 1.5,
        spaceBefore=size / 2,
        leftIndent=14 if kind == "item" else 0,
        keepWithNext=kind in ("title", "heading"),
        wordWrap="CJK",
    )
