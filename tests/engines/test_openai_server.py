"""A tutor whose chat model is vLLM's own OpenAI-compatible server, a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from gpuserver import config
from gpuserver.client import Conversation, Management, converse
from gpuserver.errors import PromptTooLong
from gpuserver.metrics import Meter
from gpuserver.providers import Delta, Message, Place, Request, Sampling
from gpuserver.providers.openai import OpenAILLM
from tests.bystander import said
from tests.conftest import COURSE, running_server

_QUIET: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
}
_CONTEXT: Final = 1024
_TUTORS: Final = """
courses: {loops: course}
tutors:
  - id: 1
    name: Ada
    knowledge: [loops]
    sampling: {max_tokens: 16}
    models: {llm: {adapter: %s}}
"""
REQUEST: Final = Request(
    (Message("user", "What is a list?"),), "What is a list?", (), "en", Sampling(max_tokens=16)
)


@dataclass(frozen=True)
class Serving:
    url: str
    process: subprocess.Popen[bytes]

    def running(self) -> int:
        """Questions that the server is answering, as it tells itself."""
        page = httpx2.get(f"{self.url}/metrics", trust_env=False, timeout=10).text
        return sum(map(int, re.findall(r"^vllm:num_requests_running\S* (\d+)", page, re.MULTILINE)))


@pytest.fixture(scope="module")
def serving(
    chat_model: Path, adapters: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """vLLM's server with the tiny model as "tiny" and its adapter as "ada"; ended by its group."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    options = {
        "host": "127.0.0.1",
        "port": port,
        "model": chat_model,
        "served-model-name": "tiny",
        "max-model-len": _CONTEXT,
        "kv-cache-memory-bytes": 128 << 20,
        "max-lora-rank": 8,
        "lora-modules": f"{adapters['ada'].name}={adapters['ada']}",
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*module, "--enable-lora", *given],
            env={**os.environ, **_QUIET},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _await_ready(f"http://127.0.0.1:{port}", process, log)
        yield Serving(f"http://127.0.0.1:{port}", process)
    finally:
        _stop(process)


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx2.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it with the processes it has started, which would live on without it."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Notes(Meter):
    """The tokens of one runtime."""

    def __init__(self) -> None:
        self.made = self.read = 0

    def tokens(self, made: int, prompt: int = 0, cached: int = 0) -> None:
        self.made += made
        self.read += prompt


@asynccontextmanager
async def loaded(serving: Serving, tmp_path: Path, **place: Any) -> AsyncIterator[OpenAILLM]:
    settings = config.load(None, llm_base_url=f"{serving.url}/v1", data_dir=tmp_path)[0]
    llm = OpenAILLM("", Place(tmp_path, settings, **place))
    try:
        await asyncio.to_thread(llm.load)
        yield llm
    finally:
        await asyncio.to_thread(llm.close)


async def ask(llm: OpenAILLM, request: Request = REQUEST) -> str:
    async with asyncio.timeout(60), aclosing(llm.generate(request)) as pieces:
        return "".join([piece.text async for piece in pieces if isinstance(piece, Delta)])


async def test_a_class_is_answered_and_its_tokens_counted(
    serving: Serving, tmp_path: Path, adapters: Mapping[str, Path]
) -> None:
    notes = Notes()
    folder = str(adapters["ada"])
    async with loaded(serving, tmp_path, meter=notes, adapters=(folder,)) as llm:
        await llm.probe()
        plain, *by_ada = await asyncio.gather(
            ask(llm), *(ask(llm, replace(REQUEST, adapter=folder)) for _ in range(8))
        )
    assert plain
    assert set(by_ada) == {"Ada " * 16}
    assert notes.made >= 8 * 16 + 1
    assert notes.read > 9 * 5


async def test_a_long_conversation_is_shortened_and_a_long_question_is_not(
    serving: Serving, tmp_path: Path
) -> None:
    long = "What is a list? " * 100
    history = [Message("user" if n % 2 == 0 else "assistant", long) for n in range(8)]
    async with loaded(serving, tmp_path) as llm:
        assert await ask(llm, replace(REQUEST, messages=(*history, *REQUEST.messages)))
        with pytest.raises(PromptTooLong):
            await ask(llm, replace(REQUEST, messages=(Message("user", long * 20),)))
        assert llm.status().state == "ready"


async def test_a_student_who_leaves_frees_the_model(serving: Serving, tmp_path: Path) -> None:
    endless = replace(REQUEST, sampling=Sampling(max_tokens=900))
    async with loaded(serving, tmp_path) as llm:
        async with aclosing(llm.generate(endless)) as pieces:
            await anext(pieces)
        async with asyncio.timeout(20):
            while await asyncio.to_thread(serving.running):
                await asyncio.sleep(0.05)
        assert await ask(llm)


async def test_a_session_goes_on_from_the_course_when_the_server_is_gone(
    serving: Serving, tmp_path: Path, adapters: Mapping[str, Path]
) -> None:
    course = tmp_path / "course" / "en"
    course.mkdir(parents=True)
    (course / "01-loops.md").write_text(COURSE, encoding="utf-8")
    tutors = tmp_path / "tutors.yaml"
    tutors.write_text(_TUTORS % adapters["ada"], encoding="utf-8")
    # Read and written by the process itself; the loop of this test has nothing else to do.
    with running_server(
        tmp_path,
        TUTORS_FILE=str(tutors),
        LLM_BASE_URL=f"{serving.url}/v1",
        LLM_FALLBACK="extractive",
        ASR_PROVIDER="none",
        TTS_PROVIDER="none",
    ) as server:
        async with Management(server.url, "") as management:
            ticket = await management.create_session(student_id=7)
        async with converse(ticket) as student:
            await student.receive()
            text, notices, done = await turn(student)
            assert text.startswith("Ada Ada ")
            assert (notices, done["status"]) == ([], "completed")
            _stop(serving.process)
            for _ in range(3):
                text, notices, done = await turn(student)
                assert text.startswith("A list is an ordered collection of items.")
                assert (notices, done["status"]) == (["extractive"], "completed")


async def turn(student: Conversation) -> tuple[str, list[str], dict[str, Any]]:
    """A question's answer, who is said to answer it in place of another, and its ending."""
    async with asyncio.timeout(60):
        await student.text("What is a list?")
        messages = await student.turn()
    notices = [m["provider"] for m in messages if m["type"] == "notice"]
    return said(messages), notices, messages[-1]
