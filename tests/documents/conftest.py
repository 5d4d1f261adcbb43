"""Real documents, typeset once for all tests of reading them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import docx
import pptx
import pytest
from pptx.util import Inches
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from gpuserver.documents import ReadDocument, ReadingLimits
from gpuserver.documents.building import Source
from gpuserver.documents.cutting import as_markdown, cut
from gpuserver.documents.kinds import extract
from gpuserver.documents.reading import read_document

LIMITS = ReadingLimits(seconds=60, memory_mb=1024, pages=500, characters=2_000_000)

LEFT = """Sound is a wave that travels through air.
It needs something to travel through, so
there is silence in space. A louder sound
has a larger amplitude. A string swings in
waves, and a string that is made shorter
sounds higher. The ear hears sounds up to
twenty thousand hertz. The largest ampli-
tude is the loudest, a well-
known fact of a well-known science, and"""
RIGHT = """older ears hear less than younger ones.
Light is a wave that needs nothing to travel
through. White light holds all colours,
which a prism takes apart. What we see as
red has a long wave, and what we see as
violet has a short one. A mirror throws
light back at the angle at which it came."""

WAVES = (
    ("Place", "Height", "Speed"), ("Lake", "0.3 m", "2 m/s"), ("Sea", "4 m", "11 m/s"),
    ("Ocean", "9 m", "20 m/s"),
)  # fmt: skip


def column(canvas: Canvas, x: float, y: float, text: str) -> None:
    for n, line in enumerate(text.splitlines()):
        canvas.drawString(x, y - 14 * n, line)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents; see the functions below for what is in them."""
    folder = tmp_path_factory.mktemp("documents")
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    _physics_pdf(folder / "physics.pdf")
    _rows_pdf(folder / "rows.pdf")
    _chinese_pdf(folder / "handout.pdf")
    _scan_pdf(folder / "scan.pdf")
    _handbook_docx(folder / "handbook.docx")
    _deck_pptx(folder / "deck.pptx")
    return folder


def _physics_pdf(path: Path) -> None:
    """Three pages: running lines, an outline, a title over two columns, a table, a picture."""
    canvas = Canvas(str(path), pagesize=A4)
    canvas.setTitle("Waves for beginners")
    for page, title in enumerate(("Sound and light", "Water", "Questions"), start=1):
        canvas.setFont("Helvetica", 8)
        canvas.drawString(60, 815, "Physics department, grade 9")
        canvas.drawCentredString(300, 20, f"- {page} -")
        canvas.setFont("Helvetica-Bold", 18)
        canvas.drawString(60, 770, title)
        canvas.bookmarkPage(title)
        canvas.addOutlineEntry(title, title, 0)
        canvas.setFont("Helvetica", 10)
        if page == 1:
            column(canvas, 60, 730, LEFT)
            column(canvas, 320, 730, RIGHT)
        elif page == 2:
            column(canvas, 60, 730, "Waves carry energy, but no\nwater.")
            for row, cells in enumerate(WAVES):
                for place, cell in enumerate(cells):
                    canvas.drawString(60 + 150 * place, 650 - 14 * row, cell)
            canvas.circle(300, 400, 60)
        else:
            column(canvas, 60, 730, "Why is it silent in space? Write about it.")
        canvas.showPage()
    canvas.save()


def _rows_pdf(path: Path) -> None:
    """Two columns that were written row by row, as some programs do."""
    canvas = Canvas(str(path), pagesize=A4)
    canvas.setFont("Helvetica", 10)
    left = [f"left line {n} speaks of the cat and the dog" for n in range(12)]
    right = [f"right line {n} speaks of the sun and the moon" for n in range(12)]
    for n, (one, two) in enumerate(zip(left, right, strict=True)):
        canvas.drawString(50, 700 - 14 * n, one)
        canvas.drawString(320, 700 - 14 * n, two)
    canvas.save()


def _chinese_pdf(path: Path) -> None:
    canvas = Canvas(str(path), pagesize=A4)
    canvas.setFont("STSong-Light", 20)
    canvas.drawString(60, 780, "第一章 牛顿定律")
    canvas.setFont("STSong-Light", 11)
    for n, line in enumerate((
        "牛顿第一定律指出，物体在不受外力作用时保持静止或匀速直",
        "线运动状态。第二定律说，加速度与力成正比，与质量成反比。",
    )):  # fmt: skip
        canvas.drawString(60, 740 - 18 * n, line)
    canvas.save()


def _scan_pdf(path: Path) -> None:
    """Pictures of pages, and nothing that could be read."""
    canvas = Canvas(str(path), pagesize=A4)
    for _ in range(2):
        canvas.rect(50, 50, 400, 600, fill=1)
        canvas.showPage()
    canvas.save()


def _handbook_docx(path: Path) -> None:
    document = docx.Document()
    document.core_properties.title = "Lab handbook"
    document.add_heading("Safety", level=1)
    document.add_paragraph("Wear goggles whenever glass is heated.")
    document.add_paragraph("Tie long hair back.", style="List Bullet")
    document.add_paragraph("Keep the exits free.", style="List Bullet")
    document.add_heading("Chemicals", level=2)
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(
        (cell for row in table.rows for cell in row.cells),
        ("Name", "Danger", "Acid", "Burns the skin"),
        strict=True,
    ):
        cell.text = text
    document.add_paragraph("Label every bottle.")
    document.add_heading("实验步骤", level=1)
    document.add_paragraph("先称量样品。", style="List Number")
    document.add_paragraph("再慢慢加热。", style="List Number")
    document.save(str(path))


def _deck_pptx(path: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Photosynthesis"
    frame = slide.placeholders[1].text_frame
    frame.text = "Plants make sugar from light."
    frame.add_paragraph().text = "They take in carbon dioxide."
    slide.notes_slide.notes_text_frame.text = "Ask who has seen a leaf under a microscope."
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "光合作用"
    rows = slide.shapes.add_table(2, 2, Inches(1), Inches(2), Inches(4), Inches(1)).table
    for place, text in enumerate(("原料", "产物", "二氧化碳", "葡萄糖")):
        rows.cell(place // 2, place % 2).text = text
    deck.save(str(path))


@pytest.fixture
def place(library: Path, tmp_path: Path) -> Callable[..., Path]:
    """`place("physics.pdf")`: a document of the library; `place("a.txt", b"bytes")`: a new one."""

    def placing(name: str, content: bytes | None = None) -> Path:
        if content is None:
            return library / name
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return placing


@pytest.fixture
def read(place: Callable[..., Path]) -> Callable[..., ReadDocument]:
    """`read("physics.pdf")`: what the child process does, in this one."""

    def reading(
        name: str, content: bytes | None = None, limits: ReadingLimits = LIMITS, as_name: str = ""
    ) -> ReadDocument:
        source = Source(place(name, content), as_name or name, limits, lambda *_: None)
        found = extract(source)
        return ReadDocument(
            found.title, as_markdown(found), cut(found), found.pages, found.empty_pages
        )

    return reading


@pytest.fixture
def read_apart(place: Callable[..., Path]) -> Callable[..., ReadDocument]:
    """As `read`, in the real child process with its limits."""

    def reading(
        name: str, content: bytes | None = None, limits: ReadingLimits = LIMITS
    ) -> ReadDocument:
        path = place(name, content)
        return asyncio.run(read_document(path, name, limits, lambda *_: None))

    return reading
