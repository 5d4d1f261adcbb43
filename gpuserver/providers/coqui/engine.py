"""Coqui's model in a process of its own: loaded from its folder, spoken with clause by clause."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from TTS.config import load_config

from gpuserver.errors import GpuServerError, OutOfMemory, ProviderUnavailable
from gpuserver.language import Language
from gpuserver.machine.memory import memory_of, no_memory
from gpuserver.providers import Speech
from gpuserver.providers.coqui.files import checkpoint as weights_of
from gpuserver.providers.worker import Checkpoint

_VOICES: Final[Mapping[str, str]] = {
    "vits": "gpuserver.providers.coqui.vits:VitsVoice",
    "xtts": "gpuserver.providers.coqui.xtts:XttsVoice",
}


class Voice(Protocol):
    """A model that speaks, made of (config, folder, weights, device, checkpoint)."""

    sample_rate: int
    default: str
    """The voice of a tutor that names none."""
    limits: dict[Language, int]
    """The languages it speaks, and how many characters of each it can say in one go."""

    def speak(self, text: str, language: Language, voice: str, speed: float) -> Iterator[Speech]:
        """Raises ConfigurationError for a voice that does not exist."""
        ...


@dataclass(frozen=True, slots=True)
class Card:
    """What a loaded model is; `limits`: the characters of a language it can say in one go."""

    model: str
    device: str
    sample_rate: int
    voice: str
    limits: dict[Language, int]


@dataclass(frozen=True, slots=True)
class Made:
    """A piece of speech and how long making it took."""

    speech: Speech
    seconds: float


class CoquiEngine:
    """The model in `folder`, on `device`: auto, cpu, cuda or cuda:N. Raises ProviderUnavailable."""

    def __init__(self, folder: Path, device: str, checkpoint: Checkpoint) -> None:
        # One core is left to the server: threads without a core spin, and speech takes six times
        # as long.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
        self._folder, self._device = folder, _device(device)
        try:
            self._config = _config(folder)
            self._voice = self._load(folder, checkpoint)
        except ImportError as error:
            raise ProviderUnavailable(
                problem=f"The voice in {folder} lacks a library: {error}.",
                fix="run ./start.sh again, or choose another voice.",
            ) from error
        except GpuServerError:
            raise
        # Of a file cut short, of one of another model, of pickled code, which is never run: the
        # tokenizers library raises nothing narrower.
        except Exception as error:
            if no_memory(error):
                raise self._out_of_memory() from error
            raise ProviderUnavailable(
                problem=f"The voice in {folder} can't be loaded: its files are damaged or belong "
                f"to different models ({type(error).__name__}).",
                fix="fetch it again: gpuserver models pull NAME.",
            ) from error

    def describe(self) -> Card:
        voice = self._voice
        model = str(self._config.model)
        return Card(model, self._device, voice.sample_rate, voice.default, voice.limits)

    def speak(self, text: str, language: Language, voice: str, speed: float) -> Iterator[Made]:
        """Raises OutOfMemory, and ConfigurationError for a voice that does not exist."""
        since = time.monotonic()
        try:
            for speech in self._voice.speak(text, language, voice, speed):
                yield Made(speech, time.monotonic() - since)
                since = time.monotonic()
        except (RuntimeError, MemoryError) as error:
            if no_memory(error):
                torch.cuda.empty_cache()  # the next clause may be shorter
                raise self._out_of_memory() from error
            if isinstance(error, torch.AcceleratorError):
                # No later work on the GPU can succeed in this process: a new one takes its place.
                sys.exit(f"The GPU failed: {type(error).__name__}.")
            raise

    def _out_of_memory(self) -> OutOfMemory:
        device = memory_of("cpu" if self._device == "cpu" else "cuda")
        return OutOfMemory(model=str(self._folder), device=device)

    def _load(self, folder: Path, checkpoint: Checkpoint) -> Voice:
        model = str(self._config.model).lower()
        if model not in _VOICES:
            raise ProviderUnavailable(
                problem=f"The voice in {folder} is a {model} model; those that speak here "
                f"are {' and '.join(_VOICES)}.",
                fix="choose a voice of one of these kinds.",
            )
        # XTTS takes ten seconds to import, which no other voice should wait for.
        module, _, name = _VOICES[model].partition(":")
        kind = getattr(importlib.import_module(module), name)
        voice: Voice = kind(self._config, folder, weights_of(folder), self._device, checkpoint)
        return voice


def _config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise ProviderUnavailable(
            problem=f"The voice in {folder} has no config.json.",
            fix="fetch it again: gpuserver models pull NAME.",
        )
    return load_config(folder / "config.json")


def _device(wanted: str) -> str:
    if wanted != "cpu" and torch.cuda.is_available():
        return "cuda" if wanted == "auto" else wanted
    if wanted.startswith("cuda"):
        raise ProviderUnavailable(
            problem="DEVICE is cuda, but there is no GPU that PyTorch can use.",
            fix="set DEVICE=cpu, or install the GPU's driver.",
        )
    return "cpu"
