"""A tutor that says what a test tells it to: the classroom's files and a `tutor.v2` socket."""

from __future__ import annotations

import json
import mimetypes
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import numpy as np
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

import gpuserver

WEB: Final = Path(gpuserver.__file__).parent / "web"
RATE: Final = 16_000
POLICY: Final = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self';"
    " img-src 'self' data:; media-src 'self' blob:; connect-src 'self' ws:; base-uri 'none'"
)
_STAMP: Final = "2030-01-01T00:00:00+00:00"


class ScriptedTutor:
    """One session. What it says is kept and sent again to a client that resumes."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[dict[str, Any]] = []
        """The messages of the page, in order, over all its connections."""
        self.sound: list[bytes] = []
        """The binary frames of the page."""
        self.sound_at: list[float] = []
        """When each of them came, in seconds of the monotonic clock."""
        self.connections = 0
        self.refusing: HTTPStatus | None = None
        """What handshakes are answered with instead of a connection; 503 is not ready either."""
        self.answers_pings = True
        self.forgets = False
        """Whether the numbers from before are no longer known to a client that returns."""
        self.swallows = False
        """Whether what comes in gets lost on the way."""
        self.listens = ["en"]
        self.language = "en"
        self._lock = threading.RLock()
        self._kept: list[tuple[int, str | bytes]] = []
        self._seq = 0
        self._audio: dict[str, Any] = {
            "sample_rate": RATE,
            "audio_format": "base64",
            "output": {"text": True, "audio": True, "visemes": True},
            "input_audio_format": {"encoding": "pcm16", "sample_rate": 16_000},
            "turn_detection": "server",
            "language": "en",
            "voice": "v",
        }
        self._connection: ServerConnection | None = None

    @property
    def link(self) -> str:
        """The page's address as a school opens it."""
        host = self.url.removeprefix("http://")
        return f"{self.url}/#engine_url=ws://{host}/ws/ws/s1&token=secret"

    # What the tutor does

    def say(self, kind: str, **fields: Any) -> int:
        """Say a message; returns its number."""
        with self._lock:
            self._seq += 1
            message = {"type": kind, "seq": self._seq, "timestamp": _STAMP, **fields}
            self._keep(json.dumps(message))
            return self._seq

    def speak(self, turn: int, offset: int, samples: int, pitch: float = 220.0) -> int:
        """Say a stretch of a tone as a binary frame; returns its number."""
        at = (np.arange(samples) + offset) / RATE
        pcm = (9000 * np.sin(2 * np.pi * pitch * at)).astype("<i2").tobytes()
        with self._lock:
            self._seq += 1
            self._keep(struct.pack(">III", self._seq, turn, offset) + pcm)
            return self._seq

    def answer(self, turn: int, text: str, seconds: float = 0.0, offset_s: float = 0.0) -> None:
        """Begin a turn, write its text and speak so many seconds of it, all at once.

        Its question is the last that was typed, unless another answer has taken that.
        """
        name = f"t{turn}"
        typed = self.all_of("text")
        question = typed[turn - 1]["content"] if len(typed) >= turn else ""
        self.say("turn.started", turn_id=name, question=question)
        self.say("text.delta", turn_id=name, content=text)
        self.say("text", turn_id=name, content=text)
        self.more(turn, seconds, offset_s)

    def more(self, turn: int, seconds: float, offset_s: float) -> None:
        """Speak so many seconds more, from a place in the turn on."""
        start = int(offset_s * RATE)
        for offset in range(start, start + int(seconds * RATE), RATE // 10):
            self.speak(turn, offset, RATE // 10)

    def done(self, turn: int, status: str = "completed", **fields: Any) -> None:
        more = {"timeline": {}, "usage": {}, "heard": None, **fields}
        self.say("turn.done", turn_id=f"t{turn}", status=status, **more)

    def drop(self) -> None:
        """Cut the line without a word."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    def close(self, code: int) -> None:
        """Close the line with a code."""
        with self._lock:
            connection, self._connection = self._connection, None
        assert connection is not None
        connection.close(code)

    # What the page does

    def wait_for(self, kind: str, count: int = 1, seconds: float = 10.0) -> dict[str, Any]:
        """The page's n-th message of a type, once it has come."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.all_of(kind)
            if len(found) >= count:
                return found[count - 1]
            time.sleep(0.01)
        raise AssertionError(f"no {kind} number {count}: {self.received}")

    def all_of(self, kind: str) -> list[dict[str, Any]]:
        with self._lock:
            return [message for message in self.received if message["type"] == kind]

    def heard_ms(self, turn: int) -> list[int]:
        """What the page has reported of a turn's speech, in order."""
        return [m["heard_ms"] for m in self.all_of("playback") if m["turn_id"] == f"t{turn}"]

    def wait_until_heard(self, turn: int, ms: float, within: float = 0) -> None:
        """Until the page's last report of a turn's speech is so many milliseconds, or near it."""
        deadline = time.monotonic() + 10
        while not (heard := self.heard_ms(turn)) or abs(heard[-1] - ms) > within:
            assert time.monotonic() < deadline, f"heard {heard}, not {ms}"
            time.sleep(0.01)

    # The server

    def _keep(self, frame: str | bytes) -> None:
        self._kept.append((self._seq, frame))
        if self._connection is not None:
            try:
                self._connection.send(frame)
            except ConnectionClosed:
                self._connection = None

    def converse(self, connection: ServerConnection) -> None:
        try:
            first = json.loads(connection.recv(timeout=10))
        except ConnectionClosed:
            return
        assert first["type"] == "resume", first  # A page that a school opens says it at once.
        with self._lock:
            self.connections += 1
            known = not self.forgets
            since = first["last_seq"] if known else self._seq
            connection.send(json.dumps(self._ready(since, known)))
            for seq, frame in self._kept:
                if seq > since:
                    connection.send(frame)
            self._connection = connection
            self._take(json.dumps(first))
        try:
            for frame in connection:
                self._take(frame)
        except ConnectionClosed:
            pass

    def _take(self, frame: str | bytes) -> None:
        with self._lock:
            if self.swallows:
                return
            if isinstance(frame, bytes):
                self.sound.append(frame)
                self.sound_at.append(time.monotonic())
                return
            message = json.loads(frame)
            self.received.append(message)
            if message["type"] == "ping" and self.answers_pings:
                self.say("pong")
            if message["type"] == "session.update":
                changes = {k: v for k, v in message.items() if k != "type"}
                self._audio = {**self._audio, **changes}
                self.say("session.updated", audio=self._audio)

    def _ready(self, since: int, resumed: bool) -> dict[str, Any]:
        tutor = {
            "id": 1,
            "name": "Ada",
            "language": self.language,
            "greeting": "Hello, what would you like to know?",
            "languages": ["en", "zh"],
            "listens": self.listens,
            "speaks": ["en"],
            "voices": {},
            "missing_speech": "ASR_PROVIDER",
        }
        limits = {
            "text_chars": 2000,
            "audio_seconds": 60,
            "message_bytes": 8 << 20,
            "messages_per_second": 200,
            "waiting_questions": 4,
        }
        return {
            "type": "session.ready",
            "seq": since,
            "timestamp": _STAMP,
            "session_id": "s1",
            "tutor": tutor,
            "limits": limits,
            "audio": self._audio,
            "engines": {"llm": "scripted"},
            "last_seq": self._seq,
            "resumed": resumed,
            "notice": None,
        }

    def respond(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.split("?")[0]
        if path.startswith("/ws/"):
            if self.refusing is None:
                return None
            return connection.respond(self.refusing, "no")
        if path == "/ready":
            starting = self.refusing is HTTPStatus.SERVICE_UNAVAILABLE
            status = HTTPStatus.SERVICE_UNAVAILABLE if starting else HTTPStatus.OK
            return connection.respond(status, "{}")
        file = WEB / ("index.html" if path == "/" else path.removeprefix("/classroom/"))
        if not file.is_file():
            return connection.respond(HTTPStatus.NOT_FOUND, "")
        body = file.read_bytes()
        headers = Headers()
        headers["Content-Type"] = mimetypes.guess_type(file.name)[0] or "text/plain"
        headers["Content-Length"] = str(len(body))
        headers["Content-Security-Policy"] = POLICY
        headers["Connection"] = "close"
        return Response(200, "OK", headers, body)


@contextmanager
def scripted_tutor() -> Iterator[ScriptedTutor]:
    """A scripted tutor on a free port of the loopback."""
    tutor = ScriptedTutor()
    with serve(
        tutor.converse,
        "127.0.0.1",
        0,
        process_request=tutor.respond,
        subprotocols=["tutor.v2"],  # type: ignore[list-item]
        close_timeout=1,
    ) as server:
        tutor.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield tutor
        finally:
            tutor.drop()
            server.shutdown()
            thread.join(5)
