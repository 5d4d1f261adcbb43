"""What this machine tells of its memory, its disk and its GPUs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuserver.machine import Host, ThisMachine, disk
from gpuserver.machine.gpus import Nvml
from tests.runtimes.house import MB


async def test_this_machine_tells_its_memory_and_its_disk(tmp_path: Path) -> None:
    def read() -> tuple[Host, int, Any]:
        machine = ThisMachine()
        machine.gpus()
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "weights.bin").write_bytes(bytes(2 * MB))
        return machine.host(), machine.resident_mb([1 << 30]), disk(tmp_path / "models")

    host, ended, space = await asyncio.to_thread(read)
    assert 0 < host.free_mb < host.total_mb
    assert ended == 0
    assert space.models_mb == 2
    assert space.free_mb > 0


class Library:
    """As much of pynvml as is used, over three GPUs, of which one has fallen off the bus."""

    class NVMLError(Exception):
        pass

    def __init__(self, driver: bool = True) -> None:
        self._driver = driver

    def nvmlInit(self) -> None:
        if not self._driver:
            raise self.NVMLError

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 2:
            raise self.NVMLError
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        if name != "GPU-c":
            raise self.NVMLError
        return 2

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if handle == 1:
            raise self.NVMLError
        return SimpleNamespace(total=(handle + 1) * 1000 * MB, free=400 * MB)

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return f"GPU {handle}".encode()

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        if handle == 2:
            raise self.NVMLError
        return [
            SimpleNamespace(pid=7, usedGpuMemory=5 * MB),
            # Where the driver may not tell.
            SimpleNamespace(pid=8, usedGpuMemory=None),
        ]


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [(0, "GPU 0"), (2, "GPU 2")]),
        ("2,0", [(0, "GPU 2"), (1, "GPU 0")]),
        ("GPU-c", [(0, "GPU 2")]),
        ("0,9,2", [(0, "GPU 0")]),
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_are_counted_as_cuda_shows_them(visible: str | None, seen: list[Any]) -> None:
    gpus = Nvml(visible, Library()).read()
    assert [(gpu.index, gpu.name) for gpu in gpus] == seen
    for gpu in gpus:
        assert gpu.free_mb == 400
        assert gpu.processes == ({7: 5} if gpu.name == "GPU 0" else {})


def test_no_library_and_no_driver_mean_no_gpus() -> None:
    assert Nvml(None, None).read() == ()
    assert Nvml(None, Library(driver=False)).read() == ()
    assert Nvml("0", Library(driver=False)).read() == ()
