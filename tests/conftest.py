"""Fixtures: settings without this machine's environment, scripted servers, and guards."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from blockbuster import blockbuster_ctx
from fastapi import FastAPI

from gpuserver import config, observability
from gpuserver.api.state import State
from gpuserver.client import Management
from gpuserver.config import Settings
from gpuserver.tutor.tutoring import Tutoring
from gpuserver.unified_server import Server, create_app
from tests.fakes import Cast

COURSE = """# Loops

## Lists

A list is an ordered collection of items. To write a list, put items in square brackets.

```python
fruits = ["apple", "pear"]
```

## Nested loops

A loop inside another loop is called nested.
"""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine reaches a test, and no `.env` of this folder."""
    for name in list(os.environ):
        if name.lower() in Settings.model_fields or config.TUTOR_OVERRIDE.fullmatch(name):
            monkeypatch.delenv(name)
    # Nothing here is signed, and each client would read this machine's certificates for 80 ms.
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _our_logging() -> Iterator[None]:
    """Logs as in production, put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("uvicorn.error", "uvicorn.access")}
    observability.configure("WARNING", "console")
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.fixture(autouse=True, scope="session")
def _nothing_blocks() -> Iterator[None]:
    """The server blocks no event loop: no file, socket or sleep call from inside one."""
    clients = ["gpuserver.client", "gpuserver.connectivity", "gpuserver.cli"]
    with blockbuster_ctx("gpuserver", excluded_modules=clients):
        yield


@pytest.fixture(autouse=True)
async def _no_task_is_left() -> AsyncIterator[None]:
    """No unowned task outlives a test."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


@pytest.fixture
def cast() -> Iterator[Cast]:
    cast = Cast()
    yield cast
    cast.assert_used_up()


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings over a small course of two passages and two tutors."""
    course = tmp_path / "course" / "en"
    course.mkdir(parents=True)
    (course / "01-loops.md").write_text(COURSE, encoding="utf-8")
    tutors = tmp_path / "tutors.yaml"
    tutors.write_text(
        "courses: {loops: course}\n"
        "tutors:\n"
        "  - {id: 1, name: Ada, knowledge: [loops]}\n"
        "  - {id: 2, name: 林老师, language: zh, knowledge: [loops]}\n",
        encoding="utf-8",
    )

    def make(**given: Any) -> Settings:
        defaults = {"data_dir": tmp_path / "data", "tutors_file": tutors}
        return config.load(None, **{**defaults, **given})[0]

    return make


@pytest.fixture
def general_tutor(tmp_path: Path) -> Path:
    """A tutors file beside the small course: Ada may answer from general knowledge too."""
    tutors = tmp_path / "general.yaml"
    tutors.write_text(
        "courses: {loops: course}\n"
        "tutors:\n  - {id: 1, name: Ada, knowledge: [loops], outside: general}\n",
        encoding="utf-8",
    )
    return tutors


@dataclass(frozen=True)
class Scripted:
    """A real server on a real port, over scripted providers."""

    url: str
    app: FastAPI
    state: State
    cast: Cast
    server: Server

    def management(self, key: str = "") -> Management:
        return Management(self.url, key)


Serve = Callable[..., AbstractAsyncContextManager[Scripted]]


@pytest.fixture
def serve(cast: Cast, make_settings: Callable[..., Settings]) -> Serve:
    """`async with serve(max_sessions=2) as server:` runs a scripted server with those settings.

    `clock` is the sessions' monotonic clock.
    """

    @asynccontextmanager
    async def run(
        clock: Callable[[], float] = time.monotonic, **given: Any
    ) -> AsyncIterator[Scripted]:

        def assemble() -> tuple[Settings, Tutoring, FastAPI]:
            settings = make_settings(**given)
            tutoring = Tutoring(settings, factory=cast.find)
            return settings, tutoring, create_app(settings, tutoring)

        settings, tutoring, app = await asyncio.to_thread(assemble)
        app.state.gpuserver.sessions._clock = clock
        async with uvicorn_on(app, settings) as (url, server):
            while not tutoring.progress.ready:
                await asyncio.sleep(0.005)
            yield Scripted(url, app, app.state.gpuserver, cast, server)

    return run


def local_http(url: str) -> httpx2.AsyncClient:
    """A client of a server on this machine: past any proxy, and without certificates."""
    return httpx2.AsyncClient(base_url=url, trust_env=False, verify=False, timeout=30)


@asynccontextmanager
async def uvicorn_on(app: FastAPI, settings: Settings) -> AsyncIterator[tuple[str, Server]]:
    """Run an app on a free port of the loopback; gives its address and its server."""
    server = Server(app, settings)
    server.config.host, server.config.port = "127.0.0.1", 0
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    # What uvicorn's own loop does, without its ticks of a tenth of a second.
    await server.startup()
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", server
    finally:
        await server.shutdown()


@dataclass(frozen=True)
class Running:
    """The product as a process of its own, with its real embedded engines."""

    url: str
    pid: int
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`gpuserver serve` with the shipped tutors and course, on a free port.

    Tutor 4711 is the default tutor with a voice of its own, and one setting is misspelt.
    """
    settings = {"MAX_SESSIONS": "100", "MAX_SESSION": "3", "TUTOR_4711_TTS_MODEL": "en-gb"}
    with running_server(tmp_path_factory.mktemp("server"), **settings) as running:
        yield running


@contextmanager
def running_server(folder: Path, **environment: str) -> Iterator[Running]:
    """A server process in a folder of its own; ended by its process id."""
    log = folder / "log"
    settings = {"DATA_DIR": str(folder / "data"), "MANAGEMENT_API_PORT": "0", **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpuserver", "serve"],
            cwd=folder,
            env={**os.environ, **settings},
            stdout=output,
            stderr=output,
        )
    try:
        yield Running(_when_ready(process, log), process.pid, log)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _when_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 240
    with httpx2.Client(trust_env=False, verify=False) as http:
        while time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            found = re.search(r"url=(\S+)", log.read_text())
            if found and http.get(f"{found[1]}/ready").status_code == 200:
                return found[1]
            time.sleep(0.1)
    raise AssertionError(log.read_text())
