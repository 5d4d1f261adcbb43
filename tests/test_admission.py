"""Who is let in and who is not: keys, origins, sizes, replaced sockets, a server still loading."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from gpuserver.api import uvicorn_protocols
from gpuserver.client import converse
from tests.conftest import Serve
from tests.memory_knowledge import in_memory


async def test_the_key_guards_the_management_api(serve: Serve) -> None:
    async with serve(management_api_key="right") as server:
        async with server.management() as stranger, server.management("right") as school:
            for path in ("/v1/sessions", "/mgmt/v1/sessions", "/status"):
                refused = await stranger.get(path)
                assert refused.status_code == 401
                assert refused.json()["code"] == "key_refused"
                assert (await school.get(path)).status_code == 200
            assert (await stranger.get("/health")).status_code == 200
            also = await stranger._http.get("/v1/sessions", headers={"X-API-Key": "right"})
            assert also.status_code == 200


async def test_rubbish_in_headers_is_refused_without_a_stir(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        for headers in (
            {"Origin": "http://["},
            {"Origin": "null"},
            {"Host": "127.0.0.1:99999"},
            {"Host": "[::1"},
            {"Host": ""},
        ):
            answer = await management._http.get("/v1/sessions", headers=headers)
            assert answer.status_code in {400, 403}, headers


async def test_what_is_not_there_is_refused_in_the_same_form(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        missing = await management.get("/nothing")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        wrong = await management._http.put("/v1/sessions")
        assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")


async def test_half_a_body_creates_nothing(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        port = int(server.url.rsplit(":", 1)[1])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n"
            b'Content-Type: application/json\r\n\r\n{"tutor_id":1,"student_id":1}'
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.1)
        assert (await management.get("/v1/sessions")).json()["total"] == 0


async def test_half_a_request_does_not_hold_its_place(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn_protocols, "_HEADER_SECONDS", 0.1)
    async with serve() as server:
        port = int(server.url.rsplit(":", 1)[1])
        for said in (b"", b"GET / HTTP/1.1\r\nHost:"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            async with asyncio.timeout(2):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()


async def test_deleting_while_the_tutor_is_being_prepared_is_told_at_once(serve: Serve) -> None:
    other = {7: {"tts_model": "other"}}
    async with serve(tutor_overrides=other) as server, server.management() as management:
        server.cast.tts.load_gate.clear()
        ticket = await management.create_session(7)
        async with converse(ticket, v2=False) as socket:
            await management.delete_session(ticket.session_id)
            async with asyncio.timeout(1):
                assert (await socket.receive())["code"] == "session_ended"
        server.cast.tts.load_gate.set()


async def test_nobody_is_let_in_while_the_server_stops(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.state.sessions.end_all()
        refused = await management._http.post("/v1/sessions", json={"tutor_id": 1, "student_id": 1})
        assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")


@pytest.mark.slow
async def test_a_session_does_not_expire_in_the_middle_of_an_answer(serve: Serve) -> None:
    async with serve(session_timeout_seconds=0.3) as server, server.management() as management:
        gate = asyncio.Event()
        server.cast.llm.scripts.append(["It takes ", gate, "long."])
        async with converse(await management.create_session()) as socket:
            await socket.until("session.ready")
            await socket.text("What is a list?")
            await socket.until("text.delta")
            await asyncio.sleep(1.5)
            gate.set()
            assert (await socket.turn())[-1]["status"] == "completed"
            async with asyncio.timeout(3):
                assert (await socket.receive())["type"] == "session.ending"


async def test_a_page_of_another_site_manages_nothing_without_a_key(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            answer = await management._http.get("/v1/sessions", headers=headers)
            assert answer.status_code == 403
            assert answer.json()["code"] == "origin_refused"


async def test_a_socket_of_a_web_page_that_is_not_listed_is_refused(serve: Serve) -> None:
    async with serve(allowed_origins=("https://school.example",)) as server:
        async with server.management() as management:
            ticket = await management.create_session()
        url = f"{ticket.engine_url}?token={ticket.engine_token}"
        own = server.url
        for origin in ("https://school.example", own):
            async with connect(url, origin=Origin(origin), proxy=None) as socket:
                await socket.recv()
        with pytest.raises(InvalidStatus):
            async with connect(url, origin=Origin("https://evil.example"), proxy=None):
                pass


async def test_an_unknown_tutor_or_knowledge_base_may_be_refused(serve: Serve) -> None:
    refusing = {"unknown_tutor": "refuse", "unknown_knowledge_base": "refuse"}
    async with serve(**refusing) as server, server.management() as management:
        for body in ({"tutor_id": 99}, {"tutor_id": 1, "kb_id": "nope"}):
            answer = await management._http.post("/v1/sessions", json={"student_id": 1, **body})
            assert answer.status_code == 404, body


async def test_an_unknown_knowledge_base_is_accepted_and_the_student_told(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session(kb_id="physics-9")
        async with converse(ticket, v2=False) as socket:
            assert "physics-9" in (await socket.receive())["content"]
        async with converse(ticket) as socket:
            assert "physics-9" in (await socket.receive())["notice"]


async def test_a_student_is_told_of_a_knowledge_base_that_cannot_be_read(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve() as server, server.management() as management:
        knowledge = in_memory(server, tmp_path / "in")
        empty = knowledge.put_base("physics-9")

        async def told() -> str:
            ticket = await management.create_session(kb_id="physics-9")
            async with converse(ticket) as socket:
                return str((await socket.receive()).get("notice") or "")

        assert "still being prepared" in await told()
        knowledge._infos["physics-9"], knowledge.indexes = replace(empty, state="failed"), True
        assert "could not be read" in await told()
        knowledge.put_document("physics-9", "forces", b"A force pulls.", "forces.md")
        assert not await told()


async def test_a_second_socket_replaces_the_first_which_is_told(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket, v2=False) as first:
            await first.receive()
            async with converse(ticket, v2=False) as second:
                await second.receive()
                assert (await first.receive())["code"] == "replaced"
                with pytest.raises(ConnectionClosed) as closed:
                    await first.receive()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4501
                await second.text("mine now")
                assert (await second.receive())["content"] == "You asked: mine now"


async def test_a_body_that_is_too_large_is_refused(serve: Serve) -> None:
    async with serve(max_body_bytes=2048) as server, server.management() as management:
        for content in (b"x" * 4096, _chunks()):
            answer = await management._http.post("/v1/sessions", content=content)
            assert answer.status_code == 413
            assert answer.json()["code"] == "body_too_large"


async def _chunks() -> Any:
    for _ in range(100):
        yield b"x" * 1024


async def test_the_server_is_not_ready_before_its_models_are(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        assert (await management.get("/ready")).json()["ready"] is True
        server.state.tutoring.progress.ready = False
        server.state.tutoring.progress.stage = "course"
        ready = await management.get("/ready")
        assert (ready.status_code, ready.json()["stage"]) == (503, "course")
        refused = await management._http.post("/v1/sessions", json={"tutor_id": 1, "student_id": 1})
        assert refused.status_code == 503
        assert refused.json()["code"] == "not_ready"
        assert refused.headers["retry-after"] == "1"
