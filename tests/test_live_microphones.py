"""The classroom page's microphones: chosen, lost, refused, missing, and sound on phones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import IDLE, LOCALES, BrowserThread, ask, in_browser, launch, until
from tests.live_page import TEXT, LivePage, fixtures, open_microphone
from tests.scripted_tutor import ScriptedTutor

browser, server, classroom = fixtures


# Microphones that there are, and those that there aren't


@in_browser
def test_another_microphone_can_be_chosen(classroom: LivePage, server: ScriptedTutor) -> None:
    page = classroom.live(server)
    open_microphone(page)
    page.click("#microphone summary")
    until(page, "document.querySelectorAll('#device option').length > 1")
    names = page.locator("#device option").all_inner_texts()
    assert names[0] == "The usual one"
    assert all(names)
    page.evaluate(
        """() => { const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
          window.asked = []; navigator.mediaDevices.getUserMedia = (wish) => {
            asked.push(wish.audio); return ask(wish); }; }"""
    )
    chosen = page.locator("#device option").nth(1).get_attribute("value")
    page.select_option("#device", chosen)
    page.wait_for_selector("html[data-activity=listening] #talk[data-state=on]")
    wish = page.evaluate("asked[0]")
    assert wish["deviceId"] == {"exact": chosen}
    assert wish["echoCancellation"]
    assert wish["noiseSuppression"]
    assert wish["autoGainControl"]
    # A lost device is told of, and the button is ready again.
    page.evaluate(
        """() => { window.tracks = []; const ask = navigator.mediaDevices.getUserMedia;
          navigator.mediaDevices.getUserMedia = async (wish) => {
            const stream = await ask(wish);
            tracks.push(...stream.getTracks());
            return stream; }; }"""
    )
    page.click("#talk")
    open_microphone(page)
    page.evaluate("tracks[0].dispatchEvent(new Event('ended'))")
    page.wait_for_selector(".hint.problem")
    assert "disconnected" in page.inner_text("#hint")
    page.wait_for_selector(IDLE)


@pytest.fixture
def other_browser(browser: BrowserThread) -> Iterator[Any]:
    """Launches a browser with other flags, and closes it."""
    launched: list[Browser] = []

    def start(*flags: str) -> Browser:
        launched.append(launch(browser.playwright, more=flags))
        return launched[-1]

    yield start
    for each in launched:
        browser.call(each.close)


def hint_after_talk(page: Page) -> str:
    page.wait_for_selector(IDLE)
    page.click("#talk")
    page.wait_for_selector(".hint.problem")
    return page.inner_text("#hint")


@in_browser
@pytest.mark.parametrize(
    ("flags", "language", "said"),
    [
        (["--use-fake-device-for-media-stream"], "en", "does not allow"),
        (["--use-fake-device-for-media-stream"], "zh", "不允许"),
        ([], "en", "No microphone"),
        ([], "zh", "没有找到麦克风"),
    ],
)
def test_a_browser_without_microphone_or_permission_says_so(
    classroom: LivePage,
    server: ScriptedTutor,
    other_browser: Any,
    flags: Sequence[str],
    language: str,
    said: str,
) -> None:
    """Refused and missing for real: a device but no permission, and no device."""
    page = other_browser(*flags).new_context(locale=LOCALES[language]).new_page()
    page.goto(server.link)
    assert said in hint_after_talk(page)
    assert page.is_enabled("#talk")
    ask(page, "Then I type.")
    server.wait_for("text")


@in_browser
@pytest.mark.parametrize(("language", "said"), [("en", "https"), ("zh", "https")])
def test_a_plain_http_address_is_explained(
    classroom: LivePage, server: ScriptedTutor, other_browser: Any, language: str, said: str
) -> None:
    """Insecure for real: plain http to a host that is not this machine by name."""
    chromium = other_browser("--host-resolver-rules=MAP school.test 127.0.0.1")
    page = chromium.new_context(locale=LOCALES[language]).new_page()
    page.goto(server.link.replace("127.0.0.1", "school.test"))
    page.wait_for_selector(IDLE)
    assert page.evaluate("isSecureContext") is False
    assert page.is_disabled("#talk")
    assert said in page.inner_text("#hint")
    assert page.is_hidden("#microphone")


@in_browser
def test_the_first_touch_on_a_phone_lets_the_sound_out(
    classroom: LivePage, server: ScriptedTutor, other_browser: Any
) -> None:
    chromium = other_browser("--autoplay-policy=document-user-activation-required")
    context = chromium.new_context(
        viewport={"width": 390, "height": 760}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(server.link)
    # Whatever Playwright evaluates counts as a touch, so the page is left alone until it has asked.
    server.wait_for("session.update")
    server.answer(1, TEXT, 1)
    page.wait_for_timeout(1500)
    page.wait_for_selector(".notice button")
    assert page.evaluate("[classroom.output.state, classroom.playedSamples]") == ["suspended", 0]
    page.tap(".answer >> nth=0")
    until(page, "classroom.playedSamples > 8000")
    page.wait_for_selector(".notice", state="detached")
    server.done(1)
    page.wait_for_selector(IDLE)
