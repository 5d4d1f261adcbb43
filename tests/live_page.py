"""The classroom page in a session with a scripted tutor, and what the tests of it do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from playwright.sync_api import Page

from tests.browser import IDLE, BrowserThread, Classroom, ask, until
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
    ask(page, "How do I repeat something?")
    tutor.wait_for("text")
    tutor.answer(1, TEXT, seconds)
    until(page, "classroom.playedSamples > 3200 && classroom.peak > 0.1")


def stands_still(page: Page) -> int:
    """The number of samples played, of which no more are played for a while."""
    page.wait_for_timeout(100)
    assert page.evaluate("classroom.peak") == 0
    played: int = page.evaluate("classroom.playedSamples")
    page.wait_for_timeout(300)
    assert page.evaluate("classroom.playedSamples") == played
    return played
