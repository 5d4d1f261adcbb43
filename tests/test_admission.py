"""Who is let in and who is not: keys, origins, sizes, replaced sockets, a server still loading."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from gpuserver.client import converse
from tests.conftest import Serve


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
