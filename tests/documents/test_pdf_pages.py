"""What the lines of a PDF's page are: titles, entries of a contents page, or words with symbols."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from reportlab.pdfgen.canvas import Canvas

from gpuserver.documents import ReadDocument

Read = Callable[..., ReadDocument]
Run = tuple[str, str, float]
"""A font, its size, and the text written in it."""

BODY = "The lamps of a house are connected in this way, one beside the other, every day."


def pdf(*pages: Sequence[Sequence[Run]]) -> bytes:
    """Pages of lines of runs."""
    file = io.BytesIO()
    canvas = Canvas(file)
    for lines in pages:
        for n, line in enumerate(lines):
            text = canvas.beginText(60, 780 - 16 * n)
            for words, font, size in line:
                text.setFont(font, size)
                text.textOut(words)
            canvas.drawText(text)
        canvas.showPage()
    canvas.save()
    return file.getvalue()


def plain(text: str) -> list[Run]:
    return [(text, "Helvetica", 10)]


def test_a_symbol_at_either_end_makes_no_title(read: Read) -> None:
    title: list[Run] = [("Circuits", "Helvetica-Bold", 18)]
    begins: list[Run] = [("Ω", "Symbol", 14), (" is the unit of resistance here", "Helvetica", 10)]
    ends: list[Run] = [("The speed of a wave is f times ", "Helvetica", 10), ("λ", "Symbol", 14)]
    lines = [title, plain(BODY), begins, plain(BODY), ends, plain(BODY)]
    text = read("circuits.pdf", pdf(lines)).text
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# Circuits"]


def test_numbered_titles_that_begin_pages_stay_and_running_heads_go(read: Read) -> None:
    head, foot = plain("Physics for all, part 1"), plain("copied by the school")
    pages: list[list[list[Run]]] = [
        [head, [(f"Chapter {n}", "Helvetica-Bold", 16)], *[plain(f"{word}: {BODY}")] * 9, foot]
        for n, word in enumerate(("Light", "Sound", "Heat", "Water"), start=1)
    ]
    document = read("book.pdf", pdf(*pages))
    assert [piece.heading for piece in document.pieces] == [f"Chapter {n}" for n in range(1, 5)]
    assert "part 1" not in document.text
    assert "copied" not in document.text
    large: list[Run] = [("Physics for all", "Helvetica", 16)]
    document = read("large.pdf", pdf(*([large, *page[2:]] for page in pages)))
    assert "Physics for all" not in document.text


def test_a_contents_page_is_no_material(read: Read) -> None:
    titles = ("Light", "Sound", "Heat", "Water")
    entries = [plain(f"{title} {'. ' * 30} {page}") for page, title in enumerate(titles, start=2)]
    chapters: list[list[list[Run]]] = [
        [[(title, "Helvetica-Bold", 18)], plain(f"{title}: {BODY}")] for title in titles
    ]
    document = read("book.pdf", pdf([plain("Contents"), *entries], *chapters))
    assert [(piece.page, piece.heading) for piece in document.pieces] == [
        (page, title) for page, title in enumerate(titles, start=2)
    ]
    assert ". . ." not in document.text


def test_dots_that_lead_to_no_page_are_kept(read: Read) -> None:
    prices = [plain(f"{fruit} {'.' * 30} {price}") for fruit, price in
              (("Apple", 3), ("Pear", 1), ("Plum", 2))]  # fmt: skip
    text = read("prices.pdf", pdf(prices, [plain(BODY)], [plain(BODY)])).text
    assert "Pear" in text
