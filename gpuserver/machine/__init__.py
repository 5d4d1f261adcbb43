"""What this machine has: memory of the host, of its GPUs and of processes, and room on its disk."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

from gpuserver.config import visible_gpus
from gpuserver.machine.gpus import Gpu, Nvml

_MB: Final = 1 << 20
_FILES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Host:
    """The host's memory. `free_mb` counts what the system would give up; 0 of 0: can't tell."""

    total_mb: int
    free_mb: int


class Machine(Protocol):
    """All of it blocks for a moment: call it in a thread."""

    def host(self) -> Host: ...

    def gpus(self) -> tuple[Gpu, ...]: ...

    def resident_mb(self, pids: Iterable[int]) -> int:
        """Memory of these processes together; pages that they share count in each."""
        ...


class ThisMachine:
    """`Machine`, from /proc and NVML."""

    def __init__(self) -> None:
        self._nvml = Nvml(visible_gpus())

    def host(self) -> Host:
        try:
            text = Path("/proc/meminfo").read_text(encoding="ascii")
        except OSError:
            return Host(0, 0)
        kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
        total, free = (int(kilobytes.get(n, 0)) >> 10 for n in ("MemTotal", "MemAvailable"))
        return Host(total, free)

    def gpus(self) -> tuple[Gpu, ...]:
        return self._nvml.read()

    def resident_mb(self, pids: Iterable[int]) -> int:
        return sum(map(_resident, pids)) // _MB


def _resident(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):  # it has ended
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Disk:
    """A folder of models: what its disk has left, and how much the models take."""

    free_mb: int
    models_mb: int


def disk(folder: Path) -> Disk:
    """Blocking. A folder that is not there yet has the room of the one it would be made in."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return Disk(shutil.disk_usage(there).free // _MB, bytes_in(folder) // _MB)


def bytes_in(folder: Path) -> int:
    """What the files in a folder take. Blocking; any of them may go away meanwhile."""
    files = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    return sum(map(_size, islice(files, _FILES)))


def _size(path: Path) -> int:
    try:
        state = path.lstat()
    except OSError:  # moved meanwhile, as what is being fetched is
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0
