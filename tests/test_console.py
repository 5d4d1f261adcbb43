"""The console page: real figures, a key where one is set, models loaded by hand, in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from playwright.sync_api import Page, Route

from gpuserver.providers.table import PROVIDERS
from tests.browser import (
    Classroom,
    fixtures,
    in_browser,
    sentences,
    tab_to,
    until,
    until_true,
)
from tests.conftest import Running

browser, classroom = fixtures

MODEL: Final = {
    "id": "llm:vllm:org/big",
    "kind": "llm",
    "provider": "vllm",
    "model": "org/big",
    "adapters": [],
    "state": "ready",
    "stage": None,
    "share": None,
    "problem": None,
    "pinned": False,
    "tutors": [{"id": 1, "name": "Ada"}],
    "leases": 1,
    "running": 4,
    "waiting": 2,
    "memory_mb": 3000,
    "gpu_memory_mb": {"0": 62000},
    "load_seconds": 41.0,
    "loaded_at": "2026-11-21T08:14:00Z",
    "idle_seconds": 0.0,
}
ROOM: Final = "There is no room for org/big. Fix: unload another model."
FAILED: Final = {**MODEL, "id": "failed", "state": "failed", "problem": ROOM, "running": 0}
LOADING: Final = {**MODEL, "id": "loading", "state": "loading", "stage": "fetching", "share": 0.25}
TABLE: Final = {
    "models": [MODEL, FAILED, LOADING],
    "gpus": [
        {"index": 0, "name": "H100", "total_mb": 81920, "free_mb": 10240, "allowed_mb": 40960}
    ],
    "host": {"total_mb": 131072, "free_mb": 98304, "used_mb": 32768},
    "disk": {"folder": "/srv/models", "free_mb": 51200, "models_mb": 20480},
}
FIT: Final = {
    "fits": True,
    "needs_mb": 17000,
    "free_mb": 80000,
    "device": "cuda",
    "sentence": "It fits.",
    "sentence_zh": "放得下。",
    "would_evict": ["asr:x:small"],
}


def opened(classroom: Classroom, language: str = "en", **more: Any) -> Page:
    page = classroom.page(language, **more)
    page.clock.install()
    page.goto(f"{classroom.url}/console")
    page.wait_for_selector("#rows tr")
    return page


@contextmanager
def watching_requests(page: Page) -> Iterator[list[str]]:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    yield asked


def with_models(classroom: Classroom, language: str = "en", **more: Any) -> Page:
    """The page over a machine that this one isn't."""
    page = classroom.page(language, **more)
    page.route("**/mgmt/v1/models", lambda route: route.fulfill(json=TABLE))
    page.goto(f"{classroom.url}/console")
    page.wait_for_selector("#rows tr[data-id=failed]")
    return page


# What it shows


@in_browser
def test_it_shows_what_really_runs(classroom: Classroom) -> None:
    page = opened(classroom)
    page.wait_for_selector("html[data-state=ready]")
    rows = page.inner_text("#rows")
    for name in ("extractive", "pocketsphinx", "espeak", "minilm", "Ada"):
        assert name in rows
    assert "No GPU is visible" in page.inner_text("#machine")
    used = page.get_attribute("[data-id=memory] [role=meter]", "aria-valuenow")
    assert int(used or 0) > 100
    assert "of 100" in page.inner_text("#facts")


@in_browser
def test_a_new_session_is_seen_without_a_reload(classroom: Classroom) -> None:
    page = opened(classroom)
    seen = "document.querySelector('[data-id=sessions] .fact-value').textContent"
    before = int(page.evaluate(seen))
    classroom.session(page)
    until(page, f"Number({seen}) === {before + 1}")


@in_browser
def test_a_machine_with_a_gpu_and_models_in_every_state(classroom: Classroom) -> None:
    page = with_models(classroom)
    machine = page.inner_text("#machine")
    assert "70.0 GB of 80.0 GB in use" in machine
    assert "10.0 GB free" in machine
    assert "40.0 GB allowed" in machine
    ready = page.inner_text("#rows tr >> nth=0")
    for said in ("Ready", "Ada", "4 at work", "2 waiting", "GPU 0: 60.5 GB", "2.9 GB"):
        assert said in ready
    assert ROOM in page.inner_text("tr[data-id=failed]")
    assert page.evaluate("document.querySelector('[data-id=loading] progress').value") == 0.25
    assert page.is_hidden("tr[data-id=loading] [data-act=unload]")


@in_browser
def test_what_it_shows_next_leaves_the_keyboard_where_it_is(classroom: Classroom) -> None:
    page = with_models(classroom)
    page.focus("tr[data-id=failed] [data-act=pin]")
    gone = {**TABLE, "models": [LOADING, {**FAILED, "running": 9}]}
    page.unroute("**/mgmt/v1/models")
    page.route("**/mgmt/v1/models", lambda route: route.fulfill(json=gone))
    page.wait_for_selector("#rows tr >> nth=2", state="detached")
    assert page.evaluate("document.activeElement.closest('tr')?.dataset.id") == "failed"


@in_browser
def test_a_degraded_and_a_loading_server_are_told_apart(classroom: Classroom) -> None:
    classroom.expected.append("503")
    page = opened(classroom)

    def degraded(route: Route) -> None:
        answer = route.fetch().json()
        route.fulfill(json={**answer, "degraded": ["llm"]})

    page.route("**/status", degraded)
    page.wait_for_selector("html[data-state=degraded]")
    assert "Answers" in page.inner_text("#state")
    loading = {"ready": False, "stage": "asr", "done": 2, "total": 5, "reason": None}
    page.route("**/ready", lambda route: route.fulfill(status=503, json=loading))
    page.wait_for_selector("html[data-state=loading] #starting")
    assert "2 / 5" in page.inner_text("#starting")
    failing = {**loading, "stage": "llm", "reason": ROOM}
    page.route("**/ready", lambda route: route.fulfill(status=503, json=failing))
    page.wait_for_selector("html[data-state=failing] #trouble")
    assert page.inner_text("#trouble") == ROOM
    assert page.is_hidden("#starting")


# The server that goes and comes


@in_browser
def test_it_survives_a_restart_and_never_asks_twice_at_once(classroom: Classroom) -> None:
    classroom.expected.append("ERR_")
    page = opened(classroom)
    page.route("**/{ready,status,mgmt/v1/models}", lambda route: route.abort())
    page.wait_for_selector("html[data-state=lost] #trouble")
    assert "does not answer" in page.inner_text("#trouble")
    assert page.is_visible("#rows")
    page.unroute("**/{ready,status,mgmt/v1/models}")
    page.wait_for_selector("html[data-state=ready]")
    assert page.is_hidden("#trouble")
    asked: list[Route] = []
    page.route("**/status", lambda route: asked.append(route))
    until_true(page, lambda: len(asked) == 1)
    page.clock.run_for(10_000)  # five rounds, and less than the time that a call may take
    page.wait_for_timeout(300)
    assert len(asked) == 1
    asked[0].continue_()


@in_browser
def test_nobody_looks_nobody_asks(classroom: Classroom) -> None:
    page = opened(classroom)
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, writable: true })")
    for _ in range(5):  # A look may be going on or be due.
        with watching_requests(page) as asked:
            page.clock.run_for(3000)
            page.wait_for_timeout(300)
        if not asked:
            break
    with watching_requests(page) as asked:
        page.clock.run_for(60_000)
        page.wait_for_timeout(300)
        assert not asked
        page.evaluate(
            "document.hidden = false, document.dispatchEvent(new Event('visibilitychange'))"
        )
        until_true(page, lambda: len(asked) >= 3)


# The key


def guarded(route: Route) -> None:
    if route.request.headers.get("authorization") == "Bearer right":
        route.continue_()
    else:
        refusal = {"detail": "This call needs the management key.", "code": "key_refused"}
        route.fulfill(status=401, json=refusal)


@in_browser
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_key_is_asked_for_sent_as_a_header_and_kept_in_the_tab(
    classroom: Classroom, language: str
) -> None:
    classroom.expected.append("401")
    page = classroom.page(language)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.route("**/{status,mgmt/v1/models}", guarded)
    page.goto(f"{classroom.url}/console")
    for tried in ("wrong", "密钥"):
        page.fill("#key-input", tried)
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-wrong:not([hidden])")
        assert page.is_hidden("#live")
    page.fill("#key-input", "right")
    # Whoever looks the key up in another tab finds here what was typed.
    with page.expect_response("**/mgmt/v1/models"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_load_state("networkidle")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rows tr")
    page.reload()
    page.wait_for_selector("#rows tr")
    assert not [url for url in urls if "right" in url]
    assert page.evaluate("JSON.stringify([localStorage, document.cookie])").count("right") == 0
    page.click("#forget")
    page.wait_for_selector("#key:not([hidden])")
    assert page.evaluate("sessionStorage.length") == 0


@in_browser
def test_a_key_that_is_typed_during_a_look_is_used(classroom: Classroom) -> None:
    classroom.expected.append("401")
    page = classroom.page()
    page.route("**/{status,mgmt/v1/models}", guarded)
    page.goto(f"{classroom.url}/console")
    page.fill("#key-input", "right")
    waiting: list[Route] = []
    page.route("**/{status,mgmt/v1/models}", lambda route: waiting.append(route), times=2)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    until_true(page, lambda: len(waiting) == 2)
    page.keyboard.press("Enter")
    for route in waiting:
        route.fallback()
    page.wait_for_selector("#rows tr")
    assert page.is_hidden("#key")


# By hand


@in_browser
def test_a_model_is_loaded_after_it_was_said_that_it_fits(classroom: Classroom) -> None:
    page = opened(classroom)
    page.select_option("#load-kind", "tts")
    page.select_option("#load-provider", "espeak")
    page.focus("#load-provider")
    tab_to(page, "#load-check")
    page.keyboard.press("Enter")
    page.wait_for_selector("#load-answer[data-fits=true] .primary")
    assert "espeak" in page.inner_text("#load-answer")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=espeak is loaded.")


@in_browser
def test_a_load_shows_its_stages_and_the_servers_sentence(classroom: Classroom) -> None:
    classroom.expected.append("409")
    page = with_models(classroom)
    wishes: list[Any] = []
    page.route("**/models/fit", lambda route: route.fulfill(json=FIT))

    def load(route: Route) -> None:
        wishes.append(route.request.post_data_json)
        lines = [{"stage": "loading", "share": 0.5}, {"error": {"code": "x", "detail": ROOM}}]
        body = "".join(json.dumps(line) + "\n" for line in lines)
        route.fulfill(body=body, content_type="application/x-ndjson")

    page.route("**/models/load", load)
    page.click("tr[data-id=failed] [data-act=load]")
    page.wait_for_selector("#load-answer[data-fits=true]")
    assert "It takes the place of asr:x:small." in page.inner_text("#load-answer")
    page.click("#load-answer .primary")
    page.wait_for_selector(f"#load-answer:has-text('{ROOM}')")
    assert wishes == [{"kind": "llm", "provider": "vllm", "model": "org/big", "pin": False}]
    assert page.is_enabled("#load-check")


@in_browser
def test_what_does_not_fit_can_not_be_loaded(classroom: Classroom) -> None:
    page = with_models(classroom, "zh")
    verdict = {**FIT, "fits": False, "sentence_zh": "放不下。", "would_evict": []}
    page.route("**/models/fit", lambda route: route.fulfill(json=verdict))
    page.fill("#load-model", "org/bigger")
    page.click("#load-check")
    page.wait_for_selector("#load-answer[data-fits=false]")
    assert page.inner_text("#load-answer") == "放不下。"


@in_browser
def test_a_model_is_pinned_and_one_in_use_not_unloaded(classroom: Classroom) -> None:
    classroom.expected.append("409")
    page = opened(classroom)
    row = "#rows tr[data-id='tts:espeak:']"
    page.click(f"{row} [data-act=pin]")
    page.wait_for_selector(f"{row} [data-act=pin][aria-pressed=true]")
    page.click(f"{row} [data-act=unload]")
    page.wait_for_selector("#models-said:not([hidden])")
    assert "in use by Ada" in page.inner_text("#models-said")
    page.click(f"{row} [data-act=pin]")
    page.wait_for_selector(f"{row} [data-act=pin][aria-pressed=false]")


@in_browser
def test_the_engines_to_choose_from_are_those_there_are(classroom: Classroom) -> None:
    page = opened(classroom)
    offered: dict[str, list[str]] = page.evaluate(
        "import('/classroom/console-load.js').then((module) => module.PROVIDERS)"
    )
    for kind, names in offered.items():
        assert set(names) == set(PROVIDERS[kind]), kind  # type: ignore[index]


# For everybody


@in_browser
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_it_all(classroom: Classroom, width: int, language: str) -> None:
    page = with_models(classroom, language, size=(width, 700))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    small = page.evaluate(
        "[...document.querySelectorAll('button, select, input[type=text]')]"
        ".filter((e) => e.checkVisibility()).map((e) => [e.outerHTML, e.getBoundingClientRect()])"
        ".filter(([, r]) => r.width < 44 || r.height < 43.9).map(([html]) => html)"
    )
    assert not small


@in_browser
def test_every_control_has_a_name_and_each_language_every_sentence(classroom: Classroom) -> None:
    page = with_models(classroom)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, progress, [role=meter]')]"
        ".filter((e) => e.checkVisibility())"
        ".filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length))"
        ".map((e) => e.outerHTML)"
    )
    assert not unnamed
    page.click("#language")
    assert page.title() == "控制台"
    assert not re.search(r"(models|machine|load|fact|state|kind)\.\w+", page.inner_text("body"))
    assert {"course.drop", "load.title"} <= sentences(page).keys()


@in_browser
def test_the_page_keeps_to_a_strict_policy(classroom: Classroom, server: Running) -> None:
    page = classroom.page()
    answer = page.goto(f"{server.url}/console")
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy
    page.wait_for_selector("#rows tr")
