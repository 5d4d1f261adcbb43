"""The console's course material in a browser: watched, tried, taken away."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.browser import Classroom, held, in_browser, tab_to, until_true
from tests.console_course import PHYSICS, drop, fixtures, following, opened
from tests.scripted_knowledge import ScriptedKnowledge, document

browser, knowledge, classroom = fixtures

FAILURE: Final = {
    "code": "document_unreadable",
    "detail": "The document 'broken.pdf' can't be read: it is encrypted.",
    "detail_zh": "无法读取文档 'broken.pdf'：文件已加密。",
}
FOUND: Final = {
    "document": "mechanics.pdf",
    "heading": "Forces",
    "page": 31,
    "text": "The **acceleration** is the force divided by the mass. <img src=x>",
    "similarity": 0.83,
    "by_meaning": 0.79,
    "by_words": 0.6,
    "by_heading": 0.08,
    "by_reranker": 0.91,
    "covered": True,
}
BELOW: Final = {
    **FOUND,
    "document": "notes.md",
    "page": None,
    "similarity": 0.2,
    "by_reranker": None,
    "covered": False,
}


# Watching it


@in_browser
@pytest.mark.parametrize(("language", "said"), [("en", "it is encrypted"), ("zh", "文件已加密")])
def test_a_failed_document_says_why_and_is_tried_again(
    classroom: Classroom, knowledge: ScriptedKnowledge, language: str, said: str
) -> None:
    failed = document(1, "broken.pdf", "failed", problem=FAILURE, answers=True)
    knowledge.put("physics-9", failed, silent=True)
    knowledge.put("physics-9", document(2, "scan.pdf", empty_pages=[3, 4]), silent=True)
    page = opened(classroom, language)
    row = ".doc[data-state=failed]"
    page.wait_for_selector(row)
    assert said in page.inner_text(f"{row} .problem")
    assert "OCR" in page.inner_text(".doc[data-state=ready] .warning")
    again = document(1, "broken.pdf", "queued")
    knowledge.answers[f"POST {PHYSICS}/{failed['id']}/reindex"] = (202, again)
    following(page, knowledge)
    retrying = held(page, "**/reindex", lambda: page.click(f"{row} [data-act=retry]"))
    knowledge.put("physics-9", again)
    page.wait_for_selector(".doc[data-state=queued]")
    # What the stream tells is newer than the answer.
    knowledge.put("physics-9", failed)
    page.wait_for_selector(row)
    with page.expect_response("**/reindex"):
        retrying.continue_()
    page.wait_for_timeout(100)
    assert page.is_visible(row)


@in_browser
def test_the_language_is_switched_with_all_that_is_shown(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    knowledge.put("physics-9", document(1, "b.pdf", "failed", problem=FAILURE), silent=True)
    page = opened(classroom)
    page.wait_for_selector(".doc .problem:has-text('encrypted')")
    page.click("#language")
    page.wait_for_selector(".doc .problem:has-text('文件已加密')")
    text = page.inner_text("#knowledge")
    assert not re.search(r"(course|docs|trial|manage|upload)\.\w+", text)
    assert "没有文字" not in text


@in_browser
def test_when_the_stream_breaks_the_page_asks_and_then_listens_again(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    page = classroom.page()
    page.clock.install(time=0)
    page.goto(classroom.url)
    page.wait_for_selector("#base:not([hidden])")
    following(page, knowledge)
    page.clock.pause_at(40)  # From here on the page's time stands, however long this takes.
    knowledge.break_streams()
    page.wait_for_timeout(300)
    for done in (1, 2):
        told = document(1, "a.md", "reading", done=done, total=3)
        knowledge.put("physics-9", told, silent=True)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # It looks at once.
        page.wait_for_selector(f".doc:has-text('page {done} of 3')")
    assert knowledge.streams == 1

    def later() -> bool:
        page.clock.run_for(10_000)
        return knowledge.streams == 2

    until_true(page, later)
    knowledge.put("physics-9", document(1, "a.md"))
    page.wait_for_selector(".doc[data-state=ready]")


@in_browser
def test_the_extracted_text_is_read_as_plain_text(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    told = document(1, "mechanics.pdf")
    knowledge.put("physics-9", told, silent=True)
    text = "# Mechanics\n\n<img src=x onerror=alert(1)>\n" + "A line of the book.\n" * 12_000
    knowledge.answers[f"GET {PHYSICS}/{told['id']}/text"] = (200, text)
    page = opened(classroom)
    page.click(".doc [data-act=read]")
    page.wait_for_selector("#reader .extracted")
    assert page.locator("#reader img").count() == 0
    while page.locator("#reader-text button").count():
        page.click("#reader-text button")
    shown = "[...document.querySelectorAll('.extracted')].map((e) => e.textContent).join('')"
    assert page.evaluate(shown) == text
    page.keyboard.press("Escape")
    page.wait_for_selector("#reader", state="hidden")
    assert page.evaluate("document.activeElement.dataset.act") == "read"


@in_browser
def test_a_text_that_breaks_off_is_told(classroom: Classroom, knowledge: ScriptedKnowledge) -> None:
    classroom.expected.append("ERR_CONTENT_LENGTH_MISMATCH")
    knowledge.put("physics-9", document(1, "mechanics.pdf"), silent=True)
    knowledge.answers[f"GET {PHYSICS}/{1:016x}/text"] = (200, "# Mechanics\n")
    knowledge.breaking = "/text"
    page = opened(classroom)
    page.click(".doc [data-act=read]")
    page.wait_for_selector("#reader :text('does not answer')")


@in_browser
def test_a_course_that_changes_is_shown_without_being_asked_for(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    page = opened(classroom)
    following(page, knowledge)
    held(page, "**/knowledge-bases")
    knowledge.tell_base("physics-9", title="Physics, year 10", documents=3)
    page.wait_for_selector(".card-base:has-text('Physics, year 10'):has-text('3 documents')")
    assert page.inner_text("#base-name") == "Physics, year 10"


# Trying it


@in_browser
def test_a_question_shows_what_was_found_and_why(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    page = opened(classroom)
    page.wait_for_selector("#base:not([hidden])")
    knowledge.answers["POST /physics-9/search"] = (
        200,
        {"covered": True, "passages": [FOUND, BELOW]},
    )
    page.fill("#trial-question", "What is acceleration?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".found-one >> nth=1")
    assert knowledge.asked == [("POST", "/physics-9/search", {"question": "What is acceleration?"})]
    assert "would answer" in page.inner_text(".trial-told")
    first = page.inner_text(".found-one >> nth=0")
    for said in ("mechanics.pdf", "Forces", "page 31", "acceleration", "83 %", "79 %", "60 %"):
        assert said in first
    assert re.search(r"Read again\s+91 %", first)
    assert "Read again" not in page.inner_text(".found-one >> nth=1")
    assert page.locator(".found img").count() == 0
    order = "[...document.querySelector('.found').children].map((e) => e.className)"
    assert page.evaluate(order) == ["found-one", "bar-line", "found-one"]
    foreign = {**BELOW, "by_meaning": None}
    knowledge.answers["POST /physics-9/search"] = (200, {"covered": False, "passages": [foreign]})
    page.keyboard.press("Enter")
    page.wait_for_selector(".trial-told[data-covered=false]")
    assert "not measured" in page.inner_text(".found-one")


# Taking it away


@in_browser
def test_deleting_is_asked_first(classroom: Classroom, knowledge: ScriptedKnowledge) -> None:
    for number, name in enumerate(("a.md", "b.md"), 1):
        knowledge.put("physics-9", document(number, name), silent=True)
    page = opened(classroom)
    page.wait_for_selector("#docs .doc >> nth=1")
    for answer in ("Escape", "keep"):
        page.focus(".doc >> nth=0 >> [data-act=delete]")
        page.keyboard.press("Enter")
        page.wait_for_selector("#sure[open]")
        assert "a.md" in page.inner_text("#sure")
        page.keyboard.press("Escape" if answer == "Escape" else "Enter")  # "Keep it" is first
        page.wait_for_selector("#sure", state="hidden")
    assert not knowledge.asked
    page.keyboard.press("Enter")
    page.wait_for_selector("#sure[open]")
    tab_to(page, "#sure .danger")
    page.keyboard.press("Enter")
    page.wait_for_selector(".doc:has-text('a.md')", state="detached")
    assert knowledge.asked == [("DELETE", f"{PHYSICS}/{1:016x}", None)]
    assert page.evaluate("document.activeElement.closest('.doc')?.dataset.id") == f"{2:016x}"
    page.click("#base-delete")
    page.wait_for_selector("#sure[open]")
    # Closed and asked again before the page is told that it was closed.
    page.evaluate("document.querySelector('#sure').close(''); document.all['base-delete'].click()")
    page.click("#sure .danger")
    page.wait_for_selector("#base", state="hidden")
    assert knowledge.asked[-1] == ("DELETE", "/physics-9", None)


@in_browser
def test_a_course_that_is_being_deleted_is_asked_nothing_more(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    page = opened(classroom)
    following(page, knowledge)
    asked: list[str] = []
    page.click("#base-delete")
    deleting = held(page, "**/physics-9", lambda: page.click("#sure .danger"))
    page.on("request", lambda request: asked.append(request.url))
    for _ in range(2):  # The page looks at the server meanwhile.
        page.wait_for_event("response", lambda response: response.url.endswith("knowledge-bases"))
    assert not [url for url in asked if "/physics-9/" in url]
    deleting.continue_()
    page.wait_for_selector("#base", state="hidden")


@in_browser
def test_a_look_that_began_before_brings_no_deleted_course_back(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    page = opened(classroom)
    before = knowledge.answer("GET", "", None)[1]
    look = held(page, "**/knowledge-bases", times=1)
    page.click("#base-delete")
    with page.expect_response("**/physics-9"):
        page.click("#sure .danger")
    look.fulfill(json=before)
    page.wait_for_selector(".card-base[data-id=physics-9]", state="detached")
    page.wait_for_timeout(100)  # The next look is two seconds away.
    assert page.locator(".card-base[data-id=physics-9]").count() == 0


@in_browser
def test_documents_that_come_after_another_course_was_opened_are_not_shown_there(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    knowledge.no_streams = True
    classroom.expected.append("404")  # of the stream that there is not
    page = opened(classroom)
    listing = held(page, f"**{PHYSICS}")
    page.click(".card-base[data-id=python-basics]")
    listing.fulfill(json={"total": 1, "documents": [document(1, "late.md")]})
    page.wait_for_selector(".doc:has-text('lists.md')")
    assert page.locator(".doc").count() == 1


@in_browser
def test_a_shipped_course_is_shown_and_not_changed(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    page = opened(classroom)
    page.click(".card-base[data-id=python-basics]")
    page.wait_for_selector(".doc:has-text('lists.md')")
    assert "comes with the server" in page.inner_text("#base-note")
    acts = page.locator(".doc button:visible").all_inner_texts()
    assert acts == ["Read the text"]
    for gone in ("#drop", "#base-delete", "#base-export"):
        assert page.is_hidden(gone)


# For everybody


@in_browser
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_it_all(
    classroom: Classroom, knowledge: ScriptedKnowledge, width: int, language: str
) -> None:
    long = "a-name-without-any-place-to-break-it-" * 5 + ".pdf"
    knowledge.put("physics-9", document(1, long, "failed", problem=FAILURE), silent=True)
    knowledge.answers["POST /physics-9/search"] = (
        200,
        {"covered": True, "passages": [FOUND, BELOW]},
    )
    page = opened(classroom, language, size=(width, 700))
    page.click("#base-new")
    page.fill("#trial-question", "What?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".found-one")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    controls = (
        "[...document.querySelectorAll('#knowledge :is(button, input, progress, [role=meter])')]"
        ".filter((e) => e.checkVisibility())"
    )
    small = page.evaluate(
        f"{controls}.filter((e) => e.matches('button, input'))"
        ".map((e) => [e.outerHTML, e.getBoundingClientRect()])"
        ".filter(([, r]) => r.width < 44 || r.height < 43.9).map(([html]) => html)"
    )
    assert not small
    unnamed = page.evaluate(
        f"{controls}.filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length))"
        ".map((e) => e.outerHTML)"
    )
    assert not unnamed


@in_browser
def test_every_call_carries_the_key(classroom: Classroom, knowledge: ScriptedKnowledge) -> None:
    page = classroom.page()
    page.add_init_script("sessionStorage.setItem('console.key', 'right')")
    page.goto(classroom.url)
    page.wait_for_selector("#base:not([hidden])")
    following(page, knowledge)
    drop(page, "a.md")
    page.wait_for_selector("#docs .doc")
    assert set(knowledge.keys) == {"Bearer right"}
    assert "right" not in page.url
