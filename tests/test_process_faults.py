"""The whole process: stopped and killed in the middle of answers, and a class that comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed

from gpuserver.client import Conversation, Management, Ticket, converse
from gpuserver.client.conversation import connect_to
from tests.bystander import RawClient, bystander, said
from tests.conftest import Running, Scripted, Serve, running_server
from tests.test_faults import eventually, ticket_of

QUESTION = "What is a list in Python, and how do I add an item to it?"


async def rest_of(socket: Conversation) -> tuple[list[dict[str, Any]], int | None]:
    """All messages up to the close, and its code."""
    messages = []
    try:
        while True:
            messages.append(await socket.receive())
    except ConnectionClosed as closed:
        return messages, closed.rcvd.code if closed.rcvd is not None else None


def moved(ticket: Ticket, url: str) -> Ticket:
    """The ticket of a session whose server has come back on another port."""
    place = urlsplit(ticket.engine_url)._replace(netloc=urlsplit(url).netloc)
    return Ticket(ticket.session_id, place.geturl(), ticket.engine_token)


async def until_gone(running: Running) -> None:
    while not ended(running.pid):
        await asyncio.sleep(0.02)


def ended(pid: int) -> bool:
    """Whether a child has ended; its status stays for whoever started it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def open_turn(folder: Path, ticket: Ticket) -> str | None:
    """The turn that is not done yet, by what the server has on the disk."""
    with closing(sqlite3.connect(folder / "data" / "sessions.db")) as db:
        db.execute("PRAGMA query_only = ON")
        rows = db.execute("SELECT open_turn FROM session WHERE id = ?", (ticket.session_id,))
        return cast(str | None, rows.fetchone()[0])


@pytest.mark.slow
async def test_a_server_told_to_stop_tells_its_students_and_ends_in_time(tmp_path: Path) -> None:
    grace = 3.0
    with running_server(tmp_path, SHUTDOWN_GRACE_SECONDS=str(grace)) as running:
        async with Management(running.url) as management:
            tickets = [await management.create_session() for _ in range(4)]
        host, port = running.url.removeprefix("http://").split(":")
        _, half = await asyncio.open_connection(host, int(port))
        half.write(b"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n")
        async with (
            converse(tickets[0]) as polite,
            converse(tickets[1]) as silent,
            RawClient.connect(running.url, tickets[2]) as deaf,
            RawClient.connect(running.url, tickets[3], v2=False),
        ):
            # The deaf ones take nothing, not even the goodbye.
            deaf.send(b'{"type":"text","content":"What is a list?"}')
            await silent.receive()
            await polite.receive()
            await polite.text(QUESTION)
            await polite.until("audio.delta")
            began = time.monotonic()
            os.kill(running.pid, signal.SIGTERM)
            messages, code = await rest_of(polite)
            async with asyncio.timeout(30):
                await until_gone(running)
            took = time.monotonic() - began
        half.transport.abort()
    assert code == 4000
    done = [m for m in messages if m["type"] == "turn.done"]
    assert [m["status"] for m in done] == ["interrupted"]
    assert (messages[-1]["type"], messages[-1]["reason"]) == ("session.ending", "shutdown")
    # Two graces, one after the other, would be too long; how soon it runs is the machine's affair.
    assert took < 2 * grace, took


@pytest.mark.slow
async def test_a_server_that_was_killed_comes_back_with_all_it_was_told(tmp_path: Path) -> None:
    with running_server(tmp_path) as running:
        async with Management(running.url) as management:
            ticket = await management.create_session(student_id=7)
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("Hello!")
            first = await socket.turn()
            await socket.text(QUESTION)
            cut = [await socket.until("audio.delta")]
            await eventually(lambda: open_turn(tmp_path, ticket) == "t2")
            os.kill(running.pid, signal.SIGKILL)
            messages, code = await rest_of(socket)
            cut += messages
            assert code is None
            await until_gone(running)
    with running_server(tmp_path) as running:
        async with Management(running.url) as management:
            found = (await management.get(f"/v1/sessions/{ticket.session_id}")).json()
            assert (found["student_id"], found["status"]) == (7, "active")
        async with converse(moved(ticket, running.url)) as socket:
            await socket.resume(0)
            assert (await socket.receive())["resumed"]
            again = await socket.turn()
            lost = await socket.turn()
            await socket.text("Thank you!")
            following = await socket.turn()
    dropped = {"audio.delta", "audio.skipped"}
    assert text_of(again, dropped) == text_of(first, dropped)
    assert lost[0]["turn_id"] == lost[-1]["turn_id"] == "t2"
    error = next(m for m in lost if m["type"] == "error")
    assert (error["code"], error["turn_id"], lost[-1]["status"]) == ("restarted", "t2", "failed")
    assert (following[-1]["turn_id"], following[-1]["status"]) == ("t3", "completed")
    assert cut


def text_of(messages: list[dict[str, Any]], without: set[str]) -> list[dict[str, Any]]:
    return [m for m in messages if m["type"] not in without]


async def test_turns_that_the_end_of_the_server_stopped_are_done_once(serve: Serve) -> None:
    async with serve() as server:
        ticket = await ticket_of(server)
        server.cast.llm.answers["slow"] = ["It begins. ", asyncio.Event()]
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("Be slow.")
            await socket.text("I wait.")
            taken = [await socket.until("text.delta")]
            server.state.sessions.end_all()
            taken += (await rest_of(socket))[0]
    async with serve() as server, converse(moved(ticket, server.url)) as socket:
        await socket.resume(0)
        await socket.receive()
        server.cast.llm.answers.clear()
        await socket.text("Still there?")
        again: list[dict[str, Any]] = []
        while not again or again[-1].get("turn_id") != "t3" or again[-1]["type"] != "turn.done":
            again.append(await socket.receive())
        asked = server.cast.llm.requests[-1]
    done = [(m["turn_id"], m["status"]) for m in again if m["type"] == "turn.done"]
    assert done == [("t1", "interrupted"), ("t2", "interrupted"), ("t3", "completed")]
    # What was heard of it is remembered.
    assert "Be slow." in [m.content for m in asked.messages]


@pytest.mark.slow
async def test_five_hundred_clients_that_come_back_at_once_miss_nothing(serve: Serve) -> None:
    room = {"max_sessions": 600, "max_connections": 1000}
    async with serve(**room) as server, bystander(server):
        async with server.management() as management:
            tickets = [await management.create_session(student_id=n) for n in range(500)]
        sockets = [await connect_to(ticket) for ticket in tickets]
        try:
            for socket in sockets:
                await socket.receive()
                await socket.text("What is a list?")
            await eventually(lambda: idle(server), 60)
            for socket in sockets:
                await socket.drop()
            done = await asyncio.gather(*map(come_back, tickets))
        finally:
            for socket in sockets:
                await socket.drop()
    assert done.count("You asked: What is a list?") == 500


def idle(server: Scripted) -> bool:
    return sum(s.turns_running for s in server.state.sessions.list()) <= 1


async def come_back(ticket: Ticket) -> str:
    async with asyncio.timeout(60), converse(ticket) as socket:
        await socket.resume(0)
        assert (await socket.receive())["resumed"]
        messages = await socket.turn()
        numbers = [m["seq"] for m in messages]
        gaps = [m for m in messages if m["type"] == "audio.skipped"]
        covered = sum(m["to_seq"] - m["from_seq"] for m in gaps)
        assert numbers[-1] == len(numbers) + covered
        return said(messages)
