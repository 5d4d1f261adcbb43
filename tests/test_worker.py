"""Workers: what goes wrong in a child process must cost one call, never the server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from gpuserver.errors import EngineFailed, ProviderUnavailable, SpeechUnavailable
from gpuserver.providers.worker import Checkpoint, Worker, WorkerPool

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


class Engine:
    """What the workers here run, in their children."""

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.calls = 0
        self.stopped = 0

    def echo(self, value: object) -> object:
        self.calls += 1
        return value

    def sleep(self, seconds: float) -> str:
        """Works on without ever looking up."""
        self.calls += 1
        time.sleep(seconds)
        return "slept"

    def hold(self, begun: Path, end: Path) -> str:
        """Makes the one file, and works on until somebody has made the other."""
        self.calls += 1
        begun.touch()
        while not end.exists():
            time.sleep(0.005)
        return "held"

    def steps(self, seconds: float, begun: Path | None = None) -> str:
        self.calls += 1
        self.stopped += 1
        if begun is not None:
            begun.touch()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.01)
            self.checkpoint()
        self.stopped -= 1
        return "done"

    def parts(self, count: int, pause: float = 0.01) -> Iterator[int]:
        for number in range(count):
            self.calls += 1
            yield number
            time.sleep(pause)

    def broken_parts(self) -> Iterator[int]:
        yield 0
        raise ValueError("what a pupil said")

    def counts(self) -> tuple[int, int]:
        return self.calls, self.stopped

    def talk(self) -> None:
        os.write(1, b"noise from a library\n")

    def die(self) -> None:
        os._exit(3)

    def fail(self) -> None:
        raise ValueError("what a pupil said")

    def refuse(self) -> None:
        raise SpeechUnavailable(language="zh", fix="X")

    def unsendable(self) -> object:
        return lambda: None


class Broken:
    def __init__(self, how: str, checkpoint: Checkpoint) -> None:
        if how == "exit":
            os._exit(1)
        if how == "refuse":
            raise ProviderUnavailable(problem="No model.", fix="get one.")
        raise KeyError(how)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test", Engine, "a")
    worker.start()
    yield worker
    worker.close()


def gone(pid: int, within: float = 20.0) -> bool:
    """Whether the process ends in time; a zombie that nobody collects has ended."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


async def made(file: Path) -> None:
    """Wait until the child has made it."""
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(file.exists):
            await asyncio.sleep(0.005)


async def test_a_child_killed_in_mid_call_costs_that_call_only(
    worker: Worker, tmp_path: Path
) -> None:
    before, begun = worker.pid, tmp_path / "begun"
    assert before is not None
    call = asyncio.create_task(worker.call("steps", 60.0, begun, deadline=100))
    await made(begun)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(EngineFailed, match="The test engine failed"):
        await asyncio.wait_for(call, 20)
    assert await worker.call("echo", 1, deadline=5) == 1
    assert worker.pid != before


async def test_a_child_killed_while_idle_costs_nothing(worker: Worker) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    # Its status stays for whoever started it.
    await asyncio.to_thread(os.waitid, os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert await worker.call("echo", 1, deadline=5) == 1


async def test_a_child_that_leaves_by_itself(worker: Worker) -> None:
    with pytest.raises(EngineFailed):
        await worker.call("die", deadline=5)
    assert await worker.call("echo", 1, deadline=5) == 1


async def test_a_deadline_is_kept_and_the_child_replaced(worker: Worker) -> None:
    before, started = worker.pid, time.monotonic()
    with pytest.raises(EngineFailed):
        await worker.call("sleep", 30.0, deadline=0.3)
    assert time.monotonic() - started < 10  # of the 30 seconds that it would have slept
    assert await worker.call("echo", "next", deadline=5) == "next"
    assert before is not None
    assert worker.pid != before
    assert gone(before)


async def test_a_stopped_child_that_does_not_even_read(worker: Worker) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(worker.call("echo", bytes(8_000_000), deadline=0.3), 20)
    assert await worker.call("echo", 1, deadline=5) == 1


async def test_a_cancelled_call_stops_and_the_next_one_gets_its_own_answer(
    worker: Worker, tmp_path: Path
) -> None:
    before, begun = worker.pid, tmp_path / "begun"
    call = asyncio.create_task(worker.call("steps", 30.0, begun, deadline=60))
    await made(begun)
    call.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await worker.call("echo", "mine", deadline=5) == "mine"
    assert time.monotonic() - started < 10  # of the 30 seconds that the call would have taken
    assert await worker.call("counts", deadline=5) == (2, 1)
    assert worker.pid == before


async def test_a_cancel_that_comes_at_any_time_leaves_the_pipe_in_step(worker: Worker) -> None:
    for index in range(60):
        call = asyncio.create_task(worker.call("steps", 0.015, deadline=5))
        await asyncio.sleep(0.0005 * index)
        call.cancel()
        assert await worker.call("echo", index, deadline=5) == index
        await asyncio.gather(call, return_exceptions=True)


async def test_a_call_cancelled_while_it_waits_never_runs(worker: Worker, tmp_path: Path) -> None:
    begun, end = tmp_path / "begun", tmp_path / "end"
    running = asyncio.create_task(worker.call("hold", begun, end, deadline=20))
    waiting = asyncio.create_task(worker.call("echo", 1, deadline=5))
    await made(begun)
    waiting.cancel()
    await asyncio.wait([waiting])
    await asyncio.to_thread(end.touch)
    assert await running == "held"
    assert await worker.call("counts", deadline=5) == (1, 0)
    assert worker.waiting == 0


async def test_parts_come_as_they_are_made(worker: Worker) -> None:
    parts = [part async for part in worker.stream("parts", 20, deadline=5)]
    assert parts == list(range(20))
    assert [part async for part in worker.stream("parts", 0, deadline=5)] == []
    assert worker.waiting == 0


async def test_a_closed_stream_stops_and_the_next_call_gets_its_own_answer(worker: Worker) -> None:
    async with aclosing(worker.stream("parts", 10_000, deadline=5)) as parts:
        assert [await anext(parts), await anext(parts)] == [0, 1]
    assert worker.waiting == 0
    assert await worker.call("echo", "mine", deadline=5) == "mine"
    calls, _ = await worker.call("counts", deadline=5)
    assert calls < 1000


async def test_a_slow_reader_of_parts_holds_nobody_up(worker: Worker) -> None:
    async with aclosing(worker.stream("parts", 20, deadline=5)) as parts:
        first = await anext(parts)
        assert await worker.call("echo", "next", deadline=5) == "next"
        assert [first, *[part async for part in parts]] == list(range(20))


async def test_a_stream_whose_child_fails_or_dies(worker: Worker) -> None:
    got: list[int] = []
    with pytest.raises(EngineFailed):
        async for part in worker.stream("broken_parts", deadline=5):
            got += [part]
    assert got == [0]
    assert worker.pid is not None
    with pytest.raises(EngineFailed):
        async for _ in worker.stream("parts", 10_000, deadline=5):
            os.kill(worker.pid, signal.SIGKILL)
    assert await worker.call("echo", 1, deadline=5) == 1


async def test_the_deadline_of_a_stream_is_for_each_of_its_parts(worker: Worker) -> None:
    before = worker.pid
    # All of them take longer than one deadline.
    parts = [part async for part in worker.stream("parts", 35, 0.1, deadline=3)]
    assert parts == list(range(35))
    assert worker.pid == before


async def test_a_child_that_dies_while_idle_is_replaced_when_it_is_looked_at(
    worker: Worker,
) -> None:
    before = worker.pid
    assert before is not None
    assert worker.is_ready()
    os.kill(before, signal.SIGKILL)
    async with asyncio.timeout(30):
        while worker.is_ready():
            await asyncio.sleep(0.02)
        while not worker.is_ready():
            await asyncio.sleep(0.02)
    assert worker.pid != before


async def test_callers_each_get_their_own_answer_in_order(worker: Worker) -> None:
    order: list[int] = []

    async def one(number: int) -> None:
        assert await worker.call("echo", [number] * 1000, deadline=10) == [number] * 1000
        order.append(number)

    await asyncio.gather(*(one(number) for number in range(50)))
    assert order == list(range(50))


async def test_the_loop_goes_on_while_the_child_works(worker: Worker, tmp_path: Path) -> None:
    begun, end = tmp_path / "begun", tmp_path / "end"
    call = asyncio.create_task(worker.call("hold", begun, end, deadline=20))
    await made(begun)
    for _ in range(100):
        await asyncio.sleep(0.005)
    # A loop that waits for the child does not come here before the deadline has ended it.
    await asyncio.to_thread(end.touch)
    assert await call == "held"


def test_a_worker_outlives_the_loop_it_was_called_from(worker: Worker) -> None:
    for number in range(3):
        assert asyncio.run(worker.call("echo", number, deadline=5)) == number


async def test_a_failure_in_the_engine_is_logged_without_words(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    before = worker.pid
    with pytest.raises(EngineFailed):
        await worker.call("fail", deadline=5)
    assert "ValueError at" in caplog.text
    assert "pupil" not in caplog.text
    assert worker.pid == before


async def test_a_refusal_comes_through_with_its_details(worker: Worker) -> None:
    with pytest.raises(SpeechUnavailable, match=r"\(zh\).*Set X"):
        await worker.call("refuse", deadline=5)


async def test_an_answer_that_can_not_be_sent(worker: Worker) -> None:
    with pytest.raises(EngineFailed):
        await worker.call("unsendable", deadline=5)
    assert await worker.call("echo", 1, deadline=5) == 1


@pytest.mark.parametrize(
    ("how", "says"), [("exit", "did not start"), ("error", "did not start"), ("refuse", "No model")]
)
def test_a_child_that_does_not_start_gives_a_reason(how: str, says: str) -> None:
    worker = Worker("test", Broken, how)
    with pytest.raises(ProviderUnavailable, match=says):
        worker.start()
    with pytest.raises(EngineFailed):
        asyncio.run(worker.call("echo", 1, deadline=5))
    worker.close()


async def test_no_process_is_left_after_close(worker: Worker) -> None:
    pid = worker.pid
    assert pid is not None
    call = asyncio.create_task(worker.call("sleep", 30.0, deadline=60))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await asyncio.to_thread(worker.close)
    assert time.monotonic() - started < 10  # of the 30 seconds that the call would have taken
    with pytest.raises(EngineFailed):
        await call
    assert gone(pid)
    with pytest.raises(EngineFailed):
        await worker.call("echo", 1, deadline=5)
    await asyncio.to_thread(worker.close)


def test_a_worker_that_was_never_started_can_be_closed() -> None:
    Worker("test", Engine, "a").close()


async def test_ctrl_c_is_for_the_parent(worker: Worker) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)
    await asyncio.sleep(0.1)
    before = worker.pid
    assert await worker.call("echo", 1, deadline=5) == 1
    assert worker.pid == before


async def test_the_least_busy_worker_is_chosen(tmp_path: Path) -> None:
    pool = WorkerPool([Worker("test", Engine, str(number)) for number in range(2)])
    here, there = tmp_path / "here", tmp_path / "there"
    try:
        await asyncio.to_thread(pool.start)
        calls: list[asyncio.Task[object]] = []
        # Each ends once the other has begun: one after the other they never would.
        for files in ((here, there), (there, here)):
            calls.append(asyncio.create_task(pool.least_busy().call("hold", *files, deadline=20)))
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*calls) == ["held", "held"]
    finally:
        await asyncio.to_thread(pool.close)


PARENT = """
import asyncio, os, sys
from gpuserver.providers.worker import Worker
from tests.test_worker import Engine

async def main():
    worker = Worker("test", Engine, "a")
    worker.start()
    await worker.call("talk", deadline=5)
    print(worker.pid, flush=True)
    if sys.argv[1] == "idle":
        await asyncio.sleep(60)
    await worker.call("steps", 60.0, deadline=100)

asyncio.run(main())
"""


@pytest.mark.parametrize("doing", ["idle", "busy"])
def test_a_child_does_not_outlive_a_killed_parent_nor_write_to_its_output(doing: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, doing],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        try:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            time.sleep(0.3)
            assert not gone(child, 0.01)
        finally:
            parent.kill()
        assert gone(child)
