"""What the product adds to a chat model in vLLM, against the same engine driven directly."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson

from bench.clients import HELLO, Client, clients, connect
from bench.common import Figure, Process, Server, main, server
from gpuserver.client import Management

STUDENTS: Final = (1, 8, 32)
RATE: Final = 1000.0
"""Tokens a second in all: the engine's pace, so that a tiny model weighs as a real one does."""
_TOKENS: Final = 400
_TUTORS: Final = 8
TURN_SECONDS: Final = 120.0
_ONE_CORE: Final[dict[str, Any]] = {"vllm_cpu_omp_threads_bind": "0"}
"""Of the CPU, for the engine's arithmetic: its threads would take the server's core too."""
_AFTER_SECONDS: Final = 0.3
_QUESTIONS: Final = ("What is a list?", "How do I add an item to it?", "What is a loop?")


class Asker(Client):
    """Notes when the first word of an answer came."""

    first = 0.0

    def take(self, kind: int, payload: bytes) -> None:
        if not self.first and b'"text.delta"' in payload:
            self.first = time.monotonic()
        super().take(kind, payload)

    async def first_word(self, question: str) -> float:
        """Seconds to the first word; the rest is not waited for."""
        self.first, asked = 0.0, time.monotonic()
        self.ask(question)
        await self.warm.wait()
        self.tell({"type": "interrupt"})
        await self.done.wait()
        return self.first - asked


class Bench:
    """A running product over vLLM, and what drives its engine without it."""

    def __init__(self, target: Server, management: Management) -> None:
        self.target, self._management = target, management

    async def read(self, path: str) -> Any:
        answer = await self._management.get(f"/bench/{path}")
        answer.raise_for_status()
        return orjson.loads(answer.content)

    async def session(self, tutor: int = 1) -> Asker:
        return await connect(self.target, Asker, await self._management.create_session(tutor))

    async def spent(self, work: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
        """Tokens a second while `work` goes on, and CPU seconds of the server for each."""
        process = self.target.process
        tokens, cpu, began = await self.read("tokens"), process.cpu_seconds(), time.monotonic()
        await work()
        seconds, used = time.monotonic() - began, process.cpu_seconds() - cpu
        made = await self.read("tokens") - tokens
        return made / seconds, used / made

    async def direct(self, students: int, tokens: int) -> list[float]:
        times: list[float] = await self.read(f"direct?students={students}&tokens={tokens}")
        return times


async def answers(asking: Sequence[Asker]) -> None:
    async with asyncio.timeout(TURN_SECONDS), asyncio.TaskGroup() as group:
        for client in asking:
            group.create_task(client.turn(HELLO))


async def _throughput(rounds: int, rate: float, **settings: Any) -> list[Figure]:
    """Ours and the engine alone in turn, in one process, at the same pace."""
    figures = []
    most = max(STUDENTS)
    answer = ("--rate", str(rate), "--tokens", str(_TOKENS))
    given = {**_ONE_CORE, **settings, "max_sessions": 2 * most}
    with server("bench.chat_server", *answer, **given) as target:
        async with Management(target.url, timeout=TURN_SECONDS) as management:
            bench = Bench(target, management)
            for students in STUDENTS:
                # All rounds together: single ones differ by a fifth on a shared machine.
                rates, costs = {"ours": 0.0, "direct": 0.0}, []
                for number in range(rounds):
                    async with clients(target, students, Asker, ours=True) as asking:
                        work: dict[str, Callable[[], Awaitable[Any]]] = {
                            "ours": partial(answers, asking),
                            "direct": partial(bench.direct, students, _TOKENS),
                        }
                        spent = {
                            name: await bench.spent(work[name])
                            for name in sorted(work, reverse=bool(number % 2))
                        }
                    for name in rates:
                        rates[name] += spent[name][0]
                    costs.append(spent["ours"][1] - spent["direct"][1])
                many = students == most
                figures += [
                    Figure(
                        f"CPU a token, minus the engine alone, {students} students",
                        median(costs) * 1e6, "µs", *((100, 30) if many else ()),
                    ),
                    Figure(
                        f"tokens a second ÷ the engine alone, {students} students",
                        rates["ours"] / rates["direct"], "", 0.95, 0.99, at_least=True,
                    ),
                ]  # fmt: skip
    return figures


async def _first_words(bench: Bench, rounds: int) -> list[Figure]:
    ours, alone = [], []
    for _ in range(rounds):
        client = await bench.session()
        ours.append(await client.first_word(HELLO))
        client.close()
        alone += await bench.direct(1, 5)
    return [
        Figure("first token, minus the engine alone", _ms(ours) - _ms(alone), "ms", 3),
        Figure("first token: product", _ms(ours), "ms"),
        Figure("first token: engine alone", _ms(alone), "ms"),
    ]


async def _tutors(bench: Bench, without_model: float) -> list[Figure]:
    """Tutors that nobody has used yet, over the model that the first one loaded."""

    async def opened(tutor: int) -> float:
        """Seconds from asking for a session to the first word in it."""
        began = time.monotonic()
        client = await bench.session(tutor)
        await client.first_word(HELLO)
        client.close()
        return client.first - began

    await opened(1)
    one = _memory(bench.target.process)
    cold = [await opened(tutor) for tutor in range(2, _TUTORS + 1)]
    eight = _memory(bench.target.process)
    warm = [await opened(tutor) for tutor in range(2, _TUTORS + 1)]
    more = max(0.0, eight - one) / (_TUTORS - 1)
    return [
        Figure("memory of another tutor ÷ the first's", more / (one - without_model), "", 0.02),
        Figure("memory of the first tutor, its model included", one - without_model, "MB"),
        Figure("memory of another tutor", more, "MB"),
        Figure("cold tutor: first token ÷ warm tutor's", median(cold) / median(warm), "", 1.2),
    ]


async def _cancels(bench: Bench, rounds: int) -> list[Figure]:
    """Tokens that the engine makes after the student's interrupt was sent."""
    after = []
    client = await bench.session()
    for _ in range(rounds):
        client.ask(HELLO)
        await client.warm.wait()
        sent = time.monotonic_ns()
        client.tell({"type": "interrupt"})
        await client.done.wait()
        await asyncio.sleep(_AFTER_SECONDS)
        after.append(sum(at > sent for at in await bench.read("made")))
    client.close()
    return [
        Figure("tokens made after a cancel, median", median(after), "", 1),
        Figure("tokens made after a cancel, most", max(after)),
    ]


async def _prefixes(bench: Bench) -> list[Figure]:
    """Two students of a course: what the second one's prompt shares with the first one's."""
    for last in _QUESTIONS[1:]:
        client = await bench.session()
        await client.turn(_QUESTIONS[0])
        await client.turn(last)
        client.close()
    prompts = await bench.read("prompts")
    (first, _), (second, cached) = prompts[-3], prompts[-1]
    shared = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    block = await bench.read("block")
    full = shared // block
    return [
        Figure(
            "prefix cache: shared full blocks that hit", cached / (full * block), "", 0.9,
            at_least=True,
        ),
        Figure("prefix cache: length of the prompt", len(second), "tokens", 1500, at_least=True),
        Figure("prefix cache: shared full blocks", full, f"of {block} tokens"),
    ]  # fmt: skip


async def _death(bench: Bench) -> list[Figure]:
    """The engine's process is killed in the middle of an answer."""
    load = next(
        row["load_seconds"]
        for row in orjson.loads((await bench._management.get("/mgmt/v1/models")).content)["models"]
        if row["kind"] == "llm"
    )
    client = await bench.session()
    client.ask(HELLO)
    await client.warm.wait()
    killed = time.monotonic()
    os.kill(_engine_of(bench.target.process).pid, signal.SIGKILL)
    await client.done.wait()
    noticed = time.monotonic() - killed
    assert b'"failed"' in client.last, client.last
    async with asyncio.timeout(TURN_SECONDS):
        while True:
            client.first = 0.0
            await client.turn(HELLO)
            if b'"completed"' in client.last:
                break
            await asyncio.sleep(0.1)
    client.close()
    return [
        Figure("engine killed → its student is told", noticed, "s", 2),
        Figure("engine killed → next good answer ÷ load", (client.first - killed) / load, "", 1.2),
        Figure("load of the model", load, "s"),
    ]


def _ms(seconds: Sequence[float]) -> float:
    return median(seconds) * 1000


def _tree(process: Process) -> list[Process]:
    return [process, *(each for child in process.children() for each in _tree(child))]


def _memory(process: Process) -> float:
    """MB of the server and all its processes, what they share counted once."""
    return sum(each.pss_mb() for each in _tree(process))


def _engine_of(process: Process) -> Process:
    for each in _tree(process):
        if "EngineCore" in Path(f"/proc/{each.pid}/cmdline").read_text():
            return each
    raise RuntimeError("the server has no engine process")


async def measure(quick: bool, rate: float = RATE, **settings: Any) -> list[Figure]:
    """`settings` may name another model than the tiny one."""
    rounds = 1 if quick else 4
    with server("bench.chat_server", "--llm", "extractive") as target:
        without_model = _memory(target.process)
    figures = await _throughput(rounds, rate, **settings)
    async with AsyncExitStack() as stack:
        target = stack.enter_context(
            server("bench.chat_server", **{**_ONE_CORE, **settings, "max_sessions": 500})
        )
        management = await stack.enter_async_context(Management(target.url, timeout=TURN_SECONDS))
        bench = Bench(target, management)
        figures += await _tutors(bench, without_model)
        figures += await _first_words(bench, 10 if quick else 40)
        figures += await _cancels(bench, 4 if quick else 20)
        figures += await _prefixes(bench)
        figures += await _death(bench)
    return figures


if __name__ == "__main__":
    main("chat_model", measure)
