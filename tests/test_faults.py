"""Clients that break every rule, beside one that keeps them and must not notice."""

from __future__ import annotations

import asyncio
import socket as sockets
import struct
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gpuserver.client import Conversation, Ticket, converse
from tests.bystander import RawClient, bystander, said
from tests.conftest import Scripted, Serve, local_http
from tests.test_bad_input import BAD_FRAMES
from tests.test_live_voice import silence, sound
from tests.test_spec import CLIP

# Each of them waits for what a client or an engine does not do.
pytestmark = pytest.mark.slow

ASK = b'{"type":"text","content":"flood me"}'
FLOOD = ["word " * 20_000] * 200


async def eventually(met: Callable[[], Any], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.01)


async def ticket_of(server: Scripted, student: int = 1) -> Ticket:
    async with server.management() as management:
        return await management.create_session(student_id=student)


async def answers_again(ticket: Ticket) -> None:
    """The session is there for a client that behaves."""
    async with converse(ticket) as socket:
        await socket.until("session.ready")
        await socket.text("Still there?")
        messages = [await socket.receive()]
        while messages[-1].get("status") != "completed":
            messages.append(await socket.receive())
        assert "You asked: Still there?" in said(messages)


@pytest.mark.parametrize("bytes_a_second", [0, 1000], ids=["nothing", "1 kB/s"])
async def test_a_client_that_does_not_keep_up_is_dropped_alone(
    serve: Serve, bytes_a_second: int
) -> None:
    limits = {"send_timeout_seconds": 1, "max_answer_chars": 50_000_000}
    async with serve(**limits, resume_grace_seconds=0.1) as server, bystander(server):
        server.cast.llm.answers["flood"] = FLOOD
        ticket = await ticket_of(server)
        async with RawClient.connect(server.url, ticket) as raw, asyncio.timeout(20):
            connections = server.state.door.connections
            raw.send(ASK)
            while server.state.door.connections == connections:
                await asyncio.sleep(0.1)
                if bytes_a_second:
                    await raw.reader.read(bytes_a_second // 10)
        session = server.state.sessions.get(ticket.session_id)
        await eventually(lambda: not session.turns_running)
        await answers_again(ticket)


STAGES = ["recognising", "retrieving", "writing", "speaking", "held"]


async def at_stage(stage: str, server: Scripted, socket: Conversation) -> Callable[[], None]:
    """Bring a session's turn to a stage and hold it there; gives what lets it go on."""
    cast = server.cast
    gate = asyncio.Event()
    cast.tts.instead["Spoken"] = [gate]
    if stage == "recognising":
        cast.asr.gate = gate
        cast.asr.transcripts.append("what is a list")
        await socket.audio(CLIP)
        await eventually(lambda: cast.asr.heard)
    elif stage == "retrieving":
        searching = cast.embeddings.fails["pear"] = threading.Event()
        await socket.text("What is a pear?")
        await socket.until("turn.started")
        return searching.set
    elif stage == "held":
        # Begun ahead, in the pause before the student has surely finished.
        cast.asr.otherwise = "what is a"
        cast.llm.answers["what is a"] = [gate, "Never sent."]
        await socket.append(sound(1.0) + silence(0.4))
        await eventually(lambda: cast.llm.running)
    else:
        words = ["Spoken words. "] if stage == "speaking" else []
        cast.llm.answers["slow"] = [*words, gate, "The end."]
        await socket.text("Be slow.")
        await socket.until("text.delta" if words else "turn.started")
        await eventually(lambda: cast.llm.running)
    return gate.set


@pytest.mark.parametrize("way", ["close", "drop", "reset"])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_client_that_goes_at_any_stage_leaves_nothing_behind(
    serve: Serve, stage: str, way: str
) -> None:
    async with serve(resume_grace_seconds=0.1) as server, bystander(server):
        ticket = await ticket_of(server)
        async with converse(ticket) as socket:
            await socket.receive()
            go_on = await at_stage(stage, server, socket)
            session = server.state.sessions.get(ticket.session_id)
            connections = server.state.door.connections
            if way == "close":
                await socket.close()
            elif way == "drop":
                await socket.drop()
            else:
                await reset(socket)
        await eventually(lambda: server.state.door.connections < connections)
        go_on()
        await eventually(lambda: not session.turns_running)
        server.cast.asr.gate = None
        server.cast.asr.transcripts.clear()
        server.cast.llm.answers.pop("what is a", None)
        await answers_again(ticket)


async def reset(socket: Conversation) -> None:
    """Vanish with an RST."""
    line = socket._socket.transport.get_extra_info("socket")
    line.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
    await socket.drop()


async def test_a_socket_that_falls_silent_is_noticed_by_its_pings(serve: Serve) -> None:
    async with serve() as server, bystander(server):
        server.server.config.ws_ping_interval = server.server.config.ws_ping_timeout = 0.3
        ticket = await ticket_of(server)
        connections = server.state.door.connections
        # It is there and takes everything, but no program reads it: no FIN, no pong.
        async with RawClient.connect(server.url, ticket):
            await eventually(lambda: server.state.door.connections == connections + 1)
            await eventually(lambda: server.state.door.connections == connections)
        await answers_again(ticket)


@pytest.mark.slow
async def test_a_thousand_messages_at_once_are_read_at_the_allowed_pace(serve: Serve) -> None:
    async with serve(max_messages_per_second=100) as server, bystander(server):
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            began = asyncio.get_running_loop().time()
            for _ in range(400):
                await socket.ping()
            messages = [await socket.receive() for _ in range(400)]
            took = asyncio.get_running_loop().time() - began
    assert {m["type"] for m in messages} == {"pong"}
    assert [m["seq"] for m in messages] == list(range(1, 401))
    # A second's worth at once, the rest at the pace.
    assert took > 2.9


@pytest.mark.parametrize(("size", "code"), [(0, None), (1, 1009)], ids=["empty", "of a byte"])
async def test_a_message_without_an_end_is_cut_off(
    serve: Serve, size: int, code: int | None
) -> None:
    async with serve(max_message_bytes=2048) as server, bystander(server):
        ticket = await ticket_of(server)
        async with RawClient.connect(server.url, ticket) as raw, asyncio.timeout(15):
            raw.send(b"{", fin=False)
            async with asyncio.TaskGroup() as group:
                closed = group.create_task(raw.closed())
                while not closed.done():
                    for _ in range(500):
                        raw.send(b" " * size, 0, fin=False)
                    await asyncio.sleep(0.01)
        assert closed.result() == code
        await answers_again(ticket)


async def test_a_frame_that_only_claims_to_be_too_large_is_not_waited_for(serve: Serve) -> None:
    async with serve(max_message_bytes=2048) as server, bystander(server):
        ticket = await ticket_of(server)
        async with RawClient.connect(server.url, ticket) as raw, asyncio.timeout(15):
            # A header that promises a gigabyte, and nothing of it.
            raw.writer.write(b"\x81\xff" + struct.pack(">Q", 1 << 30) + bytes(4))
            assert await raw.closed() == 1009
        await answers_again(ticket)


async def test_a_socket_stays_usable_after_twenty_bad_frames_in_a_row(serve: Serve) -> None:
    bad = [frame for name, frame in BAD_FRAMES.items() if name != "silence"][:19]
    async with serve() as server, bystander(server):
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            for frame in [*bad, b"\x00\xff\x01"]:
                await socket.send(frame)
            await socket.ping()
            messages = [await socket.receive() for _ in range(20)]
            assert [m["type"] for m in messages] == ["error"] * 19 + ["pong"]
            await socket.text("Still there?")
            assert (await socket.turn())[-1]["status"] == "completed"


@pytest.mark.parametrize("v2", [True, False], ids=["tutor.v2", "dialect 1"])
async def test_of_twenty_sockets_that_race_for_a_session_one_stays(serve: Serve, v2: bool) -> None:
    async with serve() as server, bystander(server):
        ticket = await ticket_of(server)
        connections = server.state.door.connections
        async with AsyncExitStack() as stack:
            opening = (RawClient.connect(server.url, ticket, v2=v2) for _ in range(20))
            clients = await asyncio.gather(*map(stack.enter_async_context, opening))
            for client in clients[::2]:
                client.send(b'{"type":"resume","last_seq":0}')
            async with asyncio.timeout(15), asyncio.TaskGroup() as group:
                ends = {group.create_task(client.frames()): client for client in clients}
                await eventually(lambda: sum(not end.done() for end in ends) == 1)
                await eventually(lambda: server.state.door.connections == connections + 1)
                winner = next(client for end, client in ends.items() if not end.done())
                winner.send(b'{"type":"text","content":"Mine?"}')
                await eventually(lambda: server.cast.llm.requests[-1].question == "Mine?")
                session = server.state.sessions.get(ticket.session_id)
                await eventually(lambda: not session.turns_running)
                winner.send(b"\x03\xe8", 8)
        for end, client in ends.items():
            frames = end.result()
            replaced = frames[-1] == (8, b"\x11\x95replaced") and b"replaced" in frames[-2][1]
            assert replaced == (client is not winner), frames
        assert b"You asked: Mine?" in b"".join(data for _, data in ends_of(winner, ends))


def ends_of(
    winner: RawClient, ends: dict[asyncio.Task[list[tuple[int, bytes]]], RawClient]
) -> list[tuple[int, bytes]]:
    return next(end.result() for end, client in ends.items() if client is winner)


async def test_of_a_hundred_creates_for_one_place_one_succeeds(serve: Serve) -> None:
    async with serve(max_sessions=3) as server, bystander(server):
        await ticket_of(server)
        async with local_http(server.url) as client:
            answers = await asyncio.gather(
                *(
                    client.post("/v1/sessions", json={"tutor_id": 1, "student_id": n})
                    for n in range(100)
                )
            )
        codes = [answer.status_code for answer in answers]
        assert (codes.count(201), codes.count(503)) == (1, 99)
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.json()["code"] == "session_limit"
        assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.slow
async def test_a_socket_that_is_replaced_amid_many_messages_has_no_gap(serve: Serve) -> None:
    async with serve(max_answer_chars=1_000_000) as server, bystander(server):
        server.cast.llm.answers["endless"] = ["a "] * 300_000
        ticket = await ticket_of(server)
        for round_ in range(5):
            async with converse(ticket) as first:
                await first.receive()
                await first.text("Be endless.")
                await first.until("text.delta")
                async with converse(ticket) as second:
                    # Raises MessagesMissing where a number, or that of the goodbye, leaves a gap.
                    ending = await first.until("session.ending")
                    assert ending["reason"] == "replaced", round_
                    await second.interrupt()
                    await second.until("turn.done")
