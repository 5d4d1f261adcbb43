"""The supervisor of a vLLM engine, over an engine that is scripted."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from gpuserver.errors import EngineBusy
from gpuserver.providers.vllm.engine import Engine

_SPAWN = multiprocessing.get_context("spawn")


class Scripted:
    """As much of AsyncLLM as the supervisor knows, with a process that only waits."""

    def __init__(self) -> None:
        self.process = _SPAWN.Process(target=time.sleep, args=(600,), daemon=True)
        self.process.start()
        manager = SimpleNamespace(processes=[self.process])
        self.engine_core = SimpleNamespace(resources=SimpleNamespace(engine_manager=manager))
        self.output_processor = SimpleNamespace(propagate_error=lambda error: None)
        self.errored = False

    def shutdown(self, timeout: float) -> None:
        self.process.kill()
        self.process.join()


@dataclass
class House:
    """An engine whose supervisor looks at it only while `looks` is set."""

    built: list[Scripted] = field(default_factory=list)
    looks: threading.Event = field(default_factory=threading.Event)
    ticked: threading.Event = field(default_factory=threading.Event)

    def build(self) -> Any:
        self.built.append(Scripted())
        return self.built[-1]

    def tick(self) -> None:
        self.ticked.set()
        assert self.looks.wait(20)


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def engine(house: House) -> Iterator[Engine]:
    made = Engine(house.build, lambda: None, house.tick)
    made.start()
    yield made
    house.looks.set()
    made.close()


async def test_a_dead_engine_is_asked_nothing_before_its_supervisor_has_noticed(
    engine: Engine, house: House
) -> None:
    assert engine.llm() is house.built[0]
    assert await asyncio.to_thread(house.ticked.wait, 10)
    house.built[0].errored = True  # as it is from the first answer that this has ended
    assert engine.state == "restarting"
    with pytest.raises(EngineBusy):
        engine.llm()
    house.looks.set()
    async with asyncio.timeout(20):
        while len(house.built) < 2 or not engine.pids:
            await asyncio.sleep(0.01)
    assert engine.llm() is house.built[1]
