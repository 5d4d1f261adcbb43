"""The live voice whole: a real browser, the real server process, its real engines."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.breakable_line import BreakableLine, breakable_line
from tests.browser import IDLE, SPEAKING, BrowserThread, Classroom, ask, in_browser, until
from tests.browser import classroom as classroom
from tests.conftest import Running, running_server
from tests.live_tap import TAP, Tape, microphone

pytestmark = pytest.mark.slow

FIRST = "What is a list?"
SECOND = "How do I repeat something?"
AGAIN = "Can you repeat that?"
RATE = 22_050  # of the embedded voice
CUT = ("WebSocket connection", "Failed to load resource")
"""What Chromium says of a line that is cut."""


@pytest.fixture
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrowserThread]:
    """Chromium whose microphone says, once, what `speaking` gives."""
    thread = BrowserThread(microphone(tmp_path, request.param))
    yield thread
    thread.close()


@pytest.fixture
def line(server: Running) -> Iterator[BreakableLine]:
    with breakable_line(server.port) as line:
        yield line


def speaking(*parts: str | float) -> pytest.MarkDecorator:
    """What is said into the microphone once it is open: sentences, and seconds of silence."""
    return pytest.mark.parametrize("browser", [parts], indirect=True, ids=["once"])


def enter(classroom: Classroom, url: str = "") -> Page:
    """The page in a conversation with Ada; what goes over its line is recorded."""
    page = classroom.page()
    page.add_init_script(TAP)
    page.goto(url or classroom.url)
    page.click(".card[data-tutor='1']")
    page.wait_for_selector(f"{IDLE} #ask")
    return page


def done(page: Page, turn: str, seconds: float = 40) -> Tape:
    """What was recorded up to the end of a turn."""
    condition = f"m.type === 'turn.done' && m.turn_id === '{turn}'"
    until(page, f"tap.frames.some(({{ message: m }}) => {condition})", seconds)
    return Tape(page)


def plain(markdown: str) -> str:
    """An answer's text without marks, as it is compared."""
    for mark in ("`", "*", "[1]", "[2]", "[3]", "[4]"):
        markdown = markdown.replace(mark, "")
    return " ".join(markdown.split())


def heard_on_page(page: Page, turn: int) -> str:
    """The part of the n-th answer (after the greeting) that is not grey."""
    text: str = page.evaluate(
        """(n) => {
          const body = document.querySelectorAll('.answer .body')[n].cloneNode(true);
          for (const cut of body.querySelectorAll('.unheard, .cite')) cut.remove();
          return body.textContent;
        }""",
        turn,
    )
    return plain(text)


# Speaking and interrupting


@in_browser
@speaking(0.7, FIRST, 3.5, SECOND, 2.0)
def test_a_student_interrupts_an_answer_by_voice_with_the_next_question(
    classroom: Classroom,
) -> None:
    page = enter(classroom)
    page.click("#talk")
    page.wait_for_selector(SPEAKING)
    tape = done(page, "t1")
    until(page, f"classroom.playedSamples > {tape.played[-1][1] + RATE}")
    assert "while" in page.inner_text(".answer:last-child .body")
    page.wait_for_selector("html[data-activity=listening]", timeout=40_000)
    tape = Tape(page)
    sent_in_order(tape)
    the_first_answer_stopped(tape)
    (first, second) = (tape.one("turn.done", turn=turn).message for turn in ("t1", "t2"))
    assert second["status"] == "completed"
    assert tape.one("transcription", turn="t1").message["content"] == "what is a list"
    assert "repeat" in tape.one("transcription", turn="t2").message["content"]
    # The player has played the first up to the pause and the second whole.
    cut = tape.played_at(tape.one("turn.done", turn="t1").at)
    assert tape.played[-1][1] == cut + second["usage"]["speech_samples"]
    # The page shows what the server remembers, also after a reload.
    whole = tape.text("t1")
    assert whole.startswith(first["heard"])
    assert 20 < len(first["heard"]) < len(whole)
    assert heard_on_page(page, 1) == plain(first["heard"])
    assert "not heard" in page.inner_text(".ending-note")
    page.reload()
    page.wait_for_selector(".answer:nth-child(5)[data-status]")
    assert heard_on_page(page, 1) == plain(first["heard"])


def the_first_answer_stopped(tape: Tape) -> None:
    """Paused when the student begins to speak, ended by their words; silent from then on."""
    paused, ended = tape.one("audio.paused", turn="t1"), tape.one("turn.done", turn="t1")
    assert ended.message["status"] == "interrupted"
    begun = [frame.at for frame in tape.of("speech.started")][1]
    assert begun <= paused.at < ended.at < tape.one("turn.started", turn="t2").at
    assert not tape.of("audio.resumed")
    assert [f.type for f in tape.of(turn="t1") if f.at >= paused.at][1:] == ["turn.done"]
    # It was heard for a while, and not for longer than it takes to fade out.
    at_pause, at_end = tape.played_at(paused.at), tape.played_at(ended.at)
    assert at_pause > RATE
    assert at_end - at_pause < 0.2 * RATE
    first_sound = tape.of("audio.delta", turn="t2")[0].at
    assert tape.played_at(first_sound) == at_end
    heard_ms = [f.message["heard_ms"] for f in tape.of("playback", way="client", turn="t1")]
    assert heard_ms == sorted(heard_ms)
    assert heard_ms[-1] == pytest.approx(at_end / RATE * 1000, abs=5)


def sent_in_order(tape: Tape) -> None:
    """Every message once, in order, with none left out."""
    numbers = tape.numbered()
    assert numbers == list(range(1, len(numbers) + 1))


@in_browser
@speaking(0.7, FIRST, 3.5, AGAIN, 2.0)
def test_the_tutor_says_again_only_what_was_heard(classroom: Classroom) -> None:
    """The history is what the student heard, up to the interruption."""
    page = enter(classroom)
    page.click("#talk")
    tape = done(page, "t2")
    ended = tape.one("turn.done", turn="t1").message
    assert ended["status"] == "interrupted"
    assert 20 < len(ended["heard"]) < len(tape.text("t1"))
    again = plain(tape.text("t2")).removesuffix("…").rstrip()
    assert again == plain(ended["heard"])


# Lines that break


@in_browser
@speaking(40.0)
def test_an_answer_goes_on_over_a_cut_line(classroom: Classroom, line: BreakableLine) -> None:
    classroom.expected.extend((*CUT, f"elsewhere: .*:{line.port}/"))
    page = enter(classroom, line.url)
    page.click("#talk")
    page.wait_for_selector("html[data-activity=listening]")
    ask(page, SECOND)
    until(page, f"classroom.playedSamples > {RATE}")
    for seconds in (1.5, 0.3):
        line.cut()
        page.wait_for_selector("#line:not([hidden])")
        page.wait_for_timeout(seconds * 1000)
        line.mend()
        page.wait_for_selector("#line", state="hidden")
        played = page.evaluate("classroom.playedSamples")
        until(page, f"classroom.playedSamples > {played + RATE}")
    page.wait_for_selector("html[data-activity=listening]", timeout=40_000)
    tape = Tape(page)
    sent_in_order(tape)
    assert tape.text("t1") == tape.one("text").message["content"]
    shown = page.inner_text(".answer:last-child .body")
    assert page.locator(".question, .answer").count() == 3  # with the greeting
    ended = tape.one("turn.done").message
    assert ended["status"] == "completed"
    assert not tape.of("audio.skipped")
    assert tape.samples("t1") == ended["usage"]["speech_samples"] == tape.played[-1][1]
    readies = [frame.message for frame in tape.of("session.ready")]
    assert [ready["resumed"] for ready in readies] == [False, True, True]
    # The page that was there all along shows what one that is opened now shows.
    page.reload()
    page.wait_for_selector(".answer:nth-child(3)[data-status=completed]")
    assert page.inner_text(".answer:last-child .body") == shown


# Servers that die


@in_browser
@speaking(0.7, FIRST, 40.0)
def test_a_conversation_goes_on_after_the_server_was_killed(
    classroom: Classroom, tmp_path: Path
) -> None:
    with running_server(tmp_path) as killed:
        classroom.expected.extend((*CUT, f"elsewhere: .*:{killed.port}/"))
        page = enter(classroom, killed.url)
        ask(page, SECOND)
        page.wait_for_selector(IDLE, timeout=40_000)
        ask(page, "What is a dictionary?")
        until(page, f"classroom.playedSamples > {Tape(page).samples('t1') + RATE}")
        os.kill(killed.pid, signal.SIGKILL)
        page.wait_for_selector("#line:not([hidden])")
        with running_server(tmp_path, MANAGEMENT_API_PORT=str(killed.port)):
            page.wait_for_selector("#line", state="hidden", timeout=30_000)
            goes_on(page)


def goes_on(page: Page) -> None:
    """The earlier conversation is there, the answer has failed, the next question is answered."""
    page.wait_for_selector(".notice")
    assert "restarted" in page.inner_text(".notice")
    earlier = ["completed", "completed", "failed"]  # the greeting and the two answers
    assert statuses(page) == earlier
    assert "could not be finished" in page.inner_text(".ending-note")
    sent_in_order(Tape(page))
    page.click("#talk")
    tape = done(page, "t3")
    assert tape.one("turn.done", turn="t3").message["status"] == "completed"
    page.wait_for_selector("html[data-activity=listening]")
    tape = Tape(page)
    sent_in_order(tape)
    speech = sum(tape.samples(turn) for turn in ("t1", "t2", "t3"))
    assert tape.played[-1][1] == speech
    assert "list" in page.inner_text(".answer:last-child .body")
    shown = page.locator(".question .body").all_inner_texts()
    page.reload()
    page.wait_for_selector(".answer:last-child[data-status=completed]:nth-child(7)")
    assert statuses(page) == [*earlier, "completed"]
    assert page.locator(".question .body").all_inner_texts() == shown


def statuses(page: Page) -> list[str]:
    """How each answer on the page ended."""
    found: list[str] = page.locator(".answer").evaluate_all(
        "(answers) => answers.map((answer) => answer.dataset.status)"
    )
    return found
