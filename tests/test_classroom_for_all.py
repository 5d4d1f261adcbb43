"""The classroom page for everyone: endings, missing microphones, phones, keyboards, languages."""

from __future__ import annotations

import pytest

from gpuserver import course_errors
from gpuserver.course_errors import KnowledgeBaseUnprepared, KnowledgeBaseUnreadable
from gpuserver.errors import GpuServerError
from tests.browser import (
    IDLE,
    QUESTION,
    QUESTION_ZH,
    Classroom,
    answer,
    ask,
    fixtures,
    hear,
    held,
    in_browser,
    sentences,
    session_id,
    tab_to,
    until,
)

browser, classroom = fixtures


# When it can't go on


@in_browser
def test_an_ended_session_is_explained_and_begun_again(classroom: Classroom) -> None:
    page = classroom.enter()
    page.request.delete(f"{classroom.url}/v1/sessions/{session_id(page)}")
    page.wait_for_selector("#ending:not([hidden])")
    assert "has ended" in page.inner_text("#ending")
    page.click("#ending button")
    page.wait_for_selector(f"{IDLE} #ask:not([hidden])")
    ask(page, QUESTION)
    assert "loop" in answer(page)


@in_browser
def test_a_second_window_replaces_the_first_which_can_take_it_back(classroom: Classroom) -> None:
    page = classroom.page()
    session = classroom.session(page)
    link = f"{classroom.url}/#engine_url={session['engine_url']}&token={session['engine_token']}"
    page.goto(link)
    page.wait_for_selector(IDLE)
    second = classroom.page()
    second.goto(link)
    second.wait_for_selector(IDLE)
    page.wait_for_selector("#ending:not([hidden])")
    assert "another window" in page.inner_text("#ending")
    page.click("#ending button")
    page.wait_for_selector(IDLE)
    second.wait_for_selector("#ending:not([hidden])")


@in_browser
def test_a_stored_session_that_ended_is_replaced_without_a_word(classroom: Classroom) -> None:
    classroom.expected.append("Unexpected response code: 403")
    page = classroom.enter()
    ended = session_id(page)
    page.goto("about:blank")
    page.request.delete(f"{classroom.url}/v1/sessions/{ended}")
    page.goto(classroom.url)
    page.wait_for_selector(f"{IDLE} #ask")


@in_browser
def test_leaving_a_tutor_ends_the_session(classroom: Classroom) -> None:
    page = classroom.enter()
    left = session_id(page)
    ending = held(page, f"**/v1/sessions/{left}", lambda: page.click("#change"))
    assert page.is_hidden("#room")  # at once, however long the server takes
    ending.continue_()
    page.wait_for_selector(".card")
    assert page.request.get(f"{classroom.url}/v1/sessions/{left}").status == 404


@in_browser
def test_a_session_of_a_closed_tab_makes_room_when_every_seat_is_taken(
    classroom: Classroom,
) -> None:
    classroom.expected.append("503")
    page = classroom.enter()
    context, closed = page.context, session_id(page)
    page.close()
    page = context.new_page()
    page.goto(classroom.url)
    page.wait_for_selector(".card")
    # A tab that only looks closed comes back: nothing ends its session for tidiness' sake.
    assert page.request.get(f"{classroom.url}/v1/sessions/{closed}").status == 200
    full = {"detail": "Maximum sessions (1) reached", "code": "session_limit"}
    page.route("**/v1/sessions", lambda route: route.fulfill(status=503, json=full), times=1)
    page.click(".card[data-tutor='1']")
    page.wait_for_selector(f"{IDLE} #ask")
    assert page.request.get(f"{classroom.url}/v1/sessions/{closed}").status == 404
    page.click("#change")
    page.wait_for_selector(".card")


@in_browser
def test_while_the_models_load_it_waits_and_goes_on(classroom: Classroom) -> None:
    classroom.expected.append("503")
    page = classroom.page()
    loading = {"ready": False, "stage": "embeddings", "done": 34, "total": 120}
    refusal = {"detail": "The server is still loading its models.", "code": "not_ready"}
    page.route("**/v1/tutors", lambda route: route.fulfill(status=503, json=refusal), times=1)
    page.route("**/ready", lambda route: route.fulfill(status=503, json=loading), times=2)
    page.goto(classroom.url)
    page.wait_for_selector("progress")
    until(page, "document.querySelector('progress').value === 34")
    assert "34 / 120" in page.inner_text("main:visible")
    page.wait_for_selector(".card")


@in_browser
@pytest.mark.parametrize(("language", "said"), [("en", "by your school"), ("zh", "学校")])
def test_a_management_key_means_the_school_opens_it(
    classroom: Classroom, language: str, said: str
) -> None:
    classroom.expected.append("401")
    page = classroom.page(language)
    refusal = {"detail": "This call needs the management key.", "code": "key_refused"}
    page.route("**/v1/sessions", lambda route: route.fulfill(status=401, json=refusal))
    page.goto(classroom.url)
    page.click(".card >> nth=0")
    page.wait_for_selector("[role=alert]:visible")
    assert said in page.inner_text("[role=alert]:visible")


# The microphone that isn't there


@in_browser
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_microphone_is_off_with_a_reason_for_a_language_not_heard(
    classroom: Classroom, language: str
) -> None:
    page = classroom.enter(tutor=2, language=language)
    assert page.is_disabled("#talk")
    hint = page.inner_text("#hint")
    assert "ASR_PROVIDER" in hint
    assert ("学校" if language == "zh" else "school") in hint
    page.click("#language")
    assert ("school" if language == "zh" else "学校") in page.inner_text("#hint")


@in_browser
@pytest.mark.parametrize(
    ("error", "said"),
    [("NotAllowedError", "Allow it"), ("NotFoundError", "No microphone"), ("AbortError", "opened")],
)
def test_a_microphone_that_fails_is_explained(classroom: Classroom, error: str, said: str) -> None:
    page = classroom.enter()
    page.evaluate(
        "(name) => { navigator.mediaDevices.getUserMedia ="
        " () => Promise.reject(new DOMException('', name)); }",
        error,
    )
    page.click("#talk")
    until(page, "document.querySelector('#hint').classList.contains('problem')")
    assert said in page.inner_text("#hint")
    assert said in page.inner_text("#said")
    assert page.is_enabled("#talk")


@in_browser
@pytest.mark.parametrize(("language", "said"), [("en", "secure address"), ("zh", "安全的网址")])
def test_on_an_insecure_address_text_still_works(
    classroom: Classroom, language: str, said: str
) -> None:
    page = classroom.page(language)
    page.add_init_script(
        "Object.defineProperty(window, 'isSecureContext', { value: false });"
        "delete BaseAudioContext.prototype.audioWorklet;"
    )
    page.goto(classroom.url)
    page.click(".card[data-tutor='1']")
    page.wait_for_selector(IDLE)
    assert page.is_disabled("#talk")
    assert said in page.inner_text("#hint")
    ask(page, QUESTION)
    assert "loop" in answer(page)
    assert said in page.inner_text(".notice")
    assert page.evaluate("classroom.mouth.open") == 0


# For everyone


@in_browser
def test_the_keyboard_alone_is_enough(classroom: Classroom) -> None:
    page = classroom.open()
    tab_to(page, "[data-tutor='1']")
    page.keyboard.press("Enter")
    page.wait_for_selector(IDLE)
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    hear(page)
    tab_to(page, "#stop", "Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector(IDLE)
    assert page.evaluate("classroom.activity") == "idle"


@in_browser
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_it_all(classroom: Classroom, width: int, language: str) -> None:
    page = classroom.open(language, (width, 700))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.click(".card >> nth=0")
    page.wait_for_selector(IDLE)
    ask(page, QUESTION if language == "en" else QUESTION_ZH)
    answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.querySelector('#log').scrollWidth") <= width
    small = page.evaluate(
        "[...document.querySelectorAll('.bar button, .foot button, .foot textarea, summary')]"
        ".filter((e) => e.checkVisibility()).map((e) => [e.id, e.getBoundingClientRect()])"
        ".filter(([, r]) => r.width < 44 || r.height < 43.9).map(([id]) => id)"
    )
    assert not small
    assert page.evaluate("document.querySelector('#send').getBoundingClientRect().bottom") <= 700


@in_browser
def test_every_control_has_a_name_and_answers_are_read_out_once(classroom: Classroom) -> None:
    page = classroom.enter()
    page.evaluate(
        """() => { window.said = []; new MutationObserver(() =>
          said.push(document.querySelector('#said').textContent))
          .observe(document.querySelector('#said'), { childList: true }); }"""
    )
    ask(page, QUESTION)
    text = answer(page)
    said = page.evaluate("said")
    assert len(said) == 1
    assert text[:20] in said[0]
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, textarea, progress, [role=img]')].filter((e) =>"
        " !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))"
        ".map((e) => e.outerHTML)"
    )
    assert not unnamed


@in_browser
def test_the_language_is_switched_and_remembered(classroom: Classroom) -> None:
    page = classroom.enter()
    page.click("#language")
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.inner_text("#activity") == "可以提问了"
    assert "课堂" in page.title()
    page.reload()
    page.wait_for_selector(IDLE)
    assert page.get_attribute("#question", "placeholder") == "输入问题"
    assert page.inner_text("#language") == "English"


@in_browser
def test_the_page_works_where_storage_is_blocked(classroom: Classroom) -> None:
    page = classroom.page()
    page.add_init_script(
        "for (const name of ['localStorage', 'sessionStorage']) Object.defineProperty(window,"
        " name, { get() { throw new DOMException('', 'SecurityError'); } });"
    )
    page.goto(classroom.url)
    page.click(".card >> nth=0")
    page.wait_for_selector(IDLE)
    page.click("#language")
    assert page.get_attribute("html", "lang") == "zh-CN"


@in_browser
def test_both_languages_say_the_same_things(classroom: Classroom) -> None:
    said = sentences(classroom.open())
    # What goes wrong with course material is told to its teacher, but for these.
    of_a_course: set[type[GpuServerError]] = {KnowledgeBaseUnprepared, KnowledgeBaseUnreadable}
    for error in {*kinds(GpuServerError), *of_a_course}:
        if error.__module__ != course_errors.__name__ or error in of_a_course:
            assert f"error.{error.code}" in said


def kinds(error: type[GpuServerError]) -> set[type[GpuServerError]]:
    return {error}.union(*(kinds(kind) for kind in error.__subclasses__()))
