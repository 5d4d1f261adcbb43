"""A textbook: contents, chapters, two columns, figures, tables, running heads, page numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from reportlab.lib.colors import grey
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    KeepTogether,
    NextPageTemplate,
    PageBreak,
    PageTemplate,
    Paragraph,
    Table,
)
from reportlab.platypus.tableofcontents import TableOfContents

from tests.courses.figures import FIGURES
from tests.courses.source import Line, read, tables

TITLE: Final = "Physics for Secondary Schools"
CHAPTERS: Final = ("1-mechanics", "2-heat", "3-waves", "4-electricity", "5-light")

_WIDTH, _HEIGHT = 176 * mm, 250 * mm
_SIDE, _FOOT, _GAP = 16 * mm, 20 * mm, 8 * mm
_INNER: Final = _WIDTH - 2 * _SIDE
_COLUMN: Final = (_INNER - _GAP) / 2
_TALL: Final = _HEIGHT - 2 * _FOOT
# The fonts of every PDF reader have Greek letters in the symbol font only.
_GREEK: Final = str.maketrans(
    {
        sign: f"<greek>{key}</greek>"
        for sign, key in {"λ": "l", "Ω": "W", "ρ": "r", "Δ": "D"}.items()
    }
)


def write(path: Path) -> None:
    """Typeset the book as PDF."""
    _Book(path).multiBuild(list(_story()))


class _Book(BaseDocTemplate):  # type: ignore[misc]
    """Keeps the running head and tells the contents where the headings came to stand."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), pagesize=(_WIDTH, _HEIGHT), title=TITLE, invariant=1)
        wide = Frame(_SIDE, _FOOT, _INNER, _TALL, 0, 0, 0, 0)
        left = Frame(_SIDE, _FOOT, _COLUMN, _TALL, 0, 0, 0, 0)
        right = Frame(_SIDE + _COLUMN + _GAP, _FOOT, _COLUMN, _TALL, 0, 0, 0, 0)
        self.chapter = ""
        self.addPageTemplates(
            [
                PageTemplate("opening", [wide], onPageEnd=_number),
                PageTemplate("columns", [left, right], onPageEnd=_head_and_number),
            ]
        )

    def beforeDocument(self) -> None:
        self.chapter = ""

    def afterFlowable(self, flowable: Flowable) -> None:
        style = getattr(getattr(flowable, "style", None), "name", "")
        if style in ("title", "heading"):
            text = flowable.getPlainText()
            self.notify("TOCEntry", (int(style == "heading"), text, self.page))
            self.chapter = text if style == "title" else self.chapter


def _story() -> Iterator[Flowable]:
    yield Paragraph(TITLE, _style("book"))
    yield Paragraph(
        "Mechanics, heat, waves, electricity and light, in five chapters", _style("text")
    )
    yield PageBreak()
    yield Paragraph("Contents", _style("book"))
    contents = TableOfContents()
    contents.levelStyles = [_style("contents"), _style("contents of a chapter")]
    yield contents
    for chapter in CHAPTERS:
        yield NextPageTemplate("opening")
        yield PageBreak()
        yield from _chapter(f"physics/{chapter}.md")


def _chapter(name: str) -> Iterator[Flowable]:
    sections = [line.text for line in read(name) if line.kind == "heading"]
    opened = False
    for part in tables(read(name)):
        if isinstance(part, list):
            yield _table(part)
            continue
        if part.kind == "heading" and not opened:
            opened = True
            yield Paragraph("In this chapter", _style("small heading"))
            yield from (Paragraph(text, _style("item"), bulletText="•") for text in sections)
            yield NextPageTemplate("columns")
            yield PageBreak()
        yield _figure(part) if part.kind == "figure" else _paragraph(part)


def _paragraph(line: Line) -> Paragraph:
    return Paragraph(line.text.replace("&", "&amp;").translate(_GREEK), _style(line.kind))


def _figure(line: Line) -> Flowable:
    name, caption = line.text.split(": ", 1)
    return KeepTogether([FIGURES[name](), Paragraph(caption, _style("caption"))])


def _table(rows: list[tuple[str, ...]]) -> Table:
    cells = [[Paragraph(text.translate(_GREEK), _style("cell")) for text in row] for row in rows]
    ruled = [("GRID", (0, 0), (-1, -1), 0.5, grey), ("VALIGN", (0, 0), (-1, -1), "TOP")]
    return Table(cells, [_COLUMN / len(rows[0])] * len(rows[0]), style=ruled, spaceBefore=6)


def _number(canvas: Any, book: _Book) -> None:
    canvas.setFont("Helvetica", 9)
    canvas.drawCentredString(_WIDTH / 2, _FOOT / 2, str(book.page))


def _head_and_number(canvas: Any, book: _Book) -> None:
    _number(canvas, book)
    canvas.drawString(_SIDE, _HEIGHT - _FOOT / 2, TITLE)
    canvas.drawRightString(_WIDTH - _SIDE, _HEIGHT - _FOOT / 2, book.chapter)


def _style(kind: str) -> ParagraphStyle:
    bold = kind in ("book", "title", "heading", "small heading", "contents")
    fonts = {"quote": "Times-Italic", "caption": "Times-Italic", "cell": "Helvetica"}
    size = {"book": 26, "title": 22, "heading": 13.5, "caption": 9.5, "cell": 9.5}.get(kind, 11.5)
    return ParagraphStyle(
        kind,
        fontName="Helvetica-Bold" if bold else fonts.get(kind, "Times-Roman"),
        fontSize=size,
        leading=size * 1.35,
        spaceBefore=4 if kind.startswith("contents") else size * 0.6,
        alignment=1 if kind == "quote" else 0,
        leftIndent=14 if kind in ("item", "contents of a chapter") else 0,
        keepWithNext=kind in ("heading", "small heading"),
    )
