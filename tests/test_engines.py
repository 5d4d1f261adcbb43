"""Shared runtimes and the cache of engines: built once, kept while used, nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from gpuserver import config
from gpuserver.config import Settings
from gpuserver.errors import (
    ConfigurationError,
    GpuServerError,
    ProviderUnavailable,
    TutorNotFound,
)
from gpuserver.providers import Place, RuntimeKey
from gpuserver.providers.table import PROVIDERS, find
from gpuserver.runtimes.fitting import LARGE
from gpuserver.runtimes.runtimes import Runtimes
from gpuserver.tutor.ai_engine import Engines
from gpuserver.tutor.tutoring import Progress, Tutoring
from gpuserver.tutor.tutors import Catalogue
from gpuserver.unified_server import create_app
from tests.fakes import Cast

KEY = RuntimeKey("llm", "scripted", "a")
OTHER = {7: {"llm_provider": "openai", "llm_model": "other", "tts_model": "other"}}
"""A tutor with models of its own: the default tutor's stay loaded."""


class Slow:
    """A runtime that counts, and loads until it is let go."""

    def __init__(self, fail: bool = False) -> None:
        self.let_go = threading.Event()
        self.fail = fail
        self.loads = self.closes = 0

    def __call__(self, model: str, place: Place) -> Any:
        return self

    def load(self) -> None:
        self.loads += 1
        assert self.let_go.wait(5)
        if self.fail:
            raise ProviderUnavailable(problem="No.", fix="none.")

    def close(self) -> None:
        self.closes += 1


def runtimes(slow: Slow, tmp_path: Path) -> Runtimes:
    return Runtimes(Place(tmp_path), lambda key: slow)


async def test_a_model_is_loaded_once_and_closed_with_its_last_lease(tmp_path: Path) -> None:
    slow = Slow()
    slow.let_go.set()
    shared = runtimes(slow, tmp_path)
    got = await asyncio.gather(*(shared.acquire(KEY) for _ in range(20)))
    assert slow.loads == 1
    assert len(set(map(id, got))) == 1
    assert shared.loaded() == {KEY: 20}
    for _ in range(19):
        await shared.release(KEY)
    assert slow.closes == 0
    await shared.release(KEY)
    assert slow.closes == 1
    assert shared.loaded() == {}


async def test_a_failed_load_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    slow = Slow(fail=True)
    slow.let_go.set()
    shared = runtimes(slow, tmp_path)
    for attempt in (1, 2):
        with pytest.raises(ProviderUnavailable):
            await shared.acquire(KEY)
        assert (slow.loads, slow.closes) == (attempt, attempt)
        assert shared.loaded() == {}


async def test_a_small_model_that_nobody_waits_for_any_more_is_closed(tmp_path: Path) -> None:
    slow = Slow()
    shared = runtimes(slow, tmp_path)
    task = asyncio.create_task(shared.acquire(KEY))
    while not slow.loads:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.closes == 0
    slow.let_go.set()
    async with asyncio.timeout(5):
        while not slow.closes or await shared.rows():
            await asyncio.sleep(0.001)
    assert shared.loaded() == {}


@pytest.mark.parametrize("kind", PROVIDERS)
def test_every_provider_of_the_table_can_be_found(kind: Any) -> None:
    for name, place in PROVIDERS[kind].items():
        assert find_spec(place.partition(":")[0]), place
        # The libraries of the large ones are in an environment of their own.
        if name not in {*LARGE, "faiss"}:
            assert find(RuntimeKey(kind, name)).__name__


def test_an_unknown_provider_says_what_there_is() -> None:
    with pytest.raises(ProviderUnavailable, match="LLM_PROVIDER to one of: auto, extractive"):
        find(RuntimeKey("llm", "gpt"))


@pytest.fixture
async def tutoring(
    cast: Cast, make_settings: Callable[..., Settings]
) -> AsyncIterator[Callable[..., Any]]:
    made: list[Tutoring] = []

    async def make(**given: Any) -> Tutoring:
        house = await asyncio.to_thread(lambda: Tutoring(make_settings(**given), factory=cast.find))
        made.append(house)
        await house.load()
        return house

    yield make
    for house in made:
        await house.close()


async def test_fifty_leases_are_one_build(tutoring: Any, cast: Cast) -> None:
    engines: Engines = (await tutoring(tutor_overrides=OTHER)).engines
    before = cast.llm.loads

    async def use() -> int:
        async with engines.lease(7) as engine:
            await asyncio.sleep(0.01)
            return id(engine)

    assert len(set(await asyncio.gather(*(use() for _ in range(50))))) == 1
    assert cast.llm.loads == before + 1


async def test_idle_engines_beyond_the_limit_are_dropped_oldest_first(tutoring: Any) -> None:
    overrides = {n: {"llm_provider": "openai", "llm_model": f"m{n}"} for n in range(10, 15)}
    house = await tutoring(engine_cache_size=2, tutor_overrides=overrides)
    async with house.engines.lease(10) as kept:
        for tutor_id in range(11, 15):
            await house.engines.get_ai_engine(tutor_id)
        assert len(house.engines) == 3
        assert await house.engines.get_ai_engine(10) is kept
    assert len(house.engines) == 2
    models = {key.model for key in house.runtimes.loaded() if key.kind == "llm"}
    assert models in ({"", "m10", "m14"}, {"", "m13", "m14"})


async def test_whoever_is_cancelled_while_an_engine_closes_keeps_none_of_its_models(
    tutoring: Any,
) -> None:
    house = await tutoring(tutor_overrides=OTHER)
    before = house.runtimes.loaded()
    await house.engines.get_ai_engine(7)
    assert house.runtimes.loaded() != before
    removing = asyncio.create_task(house.engines.remove(7))
    await asyncio.sleep(0)  # the first of them is being closed in a thread
    removing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removing
    assert house.runtimes.loaded() == before


async def test_a_failed_build_leaves_nothing_behind(tutoring: Any, cast: Cast) -> None:
    house = await tutoring(tutor_overrides=OTHER)
    loaded = house.runtimes.loaded()
    cast.tts.load_failure = ProviderUnavailable(problem="No voice.", fix="none.")
    for _ in range(2):
        with pytest.raises(ProviderUnavailable, match="No voice"):
            await house.engines.get_ai_engine(7)
        assert len(house.engines) == 1
        assert house.runtimes.loaded() == loaded
    # Other tutors teach on.
    assert await house.engines.get_ai_engine(1)
    cast.tts.load_failure = None
    assert await house.engines.get_ai_engine(7)


async def test_the_default_tutors_models_stay_and_closing_frees_everything(
    tutoring: Any, cast: Cast
) -> None:
    house = await tutoring(tutor_overrides=OTHER)
    await house.engines.get_ai_engine(7)
    await house.engines.remove(1)
    assert {key.model for key in house.runtimes.loaded()} == {"", "other"}
    await house.close()
    assert house.runtimes.loaded() == {}
    for fake in (cast.llm, cast.asr, cast.tts, cast.vad, cast.embeddings):
        assert fake.loads == fake.closes


async def test_loading_reports_progress_and_ends_ready(
    cast: Cast, make_settings: Callable[..., Settings]
) -> None:
    seen: list[Progress] = []
    house = await asyncio.to_thread(lambda: Tutoring(make_settings(), seen.append, cast.find))
    await house.load()
    await house.close()
    assert [step.stage for step in seen][-2:] == ["warm-up", "ready"]
    assert any(step.stage == "course" and step.total == 2 for step in seen)
    assert [step.ready for step in seen] == [False] * (len(seen) - 1) + [True]


def catalogue(tmp_path: Path, content: str, *, refuse: bool = False) -> Catalogue:
    file = tmp_path / "tutors.yaml"
    file.write_text(content, encoding="utf-8")
    unknown = "refuse" if refuse else "default"
    return Catalogue(config.load(None, tutors_file=file, unknown_tutor=unknown)[0])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "valid dictionary"),
        ("tutors: []", "tutors"),
        ("tutors: [", "YAML"),
        ("tutors: [{id: 1}]", "name"),
        ("tutors: [{id: one, name: A}]", "tutors.0.id"),
        ("tutors: [{id: 1, name: A, wings: 2}]", "wings"),
        ("tutors: [{id: 1, name: A}, {id: 1, name: B}]", "same id"),
        ("tutors: [{id: 1, name: A, knowledge: [../x]}]", "'../x' is neither"),
        ("{default: 9, tutors: [{id: 1, name: A}]}", "default tutor 9"),
        ("tutors: [{id: 1, name: A, speed: 9}]", "speed"),
        ("tutors: [{id: 1, name: A, language: fr}]", "language"),
        ("tutors: [{id: 1, name: A, models: {llm: {provider: gpt}}}]", "'gpt'"),
    ],
)
def test_what_is_wrong_in_the_tutors_file_is_said(
    tmp_path: Path, content: str, problem: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        catalogue(tmp_path, content)
    assert problem in str(error.value)
    assert "Fix:" in str(error.value)


def test_a_tutor_may_have_an_uploaded_knowledge_base(tmp_path: Path) -> None:
    own = catalogue(tmp_path, "tutors: [{id: 1, name: A, knowledge: [mechanics]}]")
    assert own.default.knowledge == ("mechanics",)


def test_a_tutor_may_switch_its_ear_and_voice_off(tmp_path: Path) -> None:
    quiet = catalogue(
        tmp_path,
        "tutors: [{id: 1, name: A, models: {asr: {provider: none}, tts: {provider: none}}}]",
    )
    assert quiet.runtime_keys(quiet.default).keys() == {"llm", "vad"}


def test_what_takes_no_model_is_shown_without_one(make_settings: Callable[..., Settings]) -> None:
    catalogue = Catalogue(make_settings(profile="embedded", llm_model="school/large"))
    assert str(catalogue.runtime_keys(catalogue.default)["llm"]) == "extractive"


def test_an_unlisted_tutor_is_the_default_or_refused(tmp_path: Path) -> None:
    two = "{default: 2, tutors: [{id: 1, name: A}, {id: 2, name: B}]}"
    assert catalogue(tmp_path, two).resolve(77).name == "B"
    with pytest.raises(TutorNotFound):
        catalogue(tmp_path, two, refuse=True).resolve(77)


def test_one_string_is_meant_for_the_tutors_own_language(tmp_path: Path) -> None:
    tutor = catalogue(
        tmp_path, "tutors: [{id: 1, name: 林, language: zh, greeting: 你好, voices: cmn}]"
    ).default
    assert tutor.greet() == "你好"
    assert tutor.voices == {"zh": "cmn"}


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ZeroDivisionError("secret"), "ZeroDivisionError"),
        (ProviderUnavailable(problem="No weights.", fix="get some."), "No weights. Fix: get some."),
    ],
)
async def test_a_server_that_can_not_load_ends_instead_of_looking_healthy(
    cast: Cast, make_settings: Callable[..., Settings], failure: Exception, said: str
) -> None:
    cast.embeddings.load_failure = failure
    fatal: asyncio.Queue[GpuServerError] = asyncio.Queue()

    def assemble() -> FastAPI:
        settings = make_settings()
        return create_app(settings, Tutoring(settings, factory=cast.find), fatal.put_nowait)

    app = await asyncio.to_thread(assemble)
    async with app.router.lifespan_context(app), asyncio.timeout(5):
        assert said in str(await fatal.get())


async def test_a_server_that_is_stopped_does_not_wait_for_what_it_loads(
    cast: Cast, make_settings: Callable[..., Settings]
) -> None:
    closed = threading.Event()

    class Endless(Slow):
        def load(self) -> None:
            self.loads += 1
            assert closed.wait(20)
            raise ProviderUnavailable(problem="It was closed.", fix="load it again.")

        def close(self) -> None:
            closed.set()

    endless = Endless()

    def assemble() -> FastAPI:
        settings = make_settings()
        find = lambda key: endless if key.kind == "llm" else cast.find(key)  # noqa: E731
        return create_app(settings, Tutoring(settings, factory=find))

    app = await asyncio.to_thread(assemble)
    async with asyncio.timeout(10):
        async with app.router.lifespan_context(app):
            while not endless.loads:
                await asyncio.sleep(0.001)
