"""The console page over a scripted server's course material, and what the tests do there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from playwright.sync_api import Page

from tests.browser import BrowserThread, Classroom, until_true
from tests.browser import browser as browser
from tests.scripted_knowledge import ScriptedKnowledge, base, document, scripted_knowledge

PHYSICS: Final = "/physics-9/documents"

_DROP: Final = """([selector, names]) => {
  const transfer = new DataTransfer();
  for (const name of names) transfer.items.add(new File(['# Text'], name));
  const told = { dataTransfer: transfer, bubbles: true, cancelable: true };
  const place = document.querySelector(selector);
  place.dispatchEvent(new DragEvent('dragenter', told));
  const dragging = document.querySelector('#knowledge').hasAttribute('data-dragging');
  place.dispatchEvent(new DragEvent('dragover', told));
  const drop = new DragEvent('drop', told);
  place.dispatchEvent(drop);
  return [dragging, drop.defaultPrevented];
}"""


@pytest.fixture
def knowledge() -> Iterator[ScriptedKnowledge]:
    with scripted_knowledge() as knowledge:
        shipped = base("python-basics", "Python basics", origin="course", documents=1)
        knowledge.bases = {"physics-9": base("physics-9", "Physics, year 9")}
        knowledge.bases["python-basics"] = shipped
        knowledge.documents["python-basics"] = {"en/lists": document(1, "lists.md", id="en/lists")}
        yield knowledge


@pytest.fixture
def classroom(knowledge: ScriptedKnowledge, browser: BrowserThread) -> Iterator[Classroom]:
    classroom = Classroom(knowledge.url, browser)
    yield classroom
    browser.call(classroom.close)


def opened(classroom: Classroom, language: str = "en", **more: Any) -> Page:
    page = classroom.page(language, **more)
    page.goto(classroom.url)
    page.wait_for_selector("#knowledge:not([hidden])")
    return page


def following(page: Page, knowledge: ScriptedKnowledge, streams: int = 1) -> None:
    """Until the page hears of changes as they come."""
    until_true(page, lambda: knowledge.streams >= streams)


def drop(page: Page, *names: str, on: str = "#docs") -> list[bool]:
    told: list[bool] = page.evaluate(_DROP, [on, list(names)])
    return told


fixtures = browser, knowledge, classroom
