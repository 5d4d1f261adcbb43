"""What the benchmarks share: a server in its own process, its CPU and memory, tables and JSON."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

import orjson

from gpuserver.config import TUTOR_OVERRIDE, Settings

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = Path(__file__).parent / "results"
SERVE: Final = ("gpuserver", "serve")
"""The product, as `start.sh` runs it."""
_START_SECONDS: Final = 180.0
_STOP_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.01


# Figures


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value, with a bound and an aim; None where it is only reported.

    `bound` and `aim` are the most it may be, or the least where `at_least` is set.
    """

    name: str
    value: float
    unit: str = ""
    bound: float | None = None
    aim: float | None = None
    at_least: bool = False

    @property
    def ok(self) -> bool:
        return self._keeps(self.bound)

    @property
    def share(self) -> float | None:
        """How much of its bound it uses up, 1 being all; None where that says nothing."""
        if not self.bound:
            return None
        share = self.value / self.bound
        return (1 / share if share else None) if self.at_least else share

    def row(self) -> str:
        missed = "" if self.ok else " **missed**"
        value = f"{_short(self.value)} {self.unit}".rstrip()
        return f"| {self.name} | {value}{missed} | {self._limit(self.bound)} | {self._aim()} |"

    def _aim(self) -> str:
        reached = " ✓" if self.aim is not None and self._keeps(self.aim) else ""
        return self._limit(self.aim) + reached

    def _keeps(self, limit: float | None) -> bool:
        if limit is None:
            return True
        return self.value >= limit if self.at_least else self.value <= limit

    def _limit(self, limit: float | None) -> str:
        return "" if limit is None else f"{'≥' if self.at_least else '≤'} {limit:g}"


def table(figures: Iterable[Figure]) -> str:
    """The figures as a Markdown table."""
    head = ("| figure | measured | bound | aim |", "|---|---:|---:|---:|")
    return "\n".join([*head, *[figure.row() for figure in figures]])


Measure = Callable[[bool], Coroutine[Any, Any, list[Figure]]]
"""A benchmark: told whether to be quick, it gives its figures."""


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def run(name: str, measure: Measure, *, quick: bool) -> bool:
    """Measure, print a table and write its JSON; says whether every bound is kept."""
    began = time.monotonic()
    figures = asyncio.run(measure(quick))
    print(f"\n### {name}{' (quick)' if quick else ''}\n\n{table(figures)}", flush=True)
    passed = all(figure.ok for figure in figures)
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores",
        "load_average": os.getloadavg(),
        "quick": quick,
        "seconds": round(time.monotonic() - began, 1),
        "passed": passed,
        "figures": [{**asdict(figure), "ok": figure.ok} for figure in figures],
    }
    RESULTS.mkdir(exist_ok=True)
    # A quick run does not replace the figures of a whole one.
    (RESULTS / f"{name}{'.quick' if quick else ''}.json").write_bytes(
        orjson.dumps(result, option=orjson.OPT_INDENT_2)
    )
    return passed


def main(name: str, measure: Measure) -> None:
    """The command line of one benchmark. Exits with 1 when a bound is missed."""
    parser = argparse.ArgumentParser(prog=f"bench.{name}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, rougher figures")
    sys.exit(0 if run(name, measure, quick=parser.parse_args().quick) else 1)


# Processes


@dataclass(frozen=True, slots=True)
class Process:
    """A running process and what it has used; ids only of processes that a benchmark started."""

    pid: int

    def cpu_seconds(self) -> float:
        """User and system time of all its threads, to the nanosecond (/proc/<pid>/stat: 10 ms)."""
        # clock_getcpuclockid(3), which Python lacks: CPUCLOCK_SCHED of another process.
        return time.clock_gettime((~self.pid << 3) | 2)

    def rss_mb(self) -> float:
        return self._status("VmRSS")

    def peak_mb(self) -> float:
        return self._status("VmHWM")

    def pss_mb(self) -> float:
        """Resident memory, with what is shared divided among the processes that share it."""
        return _field(Path(f"/proc/{self.pid}/smaps_rollup"), "Pss")

    def loads(self, library: str) -> bool:
        """Whether a library whose path has this name is mapped."""
        return library in Path(f"/proc/{self.pid}/maps").read_text()

    def children(self) -> list[Process]:
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [Process(int(pid)) for task in tasks for pid in task.read_text().split()]

    def _status(self, name: str) -> float:
        return _field(Path(f"/proc/{self.pid}/status"), name)


def _field(path: Path, name: str) -> float:
    """A line such as `VmRSS:  1024 kB`, in MB (2^20)."""
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    assert found, f"{path} has no {name}"
    return int(found[1]) / 1024


@dataclass(frozen=True, slots=True)
class Server:
    """A server under measurement."""

    url: str
    process: Process
    log: Path
    seconds_to_ready: float

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def server(*module: str, folder: Path | None = None, **settings: Any) -> Iterator[Server]:
    """`python -m <module>` on a free port of the loopback, ready; ended on leaving.

    `folder` holds its state and is kept; without one it is a fresh folder.
    """
    with tempfile.TemporaryDirectory(prefix="gpuserver-bench-") as fresh:
        log = Path(fresh) / "log"
        began = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=fresh,
                env=_environment(folder or Path(fresh) / "data", settings),
                stdout=output,
                stderr=output,
            )
        try:
            url = _until_ready(process, log)
            yield Server(url, Process(process.pid), log, time.monotonic() - began)
        finally:
            _end(process)


def _environment(folder: Path, settings: Mapping[str, str | int]) -> dict[str, str]:
    """This environment without the server's settings, and with those given."""
    foreign = {
        name: value
        for name, value in os.environ.items()
        if name.lower() not in Settings.model_fields and not TUTOR_OVERRIDE.fullmatch(name)
    }
    given = {name.upper(): str(value) for name, value in settings.items()}
    own = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "DATA_DIR": str(folder),
        "MANAGEMENT_API_PORT": "0",
    }
    return {**foreign, **own, **given}


def _until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        found = re.search(r"url=(http://\S+)", log.read_text(errors="replace"))
        if found and _answers_ready(found[1]):
            return found[1]
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"the server did not get ready:\n{log.read_text(errors='replace')[-4000:]}")


def _answers_ready(url: str) -> bool:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# Text and pace


_TEXT: Final = (
    "A list is an ordered collection of items. To make one, put the items in square brackets and "
    "separate them with commas. You can reach an item by its number, and the first number is zero. "
    "A negative number counts from the end, so minus one is the last item. Lists can grow: the "
    "method append adds an item at the end, and insert puts one where you want it. If you need "
    "every item in turn, write a for loop, which gives each of them a name for a moment. "
)


def tokens(count: int) -> list[str]:
    """An answer as a model writes it: words with their space, and punctuation."""
    once = re.findall(r" ?\w+|[^\w\s]", _TEXT)
    return [once[i % len(once)] for i in range(count)]


class Pace:
    """Waits for the next beat of a steady rate; one that is late does not wait."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._clock = asyncio.get_running_loop().time
        self._due = self._clock()

    async def beat(self) -> float:
        """Wait; returns when the beat was due, on the loop's clock."""
        self._due += self._interval
        await asyncio.sleep(max(0.0, self._due - self._clock()))
        return self._due


async def gather_limited(jobs: Sequence[Callable[[], Coroutine[Any, Any, Any]]], most: int) -> None:
    """Run all jobs, at most so many at the same time."""
    waiting = list(reversed(jobs))

    async def work() -> None:
        while waiting:
            await waiting.pop()()

    async with asyncio.TaskGroup() as group:
        for _ in range(most):
            group.create_task(work())
