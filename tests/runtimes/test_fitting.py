"""What fits, what makes room, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gpuserver.errors import (
    GpuServerError,
    ModelInUse,
    ModelTooLarge,
    OutOfMemory,
    ProviderUnavailable,
)
from gpuserver.providers import RuntimeKey
from tests.fakes import Clock
from tests.runtimes.house import House, Script, models, row, use


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
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
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


def test_the_refusals_are_told_in_chinese_too() -> None:
    errors: list[GpuServerError] = [
        ModelTooLarge(model="m", needs_mb=2, free_mb=1, device="GPU"),
        OutOfMemory(model="m", device="GPU"),
    ]
    for error in errors:
        assert "内存" in error.sentence("zh")
