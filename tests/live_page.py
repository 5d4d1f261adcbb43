"""The classroom page in a session with a scripted tutor, and what the tests of it do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from playwright.sync_api import Page

from tests.browser import IDLE, BrowserThread, Classroom, ask, until, watching
from tests.browser import browser as browser
from tests.scripted_tutor import ScriptedTutor, scripted_tutor

TEXT: Final = "A **loop** repeats a block of code. Python has two of them."


class LivePage(Classroom):
    """The page in a session with the scripted tutor, opened as a school opens it."""

    def live(self, tutor: ScriptedTutor, language: str = "en", **context: Any) -> Page:
        page = self.page(language, **context)
        page.goto(tutor.link)
        page.wait_for_selector(f"{IDLE} #ask")
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def server() -> Iterator[ScriptedTutor]:
    with scripted_tutor() as tutor:
        yield tutor


@pytest.fixture
def classroom(server: ScriptedTutor, browser: BrowserThread) -> Iterator[LivePage]:
    classroom = LivePage(server.url, browser)
    yield classroom
    browser.call(classroom.close)


fixtures = browser, server, classroom


# What happens


def open_microphone(page: Page) -> None:
    page.click("#talk")
    page.wait_for_selector("html[data-activity=listening] #talk[data-state=on]")


def begin_answer(page: Page, tutor: ScriptedTutor, seconds: float) -> None:
    """A typed question, and an answer of which so much has been sent; it is being heard."""
    with watching(page, "classroom.peak"):
        ask(page, "How do I repeat something?")
        tutor.wait_for("text")
        tutor.answer(1, TEXT, seconds)
        until(page, "classroom.playedSamples > 3200 && watched.some((peak) => peak > 0.1)")


def stands_still(page: Page) -> int:
    """The number of samples played; the sound falls silent at once, and no more are played."""
    let_sound_go_on(page, 0.1)
    silent, played = page.evaluate("[classroom.peak === 0, classroom.playedSamples]")
    assert silent
    let_sound_go_on(page, 0.5)
    assert page.evaluate("[classroom.peak, classroom.playedSamples]") == [0, played]
    return int(played)


def let_sound_go_on(page: Page, seconds: float) -> None:
    """Wait by the clock of the audio thread, which tells what that has had the time to do."""
    start = page.evaluate("classroom.output.currentTime")
    until(page, f"classroom.output.currentTime > {start + seconds}")
