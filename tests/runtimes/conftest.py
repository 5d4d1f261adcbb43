"""A scripted machine, and a watch over one of its models."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuserver.providers import RuntimeKey
from gpuserver.runtimes.probing import Prober
from gpuserver.runtimes.runtimes import Runtimes
from tests.fakes import Clock
from tests.runtimes.house import House, Script


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
async def watched(house: House) -> tuple[Runtimes, Prober, Script, RuntimeKey, Clock]:
    clock = Clock()
    shared = house.runtimes(clock)
    key = house.model("a", 10)
    await shared.acquire(key)
    return shared, Prober(shared, 0.05, clock), house.script(key), key, clock
