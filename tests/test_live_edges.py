"""Where live voice meets its edges: takeovers, pauses at the end, endings ahead, odd reports."""

from __future__ import annotations

import asyncio

import pytest
from websockets.exceptions import ConnectionClosed

from gpuserver.client import converse
from gpuserver.errors import AudioInvalid, EngineBusy, PromptTooLong
from gpuserver.microphone import Microphone
from gpuserver.tutor.conversation import Exchange
from tests.conftest import Serve
from tests.fakes import Clock
from tests.test_live_voice import LONG, answering, asked, collect, of, say, silence, sound, writing


async def test_what_a_replaced_client_was_saying_is_not_the_next_ones(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.otherwise = "what is a list"
        ticket = await management.create_session()
        async with converse(ticket) as first:
            await first.receive()
            await say(first, sound(0.8))
            await first.until("speech.started")
            async with converse(ticket, v2=False) as second:
                await second.receive()
                await second.text("Typed instead")
                answer = await second.receive()
                assert (answer["type"], answer["content"]) == ("text", "You asked: Typed instead")
                await asyncio.sleep(0.8)
                await second.text("Again")
                assert (await second.receive())["content"] == "You asked: Again"
    assert len(server.cast.llm.requests) == 2


async def test_a_turn_that_failed_ahead_has_one_ending(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        server.cast.asr.otherwise = "what is a list"
        server.cast.llm.scripts.append([PromptTooLong()])
        async with converse(ticket) as socket:
            await socket.receive()
            await say(socket, sound(1.0) + silence(1.0))
            messages = await collect(socket, "turn.done")
            assert messages[-1]["status"] == "failed"
            assert server.state.sessions.get(ticket.session_id).open_turn is None
            await socket.text("next")
            await collect(socket, "turn.done")
        async with converse(ticket) as socket:
            await socket.resume(0)
            replayed = await collect(socket, "turn.done") + await collect(socket, "turn.done")
            await socket.ping()
            replayed += await collect(socket, "pong")
    assert [m["turn_id"] for m in of("turn.done", replayed)] == ["t1", "t2"]


async def test_an_answer_that_was_busy_ahead_is_tried_again_when_it_counts(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.otherwise = "what is a list"
        server.cast.llm.scripts.append([EngineBusy(seconds=1)])
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await say(socket, sound(1.0) + silence(0.4))
            await asked(server)
            await say(socket, silence(1.0))
            messages = await collect(socket, "turn.done")
            await socket.text("next")
            await collect(socket, "turn.done")
    assert messages[-1]["status"] == "completed"
    assert [len(of(kind, messages)) for kind in ("turn.started", "text", "error")] == [1, 1, 0]
    told = [m.content for m in server.cast.llm.requests[-1].messages if m.role == "user"]
    assert len(told) == 2, "the conversation has it once"


async def test_a_report_of_more_than_was_sent_counts_for_what_was_sent(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            turn = await answering(server, socket)
            await socket.interrupt()
            heard = (await socket.until("turn.done"))["heard"]
            await socket.playback(turn, 86_400_000)
            await socket.text("Really?")
            await socket.until("turn.done")
    told = server.cast.llm.requests[-1].messages
    answer = next(m.content for m in told if m.role == "assistant")
    assert answer.startswith(heard)
    assert len(answer) < len(LONG)


async def test_a_connection_is_resumed_once(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.resume(0)
            assert (await socket.receive())["resumed"]
            await socket.resume(0)
            assert (await socket.receive())["code"] == "bad_message"


async def test_questions_in_line_end_with_their_session(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.llm.scripts.append([asyncio.Event()])
        ticket = await management.create_session()
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("first")
            await writing(server)
            await socket.text("second")
            await socket.until("queue")
            await management.delete_session(ticket.session_id)
            messages = await collect(socket, "session.ending")
    done = [(m["turn_id"], m["status"]) for m in of("turn.done", messages)]
    assert done == [("t1", "interrupted"), ("t2", "interrupted")]


@pytest.mark.slow
async def test_a_session_in_which_somebody_speaks_does_not_expire(serve: Serve) -> None:
    clock = Clock()
    async with serve(clock, session_timeout_seconds=1) as server, server.management() as management:
        server.cast.asr.otherwise = "what is a list"
        ticket = await management.create_session()
        session = server.state.sessions.get(ticket.session_id)
        async with converse(ticket) as socket:
            await socket.receive()
            for _ in range(5):
                clock.now += 0.7
                await say(socket, sound(0.65))
                async with asyncio.timeout(20):
                    while session.expires_at < clock.now + 1:
                        # How often it is recognised depends on how long that takes.
                        await asyncio.sleep(0.02)
                        await say(socket, sound(0.02))
            await say(socket, silence(1.0))
            assert (await collect(socket, "turn.done"))[-1]["status"] == "completed"


@pytest.mark.slow
async def test_an_open_microphone_alone_is_no_use(serve: Serve) -> None:
    async with serve(session_timeout_seconds=1) as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            with pytest.raises(ConnectionClosed) as closed:
                for _ in range(20):
                    await say(socket, silence(0.3))
                    await socket.ping()
                    await asyncio.sleep(0.3)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4502, "expired")


def test_an_exchange_that_another_version_wrote_is_passed_over() -> None:
    exchange = Exchange("q", "a", "t", interrupted=True)
    assert Exchange.decode(exchange.encode()) == exchange
    assert Exchange.decode(b'{"question":"q"}') is None
    assert Exchange.decode(b'{"question":"q","answer":"a","mood":1}') is None
    assert Exchange.decode(b"\x00") is None


@pytest.mark.parametrize("flood", [b"\xae\x80", b"\xec\x80"], ids=["tracks", "voids"])
def test_a_flood_of_empty_elements_is_refused(flood: bytes) -> None:
    microphone = Microphone("webm")
    with pytest.raises(AudioInvalid):
        microphone.feed(b"\x1a\x45\xdf\xa3\x80" + flood * 100_000)
    # It begins anew, with nothing kept.
    with pytest.raises(AudioInvalid):
        microphone.feed(flood)
