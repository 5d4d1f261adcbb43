"""The servers that are measured: ours over a scripted model, and the least that sends the same."""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
import uvicorn
import uvloop
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as Handshake
from websockets.http11 import Response

from bench.common import Pace, tokens
from gpuserver import config, observability
from gpuserver.config import Settings
from gpuserver.protocol import TUTOR_V2
from gpuserver.providers import Delta, Place, Request, RuntimeKey, find
from gpuserver.tutor.tutoring import Tutoring
from gpuserver.unified_server import create_app, uvicorn_config
from tests.fakes import HashEmbeddings, OpenVAD

DONE: Final = '{"type":"turn.done"}'
_BUILD_SECONDS: Final = 0.3
_TUTORS: Final = """
courses: {lists: course}
tutors:
  - {id: 1, name: One, knowledge: [lists]}
  - {id: 2, name: Two, knowledge: [lists], models: {llm: {model: second}}}
"""
_COURSE: Final = "# Lists\n\n## Lists\n\nA list is an ordered collection of items.\n"


@dataclass(frozen=True)
class Script:
    """What every server answers to every question: so many tokens at this rate a second."""

    count: int
    rate: float
    encode_each: bool = True
    texts: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tokens(self.count))

    def frames(self) -> Iterator[str]:
        """The answer as the frames of `tutor.v2`, encoded one by one or beforehand.

        The time stamp stands still: what it costs to tell the time is the product's own cost.
        """
        stamp = datetime.now(UTC).isoformat()
        each = (_frame(seq, text, stamp) for seq, text in enumerate(self.texts, 1))
        return each if self.encode_each else iter(list(each))


def _frame(seq: int, text: str, stamp: str) -> str:
    frame = {
        "seq": seq,
        "timestamp": stamp,
        "turn_id": "t1",
        "content": text,
        "type": "text.delta",
    }
    return orjson.dumps(frame).decode()


class PacedLLM:
    """Writes the script, whatever it is asked. Takes a moment to load, as a model does."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def __call__(self, model: str, place: Place) -> PacedLLM:
        return self

    def load(self) -> None:
        time.sleep(_BUILD_SECONDS)

    def close(self) -> None:
        pass

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        pace = Pace(self._script.rate)
        for text in self._script.texts:
            await pace.beat()
            yield Delta(text)


def product(settings: Settings, script: Script) -> FastAPI:
    """The whole product; only the models are replaced. `/bench/objects` counts live objects."""
    llm = PacedLLM(script)

    def factory(key: RuntimeKey) -> Any:
        ours: dict[str, Any] = {"llm": llm, "vad": OpenVAD(), "embeddings": HashEmbeddings()}
        return ours.get(key.kind) or find(key)

    tutoring = Tutoring(settings, factory=factory)
    app = create_app(settings, tutoring)
    app.add_api_route("/bench/objects", _live_objects)
    return app


async def _live_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def bare(settings: Settings, script: Script) -> FastAPI:
    """The least FastAPI app that sends the same frames."""
    app = FastAPI()

    @app.get("/ready")
    async def ready() -> bool:
        return True

    @app.websocket("/ws")
    async def answer(websocket: WebSocket) -> None:
        await websocket.accept(TUTOR_V2)
        try:
            while True:
                await websocket.receive_text()
                pace = Pace(script.rate)
                for frame in script.frames():
                    await pace.beat()
                    await websocket.send_text(frame)
                await websocket.send_text(DONE)
        except WebSocketDisconnect:
            pass

    return app


def prebuilt(settings: Settings, script: Script) -> FastAPI:
    """`bare`, with frames encoded before they are due."""
    return bare(settings, Script(script.count, script.rate, encode_each=False))


APPS: Final[dict[str, Callable[[Settings, Script], FastAPI]]] = {
    "product": product,
    "bare": bare,
    "prebuilt": prebuilt,
}
WEBSOCKETS: Final = "websockets"


async def _run_app(config_: uvicorn.Config, listener: socket.socket) -> None:
    await uvicorn.Server(config_).serve(sockets=[listener])


async def _run_websockets(script: Script, settings: Settings, listener: socket.socket) -> None:
    """The same frames without uvicorn and FastAPI."""

    async def answer(connection: ServerConnection) -> None:
        try:
            async for _ in connection:
                pace = Pace(script.rate)
                for frame in script.frames():
                    await pace.beat()
                    await connection.send(frame)
                await connection.send(DONE)
        except ConnectionClosed:
            pass

    def ready(connection: ServerConnection, request: Handshake) -> Response | None:
        return connection.respond(200, "true") if request.path == "/ready" else None

    limit = settings.max_message_bytes
    async with serve(
        answer, sock=listener, compression=None, max_size=limit, process_request=ready
    ) as server:
        await server.serve_forever()


def _settings(voice: str) -> Settings:
    """The environment's settings, with a small course and two tutors."""
    folder = Path.cwd()
    (folder / "course" / "en").mkdir(parents=True)
    (folder / "course" / "en" / "lists.md").write_text(_COURSE, encoding="utf-8")
    (folder / "tutors.yaml").write_text(_TUTORS, encoding="utf-8")
    return config.load(
        None, tutors_file=folder / "tutors.yaml", asr_provider="none", tts_provider=voice
    )[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=[*APPS, WEBSOCKETS])
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--voice", default="none")
    given = parser.parse_args()
    settings, script = _settings(given.voice), Script(given.tokens, given.rate)
    observability.configure(settings.log_level, settings.log_format)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"url=http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    if given.kind == WEBSOCKETS:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run_websockets(script, settings, listener))
        return
    settings_of_uvicorn = uvicorn_config(APPS[given.kind](settings, script), settings)
    with asyncio.Runner(loop_factory=settings_of_uvicorn.get_loop_factory()) as runner:
        runner.run(_run_app(settings_of_uvicorn, listener))


if __name__ == "__main__":
    main()
