"""The GPUs that this process may use and the memory that is left on them, by NVIDIA's NVML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

try:
    import pynvml
except ImportError:  # only where GPU engines are installed
    pynvml = None

_MB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as it is now. `index` counts those that CUDA shows this process.

    `processes` are megabytes by process id, as far as the driver tells: inside a container it may
    know none.
    """

    index: int
    name: str
    total_mb: int
    free_mb: int
    processes: Mapping[int, int] = field(default_factory=dict)


class Nvml:
    """Reads GPUs. Without the library, its driver or a GPU there are none; that is no error."""

    def __init__(self, visible: str | None, library: Any = pynvml) -> None:
        """`visible`: CUDA_VISIBLE_DEVICES, None where it is not set; `library`: pynvml or None.

        Its numbers mean the same GPUs here and to CUDA where those are alike, or where
        CUDA_DEVICE_ORDER is PCI_BUS_ID.
        """
        self._visible = visible
        self._library = library
        self._handles: list[Any] | None = None

    def read(self) -> tuple[Gpu, ...]:
        """All of them as they are now. Blocking, but quick; any thread."""
        if self._library is None:
            return ()
        if self._handles is None:
            self._handles = self._found()
        return tuple(self._states(self._handles))

    def _found(self) -> list[Any]:
        try:
            self._library.nvmlInit()
            if self._visible is None:
                count = self._library.nvmlDeviceGetCount()
                return [self._library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except self._library.NVMLError:
            return []
        return list(self._named(self._visible))

    def _named(self, visible: str) -> Iterator[Any]:
        for name in re.split(r"\s*,\s*", visible.strip()):
            try:
                if name.isdecimal():
                    yield self._library.nvmlDeviceGetHandleByIndex(int(name))
                else:
                    yield self._library.nvmlDeviceGetHandleByUUID(name)
            except self._library.NVMLError:
                return  # CUDA, too, leaves out whatever follows a name that it does not know

    def _states(self, handles: list[Any]) -> Iterator[Gpu]:
        for index, handle in enumerate(handles):
            try:
                memory = self._library.nvmlDeviceGetMemoryInfo(handle)
                name = self._library.nvmlDeviceGetName(handle)
            except self._library.NVMLError:
                continue  # it fell off the bus
            name = name.decode() if isinstance(name, bytes) else str(name)
            total, free = int(memory.total) // _MB, int(memory.free) // _MB
            yield Gpu(index, name, total, free, self._processes(handle))

    def _processes(self, handle: Any) -> dict[int, int]:
        try:
            running = self._library.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._library.NVMLError:
            return {}
        return {int(p.pid): int(p.usedGpuMemory) // _MB for p in running if p.usedGpuMemory}
