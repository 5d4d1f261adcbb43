"""The door to the models and what readiness says of them: real engines, and scripted ones."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpuserver.client import Management, converse
from gpuserver.config import Settings
from gpuserver.errors import EngineFailed, ProviderUnavailable
from gpuserver.providers import Place, RuntimeKey, Status
from gpuserver.tutor.tutoring import Tutoring
from tests.conftest import Running, Serve, local_http
from tests.fakes import Cast, ScriptedLLM

VOICE = {"kind": "tts", "provider": "espeak", "model": "en-gb"}
VOICE_ID = "tts:espeak:en-gb"


@pytest.fixture
async def api(server: Running) -> AsyncIterator[httpx2.AsyncClient]:
    base = f"{server.url}/mgmt/v1"
    async with local_http(base) as client:
        yield client


async def rows(api: httpx2.AsyncClient) -> dict[str, Any]:
    return {row["id"]: row for row in (await api.get("/models")).json()["models"]}


async def load(api: httpx2.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    answer = await api.post("/models/load", json=body)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.slow
async def test_what_is_loaded_is_listed_with_whom_it_serves_and_what_it_takes(
    api: httpx2.AsyncClient,
) -> None:
    answer = (await api.get("/models")).json()
    assert answer["gpus"] == []
    assert answer["host"]["total_mb"] == answer["host"]["free_mb"] + answer["host"]["used_mb"]
    assert answer["disk"]["free_mb"] > 0
    listed = {row["id"]: row for row in answer["models"]}
    kinds = {row["kind"] for row in listed.values()}
    assert kinds >= {"llm", "asr", "tts", "vad", "embeddings"}
    voice = listed["tts:espeak:"]
    assert voice["state"] == "ready"
    assert voice["problem"] is None
    assert voice["tutors"]
    assert voice["leases"] >= 1
    assert voice["memory_mb"] > 0, "the worker's memory counts"
    assert voice["load_seconds"] > 0
    assert voice["loaded_at"]


@pytest.mark.slow
async def test_a_model_is_loaded_step_by_step_kept_pinned_and_unloaded(
    api: httpx2.AsyncClient,
) -> None:
    fit = (await api.post("/models/fit", json=VOICE)).json()
    assert (fit["fits"], fit["device"], fit["would_evict"]) == (True, "cpu", [])
    assert "en-gb" in fit["sentence"]
    assert "en-gb" in fit["sentence_zh"]
    *steps, last = await load(api, **VOICE)
    assert [step["stage"] for step in steps] == ["fitting", "loading"]
    assert last["stage"] == "ready"
    assert last["model"]["id"] == VOICE_ID
    assert last["model"]["leases"] == 0
    again = await load(api, **VOICE)
    assert [step["stage"] for step in again] == ["ready"]
    assert again[0]["model"]["loaded_at"] == last["model"]["loaded_at"]
    pinned = (await api.post("/models/pin", json={"id": VOICE_ID, "pinned": True})).json()
    assert pinned["pinned"] is True
    assert (await rows(api))[VOICE_ID]["pinned"] is True
    assert (await api.post("/models/unload", json={"id": VOICE_ID})).json() == {"unloaded": True}
    assert VOICE_ID not in await rows(api)
    for path, body in (("/models/unload", {}), ("/models/pin", {"pinned": True})):
        gone = await api.post(path, json={"id": VOICE_ID, **body})
        assert (gone.status_code, gone.json()["code"]) == (404, "model_not_loaded")


@pytest.mark.slow
async def test_a_model_in_use_is_refused_with_those_who_use_it(
    api: httpx2.AsyncClient, server: Running
) -> None:
    async with Management(server.url) as management:
        ticket = await management.create_session(tutor_id=4711)
        async with converse(ticket) as conversation:
            await conversation.until("session.ready")
            refused = await api.post("/models/unload", json={"id": VOICE_ID})
            assert (refused.status_code, refused.json()["code"]) == (409, "model_in_use")
            assert [tutor["id"] for tutor in refused.json()["tutors"]] == [4711]
            assert refused.json()["tutors"][0]["name"] in refused.json()["detail"]
        await management.delete_session(ticket.session_id)
    async with asyncio.timeout(10):
        # The tutor's engine is kept for the next student, but gives the model up when asked.
        while (await api.post("/models/unload", json={"id": VOICE_ID})).status_code != 200:
            await asyncio.sleep(0.02)
    assert VOICE_ID not in await rows(api)
    default = await api.post("/models/unload", json={"id": "tts:espeak:"})
    assert default.status_code == 409


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        {"kind": "tts", "provider": "espeak", "model": "../../etc"},
        {"kind": "tts", "provider": "coqui", "model": "/etc"},
        {"kind": "llm", "provider": "vllm", "model": ".."},
        {"kind": "llm", "provider": "vllm", "model": "a\x00b"},
        {"kind": "llm", "provider": "vllm", "model": "a" * 400},
        {"kind": "llm", "provider": "os", "model": "system"},
        {"kind": "tts", "provider": "vllm", "model": ""},
    ],
)
async def test_only_known_models_are_loaded(api: httpx2.AsyncClient, body: Any) -> None:
    for path in ("/models/load", "/models/fit"):
        answer = await api.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "model_unknown")


@pytest.mark.slow
async def test_what_lies_in_the_folder_of_models_may_be_loaded(
    api: httpx2.AsyncClient, server: Running
) -> None:
    folder = server.log.parent / "data" / "models" / "org--tiny"
    await asyncio.to_thread(folder.mkdir, parents=True)
    for model in ("org/tiny", "org--tiny", str(folder)):
        name = {"kind": "asr", "provider": "faster-whisper", "model": model}
        assert (await api.post("/models/fit", json=name)).json()["fits"] is True


@pytest.mark.slow
@pytest.mark.parametrize("model", ["x" * 501, 7, None])
async def test_names_are_bounded(api: httpx2.AsyncClient, model: Any) -> None:
    answer = await api.post("/models/load", json={**VOICE, "model": model})
    assert answer.status_code == 422


async def test_every_call_wants_the_management_key(serve: Serve) -> None:
    calls = [
        ("GET", "/models"),
        *(("POST", f"/models/{x}") for x in ("fit", "load", "unload", "pin")),
    ]
    async with serve(management_api_key="key") as server:
        base = f"{server.url}/mgmt/v1"
        async with local_http(base) as stranger:
            for method, path in calls:
                body = {**VOICE, "id": VOICE_ID, "pinned": True} if method == "POST" else None
                answer = await stranger.request(method, path, json=body)
                assert answer.status_code == 401, path


async def test_a_caller_who_leaves_stops_no_load_and_a_failed_one_is_told(
    serve: Serve, cast: Cast
) -> None:
    overrides = {9: {"tts_model": "other"}}
    async with serve(tutor_overrides=overrides) as server:
        base = f"{server.url}/mgmt/v1"
        body = {"kind": "tts", "provider": "espeak", "model": "other"}
        async with local_http(base) as api:
            cast.tts.load_gate.clear()
            async with api.stream("POST", "/models/load", json=body) as answer:
                async for line in answer.aiter_lines():
                    assert json.loads(line) == {"stage": "fitting", "share": None}
                    break
            loading = (await rows(api))["tts:espeak:other"]
            assert loading["state"] == "loading"
            cast.tts.load_gate.set()
            async with asyncio.timeout(5):
                while (await rows(api))["tts:espeak:other"]["state"] != "ready":
                    await asyncio.sleep(0.01)
            await api.post("/models/unload", json={"id": "tts:espeak:other"})
            cast.tts.load_failure = ProviderUnavailable(problem="No voice.", fix="none.")
            last = (await load(api, **body))[-1]
            assert last == {
                "error": {"code": "provider_unavailable", "detail": "No voice. Fix: none."}
            }
            failed = (await rows(api))["tts:espeak:other"]
            assert (failed["state"], failed["problem"]) == ("failed", "No voice. Fix: none.")
            assert (
                await api.post("/models/unload", json={"id": "tts:espeak:other"})
            ).status_code == 200
            assert "tts:espeak:other" not in await rows(api)


async def test_a_load_that_goes_on_is_ended_with_the_server(serve: Serve, cast: Cast) -> None:
    async with serve(tutor_overrides={9: {"tts_model": "other"}}) as server:
        base = f"{server.url}/mgmt/v1"
        cast.tts.load_gate = threading.Event()
        body = {"kind": "tts", "provider": "espeak", "model": "other"}
        async with local_http(base) as api:
            async with api.stream("POST", "/models/load", json=body):
                while cast.tts.loads < 2:
                    await asyncio.sleep(0.005)
        asyncio.get_running_loop().call_later(0.05, cast.tts.load_gate.set)
    assert cast.tts.closes == cast.tts.loads == 2


# Readiness


@dataclass
class WatchedLLM(ScriptedLLM):
    """`Watched`: it is as the test says."""

    state: Status = field(default_factory=Status)
    failure: EngineFailed | None = None

    def status(self) -> Status:
        return self.state

    async def probe(self) -> None:
        if self.failure is not None:
            raise self.failure


async def test_a_model_that_does_not_work_takes_readiness_away_until_it_does(
    serve: Serve, cast: Cast
) -> None:
    cast.llm = llm = WatchedLLM()
    async with serve() as server, server.management() as management:
        assert (await management.get("/ready")).status_code == 200
        llm.state = Status("restarting")
        answer = await management.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["stage"] == "llm"
        assert "started again" in answer.json()["reason"]
        health = (await management.get("/health")).json()
        assert (health["ready"], health["degraded"]) == (False, ["llm"])
        up = await gauge(management, "gpuserver_runtime_up")
        assert [value for name, value in up.items() if "extractive" in name] == [0]
        llm.state = Status("asleep")
        llm.state = Status()
        async with asyncio.timeout(10):
            while (await management.get("/ready")).status_code != 200:
                await asyncio.sleep(0.02)
        assert (await management.get("/health")).json()["degraded"] == []


async def test_where_another_model_stands_in_it_is_degraded_and_ready(
    make_settings: Callable[..., Settings], cast: Cast
) -> None:
    watched = WatchedLLM()

    def find(key: RuntimeKey) -> Callable[[str, Place], Any]:
        return watched if key.provider == "openai" else cast.find(key)

    settings = make_settings(llm_base_url="http://127.0.0.1:1/v1", llm_fallback=("extractive",))
    house = await asyncio.to_thread(lambda: Tutoring(settings, factory=find))
    await house.load()
    try:
        watched.state = Status("restarting")
        condition = house.condition()
        assert condition.failing == {}
        assert "started again" in condition.degraded["llm"]
    finally:
        await house.close()


async def gauge(management: Management, name: str) -> dict[str, float]:
    page = (await management.get("/metrics")).text
    return {
        sample.labels["runtime"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.slow
async def test_a_voice_that_dies_is_seen_within_seconds_and_comes_back(
    api: httpx2.AsyncClient, server: Running
) -> None:
    """A real process, killed while nobody asks it anything."""
    async with Management(server.url) as management:
        assert (await gauge(management, "gpuserver_runtime_memory_bytes"))["espeak"] > 1 << 20
        os.kill(await asyncio.to_thread(_child, server.pid, "espeak"), signal.SIGKILL)
        async with asyncio.timeout(10):
            while (answer := await management.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)
            assert answer.json()["stage"] == "tts"
            while (await management.get("/ready")).status_code != 200:
                await asyncio.sleep(0.05)
        assert (await rows(api))["tts:espeak:"]["state"] == "ready"


def _child(parent: int, engine: str) -> int:
    """The process id of a worker, by what it has open: only espeak's has its library mapped."""
    for process in Path("/proc").iterdir():
        try:
            stat = (process / "stat").read_text()
            if int(stat.rsplit(")", 1)[1].split()[1]) != parent:
                continue
            if engine in (process / "maps").read_text():
                return int(process.name)
        except (OSError, IndexError):
            continue
    raise AssertionError(f"no {engine} process")
