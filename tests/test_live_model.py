"""The classroom page while a model is busy, thinks, or is stood in for, by a scripted tutor."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser import IDLE, ask, in_browser, until
from tests.live_page import TEXT, LivePage, fixtures
from tests.scripted_tutor import ScriptedTutor

browser, server, classroom = fixtures

QUESTION = "How do I repeat something?"
PLACE = {"en": "You are number 3 in line, about 8 s", "zh": "你排在第 3 位，大约还要 8 秒"}
SMALLER = {
    "en": "Answered by a smaller engine (extractive)",
    "zh": "由较小的引擎（extractive）回答",
}


def begin(page: Page, tutor: ScriptedTutor) -> None:
    """A question whose turn has begun, and no more."""
    ask(page, QUESTION)
    tutor.wait_for("text")
    tutor.say("turn.started", turn_id="t1", question=QUESTION)


def think(tutor: ScriptedTutor, content: str) -> None:
    tutor.say("thought.delta", turn_id="t1", content=content)


def fall_back(tutor: ScriptedTutor, code: str = "fallback") -> None:
    said = {"content": "A sentence of the server.", "provider": "extractive"}
    tutor.say("notice", turn_id="t1", code=code, **said)


def queue(tutor: ScriptedTutor, position: int, eta_s: int) -> None:
    tutor.say("queue", turn_id="t1", position=position, eta_s=eta_s)


def shown(page: Page, text: str) -> None:
    until(page, f"document.querySelector('.answer:last-child')?.innerText.includes({text!r})")


@in_browser
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_place_in_line_moves_and_is_gone_at_the_first_word(
    classroom: LivePage, server: ScriptedTutor, language: str
) -> None:
    page = classroom.live(server, language)
    begin(page, server)
    queue(server, 3, 8)
    shown(page, PLACE[language])
    queue(server, 2, 6)
    queue(server, 1, 2)
    shown(page, PLACE[language].replace("3", "1").replace("8", "2"))
    assert page.locator(".waiting").count() == 1
    # Read out at first and when the line is half as long, not at each step.
    assert page.locator("#said p").all_inner_texts()[1:] == [
        PLACE[language],
        PLACE[language].replace("3", "1").replace("8", "2"),
    ]
    server.say("text.delta", turn_id="t1", content="A loop.")
    page.wait_for_selector(".waiting", state="detached")
    shown(page, "A loop.")


@in_browser
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_smaller_engine_says_so_quietly_on_its_answer(
    classroom: LivePage, server: ScriptedTutor, language: str
) -> None:
    page = classroom.live(server, language)
    begin(page, server)
    queue(server, 1, 3)
    fall_back(server)
    shown(page, SMALLER[language])
    until(page, "!/3/.test(document.querySelector('.waiting').textContent)")
    assert SMALLER[language] in page.inner_text("#said")
    server.say("text", turn_id="t1", content=TEXT)
    server.done(1)
    page.wait_for_selector(IDLE)
    shown(page, SMALLER[language])
    said = page.inner_text("#said p:last-child")
    assert "loop" in said
    assert "extractive" not in said
    page.click("#language")
    shown(page, SMALLER["zh" if language == "en" else "en"])


@in_browser
def test_a_notice_of_a_newer_server_is_shown_in_its_words(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    begin(page, server)
    fall_back(server, code="something_new")
    shown(page, "A sentence of the server.")


@in_browser
@pytest.mark.parametrize("size", [(1200, 800), (390, 700)], ids=["desktop", "phone"])
def test_thoughts_are_open_while_it_thinks_then_folded_and_never_read_out(
    classroom: LivePage, server: ScriptedTutor, size: tuple[int, int]
) -> None:
    page = classroom.live(server, size=size)
    begin(page, server)
    queue(server, 1, 3)
    for n in range(40):
        think(server, f"Step {n}: <b>think</b> about lists.\n")
    until(page, "document.querySelector('.thoughts')?.innerText.includes('Step 39')")
    assert page.evaluate("document.querySelector('.thoughts').open")
    assert "is thinking" in page.inner_text(".waiting")
    assert page.locator(".thoughts b").count() == 0
    bottom = "document.querySelector('.thoughts-text')"
    until(page, f"{bottom}.scrollHeight - {bottom}.scrollTop - {bottom}.clientHeight < 2")
    assert page.evaluate("document.querySelector('.waiting').getBoundingClientRect().top") < 700
    server.say("text.delta", turn_id="t1", content="A loop.")
    until(page, "!document.querySelector('.thoughts').open")
    server.say("text", turn_id="t1", content="A loop.")
    server.done(1)
    page.wait_for_selector(IDLE)
    assert "Step" not in page.inner_text("#said")
    page.focus(".thoughts summary")
    page.keyboard.press("Enter")
    assert page.is_visible(".thoughts-text")
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]


@in_browser
def test_thoughts_that_are_being_read_stay_open(classroom: LivePage, server: ScriptedTutor) -> None:
    page = classroom.live(server)
    begin(page, server)
    think(server, "Lists first.")
    page.wait_for_selector(".thoughts")
    page.focus(".thoughts-text")
    server.answer(1, TEXT)
    server.done(1)
    page.wait_for_selector(IDLE)
    assert page.evaluate("document.querySelector('.thoughts').open")


@in_browser
def test_stopped_while_it_thinks_the_thoughts_are_folded(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    begin(page, server)
    fall_back(server)
    think(server, "Lists first.")
    page.wait_for_selector(".thoughts")
    page.click("#stop")
    page.wait_for_selector(".answer[data-status=interrupted]")
    assert not page.evaluate("document.querySelector('.thoughts').open")
    assert page.inner_text(".answer:last-child .ending-note") == "Stopped"
    think(server, "More.")
    queue(server, 2, 2)
    server.done(1, "interrupted", heard="")
    page.wait_for_selector(IDLE)
    assert "More" not in str(page.text_content(".thoughts"))


@in_browser
def test_after_a_reload_all_is_there_again_and_nothing_is_read_out(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    begin(page, server)
    queue(server, 3, 8)
    fall_back(server)
    think(server, "Lists first.")
    page.wait_for_selector(".thoughts")
    page.reload()
    page.wait_for_selector(".thoughts")
    shown(page, SMALLER["en"])
    shown(page, "Lists first.")
    said = page.inner_text("#said")
    assert "line" not in said
    assert "engine" not in said


@in_browser
@pytest.mark.parametrize("way", ["typed", "spoken"])
def test_a_full_engine_lets_the_student_ask_again_once_the_time_is_up(
    classroom: LivePage, server: ScriptedTutor, way: str
) -> None:
    page = classroom.live(server)
    if way == "typed":
        begin(page, server)
    else:
        server.say("turn.started", turn_id="t1", question="")
        server.say("transcription", turn_id="t1", content=QUESTION, confidence=0.9)
    page.wait_for_selector(".waiting")
    error: dict[str, Any] = {"code": "engine_busy", "content": "Full.", "retryable": True}
    server.say("error", turn_id="t1", retry_after=2, **error)
    server.done(1, "failed")
    assert "many questions" in page.inner_text(".notice p")
    assert page.is_disabled(".notice button")
    assert page.inner_text(".notice button").startswith("Ask again in ")
    assert page.get_attribute(".notice button", "aria-live") == "off"
    assert page.locator(".answer .waiting").count() == 0
    page.wait_for_selector(".notice button:enabled")
    assert page.inner_text(".notice button") == "Ask again"
    page.click(".notice button")
    page.wait_for_selector(".notice", state="detached")
    asked = server.wait_for("text", 2 if way == "typed" else 1)
    assert asked["content"] == QUESTION


@in_browser
def test_a_question_too_long_for_the_model_is_explained_without_a_wait(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    begin(page, server)
    error: dict[str, Any] = {"code": "prompt_too_long", "content": "Long.", "retryable": False}
    server.say("error", turn_id="t1", retry_after=None, **error)
    server.done(1, "failed")
    page.wait_for_selector(".notice")
    assert "shorten it" in page.inner_text(".notice")
    assert page.locator(".notice button").count() == 0
