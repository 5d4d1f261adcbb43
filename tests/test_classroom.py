"""The classroom page in a real browser: asking by text and by voice, hearing, stopping, safety."""

from __future__ import annotations

import re
from urllib.parse import quote

import numpy as np
import pytest

from tests.browser import (
    IDLE,
    QUESTION,
    QUESTION_ZH,
    SPEAKING,
    WRITTEN,
    Classroom,
    answer,
    ask,
    fixtures,
    hear,
    in_browser,
    push_to_talk,
    until,
    watching,
)
from tests.live_page import stands_still

browser, classroom = fixtures


# Asking and hearing


@in_browser
def test_a_typed_question_is_answered_with_sources_and_a_voice(classroom: Classroom) -> None:
    page = classroom.enter()
    assert page.get_attribute("html", "lang") == "en"
    ask(page, QUESTION)
    page.wait_for_selector(SPEAKING)
    with watching(page, "classroom.mouth") as mouths:
        hear(page)
        page.wait_for_timeout(1500)
    assert max(mouth["open"] for mouth in mouths) > 0.25
    assert len({round(mouth["open"] + mouth["width"], 2) for mouth in mouths}) > 10
    assert "loop" in answer(page)
    assert page.get_attribute(".answer:last-child .body", "lang") == "en"
    assert page.locator(".answer:last-child .source").count() >= 1
    page.wait_for_selector(IDLE, timeout=60_000)
    until(page, "classroom.mouth.open === 0")
    assert page.inner_text(".question .body") == QUESTION
    assert page.inner_text("#engines")


@in_browser
def test_a_chinese_question_is_answered_in_chinese_and_heard(classroom: Classroom) -> None:
    page = classroom.enter(tutor=2, language="zh")
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.get_attribute("#question", "placeholder") == "输入问题"
    ask(page, QUESTION_ZH)
    hear(page)
    assert "循环" in answer(page)
    assert page.get_attribute(".answer:last-child .body", "lang") == "zh-CN"
    assert page.locator(".answer:last-child .source").count() >= 1


@in_browser
def test_a_citation_leads_to_its_source(classroom: Classroom) -> None:
    page = classroom.enter()
    ask(page, QUESTION)
    page.wait_for_selector(f"{WRITTEN} .cite", timeout=60_000)
    number = page.inner_text(".cite >> nth=0")
    page.press(".cite >> nth=0", "Enter")
    page.wait_for_selector("#passage .cited")
    assert page.inner_text("#passage .number") == number
    assert "loop" in page.inner_text("#passage .cited")


@in_browser
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_student_just_talks_and_is_answered(classroom: Classroom, language: str) -> None:
    """In both interfaces: the tutor that hears English is asked in English."""
    page = classroom.enter(language=language)
    page.click("#talk")
    page.wait_for_selector("html[data-activity=listening] #talk[data-state=on]")
    assert page.get_attribute("#talk", "aria-pressed") == "true"
    page.wait_for_selector("html[data-activity=hearing]")
    page.wait_for_selector(".question.pending .tentative")
    page.wait_for_selector(".question:not(.pending)")
    words = page.inner_text(".question .body")
    assert "repeat" in words
    assert words in page.inner_text("#said")
    hear(page)
    assert "loop" in answer(page)
    page.keyboard.press("Escape")
    page.wait_for_selector("html[data-activity=listening]")
    page.wait_for_selector(".latency")
    assert page.locator(".unheard").count() > 0
    page.click("#talk")
    page.wait_for_selector(IDLE)
    assert page.get_attribute("#talk", "aria-pressed") == "false"


@in_browser
@pytest.mark.parametrize("way", ["pointer", "space", "enter"])
def test_a_question_is_spoken_by_push_to_talk(classroom: Classroom, way: str) -> None:
    page = classroom.enter()
    push_to_talk(page)
    if way == "pointer":
        page.hover("#talk")
        page.mouse.down()
    else:
        page.focus("#talk")
        page.keyboard.down("Space") if way == "space" else page.keyboard.press("Enter")
    page.wait_for_selector("html[data-activity=hearing] #talk[data-state=on]")
    page.wait_for_timeout(4300)
    assert page.locator(".question:not(.pending)").count() == 0
    if way == "pointer":
        page.mouse.up()
    else:
        page.keyboard.up("Space") if way == "space" else page.keyboard.press("Enter")
    page.wait_for_selector(".question:not(.pending)")
    assert "repeat" in page.inner_text(".question .body")
    hear(page)
    assert "loop" in answer(page)
    assert page.get_attribute("#talk", "aria-pressed") == "false"


@in_browser
def test_what_was_said_can_be_discarded(classroom: Classroom) -> None:
    page = classroom.enter()
    push_to_talk(page)
    for discard in ("Escape", "button"):
        page.press("#talk", "Enter")
        page.wait_for_selector("#talk[data-state=on]")
        page.keyboard.press("Escape") if discard == "Escape" else page.click("#discard")
        page.wait_for_selector("#talk[data-state=off]")
    page.wait_for_timeout(300)
    assert page.locator(".question").count() == 0


# Coming back


@in_browser
def test_a_lost_line_and_a_reload_keep_the_conversation(classroom: Classroom) -> None:
    page = classroom.page()
    page.add_init_script(
        "window.sockets = []; window.WebSocket = class extends WebSocket {"
        " constructor(...a) { super(...a); sockets.push(this); } };"
    )
    page.goto(classroom.url)
    page.click(".card[data-tutor='1']")
    page.wait_for_selector(IDLE)
    ask(page, QUESTION)
    hear(page)
    written = answer(page)
    page.evaluate(
        """() => {
          const line = document.querySelector('#line');
          const watcher = new MutationObserver(() => (window.told ||= !line.hidden));
          watcher.observe(line, { attributes: true });
          sockets[0].close();
        }"""
    )
    until(page, "window.told")
    page.wait_for_selector("#line", state="hidden")
    hear(page)
    assert page.evaluate("sockets.length") == 2
    assert page.locator(".question").count() == 1
    assert page.locator(".answer").count() == 2  # the greeting, the answer
    assert answer(page) == written
    page.keyboard.press("Escape")
    page.wait_for_selector(".answer:last-child .ending-note")
    page.wait_for_selector(IDLE)
    page.reload()
    page.wait_for_selector(f"{IDLE} {WRITTEN}:nth-child(3)")
    assert page.inner_text(".question .body") == QUESTION
    assert page.inner_text(".answer:last-child .body") == written
    page.wait_for_timeout(300)
    assert page.evaluate("classroom.playedSamples") == 0


# Stopping


@in_browser
@pytest.mark.parametrize("way", ["click", "Escape"])
def test_stop_silences_the_tutor_at_once(classroom: Classroom, way: str) -> None:
    page = classroom.enter()
    ask(page, QUESTION)
    hear(page)
    page.click("#stop") if way == "click" else page.keyboard.press("Escape")
    stands_still(page)
    until(page, "classroom.mouth.open === 0")
    assert page.is_hidden("#stop")
    assert page.evaluate("document.activeElement.id") == "question"
    ask(page, "What is a list?")
    hear(page)
    assert "list" in answer(page)


@in_browser
def test_a_question_during_an_answer_interrupts_it_first(classroom: Classroom) -> None:
    page = classroom.page()
    sent: list[str] = []
    page.on(
        "websocket",
        lambda socket: socket.on("framesent", lambda frame: sent.append(str(frame))),
    )
    page.goto(classroom.url)
    page.click(".card[data-tutor='1']")
    page.wait_for_selector(IDLE)
    ask(page, QUESTION)
    hear(page)
    ask(page, "What is a list?")
    assert "list" in answer(page)
    kinds = [re.findall(r'"type":"([\w.]+)"', frame)[0] for frame in sent]
    asked = [kind for kind in kinds if kind not in {"session.update", "playback"}]
    assert asked == ["text", "interrupt", "text"]
    # What was heard is reported before the answer is stopped.
    assert kinds[kinds.index("interrupt") - 1] == "playback"


@in_browser
def test_several_questions_at_once_leave_one_answer(classroom: Classroom) -> None:
    page = classroom.enter()
    # In one go: a person's fingers would give each of them time to begin.
    page.evaluate(
        """() => {
            for (let number = 0; number < 6; number += 1) {
                document.querySelector('#question').value = `What is a list? ${number}`;
                document.querySelector('#ask').requestSubmit();
            }
        }"""
    )
    hear(page)
    assert page.locator(".question").count() == 6
    assert page.locator(".answer[data-status=interrupted]").count() == 0
    assert page.locator(".answer[data-written]").count() == 2  # the greeting, the answer
    ask(page, QUESTION)
    page.wait_for_selector(".answer:last-child .cite")
    assert "loop" in answer(page)


@in_browser
def test_muted_the_text_is_shown_and_the_mouth_stays_closed(classroom: Classroom) -> None:
    page = classroom.enter()
    page.click("#mute")
    assert page.get_attribute("#mute", "aria-pressed") == "true"
    ask(page, QUESTION)
    page.wait_for_selector(SPEAKING)
    page.wait_for_timeout(200)
    with watching(page, "[classroom.peak, classroom.mouth.open]") as heard:
        page.wait_for_timeout(800)
    assert max(max(values) for values in heard) < 0.001
    assert page.inner_text(".answer:last-child .body")
    page.click("#mute")
    until(page, "classroom.peak > 0.02")


@in_browser
@pytest.mark.parametrize("rate", [8000, 22050, 24000, 48000])
def test_the_player_takes_any_sample_rate(classroom: Classroom, rate: int) -> None:
    page = classroom.open()
    page.evaluate(
        """async (rate) => {
          const { Player } = await import('/classroom/player.js');
          window.player = new Player();
          window.drained = new Promise((done) => player.addEventListener('drained', done));
          for (let offset = 0; offset < 4 * rate; offset += rate / 10) {
            const samples = Int16Array.from({ length: rate / 10 },
              (_, i) => 12000 * Math.sin(2 * Math.PI * 440 * (offset + i) / rate));
            player.play({ turnId: 't', samples, sampleRate: rate, offset });
          }
          player.end();
        }""",
        rate,
    )
    with watching(page, "[player.position()?.ms, performance.now()]") as seen:
        until(page, "player.peak() > 0.3 && player.position()")
        assert page.evaluate("player.output.sampleRate") == rate
        page.evaluate("drained")
    assert page.evaluate("[player.playedSamples, player.position()]") == [4 * rate, None]
    # Heard as fast as time goes by, but for moments in which the machine stood still.
    at = np.array([moment for moment in seen if moment[0] is not None])
    heard, passed = (at[25:] - at[:-25]).T
    assert np.median(heard / passed) == pytest.approx(1, abs=0.1)


@in_browser
def test_what_was_stopped_does_not_begin_again_with_an_answer_that_has_no_sound(
    classroom: Classroom,
) -> None:
    page = classroom.open()
    page.evaluate(
        """async () => {
          const { Player } = await import('/classroom/player.js');
          window.player = new Player();
          window.started = 0;
          player.addEventListener('started', () => (started += 1));
          const samples = Int16Array.from({ length: 64000 }, (_, i) => 12000 * Math.sin(i / 6));
          player.play({ turnId: 't1', samples, sampleRate: 16000, offset: 0 });
        }"""
    )
    until(page, "player.playing")
    page.evaluate("player.flush(), player.end(), null")  # The next has ended before the fade.
    stopped = page.evaluate("player.output.currentTime")
    until(page, f"player.output.currentTime > {stopped + 0.2}")
    assert page.evaluate("[started, player.playing]") == [1, False]


# Safety


@in_browser
def test_markup_is_shown_as_text(classroom: Classroom) -> None:
    page = classroom.enter()
    nasty = "<img src=x onerror=\"alert('x')\"> How do I repeat <b>something</b>?"
    ask(page, nasty)
    assert page.inner_text(".question .body") == nasty
    answer(page)
    assert page.locator("#messages :is(img, b, script)").count() == 0


@in_browser
def test_markdown_becomes_nodes_and_nothing_else(classroom: Classroom) -> None:
    page = classroom.open()
    shown = page.evaluate(
        """async () => {
          const { render } = await import('/classroom/markdown.js');
          const place = document.createElement('div');
          place.append(render([
            '# A <i>title</i>', 'Two', 'lines with `list[1]`, **bold [1]** and [2].',
            '', '- one', '- two `<b>`', '', '3. three', '',
            '[a](javascript:alert(1)) <svg onload=alert(1)>', '```python', 'x = [1]', '',
            '<script>alert(1)</script>',
          ].join('\\n'), (n) => n === 1 ? Object.assign(document.createElement('button'),
            { textContent: n }) : null));
          return [place.innerHTML, place.textContent];
        }"""
    )
    assert shown[0] == (
        '<p class="heading">A &lt;i&gt;title&lt;/i&gt;</p>'
        "<p>Two\nlines with <code>list[1]</code>, <strong>bold <button>1</button></strong> and "
        "[2].</p><ul><li>one</li><li>two <code>&lt;b&gt;</code></li></ul>"
        '<ol start="3"><li>three</li></ol>'
        "<p>[a](javascript:alert(1)) &lt;svg onload=alert(1)&gt;</p>"
        '<pre tabindex="0" data-language="python"><code>x = [1]\n\n'
        "&lt;script&gt;alert(1)&lt;/script&gt;</code></pre>"
    )


@in_browser
def test_opened_by_a_school_the_token_leaves_the_address(classroom: Classroom) -> None:
    page = classroom.page()
    session = classroom.session(page)
    entries = page.evaluate("history.length")
    page.goto(
        f"{classroom.url}/#engine_url={quote(session['engine_url'], safe='')}"
        f"&token={session['engine_token']}"
    )
    page.wait_for_selector(IDLE)
    assert page.url == f"{classroom.url}/"
    assert page.evaluate("history.length") == entries + 1
    assert session["engine_token"] not in page.content()
    assert page.is_hidden("#change")
    page.reload()
    page.wait_for_selector(IDLE)
    ask(page, QUESTION)
    assert "loop" in answer(page)


@in_browser
@pytest.mark.parametrize(
    ("fragment", "said"),
    [
        ("#engine_url={engine_url}&token=wrong", "not valid here"),
        ("#engine_url=elsewhere&token=x", "not complete"),
        ("#token=x", "not complete"),
    ],
)
def test_a_bad_link_is_explained(classroom: Classroom, fragment: str, said: str) -> None:
    classroom.expected.append("Unexpected response code: 403")
    page = classroom.page()
    page.goto(f"{classroom.url}/{fragment.format_map(classroom.session(page))}")
    page.wait_for_selector("[role=alert]:visible")
    assert said in page.inner_text("[role=alert]:visible")
    assert page.url == f"{classroom.url}/"
