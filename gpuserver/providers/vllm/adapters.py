"""LoRA adapters of a chat model, checked before the engine starts: a damaged one would end it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from gpuserver.errors import ProviderUnavailable
from gpuserver.providers.vllm.upstream import LoRARequest

_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"
_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for."""
_PREFIX: Final = "base_model.model."


class Adapters:
    """The adapters of one model by their folders, each under an id that stays the same."""

    def __init__(self, folders: Sequence[str], model: Path) -> None:
        """Reads the headers of all files. Raises ProviderUnavailable for one that is damaged, or
        an adapter that does not fit the model."""
        shapes = dict(_shapes(model))
        ranks = [_rank(Path(folder), shapes) for folder in folders]
        self.rank = next(rank for rank in _RANKS if rank >= max(ranks, default=0))
        self._requests = {
            folder: LoRARequest(f"adapter-{n}", n, folder) for n, folder in enumerate(folders, 1)
        }

    def __iter__(self) -> Iterator[LoRARequest]:
        return iter(self._requests.values())

    def __len__(self) -> int:
        return len(self._requests)

    def get(self, folder: str) -> LoRARequest | None:
        """What vLLM is told of an adapter; None for "". Raises KeyError for one not announced."""
        return self._requests[folder] if folder else None


def _rank(folder: Path, model: Mapping[str, Sequence[int]]) -> int:
    """The rank of the adapter in a folder. Raises ProviderUnavailable."""
    try:
        about = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        weights = dict(_tensors(folder / _WEIGHTS))
    except FileNotFoundError as error:
        raise _unusable(folder, f"lacks {Path(str(error.filename or _WEIGHTS)).name}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise _unusable(folder, "has a file that can't be read") from error
    rank = about.get("r") if isinstance(about, dict) else None
    if not isinstance(rank, int) or not 1 <= rank <= _RANKS[-1] or not weights:
        raise _unusable(folder, f"is no LoRA adapter of rank 1 to {_RANKS[-1]}")
    if not all(_fits(name, shape, rank, model) for name, shape in weights.items()):
        raise _unusable(folder, "was made for another model")
    return rank


def _fits(name: str, shape: Sequence[int], rank: int, model: Mapping[str, Sequence[int]]) -> bool:
    """Whether a weight has the shape that the model asks for, as far as its files tell."""
    module, _, part = name.removeprefix(_PREFIX).rpartition(".lora_")
    base = model.get(f"{module}.weight")
    if base is None or len(base) != 2 or len(shape) != 2:
        return True
    outputs, inputs = base
    return list(shape) == ([rank, inputs] if part.startswith("A") else [outputs, rank])


def _shapes(model: Path) -> Iterator[tuple[str, Sequence[int]]]:
    for file in sorted(model.glob("*.safetensors")):
        try:
            yield from _tensors(file)
        except (OSError, SafetensorError) as error:
            raise ProviderUnavailable(
                problem=f"The model file {file.name} is damaged.",
                fix=f"fetch the model in {model} again.",
            ) from error


def _tensors(file: Path) -> Iterator[tuple[str, Sequence[int]]]:
    """Names and shapes; the weights themselves are not read."""
    with ExitStack() as opened:
        tensors: Any = opened.enter_context(safe_open(file, framework="np"))
        for name in tensors.keys():  # noqa: SIM118 - it is no mapping
            yield name, tensors.get_slice(name).get_shape()


def _unusable(folder: Path, problem: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        problem=f"The adapter in {folder} {problem}.",
        fix="correct `adapter` in the tutors file, or train the adapter again for this model.",
    )
