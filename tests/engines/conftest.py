"""Fixtures of the second pass: tiny models, built once and kept in the user's cache."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpuserver.config import DEFAULTS
from gpuserver.metrics import Meter
from gpuserver.providers import Place, RuntimeKey
from gpuserver.providers.table import find


@pytest.fixture(scope="session")
def tiny_chat() -> Any:
    """The builder of tiny chat models; it takes torch, which most tests do without."""
    return importlib.import_module("tests.engines.tiny_chat")


@pytest.fixture(scope="session")
def chat_model(tiny_chat: Any) -> Path:
    """The folder of a tiny random Qwen2 with a chat template; a context of 4,096 tokens."""
    folder: Path = tiny_chat.chat_model()
    return folder


@pytest.fixture(scope="session")
def adapters(tiny_chat: Any) -> Mapping[str, Path]:
    """LoRA adapters for `chat_model`: with "ada" it says only "Ada ", with "bo" only "Bo "."""
    return {name: tiny_chat.adapter(name) for name in tiny_chat.SAYS}


@pytest.fixture(scope="session")
def thinking_model(tiny_chat: Any) -> Path:
    """The folder of a tiny model that thinks "OneTwoThree" and then says "TickTockTick…"."""
    folder: Path = tiny_chat.thinking_model()
    return folder


@dataclass
class Recorded(Meter):
    """A meter that keeps everything it is told, in order."""

    tokens_of: list[tuple[int, int, int]] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    failures: int = 0

    def tokens(self, made: int, prompt: int = 0, cached: int = 0) -> None:
        self.tokens_of.append((made, prompt, cached))

    def first_token(self, seconds: float) -> None:
        self.first_tokens.append(seconds)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def batch(self, size: int) -> None:
        self.batches.append(size)

    def failed(self) -> None:
        self.failures += 1


@dataclass(frozen=True)
class Vllm:
    """A `vllm` provider, loaded, and the meter it counts by."""

    llm: Any
    meter: Recorded


MakeVllm = Callable[..., Vllm]


@pytest.fixture(scope="session")
def make_vllm(tmp_path_factory: pytest.TempPathFactory) -> MakeVllm:
    """`make_vllm(model, adapters, llm_running=2)`: a provider with those settings, not loaded."""

    def make(model: Path, adapters: tuple[str, ...] = (), **given: Any) -> Vllm:
        data_dir = tmp_path_factory.mktemp("vllm")
        settings = DEFAULTS.model_copy(update={"data_dir": data_dir, "llm_cache_mb": 256, **given})
        meter = Recorded()
        place = Place(data_dir, settings, adapters, meter)
        return Vllm(find(RuntimeKey("llm", "vllm"))(str(model), place), meter)

    return make


@pytest.fixture(scope="session")
def vllm(make_vllm: MakeVllm, chat_model: Path, adapters: Mapping[str, Path]) -> Iterator[Vllm]:
    """An engine with both adapters: 8 questions at once, 24 waiting. Of the session's loop."""
    made = make_vllm(chat_model, tuple(map(str, adapters.values())), llm_running=8, llm_waiting=24)
    made.llm.load()
    yield made
    made.llm.close()
