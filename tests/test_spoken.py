"""Where an interrupted answer is cut, and how its speech goes out."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

from gpuserver.config import Settings
from gpuserver.live.playout import PIECE_MS, Playout, pieces
from gpuserver.providers import Speech, VisemeMark, WordTime
from gpuserver.tutor.conversation import Conversation
from gpuserver.tutor.events import Ended, Event, SpeechChunk, SpeechDone
from gpuserver.tutor.spoken import Spoken
from gpuserver.tutor.turn import Question, Turn, limits_of
from gpuserver.tutor.tutoring import Tutoring
from tests.fakes import Cast, Clock


def spoken(*clauses: tuple[str, list[str]]) -> Spoken:
    """Clauses as written and as said, each word 100 ms."""
    out, at = Spoken(), 0
    for markdown, words in clauses:
        out.begin(markdown, at)
        times = [WordTime(word, n * 100, n * 100 + 100) for n, word in enumerate(words)]
        if words:
            out.add(times, at, at + len(words) * 100)
        at += len(words) * 100
    return out


LIST = ("A list is **ordered** [1]. ", ["A", "list", "is", "ordered"])
CODE = ("Write `x = [1]` now. ", ["Write", "x", "equals", "1", "now"])


def test_nothing_was_heard_before_it_began() -> None:
    assert spoken(LIST).until(0) == ""


def test_a_clause_heard_to_its_end_is_kept_as_it_was_written() -> None:
    assert spoken(LIST, CODE).until(400) == LIST[0]
    assert spoken(LIST, CODE).until(5000) == LIST[0] + CODE[0]


def test_an_answer_is_cut_after_the_last_word_that_ended() -> None:
    assert spoken(LIST, CODE).until(299) == "A list"
    assert spoken(LIST, CODE).until(300) == "A list is"


def test_words_said_otherwise_than_written_are_passed_over() -> None:
    assert spoken(LIST, CODE).until(400 + 450) == LIST[0] + "Write `x = [1"


def test_a_clause_without_sound_belongs_to_what_was_heard_before_it() -> None:
    silent: tuple[str, list[str]] = ("```\ncode\n```\n", [])
    assert spoken(LIST, silent, CODE).until(450) == LIST[0] + silent[0]
    assert spoken(LIST, silent, CODE).until(400) == LIST[0]


def test_chinese_is_cut_between_its_words() -> None:
    assert spoken(("列表是有序的。", ["列", "表", "是", "有", "序", "的"])).until(350) == "列表是"


def test_a_voice_without_word_times_is_cut_by_its_length_in_whole_words() -> None:
    out = Spoken()
    out.begin("one two three four", 0)
    out.add((), 0, 1000)
    assert out.until(500) == "one two "


def test_what_was_said_lately_is_known_for_telling_echo_from_speech() -> None:
    said = spoken(LIST, CODE)
    assert said.around(450, 200) == "is ordered Write"
    assert said.around(450, 50) == "ordered Write"


def chunk(ms: int, offset: int = 0) -> SpeechChunk:
    word, mark = WordTime("word", 0, ms), VisemeMark(0, "aa")
    return SpeechChunk(Speech(bytes(ms * 32), 16_000, (word,), (mark,)), offset)


def test_a_chunk_is_cut_into_pieces_that_add_up() -> None:
    whole = chunk(250, offset=1600)
    parts = list(pieces(whole))
    assert [p.offset for p in parts] == [1600, 3200, 4800]
    assert b"".join(p.speech.pcm for p in parts) == whole.speech.pcm
    assert [len(p.speech.words) for p in parts] == [1, 0, 0]
    assert (parts[0].start_ms, parts[0].end_ms) == (100, 100 + PIECE_MS)


async def send(playout: Playout, until_ms: int) -> int:
    """Send pieces until one has to wait; returns how far it came."""
    at = 0
    while at < until_ms:
        try:
            async with asyncio.timeout(0.01):
                await playout.wait_for(at, at + PIECE_MS)
        except TimeoutError:
            break
        at += PIECE_MS
    return at


async def test_speech_goes_out_a_little_ahead_and_then_in_real_time() -> None:
    clock = Clock(100.0)
    playout = Playout(300, clock)
    assert await send(playout, 10_000) == 400
    assert playout.audible
    clock.now += 0.2
    await asyncio.wait_for(playout.wait_for(400, 500), 1)
    await asyncio.wait_for(playout.wait_for(500, 600), 1)
    assert playout.heard_ms() == 200


async def test_small_pieces_go_out_several_at_a_time_and_in_time() -> None:
    playout = Playout(300, time.monotonic)
    began = time.monotonic()
    sent: list[float] = []
    for at in range(0, 800, 20):
        await playout.wait_for(at, at + 20)
        sent.append((time.monotonic() - began) * 1000)
    wakes = sum(later - earlier > 5 for earlier, later in itertools.pairwise(sent))
    assert wakes <= 8
    # None before its time, and none so late that the student would hear a gap.
    assert all(at * 20 - 301 <= when for at, when in enumerate(sent))
    assert playout.audible


async def test_a_slow_voice_makes_the_clock_wait() -> None:
    clock = Clock(100.0)
    playout = Playout(300, clock)
    await playout.wait_for(0, 100)
    clock.now += 5
    assert playout.heard_ms() == 100
    assert not playout.audible
    await asyncio.wait_for(playout.wait_for(100, 200), 1)
    clock.now += 0.05
    assert playout.heard_ms() == 150


async def test_held_still_nothing_goes_out_and_nothing_counts_as_heard() -> None:
    clock = Clock(100.0)
    playout = Playout(300, clock)
    await playout.wait_for(0, 100)
    await playout.wait_for(100, 200)
    clock.now += 0.05
    playout.pause()
    assert await send(playout, 100) == 0
    clock.now += 3
    assert playout.heard_ms() == 50
    assert playout.audible
    playout.resume()
    clock.now += 0.01
    assert playout.heard_ms() == 60
    await asyncio.wait_for(playout.wait_for(200, 300), 1)


async def test_the_clients_reports_beat_the_clock_and_grow_old() -> None:
    clock = Clock(100.0)
    playout = Playout(5000, clock)
    await playout.wait_for(0, 4000)
    clock.now += 2
    playout.report(1500)
    assert playout.heard_ms() == 1500
    clock.now += 0.25
    assert playout.heard_ms() == 1750
    clock.now += 60
    assert playout.heard_ms() == 2500
    playout.report(9_000)
    assert playout.heard_ms() == 4000


async def test_a_turn_does_not_end_while_the_last_of_its_speech_is_held_still(
    cast: Cast, make_settings: Callable[..., Settings]
) -> None:
    tutoring = await asyncio.to_thread(lambda: Tutoring(make_settings(), factory=cast.find))
    await tutoring.load()
    cast.llm.scripts.append(["All of it. "])
    playout = Playout(5000, time.monotonic)
    told: list[Event] = []

    class Sink:
        async def write(self, event: Event) -> None:
            if isinstance(event, SpeechChunk):
                await playout.wait_for(event.start_ms, event.end_ms)
                playout.pause()
            elif isinstance(event, SpeechDone):
                await playout.until_moving()
            told.append(event)

    async with tutoring.engines.lease(1) as engine:
        question = Question("en", "What is a list?", speak=True)
        limits = limits_of(make_settings())
        turn = Turn(engine, Conversation(4), question, Sink(), kb_id=None, limits=limits)
        running = asyncio.create_task(turn.run())
        while not playout.paused:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert not running.done()
        playout.resume()
        await running
    assert isinstance(told[-1], Ended)
    await tutoring.close()
