"""The course documents of the tests are whole, and the questions on them name real places."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import docx
import pptx
import pypdfium2
import pytest

from tests import courses
from tests.courses.physics_book import CHAPTERS
from tests.courses.source import read

pytestmark = pytest.mark.slow

FRONT: Final = 6
"""Pages of the book before its first chapter: title and contents."""


@pytest.fixture(scope="module")
def files() -> Mapping[str, Path]:
    return courses.built()


@pytest.fixture(scope="module")
def book(files: Mapping[str, Path]) -> list[str]:
    """The text of each page without its white space."""
    return _pages(files["physics.pdf"])


def test_the_same_texts_give_the_same_bytes(files: Mapping[str, Path], tmp_path: Path) -> None:
    again = courses.build(tmp_path)
    assert {name: path.read_bytes() for name, path in again.items()} == {
        name: path.read_bytes() for name, path in files.items()
    }


def test_the_book_has_all_its_sections_under_running_heads(book: list[str]) -> None:
    assert len(book) >= 40
    text = "".join(book[FRONT:])
    lines = [line for chapter in CHAPTERS for line in read(f"physics/{chapter}.md")]
    assert sum(line.kind == "heading" for line in lines) >= 60
    for line in lines:
        if line.kind in ("title", "heading", "text"):
            assert _bare(line.text)[:30] in text
    assert sum("PhysicsforSecondarySchools" in page for page in book[FRONT:]) >= 25


def test_the_deck_has_slides_with_notes_tables_and_shapes(files: Mapping[str, Path]) -> None:
    slides = pptx.Presentation(str(files["biology.pptx"])).slides
    assert len(slides) == 40
    assert sum(slide.has_notes_slide for slide in slides) >= 15
    shapes = [shape for slide in slides for shape in slide.shapes]
    assert sum(shape.has_table for shape in shapes) >= 4
    drawn = [shape for shape in shapes if not shape.is_placeholder and shape.has_text_frame]
    assert len(drawn) >= 4
    assert all(shape.text_frame.text for shape in drawn)


def test_the_handout_says_the_same_as_word_and_as_pdf(files: Mapping[str, Path]) -> None:
    document = docx.Document(str(files["chemistry.docx"]))
    typeset = "".join(_pages(files["chemistry.pdf"]))
    assert len([p for p in document.paragraphs if _style(p) == "Heading 2"]) >= 40
    assert any(_style(p) == "List Bullet" for p in document.paragraphs)
    assert document.tables[0].cell(1, 0).text == "氮气"
    for paragraph in document.paragraphs:
        assert _bare(paragraph.text)[:20] in typeset


def test_every_question_is_whole_and_asked_once() -> None:
    asked = courses.questions()
    assert Counter(q["course"] for q in asked) == {"physics": 25, "biology": 15, "chemistry": 20}
    assert sum("before" in question for question in asked) == 6
    assert sum(not question["shares_words"] for question in asked) >= len(asked) / 3
    for question in asked:
        assert question["answer"]
        assert question["language"] == ("zh" if question["course"] == "chemistry" else "en")


def test_outside_questions_are_half_near_the_subject() -> None:
    asked = courses.outside()
    assert Counter((q["language"], q["near"]) for q in asked) == {
        ("en", False): 6,
        ("en", True): 6,
        ("zh", False): 4,
        ("zh", True): 4,
    }


def test_no_two_questions_are_alike() -> None:
    asked = courses.questions() + courses.outside()
    assert len({question["id"] for question in asked}) == len(asked)
    assert len({_bare(question["question"]).lower() for question in asked}) == len(asked)


def test_the_answer_stands_where_the_question_says(
    files: Mapping[str, Path], book: list[str]
) -> None:
    slides = pptx.Presentation(str(files["biology.pptx"])).slides
    titles = [slide.shapes.title.text for slide in slides]
    document = docx.Document(str(files["chemistry.docx"]))
    headings = [p.text for p in document.paragraphs if _style(p) == "Heading 2"]
    for question in courses.questions():
        heading = question["heading"]
        match question["document"]:
            case "physics.pdf":
                assert _bare(heading) in book[question["page"] - 1]
                assert question["page"] > FRONT
            case "biology.pptx":
                assert titles[question["page"] - 1] == heading
            case "chemistry.docx":
                assert headings.count(heading) == 1
            case other:
                pytest.fail(f"There is no document {other}.")


def _pages(path: Path) -> list[str]:
    document = pypdfium2.PdfDocument(path)
    try:
        return [_bare(page.get_textpage().get_text_range()) for page in document]
    finally:
        document.close()


def _bare(text: str) -> str:
    """Without white space, and with one code for signs that have two, as omega and ohm."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _style(paragraph: Any) -> str:
    return str(paragraph.style.name)
