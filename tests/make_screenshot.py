"""Takes docs/classroom.png: the classroom page in an answer, by the real server and a real browser.

Run it from the repository's root: `.venv/bin/python -m tests.make_screenshot`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from playwright.sync_api import sync_playwright

from tests.browser import launch
from tests.conftest import running_server

TARGET: Final = Path(__file__).parent.parent / "docs" / "classroom.png"
QUESTION: Final = "How do I repeat something in Python?"


def take(url: str, target: Path = TARGET) -> None:
    """The page at a desktop's size, while the tutor speaks and a source is open."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(
            viewport={"width": 1200, "height": 800}, locale="en-GB", device_scale_factor=2
        )
        page.goto(url)
        page.click(".card >> nth=0")
        page.fill("#question", QUESTION)
        page.press("#question", "Enter")
        page.wait_for_selector("html[data-activity=speaking]")
        page.wait_for_selector(".answer:last-child .cite")
        page.wait_for_timeout(1200)
        page.click(".cite >> nth=0")
        for _ in range(200):  # an open mouth tells more than a closed one
            if page.evaluate("classroom.mouth.open > 0.5"):
                break
            page.wait_for_timeout(15)
        page.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as server:
        take(server.url)
