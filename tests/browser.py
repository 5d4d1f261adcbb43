"""A real Chromium for the tests of the pages, in a thread of its own, and what they do with it.

Playwright's synchronous interface runs an event loop in its thread, which pytest-asyncio's tests
can't share: everything that touches the browser happens in one thread beside theirs.
"""

from __future__ import annotations

import functools
import re
import subprocess
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Playwright,
    Route,
    sync_playwright,
)

CHROMIUM: Final = "/usr/bin/chromium"
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--mute-audio",
)
ALLOWED: Final = (
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)
"""A microphone that is there and allowed, and sound that needs no touch."""
QUESTION: Final = "How do I repeat something in Python?"
QUESTION_ZH: Final = "怎么重复执行一段代码？"
SPEAKING: Final = "html[data-activity=speaking]"
IDLE: Final = "html[data-activity=idle]"
WRITTEN: Final = ".answer:last-child[data-written]"
LOCALES: Final = {"en": "en-GB", "zh": "zh-CN"}

_WATCH_POLICY: Final = """
window.addEventListener('securitypolicyviolation', (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
"""


def launch(
    playwright: Playwright, microphone: Path | None = None, more: Sequence[str] = ALLOWED
) -> Browser:
    """Chromium whose microphone plays a WAV file over and over, from its beginning at each use."""
    flags = [*FLAGS, *more]
    if microphone is not None:
        flags.append(f"--use-file-for-fake-audio-capture={microphone}")
    return playwright.chromium.launch(executable_path=CHROMIUM, args=flags)


class BrowserThread:
    """Chromium and the one thread that may touch it."""

    def __init__(self, microphone: Path) -> None:
        self._thread = ThreadPoolExecutor(1, "browser")
        self.playwright = self.call(lambda: sync_playwright().start())
        self.browser = self.call(lambda: launch(self.playwright, microphone))

    def call(self, act: Callable[[], Any]) -> Any:
        return self._thread.submit(act).result(timeout=110)

    def close(self) -> None:
        self.call(self.browser.close)
        self.call(self.playwright.stop)
        self._thread.shutdown()


@dataclass
class Classroom:
    """The classroom page of a server; what goes wrong in it is collected."""

    url: str
    thread: BrowserThread
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Patterns of the problems that a test brings about on purpose."""
    _contexts: list[BrowserContext] = field(default_factory=list)
    _sessions: set[str] = field(default_factory=set)

    def page(
        self, language: str = "en", size: tuple[int, int] = (1200, 800), **context: Any
    ) -> Page:
        """An empty page of a new browser profile."""
        made = self.thread.browser.new_context(
            viewport={"width": size[0], "height": size[1]}, locale=LOCALES[language], **context
        )
        made.set_default_timeout(15_000)
        made.add_init_script(_WATCH_POLICY)
        self._contexts.append(made)
        return self._watched(made.new_page())

    def open(
        self, language: str = "en", size: tuple[int, int] = (1200, 800), **context: Any
    ) -> Page:
        """The page as it opens, with the tutors to choose from."""
        page = self.page(language, size, **context)
        page.goto(self.url)
        page.wait_for_selector(".card")
        return page

    def enter(self, tutor: int = 1, language: str = "en", **more: Any) -> Page:
        """The page in a conversation with a tutor."""
        page = self.open(language, **more)
        page.click(f".card[data-tutor='{tutor}']")
        page.wait_for_selector("html[data-activity=idle] #ask")
        return page

    def session(self, page: Page, tutor: int = 1) -> dict[str, str]:
        """A session as a school makes it."""
        made = page.request.post(
            f"{self.url}/v1/sessions", data={"tutor_id": tutor, "student_id": 7}
        )
        assert made.status == 201, made.text()
        session: dict[str, str] = made.json()
        self._sessions.add(session["session_id"])
        return session

    def close(self) -> None:
        for context in self._contexts:
            for session in self._sessions:
                context.request.delete(f"{self.url}/v1/sessions/{session}")
            context.close()

    def unexpected(self) -> list[str]:
        return [p for p in self.problems if not any(re.search(e, p) for e in self.expected)]

    def _watched(self, page: Page) -> Page:
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self._at_home(request.url))
        page.on("websocket", lambda socket: self._on_socket(socket.url))
        return page

    def _on_console(self, said: ConsoleMessage) -> None:
        if said.type == "error":
            self.problems.append(said.text)

    def _on_socket(self, url: str) -> None:
        self._at_home(url)
        # The sessions that the page makes are ended with the test, so that seats stay free.
        self._sessions.add(urlsplit(url).path.rsplit("/", 1)[1])

    def _at_home(self, url: str) -> None:
        address = urlsplit(url)
        if address.scheme not in {"data", "blob"} and address.netloc != urlsplit(self.url).netloc:
            self.problems.append(f"request to elsewhere: {url}")


Test = TypeVar("Test", bound=Callable[..., None])


def in_browser(test: Test) -> Test:
    """Run a test that takes `classroom` in the browser's thread; the page must stay clean."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        classroom: Classroom = fixtures["classroom"]
        classroom.thread.call(functools.partial(test, **fixtures))
        assert not classroom.unexpected()

    return cast(Test, pytest.mark.browser(run))


def until(page: Page, expression: str, seconds: float = 15.0) -> Any:
    """The value of a JavaScript expression once it is true.

    Playwright's own `wait_for_function` evaluates a string in the page, which its policy forbids.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = page.evaluate(expression)
        if value:
            return value
        page.wait_for_timeout(20)
    state = page.evaluate("[{...document.documentElement.dataset}, document.body.innerText]")
    raise AssertionError(f"not in {seconds} s: {expression}; the page: {state}")


def until_true(page: Page, condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """The page goes on until the test's own condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} s"
        page.wait_for_timeout(20)


def held(
    page: Page, url: str, act: Callable[[], object] = lambda: None, times: int | None = None
) -> Route:
    """The next call to an address, which the test answers when it likes; `act` brings it about.

    Later calls to it are held too and never answered, but for the first `times`.
    """
    calls: list[Route] = []
    page.route(url, lambda route: calls.append(route), times=times)
    act()
    until_true(page, lambda: bool(calls))
    return calls[0]


@contextmanager
def watching(page: Page, expression: str) -> Iterator[list[Any]]:
    """Collects the values that a JavaScript expression takes, each 20 ms."""
    seen: list[Any] = []
    page.evaluate(
        f"window.watched = []; window.watcher = setInterval(() => watched.push({expression}), 20)"
    )
    yield seen
    seen.extend(page.evaluate("clearInterval(watcher), watched"))


def sentences(page: Page) -> dict[str, str]:
    """What the scripts of a page say, key → English; the Chinese has the same keys and places."""
    strings: dict[str, dict[str, str]] = page.evaluate(
        "import('/classroom/strings.js').then((module) => module.STRINGS)"
    )
    english, chinese = strings["en"], strings["zh"]
    assert english.keys() == chinese.keys()
    for key in english:
        assert _places(english[key]) == _places(chinese[key]), key
    return english


def _places(sentence: str) -> list[str]:
    return sorted(re.findall(r"\{(\w+)\}", sentence))


# Fixtures; a module of tests takes them over by `browser, classroom = fixtures`.


class Server(Protocol):
    @property
    def url(self) -> str: ...


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserThread]:
    thread = BrowserThread(spoken_question(tmp_path_factory.mktemp("microphone")))
    yield thread
    thread.close()


@pytest.fixture
def classroom(server: Server, browser: BrowserThread) -> Iterator[Classroom]:
    classroom = Classroom(server.url, browser)
    yield classroom
    browser.call(classroom.close)


fixtures = browser, classroom


# What students do


def spoken_question(folder: Path) -> Path:
    """A 48 kHz WAV for the fake microphone: a second of silence, a question by flite, long silence.

    The file is played over and over; the silence keeps the next round out of a test.
    """
    said = folder / "said.wav"
    text = "how do I repeat something in python"
    subprocess.run(["flite", "-voice", "slt", "-t", text, "-o", str(said)], check=True, timeout=60)
    with wave.open(str(said)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    at = np.arange(int(len(samples) / rate * 48_000)) * rate / 48_000
    speech = np.interp(at, np.arange(len(samples)), samples)
    before, after = np.zeros(48_000), np.zeros(40 * 48_000)
    target = folder / "question.wav"
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(np.concatenate([before, speech, after]).astype("<i2").tobytes())
    return target


def ask(page: Page, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def answer(page: Page) -> str:
    """The newest answer's text, once it is written; it may still be spoken."""
    page.wait_for_selector(WRITTEN, timeout=60_000)
    return page.inner_text(".answer:last-child .body")


def hear(page: Page) -> None:
    """Sound is coming out, and more of it as time goes by."""
    page.wait_for_selector(SPEAKING)
    until(page, "classroom.peak > 0.02")
    before = page.evaluate("classroom.playedSamples")
    until(page, f"classroom.playedSamples > {before} + classroom.output.sampleRate / 4")


def push_to_talk(page: Page) -> None:
    """Choose push to talk in the microphone's settings."""
    page.click("#microphone summary")
    page.check("[name=microphone-mode][value=push]")
    page.keyboard.press("Escape")


def tab_to(page: Page, selector: str, key: str = "Tab") -> None:
    for _ in range(20):
        page.keyboard.press(key)
        if page.evaluate("(s) => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{selector} is not reached by {key}")


def session_id(page: Page) -> str:
    kept: dict[str, Any] = page.evaluate("JSON.parse(sessionStorage['classroom.session'])")
    return str(kept["id"])
