"""Whether a model fits: what it needs, where it would go, and what would have to make room."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from gpuserver.config import Settings
from gpuserver.errors import ModelTooLarge, ProviderUnavailable
from gpuserver.language import Language
from gpuserver.machine import Host
from gpuserver.machine.gpus import Gpu
from gpuserver.machine.memory import Device, memory_of
from gpuserver.providers import RuntimeKey
from gpuserver.providers.weights import folder

LARGE: Final = frozenset({"vllm", "faster-whisper", "coqui", "sentence-transformers"})
"""Providers whose models are measured before a load and kept while they are idle. The others are
small, or only speak to a server."""
HOST: Final = -1
"""The host's memory, where a GPU has its index."""

_WEIGHTS: Final = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx"})
_OVERHEAD: Final = 1.2  # what a library and its working memory add to the weights
_CPU_CACHE_MB: Final = 1024
_MB: Final = 1 << 20
_FILES: Final = 1000

Usage = Mapping[int, int]
"""Megabytes by GPU, or of the `HOST`."""


@dataclass(frozen=True, slots=True)
class Need:
    """Megabytes on each of `devices`; with several `places` any of them will do.

    `mb` is None where the model's files can't be measured.
    """

    mb: int | None
    places: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a model goes and what is closed for it, in this order.

    `free_mb` is there now, `most_mb` once everything idle is closed; of several GPUs, on the
    fullest.
    """

    needs_mb: int | None
    free_mb: int
    most_mb: int
    place: tuple[int, ...]
    evict: tuple[RuntimeKey, ...] = ()

    @property
    def fits(self) -> bool:
        return self.needs_mb is None or self.needs_mb <= self.most_mb

    @property
    def device(self) -> Device:
        return "cpu" if self.place == (HOST,) else "cuda"

    def refusal(self, key: RuntimeKey) -> ModelTooLarge:
        """The error for one that does not fit."""
        return ModelTooLarge(
            model=str(key),
            needs_mb=self.needs_mb,
            free_mb=self.most_mb,
            device=memory_of(self.device),
        )

    def verdict(self, key: RuntimeKey) -> dict[Language, str]:
        """The answer as a sentence, by language."""
        device, needs, free = memory_of(self.device), self.needs_mb, self.free_mb
        if not self.fits:
            error = self.refusal(key)
            return {"en": error.sentence("en"), "zh": error.sentence("zh")}
        if needs is None:
            return {
                "en": f"The files of {key} can't be measured; whether it fits shows when it loads.",
                "zh": f"无法测量 {key} 的文件大小，加载时才能知道是否放得下。",
            }
        if not self.evict:
            return {
                "en": f"{key} fits: it needs about {needs} MB of {device} memory, {free} are free.",
                "zh": f"放得下：{key} 需要约 {needs} MB {device} 内存，空闲 {free} MB。",
            }
        others = ", ".join(map(str, self.evict))
        return {
            "en": f"{key} fits once what nobody uses is closed: {others}. It needs about {needs} "
            f"MB of {device} memory, {free} are free.",
            "zh": f"关闭无人使用的 {others} 后放得下：{key} 需要约 {needs} MB {device} 内存，"
            f"空闲 {free} MB。",
        }


def need(key: RuntimeKey, settings: Settings, gpus: Sequence[Gpu]) -> Need:
    """What a model takes; nothing worth asking for unless it is large. Blocks: it reads sizes."""
    if key.provider not in LARGE:
        return Need(0, ((HOST,),))
    weights = _weights_mb(key, settings)
    mb = None if weights is None else round(weights * _OVERHEAD)
    if not _on_gpu(key, settings, gpus):
        if mb is not None and key.provider == "vllm":
            mb += settings.llm_cache_mb or _CPU_CACHE_MB
        return Need(mb, ((HOST,),))
    if key.provider != "vllm":
        return Need(mb, tuple((gpu.index,) for gpu in gpus))
    together = gpus[: settings.llm_gpus]
    if settings.llm_cache_mb and mb is not None:
        mb = mb // len(together) + settings.llm_cache_mb
    elif not settings.llm_cache_mb:
        # It takes its share whatever the weights are: what they leave becomes its cache.
        mb = round(settings.llm_gpu_share * min(gpu.total_mb for gpu in together))
    return Need(mb, (tuple(gpu.index for gpu in together),))


def room(settings: Settings, host: Host, gpus: Iterable[Gpu], own: Iterable[Usage]) -> Usage:
    """What is left of each memory for one more model; `own`: what those loaded here use."""
    own = list(own)
    # A host that can't tell turns nothing away.
    left = {HOST: host.free_mb if host.total_mb else 1 << 40}
    for gpu in gpus:
        used = sum(usage.get(gpu.index, 0) for usage in own)
        left[gpu.index] = max(0, min(gpu.free_mb, allowed_mb(settings, gpu) - used))
    return left


def allowed_mb(settings: Settings, gpu: Gpu) -> int:
    """What this server may use of a GPU."""
    return min(settings.gpu_memory_mb or gpu.total_mb, gpu.total_mb)


def plan(need: Need, left: Usage, idle: Sequence[tuple[RuntimeKey, Usage]]) -> Fit:
    """The best of the places: one that fits, before one where less is closed, before the emptiest.

    `idle` is what may be closed, with what that frees, the one unused the longest first.
    """
    fits = [_plan_at(place, need.mb, left, idle) for place in need.places]
    return min(fits, key=lambda fit: (not fit.fits, len(fit.evict), -fit.free_mb))


def _plan_at(
    place: tuple[int, ...],
    mb: int | None,
    left: Usage,
    idle: Sequence[tuple[RuntimeKey, Usage]],
) -> Fit:
    free = {device: left.get(device, 0) for device in place}
    now = min(free.values())
    evict: list[RuntimeKey] = []
    for key, usage in idle:
        if mb is None or min(free.values()) >= mb:
            break
        if _frees(usage, place):
            evict.append(key)
            free = {device: amount + usage.get(device, 0) for device, amount in free.items()}
    return Fit(mb, now, min(free.values()), place, tuple(evict))


def _frees(usage: Usage, place: Collection[int]) -> bool:
    return any(usage.get(device, 0) > 0 for device in place)


def _on_gpu(key: RuntimeKey, settings: Settings, gpus: Sequence[Gpu]) -> bool:
    # DEVICE says nothing of vLLM, whose build decides; with PROFILE=cpu every build is a CPU's.
    anywhere = settings.device != "cpu" or key.provider == "vllm"
    return bool(gpus) and anywhere and settings.profile != "cpu"


def _weights_mb(key: RuntimeKey, settings: Settings) -> int | None:
    if not key.model:
        return None  # the provider's own, which is small
    # To measure is not to fetch.
    offline = settings.model_copy(update={"offline": True})
    try:
        folders = [folder(key.model, offline), *map(Path, key.adapters)]
    except ProviderUnavailable:
        return None
    return sum(map(_weights, folders)) // _MB or None


def _weights(files: Path) -> int:
    """Bytes of the weights in a folder or, where it has none itself, in the folders in it."""
    here = list(_listed(files))
    for within in ([files], [path for path in here if path.is_dir()]):
        sizes: dict[str, int] = {}
        for file in (file for parent in within for file in _listed(parent)):
            if file.suffix in _WEIGHTS and file.is_file():
                sizes[file.suffix] = sizes.get(file.suffix, 0) + file.stat().st_size
        if sizes:
            # The same weights may lie there in several formats.
            return max(sizes.values())
    return 0


def _listed(files: Path) -> Iterator[Path]:
    try:
        yield from islice(files.iterdir(), _FILES)
    except OSError:
        return
