"""Coming back: nothing is lost, nothing is doubled, over dropped lines and restarts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from gpuserver.client import Conversation, Ticket, converse
from tests.conftest import Serve


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [message["seq"] for message in messages]


async def resumed(socket: Conversation, last_seq: int) -> dict[str, Any]:
    await socket.resume(last_seq)
    ready = await socket.receive()
    assert ready["type"] == "session.ready"
    return ready


async def cut_mid_answer(ticket: Ticket, gate: asyncio.Event) -> tuple[list[dict[str, Any]], int]:
    """Ask, take a few messages, and drop the line without a close."""
    taken: list[dict[str, Any]] = []
    async with converse(ticket) as socket:
        await socket.receive()
        await socket.text("What is a list?")
        while sum(m["type"] == "audio.delta" for m in taken) < 2:
            taken.append(await socket.receive())
        await socket.drop()
    gate.set()
    return taken, taken[-1]["seq"]


@pytest.mark.slow
async def test_a_dropped_client_gets_each_missed_message_once_in_order(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        gate = asyncio.Event()
        words = "It holds items in order. " * 8
        server.cast.llm.scripts.append(["A list is ordered. " * 3, gate, words])
        ticket = await management.create_session()
        taken, last = await cut_mid_answer(ticket, gate)
        async with asyncio.timeout(20):
            while server.state.sessions.get(ticket.session_id).seq == last:
                await asyncio.sleep(0.01)
        async with converse(ticket) as socket:
            ready = await resumed(socket, last)
            assert (ready["resumed"], ready["seq"]) == (True, last)
            assert ready["last_seq"] > last
            rest = await socket.turn()
    assert numbers(taken + rest) == list(range(1, rest[-1]["seq"] + 1))
    assert [m["type"] for m in rest].count("turn.done") == 1
    assert "audio.skipped" not in [m["type"] for m in rest]
    text = "".join(m["content"] for m in taken + rest if m["type"] == "text.delta")
    assert text.replace(" [1]", "") == ("A list is ordered. " * 3 + words).strip()
    samples = sum(len(m["data"]) for m in taken + rest if m["type"] == "audio.delta")
    assert samples > 0


async def test_a_client_that_says_it_returns_at_once_is_not_greeted_twice(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            last = (await socket.turn())[-1]["seq"]
        async with converse(ticket) as socket:
            assert (await resumed(socket, last))["resumed"]
            await socket.ping()
            pong = await socket.receive()
            assert (pong["type"], pong["seq"]) == ("pong", last + 1)


async def test_a_client_that_waits_for_the_greeting_may_resume_afterwards(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            messages = await socket.turn()
        async with converse(ticket) as socket:
            first = await socket.receive()
            assert (first["resumed"], first["seq"]) == (False, messages[-1]["seq"])
            assert (await resumed(socket, 2))["resumed"]
            again = [await socket.receive() for _ in messages[2:]]
    assert again == messages[2:]


async def test_numbers_that_were_never_given_can_not_be_resumed(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.ping()
            await socket.receive()
        async with converse(ticket) as socket:
            ready = await resumed(socket, 999)
            assert (ready["resumed"], ready["seq"]) == (False, 1)


async def test_everything_kept_is_told_to_a_page_that_was_loaded_anew(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            messages = await socket.turn()
        log = server.state.sessions.get(ticket.session_id).log
        for later in (2, 300):
            log.sweep(time.monotonic() + later)
        async with converse(ticket) as socket:
            assert (await resumed(socket, 0))["resumed"]
            again = await socket.turn()
    kept = [m for m in messages if m["type"] != "audio.delta"]
    assert [m for m in again if m["type"] != "audio.skipped"] == kept
    skipped = [m for m in again if m["type"] == "audio.skipped"]
    gone = [n for m in skipped for n in range(m["from_seq"], m["to_seq"] + 1)]
    assert gone == [m["seq"] for m in messages if m["type"] == "audio.delta"]
    assert all(m["seq"] == m["to_seq"] for m in skipped)


async def test_a_second_socket_replaces_the_first_and_takes_the_answer_over(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        gate = asyncio.Event()
        server.cast.llm.scripts.append(["A list is ordered. ", gate, "It has items."])
        ticket = await management.create_session()
        async with converse(ticket) as first, converse(ticket) as second:
            await first.receive()
            await second.receive()
            ending = await first.receive()
            assert (ending["type"], ending["reason"]) == ("session.ending", "replaced")
            with pytest.raises(ConnectionClosed) as closed:
                await first.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4501
            await second.text("What is a list?")
            await second.until("text.delta")
            async with converse(ticket) as third:
                ready = await resumed(third, 0)
                assert ready["resumed"]
                gate.set()
                done = (await third.turn())[-1]
    assert done["status"] == "completed"


async def test_an_answer_goes_on_while_the_student_is_away_and_then_stops(serve: Serve) -> None:
    async with serve(resume_grace_seconds=1.0) as server, server.management() as management:
        gate = asyncio.Event()
        server.cast.llm.scripts.append(["A list is ordered. " * 4, gate, "Never."])
        ticket = await management.create_session()
        taken, last = await cut_mid_answer(ticket, asyncio.Event())
        assert server.cast.llm.running == 1
        async with asyncio.timeout(20):
            while server.cast.llm.running:
                await asyncio.sleep(0.02)
        async with converse(ticket) as socket:
            assert (await resumed(socket, last))["resumed"]
            done = (await socket.turn())[-1]
    assert done["status"] == "interrupted"
    assert "A list is".startswith(done["heard"][:9])


async def test_after_a_restart_the_session_its_history_and_its_messages_are_there(
    serve: Serve,
) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session(student_id=7)
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            messages = await socket.turn()
        port = server.url
    async with serve() as server, server.management() as management:
        again = Ticket(
            ticket.session_id,
            ticket.engine_url.replace(port.removeprefix("http"), server.url.removeprefix("http")),
            ticket.engine_token,
        )
        found = (await management.get(f"/v1/sessions/{ticket.session_id}")).json()
        assert (found["student_id"], found["status"]) == (7, "active")
        async with converse(again) as socket:
            last = messages[-1]["seq"]
            ready = await resumed(socket, last)
            assert ready["resumed"]
            await socket.text("Really?")
            following = await socket.turn()
            assert following[0]["type"] == "audio.skipped"
            assert following[0]["from_seq"] == last + 1
            assert following[1]["seq"] == following[0]["seq"] + 1
            assert following[1]["turn_id"] == "t2"
        said = [m.content for m in server.cast.llm.requests[-1].messages]
        assert "What is a list?" in said
        async with converse(again) as socket:
            assert (await resumed(socket, 0))["resumed"]
            replayed = await socket.turn()
            await socket.turn()
    text = [m for m in messages if m["type"] not in {"audio.delta", "audio.skipped"}]
    assert [m for m in replayed if m["type"] not in {"audio.delta", "audio.skipped"}] == text


async def test_a_turn_that_a_restart_cut_off_is_told_as_failed(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.llm.scripts.append(["A list is ordered. ", asyncio.Event()])
        ticket = await management.create_session()
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            await socket.until("text.delta")
            session = server.state.sessions.get(ticket.session_id)
            assert session.open_turn == "t1"
            # As after a SIGKILL: the store has what was written by then.
            await asyncio.sleep(0.1)
            stored = await asyncio.to_thread(server.state.store.load)
    assert stored[0].open_turn == "t1"
