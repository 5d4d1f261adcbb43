"""The product over a real vLLM model, which the same process can also drive without the product."""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import orjson
import uvicorn
from fastapi import FastAPI, Response

from bench.clients import HELLO
from bench.scripted import PERSONA
from gpuserver import config, observability
from gpuserver.config import Settings
from gpuserver.providers import Place, Request, RuntimeKey, Sampling
from gpuserver.providers.table import find
from gpuserver.providers.vllm import VllmLLM
from gpuserver.providers.vllm.prompt import render
from gpuserver.providers.vllm.upstream import RequestOutputKind, SamplingParams
from gpuserver.tutor.prompts import messages
from gpuserver.tutor.tutoring import Tutoring
from gpuserver.tutor.tutors import Tutor
from gpuserver.unified_server import calm_collector, create_app, uvicorn_config
from tests.engines import tiny_chat

TUTORS: Final = 8
_SAVED_SECONDS: Final = 0.25
_COURSE: Final = Path(config.__file__).parent / "courses" / "python"
# What the product asks the model for the same question.
_HELLO: Final = messages(Tutor(id=1, name="T1", persona=PERSONA), (), (), HELLO, "en")


class Spigot:
    """Lets so many tokens a second through, of all answers together; 0: all.

    As an engine goes on while nobody takes what it makes, unused time is saved, up to a quarter of
    a second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due = 0.0

    async def let(self, tokens: int) -> None:
        if self._rate:
            now = time.monotonic()
            self._due = max(self._due, now - _SAVED_SECONDS) + tokens / self._rate
            await asyncio.sleep(self._due - now)


class Watched:
    """The product's own engine: paced, counted, and driven directly."""

    def __init__(self, rate: float) -> None:
        self._spigot = Spigot(rate)
        self.made: deque[int] = deque(maxlen=100_000)
        """When each token was made, in nanoseconds of the monotonic clock."""
        self.tokens = 0
        self.prompts: deque[tuple[list[int], int]] = deque(maxlen=8)
        """The tokens of the last prompts, and how many of them the prefix cache held."""

    def __call__(self, model: str, place: Place) -> VllmLLM:
        self._provider = VllmLLM(model, place)
        return self._provider

    @property
    def block(self) -> int:
        """Tokens that the prefix cache keeps or forgets together."""
        size: int = self._llm.vllm_config.cache_config.block_size
        return size

    def attach(self) -> None:
        """Once the model is loaded."""
        self._llm = self._provider._engine.llm()
        self._llm.generate = self._paced(self._llm.generate)
        processor = self._llm.output_processor
        processor.process_outputs = self._counted(processor.process_outputs)

    def _counted(self, process: Callable[..., Any]) -> Callable[..., Any]:
        def counted(outputs: Any, *args: Any, **named: Any) -> Any:
            made = sum(len(output.new_token_ids) for output in outputs)
            self.tokens += made
            self.made.extend([time.monotonic_ns()] * made)
            return process(outputs, *args, **named)

        return counted

    def _paced(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        async def paced(*args: Any, **named: Any) -> AsyncGenerator[Any, None]:
            first = True
            async with aclosing(generate(*args, **named)) as outputs:
                async for output in outputs:
                    if first:
                        self.prompts.append((output.prompt_token_ids, output.num_cached_tokens))
                        first = False
                    await self._spigot.let(len(output.outputs[0].token_ids))
                    yield output

        return paced

    async def direct(self, students: int, tokens: int) -> list[float]:
        """So many answers at once from the engine alone; seconds to the first token of each."""
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(self._ask(n, tokens)) for n in range(students)]
        return [each.result() for each in asking]

    async def _ask(self, number: int, tokens: int) -> float:
        asked, first = time.monotonic(), 0.0
        request = Request(_HELLO, "", (), "en", Sampling(max_tokens=tokens))
        prompt, room = await render(self._llm, request)
        parameters = SamplingParams(
            temperature=0, max_tokens=room, output_kind=RequestOutputKind.DELTA
        )
        name = f"direct-{number}-{asked}"
        async with aclosing(self._llm.generate(prompt, parameters, name)) as outputs:
            async for _ in outputs:
                first = first or time.monotonic()
        return first - asked


def product(settings: Settings, rate: float) -> FastAPI:
    """The whole product, its model watched. `/bench/*` drives and reads the engine."""
    watched = Watched(rate)

    def factory(key: RuntimeKey) -> Any:
        return watched if key.provider == "vllm" else find(key)

    def loaded() -> None:
        calm_collector()
        if settings.llm_provider == "vllm":
            watched.attach()

    app = create_app(settings, Tutoring(settings, factory=factory), on_ready=loaded)

    @app.get("/bench/direct")
    async def direct(students: int, tokens: int) -> list[float]:
        return await watched.direct(students, tokens)

    @app.get("/bench/tokens")
    async def tokens() -> int:
        return watched.tokens

    @app.get("/bench/block")
    async def block() -> int:
        return watched.block

    @app.get("/bench/made")
    async def made() -> Response:
        return Response(orjson.dumps(list(watched.made)))

    @app.get("/bench/prompts")
    async def prompts() -> Response:
        return Response(orjson.dumps(list(watched.prompts)))

    return app


def _settings(given: argparse.Namespace) -> Settings:
    """The environment's settings, a tiny model if they name none, and tutors that all use it."""
    usual, _ = config.load(None)
    folder = Path.cwd()
    tutors = "".join(
        f"  - {{id: {n}, name: T{n}, persona: {PERSONA!r}, knowledge: [python],\n"
        f"     sampling: {{temperature: 0, max_tokens: {given.tokens}}}}}\n"
        for n in range(1, TUTORS + 1)
    )
    file = folder / "tutors.yaml"
    file.write_text(f"courses: {{python: {_COURSE}}}\ntutors:\n{tutors}", encoding="utf-8")
    model = usual.llm_model or str(tiny_chat.thinking_model())
    return config.load(
        None,
        tutors_file=file,
        llm_provider=given.llm,
        llm_model=model if given.llm == "vllm" else "",
        asr_provider="none",
        **({} if given.voice == "auto" else {"tts_provider": given.voice}),
    )[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llm", default="vllm")
    parser.add_argument("--voice", default="none", help="auto: as the settings say")
    parser.add_argument("--rate", type=float, default=0, help="tokens a second in all; 0: unpaced")
    parser.add_argument("--tokens", type=int, default=200, help="length of an answer")
    given = parser.parse_args()
    settings = _settings(given)
    observability.configure(settings.log_level, settings.log_format)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"url=http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    configured = uvicorn_config(product(settings, given.rate), settings)
    with asyncio.Runner(loop_factory=configured.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(configured).serve(sockets=[listener]))
