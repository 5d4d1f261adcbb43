"""A teacher's document on its way through both pages and the real server, to a student's source."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Page
from reportlab.pdfgen.canvas import Canvas

from tests import courses
from tests.browser import WRITTEN, Classroom, ask, fixtures, in_browser

browser, classroom = fixtures

FILLER = "Lens number {n} hangs in the cupboard of room {room} and is counted every summer."
LAW = "Refraction is the bending of light at the border between two media."
QUESTION = "What is refraction?"
REAL = {
    "physics.pdf": ("Which bridge was destroyed by the wind?", "Resonance"),
    "biology.pptx": ("How many chromosomes are in a sperm?", "meiosis"),
    "chemistry.docx": ("什么是催化剂？", "催化剂"),
}
"""Documents, and what one asks of each, with its heading."""


def booklet(target: Path) -> Path:
    """A PDF of four pages; the third is about refraction."""
    canvas = Canvas(str(target))
    for page, heading in enumerate(("Cupboards", "Lenses", "Refraction", "Summer"), 1):
        text = canvas.beginText(60, 780)
        text.setFont("Helvetica-Bold", 20)
        text.textLines(f"{heading}\n\n")
        text.setFont("Helvetica", 11)
        filler = [FILLER.format(n=page * 20 + line, room=page) for line in range(16)]
        for line in [LAW, "It follows Snell's law."] if page == 3 else filler:
            text.textLine(line)
        canvas.drawText(text)
        canvas.showPage()
    canvas.save()
    return target


def entered(classroom: Classroom, page: Page, kb_id: str) -> Page:
    """The classroom of a student whose school has named this course."""
    made = page.request.post(
        f"{classroom.url}/v1/sessions", data={"tutor_id": 1, "student_id": 7, "kb_id": kb_id}
    ).json()
    room = classroom.page()
    address = quote(made["engine_url"], safe="")
    room.goto(f"{classroom.url}/#engine_url={address}&token={made['engine_token']}")
    room.wait_for_selector("html[data-activity=idle] #ask")
    return room


@in_browser
def test_a_document_is_uploaded_tried_asked_about_and_opened_at_its_page(
    classroom: Classroom, tmp_path: Path
) -> None:
    page = classroom.page()
    page.goto(f"{classroom.url}/console")
    page.wait_for_selector("#knowledge:not([hidden])")
    locked = Canvas(str(tmp_path / "locked.pdf"), encrypt="secret")
    locked.drawString(60, 780, "x")
    locked.save()
    files = [booklet(tmp_path / "booklet.pdf"), tmp_path / "locked.pdf"]
    page.set_input_files("#drop-files", files)
    page.fill("#base-title", "Optics")
    page.keyboard.press("Enter")
    page.wait_for_selector(".doc[data-state=ready]:has-text('booklet.pdf')", timeout=60_000)
    page.wait_for_selector(".doc[data-state=failed]:has-text('password')", timeout=60_000)
    page.click("#language")
    page.wait_for_selector(".doc[data-state=failed]:has-text('密码')")
    page.click("#language")

    page.fill("#trial-question", QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector(".trial-told[data-covered=true]")
    first = page.inner_text(".found-one >> nth=0")
    assert LAW in first
    assert "page 3" in first

    room = entered(classroom, page, "optics")
    ask(room, QUESTION)
    room.wait_for_selector(f"{WRITTEN} .cite", timeout=60_000)
    room.click(".answer:last-child .cite >> nth=0")
    room.wait_for_selector("#passage .cited")
    assert LAW in room.inner_text("#passage .cited").replace("\n", " ")
    assert "page 3" in room.inner_text("#passage h2")
    room.keyboard.press("Escape")
    room.wait_for_selector("#passage", state="hidden")

    page.click("#base-delete")
    page.click("#sure .danger")
    page.wait_for_selector(".card-base[data-id=optics]", state="detached")
    # What an answer has used stays with it; the course no longer shows it.
    classroom.expected.append("404")
    room.click(".answer:last-child .cite >> nth=0")
    room.wait_for_selector("#passage .passage-gone")
    assert LAW in room.inner_text("#passage .cited").replace("\n", " ")


@in_browser
def test_three_real_courses_are_dropped_on_the_page_and_answer(classroom: Classroom) -> None:
    page = classroom.page()
    page.goto(f"{classroom.url}/console")
    page.wait_for_selector("#knowledge:not([hidden])")
    files = [courses.built()[name] for name in REAL]
    page.set_input_files("#drop-files", files)
    page.fill("#base-title", "School")
    page.keyboard.press("Enter")
    for name in REAL:
        page.wait_for_selector(f".doc[data-state=ready]:has-text('{name}')", timeout=120_000)
    room = entered(classroom, page, "school")
    for question, heading in REAL.values():
        before = room.locator(".answer").count()
        ask(room, question)
        room.locator(".answer").nth(before).wait_for()
        room.wait_for_selector(f"{WRITTEN} .cite", timeout=60_000)
        assert heading in room.inner_text(".answer:last-child .source-link >> nth=0")
    page.click("#base-delete")
    page.click("#sure .danger")
    page.wait_for_selector(".card-base[data-id=school]", state="detached")
