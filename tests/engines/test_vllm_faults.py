"""The `vllm` provider when its processes die, hang, or are left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpuserver.errors import EngineBusy, EngineFailed, ProviderUnavailable
from gpuserver.providers import Delta, Message, Piece, Request, Sampling
from tests.engines.conftest import MakeVllm, Vllm

pytestmark = pytest.mark.asyncio(loop_scope="session")

DEADLINE = 240.0
PATIENCE = 3.0
"""Of a student, and of whoever probes."""
ROOT = Path(__file__).parents[2]


def asking(max_tokens: int = 20) -> Request:
    messages = (Message("system", "You are a tutor."), Message("user", "What is a list?"))
    return Request(messages, "", (), "en", Sampling(temperature=0.0, max_tokens=max_tokens))


async def pieces(vllm: Vllm, request: Request) -> list[Piece]:
    async with asyncio.timeout(DEADLINE), aclosing(vllm.llm.generate(request)) as answer:
        return [piece async for piece in answer]


def words(answer: Sequence[Piece], *, thought: bool) -> str:
    return "".join(p.text for p in answer if isinstance(p, Delta) and p.thought == thought)


async def until(true: Callable[[], bool], seconds: float = DEADLINE) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


def alive(pids: Sequence[int]) -> list[int]:
    """Those that run; one that has ended and nobody has asked about does not."""
    running = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                running.append(pid)
        except psutil.NoSuchProcess:
            continue
    return running


@pytest.fixture(scope="module")
def thinker(make_vllm: MakeVllm, thinking_model: Path) -> Iterator[Vllm]:
    """An engine of a model that thinks, for the tests of this file, which end it in their order."""
    made = make_vllm(
        thinking_model,
        llm_running=4,
        llm_waiting=2,
        llm_reasoning="qwen3",
        llm_sleep_seconds=0.01,
        first_token_timeout_seconds=PATIENCE,
    )
    made.llm.load()
    yield made
    made.llm.close()


async def test_thoughts_are_told_from_words(thinker: Vllm) -> None:
    answer = await pieces(thinker, asking())
    assert words(answer, thought=True) == "OneTwoThree"
    assert words(answer, thought=False).startswith("TickTockTickTock")
    thoughts = [piece.thought for piece in answer if isinstance(piece, Delta)]
    assert thoughts == sorted(thoughts, reverse=True)


async def test_on_a_cpu_it_does_not_claim_to_sleep(thinker: Vllm) -> None:
    await asyncio.sleep(1)
    assert thinker.llm.status().state == "ready"


async def test_a_killed_engine_fails_its_answers_at_once_and_comes_back(thinker: Vllm) -> None:
    failures = thinker.meter.failures
    began = asyncio.Event()

    async def listen() -> None:
        async with aclosing(thinker.llm.generate(asking(3000))) as answer:
            async for piece in answer:
                if isinstance(piece, Delta):
                    began.set()

    running = [asyncio.create_task(listen()) for _ in range(6)]
    await began.wait()
    before = thinker.llm.status().pids
    os.kill(before[0], signal.SIGKILL)
    async with asyncio.timeout(10):
        ended = await asyncio.gather(*running, return_exceptions=True)
    # Four were being answered; two stood in line and can be answered by another model.
    assert [type(error) for error in ended[:4]] == [EngineFailed] * 4
    assert [type(error) for error in ended[4:]] == [EngineBusy] * 2
    assert thinker.meter.failures > failures
    status = thinker.llm.status()
    assert (status.state, status.running, status.waiting) == ("restarting", 0, 0)
    with pytest.raises(EngineBusy) as busy:
        await pieces(thinker, asking())
    assert busy.value.retry_after
    await until(lambda: thinker.llm.status().state == "ready")
    assert words(await pieces(thinker, asking()), thought=True) == "OneTwoThree"
    assert not set(before) & set(thinker.llm.status().pids)
    await until(lambda: not alive(before), 10)


async def test_a_hung_engine_is_started_again_and_can_be_closed_meanwhile(thinker: Vllm) -> None:
    hung = thinker.llm.status().pids
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    # Its end is part of the verdict, and may come after the deadline.
    with pytest.raises((EngineFailed, TimeoutError)):
        async with asyncio.timeout(PATIENCE):
            await thinker.llm.probe()
    await until(lambda: thinker.llm.status().state == "restarting", 10)
    await until(lambda: not alive(hung), 10)
    await until(lambda: _starting(_children()))
    await asyncio.to_thread(thinker.llm.close)
    with pytest.raises(EngineFailed):
        await pieces(thinker, asking())


def _children() -> set[Any]:
    return set(psutil.Process().children(recursive=True))


def _starting(processes: Iterable[Any]) -> bool:
    """Whether an engine's process has begun; its own name comes later."""
    return any("spawn_main" in _command(process) for process in processes)


def _command(process: Any) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


async def test_closed_while_it_loads_nothing_is_left(make_vllm: MakeVllm, chat_model: Path) -> None:
    made = make_vllm(chat_model)
    before = _children()
    outcome: list[Any] = []

    def load() -> None:
        try:
            made.llm.load()
        except ProviderUnavailable as error:
            outcome.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    await until(lambda: _starting(_children() - before))
    await asyncio.to_thread(made.llm.close)
    await asyncio.to_thread(loading.join, DEADLINE)
    assert [type(error) for error in outcome] == [ProviderUnavailable]
    left = [child.pid for child in _children() - before if "tracker" not in _command(child)]
    await until(lambda: not alive(left), 10)
    assert made.llm.status().pids == ()


_SERVER = """
import sys, time
from pathlib import Path
from gpuserver.config import DEFAULTS
from gpuserver.providers import Place
from gpuserver.providers.vllm import VllmLLM

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = DEFAULTS.model_copy(update={"data_dir": folder, "llm_cache_mb": 256})
    llm = VllmLLM(sys.argv[2], Place(folder, settings))
    llm.load()
    print(*llm.status().pids, file=sys.stderr, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def server(tmp_path: Path, chat_model: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that loads a model and waits; it writes the pids of the engine to `log`."""
    script = tmp_path / "server.py"
    script.write_text(_SERVER, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path), str(chat_model)]
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
    with started:
        yield started
        started.kill()


async def test_a_killed_server_leaves_no_engine_behind(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def pids() -> list[int]:
        assert server.poll() is None, log.read_text()
        lines = [line.split() for line in log.read_text().splitlines()]
        return next((list(map(int, x)) for x in lines if x and all(map(str.isdigit, x))), [])

    await until(lambda: bool(pids()))
    processes = [p.pid for p in psutil.Process(server.pid).children(recursive=True)]
    assert set(pids()) <= set(processes)
    server.kill()
    await until(lambda: not alive(processes), 15)
    # What is said there goes to stderr: stdout is for whoever started the server.
    assert server.stdout is not None
    assert await asyncio.to_thread(server.stdout.read) == b""
