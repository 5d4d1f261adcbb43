"""The door to the models: what is loaded and what it takes; load, pin and unload by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from gpuserver.api.security import Guarded
from gpuserver.api.state import state_of
from gpuserver.errors import GpuServerError, ModelInUse
from gpuserver.providers import Kind, RuntimeKey
from gpuserver.runtimes.entry import Row, Stage, runtime_id
from gpuserver.runtimes.fitting import allowed_mb
from gpuserver.tutor.models import Models
from gpuserver.tutor.tutors import Tutor

_ID: Final = 600

ModelId = Annotated[str, Field(max_length=_ID)]


class ModelName(BaseModel):
    """A model as settings name it. It is configured, or it lies in the folder of models."""

    kind: Kind
    provider: Annotated[str, Field(max_length=40)]
    model: Annotated[str, Field(max_length=500)] = ""


class NewModel(ModelName):
    """A model to load; `pin` keeps it whatever else needs memory."""

    pin: bool = False


class ModelRef(BaseModel):
    id: ModelId


class Pin(ModelRef):
    pinned: bool


class TutorRef(BaseModel):
    id: int
    name: str


class ModelInfo(BaseModel):
    """A runtime. Memory in megabytes, by the index of the GPU; durations in seconds."""

    id: str
    kind: str
    provider: str
    model: str
    adapters: list[str]
    state: Literal["loading", "ready", "asleep", "restarting", "failed"]
    stage: Stage | None
    share: float | None
    problem: str | None
    pinned: bool
    tutors: list[TutorRef]
    leases: int
    running: int
    waiting: int
    memory_mb: int
    gpu_memory_mb: dict[int, int]
    loaded_at: datetime | None
    idle_seconds: float
    load_seconds: float

    @classmethod
    def of(cls, row: Row, tutors: list[Tutor]) -> ModelInfo:
        key = row.key
        return cls(
            id=runtime_id(key),
            kind=key.kind,
            provider=key.provider,
            model=key.model,
            adapters=[PurePath(adapter).name for adapter in key.adapters],
            state=row.state,
            stage=row.stage,
            share=row.share,
            problem=row.problem.sentence("en") if row.problem else None,
            pinned=row.pinned,
            tutors=_refs(tutors),
            leases=row.leases,
            running=row.running,
            waiting=row.waiting,
            memory_mb=row.memory_mb,
            gpu_memory_mb=dict(row.gpu_memory_mb),
            loaded_at=row.loaded_at,
            idle_seconds=round(row.idle_seconds, 1),
            load_seconds=round(row.load_seconds, 2),
        )


class GpuInfo(BaseModel):
    index: int
    name: str
    total_mb: int
    free_mb: int
    allowed_mb: int


class HostInfo(BaseModel):
    total_mb: int
    free_mb: int
    used_mb: int


class DiskInfo(BaseModel):
    folder: str
    free_mb: int
    models_mb: int


class ModelTable(BaseModel):
    models: list[ModelInfo]
    gpus: list[GpuInfo]
    host: HostInfo
    disk: DiskInfo


class FitInfo(BaseModel):
    """`needs_mb` is null where the model's files can't be measured: then it is tried."""

    fits: bool
    needs_mb: int | None
    free_mb: int
    device: Literal["cpu", "cuda"]
    sentence: str
    sentence_zh: str
    would_evict: list[str]


class Unloaded(BaseModel):
    unloaded: Literal[True] = True


class _Step(BaseModel):
    stage: Stage
    share: float | None


class _Loaded(BaseModel):
    stage: Literal["ready"] = "ready"
    model: ModelInfo


class _Problem(BaseModel):
    code: str
    detail: str


class _NotLoaded(BaseModel):
    error: _Problem


router = APIRouter()


@router.get("/models")
async def list_models(request: Request, _: Guarded) -> ModelTable:
    """What is loaded, what each takes, and what the machine has left."""
    state = state_of(request)
    table = await state.tutoring.models.table()
    return ModelTable(
        models=[ModelInfo.of(row, tutors) for row, tutors in table.rows],
        gpus=[
            GpuInfo(
                index=gpu.index,
                name=gpu.name,
                total_mb=gpu.total_mb,
                free_mb=gpu.free_mb,
                allowed_mb=allowed_mb(state.settings, gpu),
            )
            for gpu in table.gpus
        ],
        host=HostInfo(
            total_mb=table.host.total_mb,
            free_mb=table.host.free_mb,
            used_mb=table.host.total_mb - table.host.free_mb,
        ),
        disk=DiskInfo(
            folder=str(table.folder), free_mb=table.disk.free_mb, models_mb=table.disk.models_mb
        ),
    )


@router.post("/models/fit")
async def fit_model(name: ModelName, request: Request, _: Guarded) -> FitInfo:
    """Whether a model would fit, and which idle ones would be closed for it."""
    models = state_of(request).tutoring.models
    key = await models.key(name.kind, name.provider, name.model)
    fit = await models.fit(key)
    evict = [runtime_id(other) for other in fit.evict] if fit.fits else []
    verdict = fit.verdict(key)
    return FitInfo(
        fits=fit.fits,
        needs_mb=fit.needs_mb,
        free_mb=fit.free_mb,
        device=fit.device,
        sentence=verdict["en"],
        sentence_zh=verdict["zh"],
        would_evict=evict,
    )


@router.post("/models/load", response_class=StreamingResponse)
async def load_model(new: NewModel, request: Request, _: Guarded) -> StreamingResponse:
    """Load a model and tell of it line by line; it goes on if the caller leaves."""
    models = state_of(request).tutoring.models
    key = await models.key(new.kind, new.provider, new.model)
    lines = _lines(models, key, new.pin)
    return StreamingResponse(lines, media_type="application/x-ndjson")


async def _lines(models: Models, key: RuntimeKey, pin: bool) -> AsyncIterator[str]:
    def line(content: BaseModel) -> str:
        return content.model_dump_json() + "\n"

    try:
        async with aclosing(models.load(key, pin=pin)) as steps:
            async for stage, share in steps:
                yield line(_Step(stage=stage, share=share))
        yield line(_Loaded(model=ModelInfo.of(*await models.row(key))))
    except GpuServerError as error:
        yield line(_NotLoaded(error=_Problem(code=error.code, detail=error.sentence("en"))))


@router.post("/models/unload", response_model=Unloaded)
async def unload_model(ref: ModelRef, request: Request, _: Guarded) -> Unloaded | JSONResponse:
    """Close a model that nobody uses; 409 with the tutors that do."""
    try:
        await state_of(request).tutoring.models.unload(ref.id)
    except ModelInUse as error:
        users: Any = error.details["tutors"]
        body = {"detail": error.sentence("en"), "code": error.code}
        tutors = [ref.model_dump() for ref in _refs(users)]
        return JSONResponse({**body, "tutors": tutors}, error.status)
    return Unloaded()


@router.post("/models/pin")
async def pin_model(pin: Pin, request: Request, _: Guarded) -> ModelInfo:
    """Keep a model whatever else needs memory, or no longer; until the server ends."""
    models = state_of(request).tutoring.models
    return ModelInfo.of(*await models.pin(pin.id, pinned=pin.pinned))


def _refs(tutors: list[Tutor]) -> list[TutorRef]:
    return [TutorRef(id=tutor.id, name=tutor.name) for tutor in tutors]
