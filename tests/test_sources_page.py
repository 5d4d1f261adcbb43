"""The sources of an answer in the classroom: opened at their passage, closed again, and safe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from playwright.sync_api import Page, Request, Route

from tests.browser import (
    BrowserThread,
    Classroom,
    ask,
    fixtures,
    in_browser,
    tab_to,
    until,
)
from tests.scripted_tutor import ScriptedTutor, scripted_tutor

browser, _ = fixtures


def beside(n: int, text: str) -> dict[str, Any]:
    return {"n": n, "heading": "Forces", "page": 31, "text": text}


URL: Final = "/v1/knowledge-bases/physics-9/documents/0123456789abcdef/passages/7"
PASSAGE: Final[dict[str, Any]] = {
    "kb_id": "physics-9",
    "document_id": "0123456789abcdef",
    "n": 7,
    "document": "mechanics.pdf",
    "heading": "Forces › Newton’s second law",
    "page": 31,
    "text": "The **acceleration** of a body is the force on it divided by its mass.",
    "before": beside(6, "A body at rest stays at rest while no force acts on it."),
    "after": beside(
        8, "Twice the force gives twice the acceleration. <img src=x onerror=alert(1)>"
    ),
}
QUOTE: Final = "The acceleration of a body is the force on it divided by its mass."
SOURCE: Final = {
    "n": 1,
    "document": "mechanics.pdf",
    "heading": "Forces › Newton’s second law",
    "page": 31,
    "quote": QUOTE,
    "score": 0.83,
    "url": URL,
}
NEAR: Final = {**SOURCE, "heading": "Forces › Inertia", "score": 0.31}
PLAIN: Final = {**SOURCE, "n": 2, "document": "An older server", "url": None}


@pytest.fixture
def server() -> Iterator[ScriptedTutor]:
    with scripted_tutor() as tutor:
        yield tutor


@pytest.fixture
def classroom(server: ScriptedTutor, browser: BrowserThread) -> Iterator[Classroom]:
    classroom = Classroom(server.url, browser)
    yield classroom
    browser.call(classroom.close)


def questioned(
    classroom: Classroom, server: ScriptedTutor, question: str, language: str = "en", **more: Any
) -> Page:
    """The page whose student has asked this, and is being answered."""
    page = classroom.page(language, **more)
    page.goto(server.link)
    page.wait_for_selector("html[data-activity=idle] #ask")
    ask(page, question)
    server.wait_for("text")
    server.say("turn.started", turn_id="t1", question=question)
    return page


def answered(
    classroom: Classroom, server: ScriptedTutor, language: str = "en", **more: Any
) -> Page:
    """The page after an answer that cites both sources."""
    page = questioned(classroom, server, "What is acceleration?", language, **more)
    server.say("sources", turn_id="t1", passages=[SOURCE, PLAIN])
    text = "It is the force divided by the mass. [1] So an older book says too. [2]"
    server.say("text.delta", turn_id="t1", content=text)
    server.say("text", turn_id="t1", content=text)
    server.done(1)
    page.wait_for_selector(".answer:last-child[data-status=completed] .cite")
    return page


def serving(page: Page, answer: dict[str, Any] = PASSAGE) -> list[Request]:
    asked: list[Request] = []

    def tell(route: Route) -> None:
        asked.append(route.request)
        route.fulfill(json=answer)

    page.route("**/v1/knowledge-bases/**", tell)
    return asked


@in_browser
def test_a_marker_opens_the_passage_and_escape_closes_it(
    classroom: Classroom, server: ScriptedTutor
) -> None:
    page = answered(classroom, server)
    asked = serving(page)
    page.focus(".cite >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector("#passage .cited")
    assert asked[0].url == f"{server.url}{URL}?session_id=s1"
    assert asked[0].headers["authorization"] == "Bearer secret"
    head = page.inner_text("#passage h2")
    for said in ("mechanics.pdf", "Newton’s second law", "page 31"):
        assert said in head
    assert page.inner_text("#passage .cited") == QUOTE
    around = page.locator("#passage .around").all_inner_texts()
    assert around == [PASSAGE["before"]["text"], PASSAGE["after"]["text"]]
    assert page.locator("#passage img").count() == 0
    # Closed and opened again before the page is told that it was closed.
    page.evaluate("document.querySelector('#passage').close(), document.activeElement.click()")
    page.wait_for_selector("#passage .cited")
    page.keyboard.press("Escape")
    page.wait_for_selector("#passage", state="hidden")
    assert page.evaluate("document.activeElement.className") == "cite"
    # It closed the panel only: no answer was stopped by it.
    assert not server.all_of("interrupt")


@in_browser
@pytest.mark.parametrize(
    ("language", "title"), [("en", "Nearest in the course"), ("zh", "课程中最接近的内容")]
)
def test_what_is_near_stands_beside_a_refusal_and_opens(
    classroom: Classroom, server: ScriptedTutor, language: str, title: str
) -> None:
    page = questioned(classroom, server, "Why do I fly forward in the bus?", language)
    server.say("sources", turn_id="t1", passages=[], near=[NEAR])
    server.say("text", turn_id="t1", content="Not clearly. [1]")
    server.done(1)
    page.wait_for_selector(".answer:last-child[data-status=completed] .sources")
    assert page.inner_text(".sources h3") == title
    # Nothing is cited, so nothing has a number.
    assert page.locator(".answer .cite, .sources .number").count() == 0
    asked = serving(page)
    page.click(".source-link")
    page.wait_for_selector("#passage .cited")
    assert asked[0].url == f"{server.url}{URL}?session_id=s1"


@in_browser
def test_the_list_of_sources_opens_it_too(classroom: Classroom, server: ScriptedTutor) -> None:
    page = answered(classroom, server)
    serving(page)
    page.focus(".cite >> nth=1")
    tab_to(page, ".source-link")
    page.keyboard.press("Enter")
    page.wait_for_selector("#passage .cited")
    page.click("#passage button")
    page.wait_for_selector("#passage", state="hidden")
    assert page.evaluate("document.activeElement.className") == "source-link"
    page.click(".source-link")
    page.wait_for_selector("#passage[open]")
    page.mouse.click(20, 20)  # beside it
    page.wait_for_selector("#passage", state="hidden")


@in_browser
def test_a_source_without_an_address_is_quoted_in_its_place(
    classroom: Classroom, server: ScriptedTutor
) -> None:
    page = answered(classroom, server)
    page.click(".cite >> nth=1")
    assert page.is_visible(".source[data-n='2'] blockquote")
    assert page.is_hidden("#passage")


@in_browser
@pytest.mark.parametrize(
    ("status", "language", "said"),
    [
        (404, "en", "no longer in the course"),
        (401, "en", "can’t be opened now"),
        (404, "zh", "已经没有这一段"),
    ],
)
def test_a_passage_that_is_gone_leaves_what_the_answer_used(
    classroom: Classroom, server: ScriptedTutor, status: int, language: str, said: str
) -> None:
    classroom.expected.append(str(status))
    page = answered(classroom, server, language)
    refusal = {"code": "passage_not_found", "detail": "This document has no passage 7."}
    page.route("**/v1/knowledge-bases/**", lambda route: route.fulfill(status=status, json=refusal))
    page.click(".cite >> nth=0")
    page.wait_for_selector("#passage .passage-gone")
    assert said in page.inner_text("#passage .passage-gone")
    assert page.inner_text("#passage .cited") == QUOTE


@in_browser
def test_only_the_source_that_was_opened_last_is_shown(
    classroom: Classroom, server: ScriptedTutor
) -> None:
    page = answered(classroom, server)
    held: list[Route] = []
    page.route("**/v1/knowledge-bases/**", lambda route: held.append(route))
    for count in (1, 2):
        page.click(".cite >> nth=0")
        while len(held) < count:
            page.wait_for_timeout(20)
        if count == 1:
            page.keyboard.press("Escape")
    held[1].fulfill(json={**PASSAGE, "text": "The second."})
    page.wait_for_selector("#passage .cited")
    held[0].fulfill(json={**PASSAGE, "text": "The first."})
    page.wait_for_timeout(200)
    assert page.inner_text("#passage .cited") == "The second."


@in_browser
@pytest.mark.parametrize("size", [(1200, 800), (320, 640)])
def test_a_long_passage_is_brought_into_view(
    classroom: Classroom, server: ScriptedTutor, size: tuple[int, int]
) -> None:
    page = answered(classroom, server, size=size)
    long = "\n\n".join(f"Paragraph {n} of what stands around it." for n in range(60))
    serving(page, {**PASSAGE, "before": beside(6, long), "after": beside(8, long)})
    page.click(".cite >> nth=0")
    page.wait_for_selector("#passage .cited")
    until(
        page,
        "(({ top, bottom }) => top > 0 && bottom < innerHeight)"
        "(document.querySelector('#passage .cited').getBoundingClientRect())",
    )
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    # The arrow keys scroll it at once.
    assert page.evaluate("document.activeElement.className") == "passage-text"


@in_browser
@pytest.mark.parametrize(("language", "said"), [("en", "general knowledge"), ("zh", "一般知识")])
def test_an_answer_that_is_not_from_the_course_says_so(
    classroom: Classroom, server: ScriptedTutor, language: str, said: str
) -> None:
    page = questioned(classroom, server, "Who was Napoleon?", language)
    server.say("notice", turn_id="t1", code="not_from_course", content="x", provider="")
    server.say("text", turn_id="t1", content="An emperor.")
    server.done(1)
    page.wait_for_selector(".answer:last-child .answer-note")
    assert said in page.inner_text(".answer:last-child .answer-note")
