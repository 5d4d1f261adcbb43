"""Rubbish on the socket: always a sentence with a code, and the socket stays usable."""

from __future__ import annotations

import asyncio
import base64
import socket as sockets

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from gpuserver.audio import wav
from gpuserver.client import Ticket, converse
from tests.conftest import Serve

BAD_FRAMES: dict[str, str] = {
    "not JSON": "{",
    "array": "[1,2,3]",
    "null": "null",
    "deep nesting": "[" * 200_000,
    "deep nesting in a field": '{"type":"text","content":' + "[" * 200_000,
    "NaN": '{"type":"text","content":NaN}',
    "huge integer": '{"type":"text","content":' + "9" * 100_000 + "}",
    "lone surrogate": '{"type":"text","content":"\\ud800"}',
    "no type": '{"content":"hi"}',
    "type of a wrong kind": '{"type":["text"],"content":"hi"}',
    "unknown type": '{"type":"exec","content":"hi"}',
    "missing content": '{"type":"text"}',
    "content of a wrong kind": '{"type":"text","content":{"a":1}}',
    "empty text": '{"type":"text","content":""}',
    "blank text": '{"type":"text","content":" \\n\\t "}',
    "a million characters": '{"type":"text","content":"' + "a" * 1_000_000 + '"}',
    "audio without data": '{"type":"audio"}',
    "empty audio": '{"type":"audio","data":""}',
    "invalid base64": '{"type":"audio","data":"***"}',
    "junk in base64": '{"type":"audio","data":"AAAA AAAA!"}',
    "audio that is not audio": '{"type":"audio","data":"' + "QUJD" * 1000 + '"}',
    "a playlist": '{"type":"audio","data":"'
    + base64.b64encode(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n").decode()
    + '"}',
    "silence": '{"type":"audio","data":"'
    + base64.b64encode(wav(bytes(64_000), 16_000)).decode()
    + '"}',
}


@pytest.mark.parametrize("v2", [False, True], ids=["dialect 1", "tutor.v2"])
async def test_a_bad_frame_gets_a_sentence_with_a_code(
    serve: Serve, subtests: pytest.Subtests, v2: bool
) -> None:
    async with serve() as server, server.management() as management:
        for name, frame in BAD_FRAMES.items():
            ticket = await management.create_session()
            with subtests.test(name):
                async with converse(ticket, v2=v2) as socket:
                    await socket.receive()
                    await socket.send(frame)
                    error = await socket.until("error")
                    assert error["code"]
                    assert 10 < len(error["content"]) < 400
                    assert "Traceback" not in error["content"]
                    assert "Error" not in error["content"]
                    await socket.text("still there?")
                    answer = await socket.until("text")
                    assert answer["content"] == "You asked: still there?"
            await management.delete_session(ticket.session_id)


async def test_dialect_1_knows_no_binary_frames(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session(), v2=False) as socket:
            await socket.receive()
            await socket.send(b"\x00\xff")
            assert (await socket.receive())["code"] == "bad_message"


async def test_a_recording_that_is_too_long_is_refused(serve: Serve) -> None:
    async with serve(max_audio_seconds=1) as server, server.management() as management:
        async with converse(await management.create_session(), v2=False) as socket:
            await socket.receive()
            loud = np.full(48_000, 3000, np.int16).tobytes()
            await socket.audio(wav(loud, 16_000))
            assert (await socket.receive())["code"] == "audio_too_long"


async def test_a_message_over_the_limit_closes_the_socket_with_1009(serve: Serve) -> None:
    async with serve(max_message_bytes=2048) as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket, v2=False) as socket:
            await socket.receive()
            with pytest.raises(ConnectionClosed) as closed:
                await socket.text("x" * 4096)
                await socket.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        async with converse(ticket, v2=False) as socket:
            await socket.receive()


async def test_a_client_that_reads_nothing_is_dropped(serve: Serve) -> None:
    limits = {"send_timeout_seconds": 0.2, "max_answer_chars": 50_000_000}
    async with serve(**limits) as server, server.management() as management:
        server.cast.llm.scripts.append(["word " * 20_000] * 200)
        ticket = await management.create_session()
        raw = await asyncio.to_thread(_raw_client, server.url, ticket)
        with raw:
            frame = b'{"type":"text","content":"flood me"}'
            await asyncio.to_thread(raw.sendall, _masked(frame))
            async with asyncio.timeout(10):
                while not server.state.door.connections:
                    await asyncio.sleep(0.01)
                while server.state.door.connections:
                    await asyncio.sleep(0.05)
        # The session lives on for the next, better client.
        async with converse(ticket, v2=False) as socket:
            await socket.receive()


def _raw_client(url: str, ticket: Ticket) -> sockets.socket:
    """A WebSocket client (tutor.v2) that reads no more after the handshake."""
    host, port = url.removeprefix("http://").split(":")
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    raw.sendall(
        f"GET /ws/ws/{ticket.session_id}?token={ticket.engine_token} HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: tutor.v2\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    assert b"101" in raw.recv(1024)
    return raw


def _masked(payload: bytes) -> bytes:
    """A client text frame, masked with zeros."""
    return bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload


@pytest.mark.slow
async def test_a_client_that_reads_nothing_and_says_goodbye_lets_go_of_the_session(
    serve: Serve,
) -> None:
    limits = {"max_answer_chars": 50_000_000, "resume_grace_seconds": 0.1}
    async with serve(**limits) as server, server.management() as management:
        server.cast.llm.scripts.append(["word " * 20_000] * 200)
        ticket = await management.create_session()
        raw = await asyncio.to_thread(_raw_client, server.url, ticket)
        with raw:
            mute = b'{"type":"session.update","output":{"audio":false}}'
            flood = b'{"type":"text","content":"flood"}'
            await asyncio.to_thread(raw.sendall, _masked(mute) + _masked(flood))
            async with asyncio.timeout(10):
                while not server.cast.llm.running:
                    await asyncio.sleep(0.01)
                written = -1
                while written != (written := server.state.sessions.list()[0].seq):
                    await asyncio.sleep(0.2)
            # A close frame: polite, and nothing is read all the same.
            await asyncio.to_thread(raw.sendall, b"\x88\x82" + bytes(4) + b"\x03\xe8")
            async with asyncio.timeout(5):
                session = server.state.sessions.get(ticket.session_id)
                while session.turns_running or server.state.door.connections:
                    await asyncio.sleep(0.01)
            # The connection itself is dropped although nobody reads from it.
            async with asyncio.timeout(8):
                while len(server.server.server_state.connections) > 1:
                    await asyncio.sleep(0.05)
            async with converse(ticket, v2=False) as socket:
                await socket.receive()
                await socket.text("next")
                assert (await socket.receive())["content"] == "You asked: next"
