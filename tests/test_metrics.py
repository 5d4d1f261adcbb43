"""Metrics: what is counted, how much it costs in series, and who may read it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx2
import pytest
from fastapi import FastAPI, Request
from prometheus_client.parser import text_string_to_metric_families

from gpuserver.api import health_api
from gpuserver.errors import KeyRefused
from gpuserver.metrics import STAGES, Metrics
from tests.conftest import Serve

TIMELINE = {"transcript": 120, "first_token": 180, "first_audio": 300, "done": 40_000}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"gpuserver_{name}", labels)


def series(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a page by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_a_turn_is_counted_once_with_the_stages_it_reached() -> None:
    metrics = Metrics()
    metrics.observe_turn("voice", "failed", TIMELINE, "engine_stalled")
    assert value(metrics, "turns_total", kind="voice", status="failed") == 1
    assert value(metrics, "errors_total", code="engine_stalled") == 1
    for stage in STAGES:
        count = value(metrics, "turn_stage_seconds_count", stage=stage, kind="voice")
        assert count == (stage in TIMELINE), stage
        assert value(metrics, "turn_stage_seconds_count", stage=stage, kind="text") == 0


def test_stages_are_in_seconds_and_fall_between_5_ms_and_30_s() -> None:
    metrics = Metrics()
    metrics.observe_turn("text", "completed", TIMELINE)
    labels = {"stage": "first_audio", "kind": "text"}
    assert value(metrics, "turn_stage_seconds_sum", **labels) == pytest.approx(0.3)
    assert value(metrics, "turn_stage_seconds_bucket", le="0.2", **labels) == 0
    assert value(metrics, "turn_stage_seconds_bucket", le="0.3", **labels) == 1
    done = {"stage": "done", "kind": "text"}
    assert value(metrics, "turn_stage_seconds_bucket", le="30.0", **done) == 0
    assert value(metrics, "turn_stage_seconds_bucket", le="+Inf", **done) == 1


async def test_labels_are_bounded_whatever_is_counted() -> None:
    metrics = Metrics()
    metrics.observe_turn("text", "completed", {**TIMELINE, "passages": 1})
    metrics.count_error("busy")
    metrics.count_error("internal_error")
    before = set(series(await metrics.page()))
    for student in range(50):
        metrics.observe_turn("text", "completed", {f"stage-{student}": 1})
        metrics.count_error(f"pupil-{student}")
    page = await metrics.page()
    assert set(series(page)) == before
    assert value(metrics, "errors_total", code="internal_error") == 51
    assert b"pupil" not in page


def test_the_live_counters_count() -> None:
    metrics = Metrics()
    metrics.count_interruption("voice")
    metrics.count_interruption("message")
    metrics.count_interruption("message")
    metrics.count_false_alarm()
    metrics.count_skipped_audio(3)
    metrics.count_dropped_connection("stalled")
    metrics.count_resume(resumed=True)
    metrics.count_resume(resumed=False)
    metrics.count_resume(resumed=False)
    assert value(metrics, "interruptions_total", by="voice") == 1
    assert value(metrics, "interruptions_total", by="message") == 2
    assert value(metrics, "false_alarms_total") == 1
    assert value(metrics, "audio_skipped_total") == 3
    assert value(metrics, "connections_dropped_total", reason="stalled") == 1
    assert value(metrics, "resumes_total", resumed="true") == 1
    assert value(metrics, "resumes_total", resumed="false") == 2


async def test_gauges_are_read_at_each_scrape_on_the_loop() -> None:
    metrics = Metrics()
    readers: list[threading.Thread] = []
    sessions = [1, 2]

    def read() -> int:
        readers.append(threading.current_thread())
        return len(sessions)

    metrics.watch("sessions", read)
    assert series(await metrics.page())["gpuserver_sessions", ()] == 2
    sessions.clear()
    assert series(await metrics.page())["gpuserver_sessions", ()] == 0
    assert readers == [threading.main_thread()] * 2


async def test_the_process_tells_its_cpu_time_and_memory() -> None:
    samples = series(await Metrics().page())
    assert samples["process_cpu_seconds_total", ()] > 0
    assert samples["process_resident_memory_bytes", ()] > 1 << 20


def test_two_apps_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.count_false_alarm()
    assert value(other, "false_alarms_total") == 0


@dataclass
class _State:
    """What the door needs of an app; its guard wants one key."""

    metrics: Metrics

    def guard(self, request: Request) -> None:
        if request.headers.get("x-api-key") != "key":
            raise KeyRefused


async def test_the_door_is_guarded_and_gives_prometheus_its_format() -> None:
    app = FastAPI()
    app.include_router(health_api.router)
    app.state.gpuserver = _State(Metrics())
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        with pytest.raises(KeyRefused):
            await client.get("/metrics")
        answer = await client.get("/metrics", headers={"X-API-Key": "key"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert ("gpuserver_false_alarms_total", ()) in series(answer.content)


async def test_a_running_server_tells_its_sessions(serve: Serve) -> None:
    async with serve(management_api_key="key") as server, server.management("key") as management:
        await management.create_session()
        answer = await management.get("/metrics")
        assert answer.status_code == 200
        assert series(answer.content)["gpuserver_sessions", ()] == 1
        async with server.management("wrong") as stranger:
            assert (await stranger.get("/metrics")).status_code == 401


@dataclass
class _Model:
    """A runtime as the metrics see it."""

    name: str
    state: str = "ready"
    running: int = 2
    waiting: int = 1
    leases: int = 3
    memory_mb: int = 5
    gpu_memory_mb: Mapping[int, int] = field(default_factory=dict)


async def test_runtimes_are_shown_as_they_are_and_no_longer_than_they_are_there() -> None:
    metrics = Metrics()
    models = [_Model("vllm m/tiny", gpu_memory_mb={1: 7}), _Model("espeak", "restarting")]

    async def read() -> list[_Model]:
        return models

    metrics.watch_runtimes(read)
    page = series(await metrics.page())
    tiny = ("runtime", "vllm m/tiny")
    assert page["gpuserver_runtime_up", (tiny,)] == 1
    assert page["gpuserver_runtime_up", (("runtime", "espeak"),)] == 0
    assert page["gpuserver_runtime_running", (tiny,)] == 2
    assert page["gpuserver_runtime_waiting", (tiny,)] == 1
    assert page["gpuserver_runtime_leases", (tiny,)] == 3
    assert page["gpuserver_runtime_memory_bytes", (tiny,)] == 5 << 20
    assert page["gpuserver_runtime_gpu_memory_bytes", (("gpu", "1"), tiny)] == 7 << 20
    models.pop(0)
    assert not any(tiny in labels for _, labels in series(await metrics.page()))


async def test_the_work_of_a_runtime_is_counted_under_its_name() -> None:
    metrics = Metrics()
    meter = metrics.meter("vllm m/tiny")
    meter.tokens(3, prompt=10, cached=8)
    meter.first_token(0.1)
    meter.waited(0.2)
    meter.worked(1.0, 4.0)
    meter.worked(1.0, 0.0)
    meter.batch(6)
    meter.failed()
    name = {"runtime": "vllm m/tiny"}
    assert value(metrics, "runtime_tokens_total", kind="made", **name) == 3
    assert value(metrics, "runtime_tokens_total", kind="read", **name) == 10
    assert value(metrics, "runtime_tokens_total", kind="cached", **name) == 8
    assert value(metrics, "runtime_first_token_seconds_sum", **name) == pytest.approx(0.1)
    assert value(metrics, "runtime_wait_seconds_sum", **name) == pytest.approx(0.2)
    assert value(metrics, "runtime_real_time_factor_sum", **name) == pytest.approx(0.25)
    assert value(metrics, "runtime_real_time_factor_count", **name) == 1
    assert value(metrics, "runtime_batch_size_sum", **name) == 6
    assert value(metrics, "runtime_failures_total", **name) == 1
    # The same model loaded anew counts on.
    metrics.meter("vllm m/tiny").failed()
    assert value(metrics, "runtime_failures_total", **name) == 2
