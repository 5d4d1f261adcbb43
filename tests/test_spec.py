"""What the tutor promised on the wire, dialect 1: one test a promise, named by its number."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import uuid
import wave
from datetime import datetime

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gpuserver.audio import wav
from gpuserver.client import Ticket, converse
from tests.conftest import Serve

CLIP = wav(np.full(8000, 4000, np.int16).tobytes(), 16_000)


async def hang_up_code(ticket: Ticket) -> int:
    """The HTTP status with which a handshake is refused."""
    with pytest.raises(InvalidStatus) as refusal:
        async with converse(ticket, v2=False):
            pass
    return refusal.value.response.status_code


def of_now(timestamp: str) -> bool:
    moment = datetime.fromisoformat(timestamp)
    assert moment.utcoffset() is not None
    return abs((datetime.now(moment.tzinfo) - moment).total_seconds()) < 60


async def test_promise_01_a_session_made_by_rest_is_accepted_by_the_socket(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session(tutor_id=1, student_id=7)
        port = server.url.rsplit(":", 1)[1]
        assert ticket.engine_url == f"ws://127.0.0.1:{port}/ws/ws/{ticket.session_id}"
        async with converse(ticket, v2=False) as socket:
            greeting = await socket.receive()
            assert greeting["type"] == "text"
            assert greeting["role"] == "assistant"
        short = Ticket(
            ticket.session_id, ticket.engine_url.replace("/ws/ws/", "/ws/"), ticket.engine_token
        )
        async with converse(short, v2=False) as socket:
            assert (await socket.receive())["type"] == "text"


async def test_promise_02_both_prefixes_are_identical(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        for path in (f"/sessions/{ticket.session_id}", "/sessions", "/tutors", "/sessions/nope"):
            one, two = await management.get("/v1" + path), await management.get("/mgmt/v1" + path)
            assert (one.status_code, one.content) == (two.status_code, two.content)
        made = await management._http.post(
            "/mgmt/v1/sessions", json={"tutor_id": 1, "student_id": 2}
        )
        assert made.status_code == 201
        assert made.json().keys() == {"session_id", "engine_url", "engine_token", "status"}


async def test_promise_03_health_with_counts(serve: Serve) -> None:
    async with serve(max_sessions=5) as server, server.management() as management:
        ticket = await management.create_session()
        for path in ("/health", "/mgmt/health", "/ws/health"):
            answer = await management.get(path)
            assert answer.status_code == 200
            assert b'"status":"healthy","service":"GPU Server Management API"' in answer.content
            assert answer.json()["active_sessions"] == 1
            assert answer.json()["max_sessions"] == 5
        async with converse(ticket, v2=False) as socket:
            await socket.receive()
            assert (await management.get("/ws/health")).json()["active_connections"] == 1
            async with converse(ticket, v2=False) as second:
                await second.receive()
                with pytest.raises(ConnectionClosed):
                    await socket.until("nothing")
                assert (await management.get("/ws/health")).json()["active_connections"] == 1


async def test_promise_04_create(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        body = {"tutor_id": 1, "student_id": 2, "kb_id": None, "extra": "ignored"}
        answer = await management._http.post("/v1/sessions", json=body)
        assert answer.status_code == 201
        assert answer.json()["status"] == "active"
        assert uuid.UUID(answer.json()["session_id"]).version == 4
        # Clients grep compact JSON.
        assert b'"status":"active"' in answer.content


BAD_BODIES = (
    b"",
    b"not json",
    b"[]",
    b"null",
    b"5",
    b'{"tutor_id":1}',
    b'{"tutor_id":"one","student_id":1}',
    b'{"tutor_id":1.5,"student_id":1}',
    b'{"tutor_id":NaN,"student_id":1}',
    b'{"tutor_id":1,"student_id":1,"kb_id":5}',
    b'{"tutor_id":1,"student_id":1,"kb_id":"\\ud800"}',
    b'{"tutor_id":1,"student_id":1,"kb_id":"' + b"x" * 4096 + b'"}',
    b'{"tutor_id":' + b"9" * 5000 + b',"student_id":1}',
    b"[" * 60_000,
    b"\xff\xfe",
)


async def test_promise_04_a_bad_body_is_422(serve: Serve, subtests: pytest.Subtests) -> None:
    async with serve() as server, server.management() as management:
        for body in BAD_BODIES:
            with subtests.test(repr(body[:60])):
                answer = await management._http.post(
                    "/v1/sessions", content=body, headers={"content-type": "application/json"}
                )
                assert answer.status_code == 422, answer.content
                assert answer.json()["detail"]
                assert answer.json()["code"] == "bad_request"
                assert len(answer.content) < 2000
                assert b"Traceback" not in answer.content


async def test_promise_05_read(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session(tutor_id=2, student_id=9, kb_id="physics")
        answer = await management.get(f"/v1/sessions/{ticket.session_id}")
        body = answer.json()
        assert list(body) == [
            "session_id", "tutor_id", "student_id", "kb_id", "status", "created_at",
            "last_activity",
        ]  # fmt: skip
        assert (body["tutor_id"], body["student_id"], body["kb_id"]) == (2, 9, "physics")
        assert of_now(body["created_at"])
        assert of_now(body["last_activity"])
        assert ticket.engine_token.encode() not in answer.content
        missing = await management.get("/v1/sessions/nope")
        assert missing.status_code == 404
        assert missing.json()["detail"] == "Session nope not found"


async def test_promise_06_delete_tells_and_closes_the_socket_within_a_second(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket, v2=False) as socket:
            await socket.receive()
            answer = await management._http.delete(f"/v1/sessions/{ticket.session_id}")
            assert answer.status_code == 204
            async with asyncio.timeout(1):
                told = await socket.receive()
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.receive()
        assert told["type"] == "error"
        assert told["code"] == "session_ended"
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4502
        assert await hang_up_code(ticket) == 403
        again = await management._http.delete(f"/v1/sessions/{ticket.session_id}")
        assert again.status_code == 404


async def test_promise_07_the_list_has_no_tokens(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        tickets = [await management.create_session(student_id=n) for n in range(3)]
        answer = await management.get("/v1/sessions")
        assert answer.json()["total"] == 3
        listed = [session["session_id"] for session in answer.json()["sessions"]]
        assert listed == [ticket.session_id for ticket in tickets]
        assert b"token" not in answer.content
        for ticket in tickets:
            assert ticket.engine_token.encode() not in answer.content


async def test_promise_08_tutors(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        body = (await management.get("/v1/tutors")).json()
        assert body["total"] == 2
        assert [tutor["name"] for tutor in body["tutors"]] == ["Ada", "林老师"]
        assert {"id", "name", "language", "greeting"} <= body["tutors"][0].keys()


async def test_promise_09_the_front_answers_programs_and_browsers(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        assert (await management.get("/")).json()["service"] == "GPU Server Management API"
        page = await management._http.get("/", headers={"accept": "text/html,*/*"})
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


@pytest.mark.slow
async def test_promise_10_the_limit_and_a_slot_freed(serve: Serve) -> None:
    async with serve(max_sessions=2, session_timeout_seconds=3) as server:
        async with server.management() as management:
            first = await management.create_session()
            await management.create_session()
            refused = await management._http.post(
                "/v1/sessions", json={"tutor_id": 1, "student_id": 1}
            )
            assert refused.status_code == 503
            assert refused.json()["detail"] == "Maximum sessions (2) reached"
            assert 1 <= int(refused.headers["retry-after"]) <= 3
            await management.delete_session(first.session_id)
            await management.create_session()
            await asyncio.sleep(3.05)
            await management.create_session()
            await management.create_session()


async def test_promise_11_expiry_closes_a_live_socket_and_refuses_a_new_one(serve: Serve) -> None:
    async with serve(session_timeout_seconds=0.3) as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket, v2=False) as socket:
            await socket.receive()
            async with asyncio.timeout(3):
                assert (await socket.receive())["code"] == "session_ended"
                with pytest.raises(ConnectionClosed):
                    await socket.receive()
        assert await hang_up_code(ticket) == 403
        assert (await management.get(f"/v1/sessions/{ticket.session_id}")).status_code == 404


async def test_promise_11_a_question_after_expiry_gets_no_answer(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket, v2=False) as socket:
            await socket.receive()
            # Expired, and no sweep has noticed.
            server.state.sessions.get(ticket.session_id).expires_at = 0.0
            await socket.text("What is a list?")
            assert (await socket.receive())["code"] == "session_ended"
        assert not server.cast.llm.requests


async def test_promise_12_a_token_opens_its_own_session_only(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        one, two = [await management.create_session(student_id=n) for n in (1, 2)]
        for token in (two.engine_token, "", "x", one.engine_token[:-1]):
            assert await hang_up_code(Ticket(one.session_id, one.engine_url, token)) == 403
        nobody = one.engine_url.replace(one.session_id, str(uuid.uuid4()))
        assert await hang_up_code(Ticket("", nobody, one.engine_token)) == 403


async def test_promise_13_text(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.llm.scripts.append(["A list ", "is **ordered**."])
        async with converse(await management.create_session(), v2=False) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            answer = await socket.receive()
            assert answer["content"] == "A list is **ordered**. [1]"
            assert answer["type"] == "text"
            await socket.text("next")
            assert (await socket.receive())["content"] == "You asked: next"


async def test_promise_13_questions_are_answered_in_order(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session(), v2=False) as socket:
            await socket.receive()
            for number in range(4):
                await socket.text(f"question {number}")
            for number in range(4):
                assert (await socket.receive())["content"] == f"You asked: question {number}"


async def test_promise_14_audio_transcription_audio(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.transcripts.append("what is a list")
        server.cast.llm.scripts.append(["A list is an ordered collection."])
        async with converse(await management.create_session(), v2=False) as socket:
            await socket.receive()
            await socket.audio(CLIP)
            heard = await socket.receive()
            assert (heard["type"], heard["role"]) == ("transcription", "user")
            assert heard["content"] == "what is a list"
            answer = await socket.receive()
            assert (answer["type"], answer["role"]) == ("audio", "assistant")
            assert answer["content"] == "A list is an ordered collection. [1]"
            assert answer["data"] == answer["audio"]
        with wave.open(io.BytesIO(base64.b64decode(answer["data"]))) as file:
            assert file.getnchannels() == 1
            assert file.getnframes() > file.getframerate() // 10


async def test_promise_15_the_error_shape(serve: Serve, subtests: pytest.Subtests) -> None:
    frames = ("not json", "[]", "5", "{}", '{"type":"dance"}', b"\0")
    async with serve() as server, server.management() as management:
        for frame in frames:
            ticket = await management.create_session()
            with subtests.test(repr(frame)):
                async with converse(ticket, v2=False) as socket:
                    await socket.receive()
                    await socket.send(frame)
                    error = await socket.receive()
                    assert error["type"] == "error"
                    assert isinstance(error["content"], str)
                    assert of_now(error["timestamp"])
                    await socket.text("still there?")
                    assert (await socket.receive())["content"] == "You asked: still there?"


async def test_promise_16_role_and_timestamp(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session(), v2=False) as socket:
            messages = [await socket.receive()]
            await socket.text("hello there")
            messages.append(await socket.receive())
        assert all(message["role"] == "assistant" for message in messages)
        assert all(of_now(message["timestamp"]) for message in messages)


async def test_promise_17_one_engine_a_tutor(serve: Serve) -> None:
    async with serve() as server:
        engines = server.state.tutoring.engines
        built = await asyncio.gather(*(engines.get_ai_engine(2) for _ in range(50)))
        assert len(set(map(id, built))) == 1
        assert await engines.get_ai_engine(1) is not built[0]
        # Every integer that a client may choose is the default tutor: no engine of its own.
        assert await engines.get_ai_engine(10**9) is await engines.get_ai_engine(1)
        assert len(engines) == 2
        assert await engines.remove(2)
        assert len(engines) == 1
        async with engines.lease(1):
            assert not await engines.remove(1)


async def test_promise_18_histories_never_mix(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        one, two = [await management.create_session(student_id=n) for n in (1, 2)]
        async with converse(one, v2=False) as first, converse(two, v2=False) as second:
            await first.receive()
            await second.receive()
            for number in range(3):
                await first.text(f"red {number}")
                await second.text(f"blue {number}")
                await first.receive()
                await second.receive()
        for request in server.cast.llm.requests:
            said = " ".join(message.content for message in request.messages)
            assert ("red" in said) != ("blue" in said)


async def test_promise_18_the_conversation_outlives_a_socket(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        for question in ("What is a list?", "And another?"):
            async with converse(ticket, v2=False) as socket:
                await socket.receive()
                await socket.text(question)
                await socket.receive()
        said = [message.content for message in server.cast.llm.requests[-1].messages]
        assert "What is a list?" in said


async def test_promise_19_models_are_configurable_per_tutor(serve: Serve) -> None:
    models = {"llm_provider": "openai", "llm_model": "small"}
    async with serve(tutor_overrides={2: {"llm_model": "big"}}, **models) as server:
        one = await server.state.tutoring.engines.get_ai_engine(1)
        two = await server.state.tutoring.engines.get_ai_engine(2)
        assert one.keys["llm"].model == "small"
        assert two.keys["llm"].model == "big"
        assert one.keys["tts"] == two.keys["tts"]


async def test_promise_21_documentation_with_no_outside_network(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        page = await management.get("/docs")
        assert page.status_code == 200
        assert "http" not in page.text.replace("http-equiv", "")
        for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            asset = await management.get("/" + path)
            assert asset.status_code == 200, path
        schema = (await management.get("/openapi.json")).json()
        assert "/v1/sessions" in schema["paths"]


async def test_promise_23_engine_url_is_right_behind_a_tunnel(serve: Serve) -> None:
    public = {"websocket_url": "wss://tutor.example:19000", "management_api_key": "k" * 32}
    async with serve(**public) as server, server.management("k" * 32) as management:
        ticket = await management.create_session()
        assert ticket.engine_url == f"wss://tutor.example:19000/ws/ws/{ticket.session_id}"
