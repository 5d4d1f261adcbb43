"""The classroom page when its line breaks: it returns by itself, and nothing is lost or doubled."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

import pytest

from tests.browser import IDLE, ask, in_browser, until
from tests.live_page import TEXT, LivePage, begin_answer, fixtures
from tests.scripted_tutor import RATE, ScriptedTutor

browser, server, classroom = fixtures


# Lines that break


@in_browser
def test_a_lost_line_comes_back_by_itself_and_nothing_is_doubled(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    classroom.expected += ["WebSocket connection", "status of 503"]
    page = classroom.live(server)
    begin_answer(page, server, 1)
    server.refusing = HTTPStatus.SERVICE_UNAVAILABLE
    server.drop()
    page.wait_for_selector("#line:not([hidden])")
    assert "reconnecting" in page.inner_text("#line")
    server.refusing = None
    server.more(1, 1, 1)
    server.say("sources", turn_id="t1", passages=[])
    server.done(1)
    page.wait_for_selector("#line", state="hidden")
    page.wait_for_selector(IDLE)
    assert page.evaluate("classroom.playedSamples") == 2 * RATE
    server.wait_until_heard(1, 2000)
    assert page.inner_text(".answer:last-child .body") == TEXT.replace("**", "")
    assert page.locator(".question").count() == 1
    resumed = server.all_of("resume")
    assert [message["last_seq"] > 0 for message in resumed] == [False, True]
    assert server.connections == 2
    # The settings of this page hold on the new line too.
    assert server.all_of("session.update")[-1]["audio_format"] == "binary"


@in_browser
def test_what_is_typed_meanwhile_is_sent_later(classroom: LivePage, server: ScriptedTutor) -> None:
    classroom.expected += ["WebSocket connection", "status of 503"]
    page = classroom.live(server)
    server.refusing = HTTPStatus.SERVICE_UNAVAILABLE
    server.drop()
    page.wait_for_selector("#line:not([hidden])")
    ask(page, "Are you there?")
    assert page.inner_text(".later") == "Sent when the connection is back"
    assert page.input_value("#question") == ""
    assert not server.all_of("text")
    server.refusing = None
    # It may have come back by itself meanwhile, and the button is gone.
    page.dispatch_event("#line-now", "click")
    assert server.wait_for("text")["content"] == "Are you there?"
    page.wait_for_selector(".later", state="detached")
    server.answer(1, TEXT)
    server.done(1)
    page.wait_for_selector(IDLE)
    assert len(server.all_of("text")) == 1


@in_browser
def test_a_question_that_the_line_swallowed_is_asked_again_once(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    server.wait_for("session.update")
    server.swallows = True
    ask(page, "Did you get this?")
    page.wait_for_timeout(200)
    server.drop()
    server.swallows = False
    assert server.wait_for("text")["content"] == "Did you get this?"
    server.answer(1, TEXT)
    server.drop()
    server.wait_for("resume", 3)
    server.done(1)
    page.wait_for_selector(IDLE)
    assert len(server.all_of("text")) == 1


@in_browser
def test_a_line_that_says_nothing_is_given_up(classroom: LivePage, server: ScriptedTutor) -> None:
    page = classroom.live(server)
    page.evaluate(
        """async (url) => {
          const { TutorClient } = await import('/classroom/tutor-client.js');
          window.events = [];
          const patience = { idleMs: 150, answerMs: 1500 };
          window.other = new TutorClient({ url, token: 'x', history: true, ...patience });
          for (const type of ['session.ready', 'pong', 'reconnecting', 'reconnected', 'close'])
            other.addEventListener(type, () => events.push(type));
        }""",
        f"ws://{urlsplit(server.url).netloc}/ws/ws/s2",
    )
    until(page, "events.includes('pong')")
    assert page.evaluate("events.includes('reconnecting')") is False
    server.answers_pings = False
    until(page, "events.includes('reconnecting')")
    server.answers_pings = True
    until(page, "events.includes('reconnected')")
    page.evaluate("other.close()")
    assert page.evaluate("events.at(-1)") == "close"


@in_browser
def test_a_server_that_forgot_ends_the_answer_and_goes_on(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    begin_answer(page, server, 2)
    server.forgets = True
    server.drop()
    page.wait_for_selector(".answer[data-status=failed]")
    page.wait_for_selector(IDLE)
    server.forgets = False
    ask(page, "And now?")
    server.wait_for("text", 2)
    server.answer(2, "Now it works.")
    server.done(2)
    page.wait_for_selector(".answer:last-child[data-status=completed]")
    assert page.inner_text(".answer:last-child .body") == "Now it works."


@in_browser
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_refused_token_is_not_tried_for_ever(
    classroom: LivePage, server: ScriptedTutor, language: str
) -> None:
    classroom.expected.append("WebSocket connection")
    page = classroom.live(server, language)
    server.refusing = HTTPStatus.FORBIDDEN
    server.drop()
    page.wait_for_selector("[role=alert]:visible")
    said = page.inner_text("[role=alert]:visible")
    assert ("not valid here" if language == "en" else "无效") in said
    tried = server.connections
    page.wait_for_timeout(1500)
    assert server.connections == tried


@in_browser
def test_a_session_taken_over_is_taken_back_without_old_sound(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    server.close(4501)
    page.wait_for_selector("#ending:not([hidden])")
    page.wait_for_timeout(700)
    assert server.connections == 1
    server.answer(1, "Said in the other window.", 1)
    server.done(1)
    page.click("#ending button")
    page.wait_for_selector(".answer:nth-child(2)")
    page.wait_for_selector(IDLE)
    assert page.inner_text(".answer:nth-child(2) .body") == "Said in the other window."
    assert page.evaluate("classroom.playedSamples") == 0


@in_browser
def test_a_reload_shows_the_conversation_without_its_sound(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    begin_answer(page, server, 1)
    server.done(1, timeline={"first_audio": 400})
    page.wait_for_selector(".latency")
    server.answer(2, "I heard you.", 1)
    server.say("transcription", turn_id="t2", content="Do you hear me?", confidence=0.9)
    server.done(2)
    page.wait_for_selector(IDLE)
    page.reload()
    page.wait_for_selector(f"{IDLE} .answer:nth-child(5)")
    texts = page.locator("#messages > * > .body").all_inner_texts()
    assert texts == [
        "Hello, what would you like to know?",
        "How do I repeat something?",
        TEXT.replace("**", ""),
        "Do you hear me?",
        "I heard you.",
    ]
    assert page.evaluate("classroom.playedSamples") == 0
    assert page.locator(".latency").count() == 0
    assert page.inner_text("#said") == f"Ada: {texts[0]}"
    assert server.all_of("resume")[-1]["last_seq"] == 0
    # What comes from now on is heard.
    server.answer(3, "And now?", 0.5)
    server.done(3)
    until(page, f"classroom.playedSamples === {RATE // 2}")
