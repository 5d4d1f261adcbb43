"""The classroom page against a scripted tutor: words, sound, and what is below an answer."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.browser import IDLE, ask, in_browser, push_to_talk, until, watching
from tests.live_page import TEXT, LivePage, begin_answer, fixtures, open_microphone, stands_still
from tests.scripted_tutor import RATE, ScriptedTutor

browser, server, classroom = fixtures


# Talking


@in_browser
def test_partial_words_become_the_question(classroom: LivePage, server: ScriptedTutor) -> None:
    page = classroom.live(server)
    open_microphone(page)
    update = server.wait_for("session.update", 2)
    assert update["turn_detection"] == "server"
    assert update["input_audio_format"] == {"encoding": "pcm16", "sample_rate": 16_000}
    server.say("speech.started")
    page.wait_for_selector("html[data-activity=hearing]")
    assert page.inner_text("#activity") == "Hearing you"
    server.say("transcription.delta", stable="how do", tentative="I rip")
    page.wait_for_selector(".question.pending .tentative")
    server.say("transcription.delta", stable="how do I repeat", tentative="some")
    until(page, "document.querySelector('.stable').textContent === 'how do I repeat '")
    assert page.inner_text(".tentative") == "some"
    dim, plain = page.evaluate(
        "['.tentative', '.stable'].map((s) => getComputedStyle(document.querySelector(s)).opacity)"
    )
    assert float(dim) < float(plain)
    assert "how do I" not in page.inner_text("#said")
    server.say("speech.stopped")
    server.answer(1, TEXT)
    server.say("transcription", turn_id="t1", content="How do I repeat?", confidence=0.9)
    page.wait_for_selector(".question:not(.pending)")
    server.done(1)
    page.wait_for_selector("html[data-activity=listening]")
    assert page.locator(".question .body").all_inner_texts() == ["How do I repeat?"]
    classes = page.evaluate(
        "[...document.querySelectorAll('#messages > *')].map((e) => e.className)"
    )
    assert classes == ["message answer", "message question", "message answer"]
    assert "How do I repeat?" in page.inner_text("#said")


@in_browser
def test_sound_goes_out_in_frames_of_20_ms_and_the_meter_moves(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    assert page.is_hidden("#level")
    shown = "getComputedStyle(document.querySelector('#level')).getPropertyValue('--level')"
    with watching(page, f"[classroom.level, Number({shown})]"):
        open_microphone(page)
        assert page.is_visible("#level")
        until(page, "watched.some(([heard, shown]) => heard > 0.7 && shown > 0.5)")
    page.wait_for_timeout(1500)
    assert {len(frame) for frame in server.sound} == {640}
    samples = np.frombuffer(b"".join(server.sound), "<i2")
    assert np.abs(samples.astype(int)).max() > 1000
    # Most stretches of 25 frames take half a second; one in which the machine stood still doesn't.
    came = np.array(server.sound_at)
    assert np.median(came[25:] - came[:-25]) == pytest.approx(0.5, abs=0.1)
    page.click("#talk")
    page.wait_for_selector(IDLE)
    assert page.get_attribute("#talk", "aria-pressed") == "false"
    server.wait_for("audio.clear")
    since = len(server.sound)
    page.wait_for_timeout(200)
    assert len(server.sound) == since


@in_browser
def test_closing_the_microphone_while_speaking_completes_the_question(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    open_microphone(page)
    server.say("speech.started")
    server.say("transcription.delta", stable="what is", tentative="a list")
    page.wait_for_selector(".tentative")
    page.click("#talk")
    server.wait_for("audio.commit")
    page.wait_for_selector("html[data-activity=thinking]")
    server.answer(1, TEXT)
    server.say("transcription", turn_id="t1", content="What is a list?", confidence=0.9)
    server.done(1)
    page.wait_for_selector(IDLE)
    assert page.inner_text(".question .body") == "What is a list?"


@in_browser
def test_push_to_talk_sends_when_it_is_let_go(classroom: LivePage, server: ScriptedTutor) -> None:
    page = classroom.live(server)
    push_to_talk(page)
    assert page.evaluate("document.querySelector('#microphone').open") is False
    page.hover("#talk")
    page.mouse.down()
    page.wait_for_selector("html[data-activity=hearing] #talk[data-state=on]")
    assert server.wait_for("session.update", 2)["turn_detection"] == "manual"
    page.wait_for_timeout(700)
    assert not server.all_of("audio.commit")
    page.mouse.up()
    server.wait_for("audio.commit")
    assert len(server.sound) > 20
    page.wait_for_selector(".question .waiting")
    server.say("error", code="no_speech", content="nothing", retryable=True, retry_after=None)
    page.wait_for_selector(".notice")
    page.wait_for_selector(IDLE)
    assert page.locator(".question").count() == 0
    page.reload()
    page.wait_for_selector(IDLE)
    assert page.is_checked("[value=push]")


@in_browser
def test_a_tap_is_no_hold_where_the_page_is_busy(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    push_to_talk(page)
    page.evaluate(
        """() => {
          const key = (type) => new KeyboardEvent(type, { key: ' ' });
          const [down, up] = [key('keydown'), key('keyup')];
          const talk = document.querySelector('#talk');
          talk.dispatchEvent(down);
          for (const end = performance.now() + 500; performance.now() < end;);
          talk.dispatchEvent(up);
        }"""
    )
    page.wait_for_selector("html[data-activity=hearing] #talk[data-state=on]")
    page.wait_for_timeout(500)
    page.press("#talk", "Enter")
    server.wait_for("audio.commit")


@in_browser
def test_noise_leaves_no_question(classroom: LivePage, server: ScriptedTutor) -> None:
    page = classroom.live(server)
    open_microphone(page)
    begin_answer(page, server, 3)
    server.say("speech.started")
    server.say("audio.paused", turn_id="t1")
    server.say("transcription.delta", stable="", tentative="mm-hm")
    page.wait_for_selector(".question.pending")
    server.say("speech.stopped")
    server.say("audio.resumed", turn_id="t1")
    page.wait_for_selector(".question.pending", state="detached")
    page.wait_for_selector("html[data-activity=speaking]")


# Hearing


@in_browser
def test_the_player_holds_still_and_goes_on_without_a_gap(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    begin_answer(page, server, 3)
    server.say("audio.paused", turn_id="t1")
    until(page, "classroom.held")
    played = stands_still(page)
    assert 0 < played < 3 * RATE
    assert page.evaluate("classroom.mouth.open") < 0.05
    server.wait_until_heard(1, played / RATE * 1000, within=150)
    server.say("audio.resumed", turn_id="t1")
    server.done(1)
    page.wait_for_selector(IDLE)
    assert page.evaluate("classroom.playedSamples") == 3 * RATE
    server.wait_until_heard(1, 3000)


@in_browser
def test_an_interruption_by_voice_throws_the_rest_away_and_greys_it(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    open_microphone(page)
    begin_answer(page, server, 12)
    server.say("audio.paused", turn_id="t1")
    server.say("transcription.delta", stable="wait", tentative="what")
    server.done(1, "interrupted", heard="A **loop** repeats")
    page.wait_for_selector(".answer[data-status=interrupted]")
    played = stands_still(page)
    assert played < 10 * RATE
    server.wait_for("playback")
    server.wait_until_heard(1, played / RATE * 1000, within=150)
    grey = page.evaluate("[...document.querySelectorAll('.unheard')].map((e) => e.textContent)")
    assert "".join(grey) == " a block of code. Python has two of them."
    assert page.inner_text(".answer:not(:first-child) strong") == "loop"
    assert "not heard" in page.inner_text(".ending-note")
    assert page.inner_text(".question.pending .stable").strip() == "wait"
    server.answer(2, "Yes?", 0.5)
    server.say("transcription", turn_id="t2", content="Wait, what?", confidence=0.8)
    server.done(2)
    # It is listening already; that it still is, and no more was played, counts after the answer.
    until(page, f"classroom.playedSamples >= {played + 0.5 * RATE}")
    page.wait_for_selector("html[data-activity=listening]")
    assert page.evaluate("classroom.playedSamples") == played + 0.5 * RATE
    server.wait_until_heard(2, 500)
    assert server.heard_ms(1)[-1] < 10_000


@in_browser
def test_stop_reports_first_what_was_heard(classroom: LivePage, server: ScriptedTutor) -> None:
    page = classroom.live(server)
    begin_answer(page, server, 4)
    page.keyboard.press("Escape")
    server.wait_for("interrupt")
    kinds = [message["type"] for message in server.received]
    assert kinds[-2:] == ["playback", "interrupt"]
    played = stands_still(page)
    server.wait_until_heard(1, played / RATE * 1000, within=150)
    server.more(1, 1, 4)
    server.done(1, "interrupted", heard="A **loop**")
    until(page, "document.querySelectorAll('.unheard').length > 0")
    assert stands_still(page) == played
    page.wait_for_selector(IDLE)
    ask(page, "And a list?")
    server.wait_for("text", 2)
    server.answer(2, "A list holds values.", 0.5)
    server.done(2)
    server.wait_until_heard(2, 500)
    assert page.evaluate("classroom.playedSamples") == played + 0.5 * RATE


@in_browser
def test_playback_is_reported_while_it_plays(classroom: LivePage, server: ScriptedTutor) -> None:
    page = classroom.live(server)
    begin_answer(page, server, 2)
    server.done(1)
    page.wait_for_selector(IDLE)
    server.wait_until_heard(1, 2000)
    heard = server.heard_ms(1)
    assert heard == sorted(set(heard))
    assert 5 <= len(heard) <= 12


@in_browser
def test_speech_as_base64_is_played_as_well(classroom: LivePage, server: ScriptedTutor) -> None:
    page = classroom.live(server)
    ask(page, "Hello?")
    server.wait_for("text")
    server.answer(1, "Hello.")
    data = "AAEAAQABAAE=" * 2000
    sent = {"turn_id": "t1", "data": data.replace("=", "A"), "sample_rate": 8000, "offset": 0}
    server.say("audio.delta", **sent)
    server.done(1)
    until(page, "classroom.playedSamples > 8000")
    assert page.evaluate("classroom.output.sampleRate") == 8000


# Below an answer


@in_browser
def test_the_latency_strip_says_how_long_it_took(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    ask(page, "Hello?")
    server.wait_for("text")
    server.answer(1, TEXT)
    stages = {"passages": 20, "first_token": 180, "first_clause": 200, "first_audio": 420}
    server.done(1, timeline={**stages, "done": 3000})
    page.wait_for_selector(".latency")
    assert page.inner_text(".latency summary") == "0.42 s to first sound"
    widths = page.evaluate(
        "[...document.querySelectorAll('.latency-part')].map((e) => [e.dataset.stage,"
        " e.getBoundingClientRect().width])"
    )
    assert [stage for stage, _ in widths] == list(stages)
    assert widths[1][1] > 3 * widths[0][1]
    assert page.get_attribute(".latency-part >> nth=1", "title") == "First word written: 180 ms"
    page.focus(".latency summary")
    page.keyboard.press("Enter")
    assert "420 ms" in page.inner_text(".latency dl")
    page.click("#language")
    assert page.inner_text(".latency summary") == "0.42 秒后出声"


@in_browser
def test_an_answer_can_be_rated_and_the_rating_taken_back(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server)
    assert page.locator(".thumb").count() == 0
    ask(page, "Hello?")
    server.wait_for("text")
    server.answer(1, TEXT)
    server.done(1)
    for rating in ("1", "-1", "-1"):
        page.click(f".thumb[data-rating='{rating}']")
    server.wait_for("feedback", 3)
    given = [(m["turn_id"], m["rating"]) for m in server.all_of("feedback")]
    assert given == [("t1", 1), ("t1", -1), ("t1", 0)]
    assert page.locator(".thumb[aria-pressed=true]").count() == 0


# For everyone


@in_browser
def test_the_whole_room_is_chinese_where_it_should_be(
    classroom: LivePage, server: ScriptedTutor
) -> None:
    page = classroom.live(server, "zh")
    open_microphone(page)
    begin_answer(page, server, 1)
    server.say("speech.started")
    page.wait_for_selector("html[data-activity=hearing]")
    assert page.inner_text("#activity") == "正在听你说"
    server.done(1, "interrupted", heard="A", timeline={"first_audio": 420})
    page.wait_for_selector(".latency")
    page.click("#microphone summary")
    texts: str = page.evaluate(
        "[...document.querySelectorAll('.foot, .answer-foot, .ending-note, .bar')]"
        ".map((e) => e.innerText).join(' ')"
    )
    texts += " ".join(
        page.evaluate(
            "[...document.querySelectorAll('.foot *, .answer-foot *, .bar *')].flatMap((e) =>"
            " ['aria-label', 'title', 'placeholder'].map((a) => e.getAttribute(a) ?? ''))"
        )
    )
    foreign = re.sub(r"(?i)esc|english|switch to english|fake [^\n]*", "", texts)
    assert "已打断" in texts
    assert not re.findall(r"[A-Za-z]{3,}", foreign)


@in_browser
def test_reduced_motion_moves_nothing(classroom: LivePage, server: ScriptedTutor) -> None:
    page = classroom.live(server, reduced_motion="reduce")
    open_microphone(page)
    begin_answer(page, server, 1)
    running = page.evaluate(
        "document.getAnimations().filter((a) => a.playState === 'running').length"
    )
    assert running == 0
