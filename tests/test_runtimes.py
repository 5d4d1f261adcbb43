"""The table of runtimes: what fits, what makes room, what is watched, and what races leave."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuserver import config
from gpuserver.errors import (
    EngineBusy,
    EngineFailed,
    GpuServerError,
    ModelInUse,
    ModelNotLoaded,
    ModelTooLarge,
    OutOfMemory,
    ProviderUnavailable,
    ShuttingDown,
)
from gpuserver.machine import Host, ThisMachine, disk
from gpuserver.machine.gpus import Gpu, Nvml
from gpuserver.providers import OnProgress, Place, RuntimeKey, Status
from gpuserver.runtimes.entry import Row, runtime_id
from gpuserver.runtimes.probing import Prober
from gpuserver.runtimes.runtimes import Runtimes
from tests.fakes import Clock

MB = 1 << 20


@dataclass
class Script:
    """What a model does when it is loaded, and how it is afterwards."""

    mb: int = 0
    fails: list[Exception] = field(default_factory=list)
    gate: threading.Event | None = None
    fetches_for_ever: bool = False
    stages: tuple[tuple[Any, float | None], ...] = ()
    status: Status = Status()
    probes: list[Exception | asyncio.Event | None] = field(default_factory=list)
    loads: int = 0
    closes: int = 0
    places: list[Place] = field(default_factory=list)
    tell: OnProgress | None = None


@dataclass
class House:
    """A machine with scripted memory, and models that take of it while they are loaded."""

    folder: Path
    scripts: dict[str, Script] = field(default_factory=dict)
    gpu_mb: tuple[int, ...] = ()
    host_mb: int = 8000
    held: dict[int, dict[int, int]] = field(default_factory=dict)
    """By GPU (-1: the host): megabytes by model object."""
    processes: dict[int, int] = field(default_factory=dict)

    def taken(self, device: int) -> int:
        return sum(self.held.get(device, {}).values())

    def host(self) -> Host:
        return Host(self.host_mb, self.host_mb - self.taken(-1))

    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(
            Gpu(index, f"GPU {index}", mb, mb - self.taken(index), self.processes)
            for index, mb in enumerate(self.gpu_mb)
        )

    def resident_mb(self, pids: Iterable[int]) -> int:
        return self.taken(-1)

    def model(self, name: str, mb: int, **script: Any) -> RuntimeKey:
        """A model of a size, on disk as large as it is in memory, without the overhead."""
        weights = self.folder / name
        weights.mkdir()
        with (weights / "model.safetensors").open("wb") as file:
            file.truncate(mb * MB)
        self.scripts[str(weights)] = Script(mb, **script)
        return RuntimeKey("asr", "faster-whisper", str(weights))

    def script(self, key: RuntimeKey) -> Script:
        return self.scripts[key.model]

    def find(self, key: RuntimeKey) -> Callable[[str, Place], Any]:
        return lambda model, place: Model(self, self.scripts[model], place)

    def runtimes(self, clock: Clock | None = None, **settings: Any) -> Runtimes:
        given = config.load(None, **settings)[0]
        return Runtimes(Place(self.folder, given), self.find, machine=self, clock=clock or Clock())


class Model:
    """`Watched`; it takes its memory with `load` and frees it with `close`."""

    def __init__(self, house: House, script: Script, place: Place) -> None:
        self._house, self.script, self._place = house, script, place
        self._device = -1 if place.gpu is None else place.gpu
        script.places.append(place)

    def load(self) -> None:
        self.script.loads += 1
        for stage, share in self.script.stages:
            self._place.on_progress(stage, share)
        while self.script.fetches_for_ever:
            time.sleep(0.001)
            self._place.on_progress("fetching", None)
        if self.script.gate is not None:
            assert self.script.gate.wait(5)
        if self.script.fails:
            raise self.script.fails.pop(0)
        self._house.held.setdefault(self._device, {})[id(self)] = self.script.mb

    def close(self) -> None:
        self.script.closes += 1
        self._house.held.get(self._device, {}).pop(id(self), None)

    def status(self) -> Status:
        return self.script.status

    async def probe(self) -> None:
        step = self.script.probes.pop(0) if self.script.probes else None
        if isinstance(step, Exception):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def use(shared: Runtimes, key: RuntimeKey) -> None:
    await shared.acquire(key)
    await shared.release(key)


async def row(shared: Runtimes, key: RuntimeKey) -> Row:
    return next(row for row in await shared.rows() if row.key == key)


def models(shared: Runtimes) -> list[str]:
    return [Path(key.model).name for key in shared.loaded()]


# What fits


async def test_a_large_model_stays_while_idle_and_the_least_used_makes_room(house: House) -> None:
    house.gpu_mb = (1000,)
    clock = Clock()
    shared = house.runtimes(clock)
    a, b, c = house.model("a", 300), house.model("b", 300), house.model("c", 300)
    for key in (a, b):
        await use(shared, key)
        clock.now += 10
    await use(shared, a)
    assert models(shared) == ["a", "b"]
    assert house.script(a).loads == 1
    fit = await shared.fit(c)
    assert (fit.fits, fit.needs_mb, fit.free_mb, fit.evict) == (True, 360, 400, ())
    assert (await shared.fit(a)).needs_mb == 0, "it is there already"
    d = house.model("d", 500)
    assert (await shared.fit(d)).evict == (b,)
    await use(shared, d)
    assert models(shared) == ["a", "d"]
    assert house.taken(0) == 800
    await shared.close()
    assert house.taken(0) == 0


async def test_what_can_not_fit_is_refused_with_figures_and_harms_nobody(house: House) -> None:
    house.gpu_mb = (1000,)
    shared = house.runtimes()
    idle, leased, pinned = (house.model(name, 200) for name in ("idle", "leased", "pinned"))
    await use(shared, idle)
    await shared.acquire(leased)
    await shared.load(pinned, pin=True)
    huge = house.model("huge", 600)
    with pytest.raises(ModelTooLarge, match="720 MB of GPU memory and 600 MB can be had. Fix:"):
        await shared.acquire(huge)
    assert models(shared) == ["idle", "leased", "pinned"]
    assert house.script(huge).loads == 0
    refused = await row(shared, huge)
    assert refused.state == "failed"
    assert refused.problem is not None
    # It is forgotten by hand, and the others as long as they are not leased.
    await shared.unload(huge)
    await shared.unload(pinned)
    with pytest.raises(ModelInUse):
        await shared.unload(leased)
    assert [r.key for r in await shared.rows()] == [idle, leased]


async def test_the_memory_that_this_server_may_use_is_the_limit(house: House) -> None:
    house.gpu_mb = (10_000,)
    shared = house.runtimes(gpu_memory_mb=500)
    a, b = house.model("a", 300), house.model("b", 300)
    await shared.acquire(a)
    with pytest.raises(ModelTooLarge, match="200 MB can be had"):
        await shared.acquire(b)
    await shared.release(a)
    await use(shared, b)
    assert models(shared) == ["b"]


async def test_models_go_to_the_gpu_with_the_most_room(house: House) -> None:
    house.gpu_mb = (1000, 1200)
    shared = house.runtimes()
    keys = [house.model(name, 400) for name in "abc"]
    for key in keys:
        await use(shared, key)
    assert [house.script(key).places[0].gpu for key in keys] == [1, 0, 1]
    row_b = await row(shared, keys[1])
    assert row_b.gpu_memory_mb == {0: 400}


async def test_without_a_gpu_the_memory_of_the_host_counts(house: House) -> None:
    house.host_mb = 1000
    shared = house.runtimes()
    a, b = house.model("a", 500), house.model("b", 500)
    await shared.acquire(a)
    assert house.script(a).places[0].gpu is None
    assert (await row(shared, a)).memory_mb >= 500
    with pytest.raises(ModelTooLarge, match="CPU memory and 500 MB"):
        await shared.acquire(b)
    await shared.release(a)
    await use(shared, b)
    assert models(shared) == ["b"]


@pytest.mark.parametrize("settings", [{"device": "cpu"}, {"profile": "cpu"}])
async def test_a_gpu_that_is_not_wanted_is_left_alone(house: House, settings: Any) -> None:
    house.gpu_mb = (1000,)
    shared = house.runtimes(**settings)
    key = house.model("a", 100)
    await use(shared, key)
    assert house.script(key).places[0].gpu is None


async def test_a_vllm_takes_its_share_of_its_first_gpus(house: House) -> None:
    house.gpu_mb = (1000, 2000, 4000)
    weights = house.model("a", 100).model
    key = RuntimeKey("llm", "vllm", weights)
    shares = await house.runtimes(llm_gpus=2, llm_gpu_share=0.5).fit(key)
    assert (shares.needs_mb, shares.free_mb, shares.place) == (500, 1000, (0, 1))
    cache = await house.runtimes(llm_gpus=2, llm_cache_mb=64).fit(key)
    assert cache.needs_mb == 60 + 64
    on_cpu = await house.runtimes(profile="cpu").fit(key)
    assert (on_cpu.needs_mb, on_cpu.device) == (120 + 1024, "cpu")


async def test_what_can_not_be_measured_is_tried(house: House) -> None:
    house.gpu_mb = (1000,)
    house.scripts["small"] = Script(10)
    shared = house.runtimes()
    key = RuntimeKey("asr", "faster-whisper", "small")
    fit = await shared.fit(key)
    assert (fit.fits, fit.needs_mb) == (True, None)
    await use(shared, key)
    assert models(shared) == ["small"]


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        OutOfMemory(model="a", device="GPU"),
    ],
)
async def test_memory_that_runs_out_is_made_and_tried_once_more(
    house: House, failure: Exception
) -> None:
    house.gpu_mb = (1000,)
    shared = house.runtimes()
    idle, leased, key = house.model("i", 100), house.model("l", 100), house.model("k", 100)
    await use(shared, idle)
    await shared.acquire(leased)
    house.script(key).fails = [failure]
    await use(shared, key)
    assert models(shared) == ["l", "k"]
    assert (house.script(key).loads, house.script(key).closes) == (2, 1)
    await shared.unload(key)
    house.script(key).fails = [failure]
    with pytest.raises(OutOfMemory, match="GPU memory"):
        await shared.acquire(key)
    assert models(shared) == ["l"]
    assert house.taken(0) == 100


async def test_another_failure_costs_nobody_his_model(house: House) -> None:
    house.gpu_mb = (1000,)
    shared = house.runtimes()
    idle, key = house.model("i", 100), house.model("k", 100)
    await use(shared, idle)
    house.script(key).fails = [ProviderUnavailable(problem="No such folder.", fix="name it.")]
    with pytest.raises(ProviderUnavailable, match="No such folder"):
        await shared.acquire(key)
    assert models(shared) == ["i"]


# What is seen


async def test_a_load_tells_its_stages_and_the_row_its_figures(house: House) -> None:
    house.gpu_mb = (1000,)
    clock = Clock()
    shared = house.runtimes(clock)
    gate = threading.Event()
    key = house.model("a", 300, gate=gate, stages=(("fetching", 0.5), ("loading", 7.0)))
    steps: list[tuple[Any, float | None]] = []
    task = asyncio.create_task(shared.acquire(key, lambda *step: steps.append(step)))
    while ("loading", 1.0) not in steps:
        await asyncio.sleep(0.001)
    loading = await row(shared, key)
    assert (loading.state, loading.stage, loading.share) == ("loading", "loading", 1.0)
    clock.now += 3
    gate.set()
    await task
    assert [stage for stage, _ in steps] == ["fitting", "fitting", "loading", "fetching", "loading"]
    ready = await row(shared, key)
    assert (ready.state, ready.stage, ready.leases, ready.load_seconds) == ("ready", None, 1, 3)
    assert ready.gpu_memory_mb == {0: 300}
    assert ready.loaded_at is not None
    await shared.release(key)
    clock.now += 5
    house.script(key).status = Status("asleep", pids=(77,))
    house.processes[77] = 12
    asleep = await row(shared, key)
    assert (asleep.state, asleep.idle_seconds, asleep.gpu_memory_mb) == ("asleep", 5, {0: 12})


async def test_names_for_monitors_are_short_and_told_apart(house: House) -> None:
    one, other = house.folder / "x" / "m" / "tiny", house.folder / "y" / "m" / "tiny"
    shared = house.runtimes()
    for folder in (one, other):
        house.scripts[str(folder)] = Script()
        await use(shared, RuntimeKey("tts", "coqui", str(folder)))
    names = [r.name for r in await shared.rows()]
    assert names == ["coqui m/tiny", "coqui m/tiny #2"]


async def test_by_hand_small_models_stay_too_until_they_are_unloaded(house: House) -> None:
    house.scripts["en-gb"] = Script()
    shared = house.runtimes()
    key = RuntimeKey("tts", "espeak", "en-gb")
    await use(shared, key)
    assert models(shared) == []
    await shared.load(key, pin=False)
    await use(shared, key)
    assert models(shared) == ["en-gb"]
    shared.pin(key, pinned=True)
    assert (await row(shared, key)).pinned
    await shared.unload(shared.named(runtime_id(key)))
    assert models(shared) == []
    with pytest.raises(ModelNotLoaded):
        shared.named(runtime_id(key))
    with pytest.raises(ModelNotLoaded):
        shared.pin(key, pinned=True)


# Races


async def test_a_warm_model_is_had_while_another_one_loads(house: House) -> None:
    shared = house.runtimes()
    gate = threading.Event()
    warm, cold = house.model("warm", 10), house.model("cold", 10, gate=gate)
    await use(shared, warm)
    loading = asyncio.create_task(shared.acquire(cold))
    while not house.script(cold).loads:
        await asyncio.sleep(0.001)
    async with asyncio.timeout(2):
        await shared.acquire(warm)
    unloading = asyncio.create_task(shared.unload(cold))
    gate.set()
    await loading
    with pytest.raises(ModelInUse):
        await unloading
    await shared.release(warm)
    await shared.release(cold)


async def test_two_that_do_not_fit_together_do_not_load_together(house: House) -> None:
    house.gpu_mb = (1000,)
    shared = house.runtimes()
    keys = [house.model(name, 700) for name in "ab"]
    results = await asyncio.gather(*map(shared.acquire, keys), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Model", "ModelTooLarge"]
    assert house.taken(0) == 700


async def test_loads_leases_and_unloads_at_once_leave_what_is_leased(house: House) -> None:
    house.gpu_mb = (1000,)
    shared = house.runtimes()
    keys = [house.model(name, 300) for name in "abcd"]

    async def student(number: int) -> None:
        key = keys[number % 4]
        try:
            model = await shared.acquire(key)
        except ModelTooLarge:
            return  # three others were in use
        for _ in range(3):
            await asyncio.sleep(0)
            assert id(model) in house.held[0], "closed while it was leased"
        await shared.release(key)

    async def operator(number: int) -> None:
        with suppress(ModelInUse):
            await shared.unload(keys[number % 4])

    async with asyncio.TaskGroup() as group:
        for number in range(60):
            task = group.create_task(student(number))
            group.create_task(operator(number // 2))
            if number % 7 == 3:
                asyncio.get_running_loop().call_later(0.002 * number, task.cancel)
    assert set(shared.loaded().values()) <= {0}
    assert house.taken(0) == 300 * len(shared.loaded())
    await shared.close()
    assert house.taken(0) == 0
    for key in keys:
        assert house.script(key).loads <= house.script(key).closes


async def test_closing_breaks_off_a_long_download(house: House) -> None:
    shared = house.runtimes()
    key = house.model("a", 10, fetches_for_ever=True)
    for end in (lambda task: task.cancel(), lambda task: None):
        loads = house.script(key).loads
        loading = asyncio.create_task(shared.acquire(key))
        while house.script(key).loads == loads:
            await asyncio.sleep(0.001)
        end(loading)
        if not loading.cancelling():
            await shared.close()
        async with asyncio.timeout(5):
            with pytest.raises((asyncio.CancelledError, ShuttingDown)):
                await loading
        assert house.script(key).closes == house.script(key).loads


async def test_a_library_is_imported_off_the_event_loop(house: House) -> None:
    importing: list[threading.Thread] = []

    def find(key: RuntimeKey) -> Callable[[str, Place], Any]:
        importing.append(threading.current_thread())
        return house.find(key)

    shared = Runtimes(Place(house.folder), find, machine=house)
    await shared.acquire(house.model("a", 10))
    assert threading.current_thread() not in importing
    assert len(importing) == 1
    await shared.close()


async def test_a_load_is_waited_for_however_often_its_caller_is_cancelled(house: House) -> None:
    shared = house.runtimes()
    gate = threading.Event()
    key = house.model("a", 10, gate=gate)
    loading = asyncio.create_task(shared.acquire(key))
    while not house.script(key).loads:
        await asyncio.sleep(0.001)
    for _ in range(3):
        loading.cancel()
        await asyncio.sleep(0.01)
    assert not loading.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert house.taken(-1) == 0


async def test_what_is_remembered_of_a_failed_load_holds_nothing_of_it(house: House) -> None:
    shared = house.runtimes()
    damaged = ProviderUnavailable(problem="It is damaged.", fix="fetch it again.")
    with pytest.raises(ProviderUnavailable):
        await shared.acquire(house.model("a", 10, fails=[damaged]))
    (row,) = await shared.rows()
    assert str(row.problem) == str(damaged)
    assert row.problem is not None
    assert row.problem.__traceback__ is None  # its frames would keep the model


async def test_closing_waits_for_the_load_that_is_going_on(house: House) -> None:
    shared = house.runtimes()
    gate = threading.Event()
    key, waiting = house.model("a", 10, gate=gate), house.model("b", 10)
    loading = [asyncio.create_task(shared.acquire(k)) for k in (key, waiting)]
    while not house.script(key).loads:
        await asyncio.sleep(0.001)
    closing = asyncio.create_task(shared.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    gate.set()
    await closing
    for result in await asyncio.gather(*loading, return_exceptions=True):
        assert isinstance(result, ShuttingDown)
    assert house.taken(-1) == 0
    assert models(shared) == []
    with pytest.raises(ShuttingDown):
        await shared.acquire(key)


# What is watched


@pytest.fixture
async def watched(house: House) -> tuple[Runtimes, Prober, Script, RuntimeKey, Clock]:
    clock = Clock()
    shared = house.runtimes(clock)
    key = house.model("a", 10)
    await shared.acquire(key)
    return shared, Prober(shared, 0.05, clock), house.script(key), key, clock


async def test_a_model_is_probed_when_it_has_been_idle(watched: Any) -> None:
    shared, prober, script, key, clock = watched
    clock.now += 20
    assert prober.due() == []
    script.status = Status(running=1)
    assert prober.due() == []
    script.status = Status()
    clock.now += 29
    assert prober.due() == []
    clock.now += 1
    (entry,) = prober.due()
    await prober.probe(entry)
    assert shared.problem(key) == ""
    assert prober.due() == []
    clock.now += 30
    script.status = Status("asleep")
    assert prober.due() == []


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (EngineFailed(engine="x"), "The x engine failed"),
        (asyncio.Event(), "gave nothing for 0.05 seconds"),
        (ZeroDivisionError("secret"), "The faster-whisper engine failed"),
    ],
)
async def test_a_model_that_fails_or_hangs_is_told_of_until_it_works(
    watched: Any, step: Any, said: str
) -> None:
    shared, prober, script, key, clock = watched
    script.probes = [step, EngineBusy(seconds=1), None]
    clock.now += 30
    for _ in range(2):
        (entry,) = prober.due()
        await prober.probe(entry)
        assert said in shared.problem(key)
        assert "secret" not in shared.problem(key)
        assert (await row(shared, key)).state == "failed"
        assert prober.due() == []
        clock.now += 5
    (entry,) = prober.due()
    await prober.probe(entry)
    assert shared.problem(key) == ""
    assert (await row(shared, key)).state == "ready"


async def test_a_process_that_is_started_again_has_to_work_before_it_is_trusted(
    watched: Any,
) -> None:
    shared, prober, script, key, clock = watched
    script.status = Status("restarting")
    assert "started again" in shared.problem(key)
    assert prober.due() == []
    assert (await row(shared, key)).state == "restarting"
    clock.now += 30
    assert prober.due(), "one that does not come back is asked to"
    script.status = Status()
    assert shared.problem(key)
    (entry,) = prober.due()
    await prober.probe(entry)
    assert shared.problem(key) == ""


async def test_a_hung_probe_holds_up_no_closing(watched: Any) -> None:
    shared, _, script, key, clock = watched
    script.probes = [asyncio.Event()]
    prober = Prober(shared, 60, clock)
    watch = asyncio.create_task(prober.run_forever())
    clock.now += 30
    while script.probes:
        await asyncio.sleep(0.01)
    await shared.release(key)
    async with asyncio.timeout(2):
        await shared.unload(key)
    assert script.closes == 1
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch


# This machine


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


def test_the_refusals_are_told_in_chinese_too() -> None:
    errors: list[GpuServerError] = [
        ModelTooLarge(model="m", needs_mb=2, free_mb=1, device="GPU"),
        OutOfMemory(model="m", device="GPU"),
    ]
    for error in errors:
        assert "内存" in error.sentence("zh")
