"""An OpenAI-compatible server on the loopback that does, byte by byte, what a test wrote down."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

DONE: Final = b"data: [DONE]\n\n"
BREAK: Final = b"<break>"
"""In a script: the connection breaks here."""
STREAM: Final = {"Content-Type": "text/event-stream"}


def event(content: str | None = None, finish: str | None = None, **delta: Any) -> bytes:
    """One piece of an answer, as servers send it."""
    delta = {**delta, **({} if content is None else {"content": content})}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "c1", "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def usage(made: int, read: int, cached: int = 0) -> bytes:
    """What comes at the end, from a server that was asked for it."""
    details = {"prompt_tokens": read, "completion_tokens": made}
    told = {**details, "prompt_tokens_details": {"cached_tokens": cached}}
    return b"data: " + json.dumps({"choices": [], "usage": told}).encode() + b"\n\n"


@dataclass(frozen=True)
class Answer:
    """Steps are sent one by one, events are waited for."""

    steps: Sequence[bytes | asyncio.Event]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: STREAM)


SLAMMED: Final = Answer([])
"""The connection breaks before anything is said."""


def words(*deltas: str) -> Answer:
    """A whole answer of these pieces."""
    return Answer([*map(event, deltas), event(finish="stop"), DONE])


def refusal(status: int, error: Any = "no", **headers: str) -> Answer:
    """A refusal with an error object, as JSON; `Retry_After=3` is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = {"Content-Type": "application/json", **named}
    return Answer([json.dumps({"error": error}).encode()], status, content)


def listing(*names: str) -> Answer:
    body = json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode()
    return Answer([body], 200, {"Content-Type": "application/json"})


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class ChatServer:
    """Answers each question with the next script, or with `otherwise`."""

    port: int = 0
    tls: ssl.SSLContext | None = None
    scripts: list[Answer] = field(default_factory=list)
    otherwise: Answer = field(default_factory=lambda: words("Hello."))
    models: Answer = field(default_factory=lambda: listing("tiny"))
    questions: list[Asked] = field(default_factory=list)
    listings: list[Asked] = field(default_factory=list)
    connections: int = 0
    running: int = 0
    most_running: int = 0
    left: int = 0
    """Answers whose reader went away before their end."""
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _handlers: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    @asynccontextmanager
    async def on(self) -> AsyncIterator[ChatServer]:
        """Listens while the block runs; on the same port when it is run again."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for handler in self._handlers:
                handler.cancel()
            await asyncio.gather(*self._handlers, return_exceptions=True)
            await server.wait_closed()

    async def quiet(self) -> None:
        """Waits until no answer is under way."""
        async with asyncio.timeout(5):
            while self.running:
                self._idle.clear()
                await self._idle.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        try:
            while asked := await _read(reader):
                await self._answer(asked, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    async def _answer(
        self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if asked.method == "GET":
            self.listings.append(asked)
            await _send(self.models, reader, writer)
            return
        self.questions.append(asked)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            script = self.scripts.pop(0) if self.scripts else self.otherwise
            await _send(script, reader, writer)
        except ConnectionError:
            self.left += 1
            raise
        finally:
            self.running -= 1
            self._idle.set()


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    line = (await reader.readline()).decode()
    if not line:
        return None
    method, path, _ = line.split()
    headers = {}
    while (line := (await reader.readline()).decode().strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, json.loads(body) if body else None)


async def _send(answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Raises ConnectionError when the reader goes away."""
    if answer is SLAMMED:
        writer.transport.abort()
        return
    lines = [f"HTTP/1.1 {answer.status} Said", "Transfer-Encoding: chunked", *_lines(answer)]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    for step in answer.steps:
        if step == BREAK:
            writer.transport.abort()
            return
        if isinstance(step, asyncio.Event):
            await _until(step, reader)
        else:
            writer.write(b"%x\r\n%s\r\n" % (len(step), step))
            await writer.drain()
        await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def _lines(answer: Answer) -> Iterable[str]:
    return (f"{name}: {value}" for name, value in answer.headers.items())


async def _until(gate: asyncio.Event, reader: asyncio.StreamReader) -> None:
    opened = asyncio.ensure_future(gate.wait())
    gone = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({opened, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise ConnectionResetError
    finally:
        for waiting in (opened, gone):
            waiting.cancel()
        await asyncio.gather(opened, gone, return_exceptions=True)
