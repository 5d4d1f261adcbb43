"""The servers that are measured: ours over scripted models, and the least that sends the same."""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
from collections.abc import AsyncGenerator, Coroutine
from contextlib import ExitStack
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

from bench.common import Pace
from bench.sampling import sampled
from bench.scripted import FRAME_MS, PCM, SAMPLE_RATE, FrameTTS, PacedLLM, Script
from gpuserver import config, observability
from gpuserver.config import Settings
from gpuserver.protocol import TUTOR_V2, encode_speech
from gpuserver.providers import RuntimeKey
from gpuserver.providers.table import find
from gpuserver.tutor.tutoring import Tutoring
from gpuserver.unified_server import calm_collector, create_app, uvicorn_config
from tests.fakes import HashEmbeddings, OpenVAD, ScriptedASR

DONE: Final = '{"type":"turn.done"}'
PRODUCT: Final = "product"
BARE: Final = "bare"
WEBSOCKETS: Final = "websockets"
_COURSE: Final = "# Lists\n\n## Lists\n\nA list is an ordered collection of items.\n"


async def _frames(script: Script) -> AsyncGenerator[str | bytes, None]:
    """The answer as the frames of `tutor.v2`.

    The time stamp stands still: what it costs to tell the time is the product's own cost.
    """
    seq = 0
    if script.speech:
        pace = Pace(1000 / FRAME_MS)
        for seq in range(1, script.count + 1):
            await pace.beat()
            yield encode_speech(seq, 1, seq * SAMPLE_RATE * FRAME_MS // 1000, PCM)
        return
    stamp = datetime.now(UTC).isoformat()
    async for text in script.paced():
        seq += 1
        message = {
            "seq": seq,
            "timestamp": stamp,
            "turn_id": "t1",
            "content": text,
            "type": "text.delta",
        }
        yield orjson.dumps(message).decode()


def product(settings: Settings, script: Script, *, hears: bool) -> FastAPI:
    """The whole product; only the models are replaced.

    With `hears` it detects speech as the product does, and recognises none. `/bench/objects` counts
    live objects, `/bench/tokens` says when the tokens of the last answer were made.
    """
    llm = PacedLLM(script)
    replaced: dict[str, Any] = {"llm": llm, "embeddings": HashEmbeddings()}
    if settings.tts_provider == "auto":
        replaced["tts"] = FrameTTS(script.count)
    replaced |= {"asr": ScriptedASR()} if hears else {"vad": OpenVAD()}

    def factory(key: RuntimeKey) -> Any:
        return replaced.get(key.kind) or find(key)

    app = create_app(settings, Tutoring(settings, factory=factory), on_ready=calm_collector)
    app.add_api_route("/bench/objects", _live_objects)

    @app.get("/bench/tokens")
    async def made() -> list[int]:
        return llm.made

    return app


async def _live_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def bare(script: Script) -> FastAPI:
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
                async for frame in _frames(script):
                    if isinstance(frame, str):
                        await websocket.send_text(frame)
                    else:
                        await websocket.send_bytes(frame)
                await websocket.send_text(DONE)
        except WebSocketDisconnect:
            pass

    return app


async def _run_app(config_: uvicorn.Config, listener: socket.socket) -> None:
    await uvicorn.Server(config_).serve(sockets=[listener])


async def _run_websockets(script: Script, settings: Settings, listener: socket.socket) -> None:
    """The same frames without uvicorn and FastAPI."""

    async def answer(connection: ServerConnection) -> None:
        try:
            async for _ in connection:
                async for frame in _frames(script):
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


def _settings(voice: str, tutors: int, *, hears: bool) -> Settings:
    """The environment's settings, with a small course and so many tutors of two models."""
    folder = Path.cwd()
    (folder / "course" / "en").mkdir(parents=True)
    (folder / "course" / "en" / "lists.md").write_text(_COURSE, encoding="utf-8")
    listed = [
        f"  - {{id: {n}, name: T{n}, knowledge: [lists], models: {{llm: {{model: m{n % 2}}}}}}}"
        for n in range(1, tutors + 1)
    ]
    (folder / "tutors.yaml").write_text(
        "\n".join(["courses: {lists: course}", "tutors:", *listed]), encoding="utf-8"
    )
    return config.load(
        None,
        tutors_file=folder / "tutors.yaml",
        asr_provider="auto" if hears else "none",
        tts_provider=voice,
    )[0]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=[PRODUCT, BARE, WEBSOCKETS])
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--stamp", choices=["none", "made", "due"], default="none")
    parser.add_argument("--speech", action="store_true", help="frames of speech, no tokens")
    parser.add_argument("--at-once", action="store_true", help="all tokens when the last is due")
    parser.add_argument("--voice", default="none", help="auto: a scripted one")
    parser.add_argument("--hears", action="store_true", help="the product's own speech detection")
    parser.add_argument("--tutors", type=int, default=2)
    parser.add_argument("--sample", type=Path, help="write here where the CPU time went")
    return parser.parse_args()


def main() -> None:
    given = _arguments()
    settings = _settings(given.voice, given.tutors, hears=given.hears)
    script = Script(given.tokens, given.rate, given.stamp, given.speech, given.at_once)
    observability.configure(settings.log_level, settings.log_format)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    serving: Coroutine[Any, Any, None]
    if given.kind == WEBSOCKETS:
        loop_factory: Any = uvloop.new_event_loop
        serving = _run_websockets(script, settings, listener)
    else:
        ours = given.kind == PRODUCT
        app = product(settings, script, hears=given.hears) if ours else bare(script)
        configured = uvicorn_config(app, settings)
        loop_factory = configured.get_loop_factory()
        serving = _run_app(configured, listener)
    print(f"url=http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    with ExitStack() as stack:
        if given.sample is not None:
            stack.enter_context(sampled(given.sample))
        runner = stack.enter_context(asyncio.Runner(loop_factory=loop_factory))
        runner.run(serving)


if __name__ == "__main__":
    main()
