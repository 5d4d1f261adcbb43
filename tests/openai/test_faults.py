"""An OpenAI-compatible server that stumbles, hangs, goes away or is asked by a whole class."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from gpuserver.errors import (
    EngineBusy,
    EngineFailed,
    EngineStalled,
)
from gpuserver.providers import Delta, Waiting
from gpuserver.providers.waiting_line import WaitingLine
from tests.chat_server import (
    DONE,
    SLAMMED,
    Answer,
    ChatServer,
    event,
    listing,
    refusal,
    words,
)
from tests.fakes import Clock
from tests.openai.runtime import (
    REQUEST,
    Notes,
    Use,
    ask,
    bystander,
    text,
)

# Trying again


@pytest.mark.parametrize("status", [502, 503, 429])
async def test_a_server_that_stumbles_is_asked_again(
    server: ChatServer, use: Use, status: int
) -> None:
    async with use() as llm, bystander(server, llm):
        server.scripts += [refusal(status), words("Yes.")]
        assert text(await ask(llm)) == "Yes."


async def test_a_connection_that_breaks_before_an_answer_is_made_again(
    server: ChatServer, use: Use
) -> None:
    async with use() as llm, bystander(server, llm):
        server.scripts += [SLAMMED, words("Yes.")]
        assert text(await ask(llm)) == "Yes."


@pytest.mark.slow
async def test_a_busy_server_says_for_how_long(server: ChatServer, use: Use, notes: Notes) -> None:
    async with use() as llm, bystander(server, llm):
        for busy in (refusal(429, Retry_After="30"), refusal(503, Retry_After="30")):
            server.scripts.append(busy)
            with pytest.raises(EngineBusy) as told:
                await ask(llm)
            assert told.value.retry_after == 30
        server.scripts.append(refusal(429, Retry_After="999999999"))
        with pytest.raises(EngineBusy) as told:
            await ask(llm)
        assert told.value.retry_after == 600
        server.scripts += [refusal(429, Retry_After="soon")] * 3
        with pytest.raises(EngineBusy) as told:
            await ask(llm)
        assert told.value.retry_after == 5
        server.scripts += [refusal(429, Retry_After="1"), words("Yes.")]
        asked = asyncio.get_running_loop().time()
        assert text(await ask(llm)) == "Yes."
        assert asyncio.get_running_loop().time() - asked >= 1, "it comes back no sooner than told"
    assert notes.failures == 0


@pytest.mark.parametrize("status", [401, 403, 404, 500, 504])
async def test_what_is_not_mended_by_waiting_is_not_asked_again(
    server: ChatServer, use: Use, status: int
) -> None:
    async with use() as llm, bystander(server, llm):
        server.scripts.append(refusal(status))
        with pytest.raises(EngineFailed):
            await ask(llm)
        assert len(server.questions) == 2


@pytest.mark.slow
async def test_a_server_that_is_gone_is_left_alone_until_it_is_back(
    server: ChatServer, use: Use, notes: Notes
) -> None:
    async with use() as llm:
        server.scripts += [SLAMMED] * 3
        with pytest.raises(EngineFailed):
            await ask(llm)
        assert notes.failures == 3
        assert llm.status().state == "restarting"
        for _ in range(20):
            with pytest.raises(EngineFailed):
                await ask(llm)
        with pytest.raises(EngineFailed):
            await llm.probe()
        assert (len(server.questions), len(server.listings)) == (3, 1), "it is not even asked"
        await asyncio.sleep(1.05)
        gate = asyncio.Event()
        server.scripts.append(Answer([gate, event("Yes."), event(finish="stop"), DONE]))
        trial = asyncio.ensure_future(ask(llm))
        while not server.running:
            await asyncio.sleep(0.005)
        for _ in range(3):
            with pytest.raises(EngineFailed):
                await ask(llm)
        gate.set()
        assert text(await trial) == "Yes."
        assert len(server.questions) == 4, "one question is the trial"
        assert llm.status().state == "ready"
        assert text(await ask(llm)) == "Hello."


@pytest.mark.slow
async def test_a_probe_finds_out_and_asks_for_no_token(server: ChatServer, use: Use) -> None:
    async with use() as llm:
        await llm.probe()
        server.models = refusal(500)
        for _ in range(3):
            with pytest.raises(EngineFailed):
                await llm.probe()
        assert llm.status().state == "restarting"
        await asyncio.sleep(1.05)
        assert llm.status().state == "ready", "for a trial, which no student has to be"
        with pytest.raises(EngineFailed):
            await llm.probe()
        assert llm.status().state == "restarting"
        server.models = listing("tiny")
        await asyncio.sleep(2.05)
        await llm.probe()
        assert text(await ask(llm)) == "Hello."


@pytest.mark.slow
async def test_a_trial_that_has_to_ask_otherwise_is_still_the_trial(
    server: ChatServer, use: Use
) -> None:
    async with use() as llm:
        server.scripts += [SLAMMED] * 3
        with pytest.raises(EngineFailed):
            await ask(llm)
        await asyncio.sleep(1.05)
        server.scripts.append(refusal(400, "'stream_options' is unknown"))
        assert text(await ask(llm)) == "Hello."
        assert llm.status().state == "ready"


# Hanging, and going away


@pytest.mark.parametrize(
    "before", [[], [event("It begins")], [b": still here\n\n"]], ids=["first", "next", "comments"]
)
async def test_a_server_that_hangs_is_given_up(
    server: ChatServer, use: Use, notes: Notes, before: list[bytes]
) -> None:
    limits = {"first_token_timeout_seconds": 0.3, "token_timeout_seconds": 0.3}
    async with use(**limits) as llm:
        server.scripts.append(Answer([*before, asyncio.Event(), event("too late")]))
        with pytest.raises(EngineStalled):
            await ask(llm)
        await server.quiet()
        assert server.left == 1
        assert notes.failures == 1
        assert text(await ask(llm)) == "Hello."


async def test_comments_do_not_keep_a_silent_model_alive(server: ChatServer, use: Use) -> None:
    gates = [asyncio.Event() for _ in range(20)]
    steps = [step for gate in gates for step in (b": wait\n\n", gate)]
    server.scripts.append(Answer(steps))
    async with use(first_token_timeout_seconds=0.4) as llm:
        waiting = asyncio.ensure_future(ask(llm))
        for gate in gates:
            await asyncio.sleep(0.05)
            gate.set()
            if waiting.done():
                break
        with pytest.raises(EngineStalled):
            await waiting
        assert not gates[-1].is_set()


async def test_a_student_who_leaves_stops_the_server(server: ChatServer, use: Use) -> None:
    never = asyncio.Event()
    async with use() as llm, bystander(server, llm):
        server.scripts.append(Answer([event("It begins. "), never]))
        async with asyncio.timeout(5), aclosing(llm.generate(REQUEST)) as pieces:
            assert await anext(pieces) == Delta("It begins. ")
        while server.left < 1:
            await asyncio.sleep(0.005)
        server.scripts.append(Answer([never]))
        waiting = asyncio.ensure_future(ask(llm))
        while server.running < 2:
            await asyncio.sleep(0.005)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        while server.left < 2:
            await asyncio.sleep(0.005)
        assert llm.status().running == 1
    assert llm.status().running == 0


async def test_closing_ends_what_is_going_on(server: ChatServer, use: Use) -> None:
    async with use() as llm:
        server.scripts.append(Answer([event("It begins. "), asyncio.Event()]))
        async with asyncio.timeout(5), aclosing(llm.generate(REQUEST)) as pieces:
            assert await anext(pieces) == Delta("It begins. ")
            await asyncio.to_thread(llm.close)
            with pytest.raises(EngineFailed):
                await anext(pieces)
        with pytest.raises(EngineFailed):
            await ask(llm)
        with pytest.raises(EngineFailed):
            await llm.probe()


# Many at once


async def test_a_whole_class_asks_at_once(server: ChatServer, use: Use) -> None:
    gate = asyncio.Event()
    server.otherwise = Answer([event("Yes "), gate, event("all."), event(finish="stop"), DONE])
    async with use(llm_running=8, llm_waiting=24) as llm, asyncio.TaskGroup() as group:
        students = [group.create_task(ask(llm)) for _ in range(32)]
        while server.running < 8 or llm.status().waiting < 24:
            await asyncio.sleep(0.005)
        with pytest.raises(EngineBusy) as busy:
            await ask(llm)
        assert busy.value.retry_after is not None
        assert busy.value.retry_after > 0
        gate.set()
    assert server.most_running == 8
    answers = [await student for student in students]
    assert {text(answer) for answer in answers} == {"Yes all."}
    places = [[x.position for x in answer if isinstance(x, Waiting)] for answer in answers]
    assert [len(x) > 0 for x in places] == [False] * 8 + [True] * 24
    assert [x[0] for x in places[8:]] == list(range(1, 25))
    for told in places:
        assert told == sorted(told, reverse=True)
    assert llm.status().running == llm.status().waiting == 0


async def test_whoever_leaves_the_line_holds_up_nobody() -> None:
    clock = Clock()
    line = WaitingLine(1, 3, clock)
    first, *others = [line.enter() for _ in range(4)]
    assert [x async for x in first] == []
    told = [await anext(other) for other in others]
    assert [x.position for x in told] == [1, 2, 3]
    await others[0].aclose()
    assert (await anext(others[1])).position == 1
    clock.now += 9
    line.leave(clock.now - 9)
    # Its turn has come, and it is gone.
    await others[1].aclose()
    assert [x async for x in others[2]] == []
    assert (line.running, line.waiting) == (1, 0)
    line.leave(clock.now)
    assert line.running == 0
