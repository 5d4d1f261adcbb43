"""What a model must be able to do here, one to three verbs a kind, and where each one lives."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuserver.audio import Audio
from gpuserver.errors import ProviderUnavailable
from gpuserver.language import Language

Kind = Literal["llm", "asr", "tts", "vad", "embeddings"]

# name → "module:Class". Heavy libraries are imported by their own file, when it is first needed.
PROVIDERS: Final[Mapping[Kind, Mapping[str, str]]] = {
    "llm": {"extractive": "gpuserver.providers.extractive:ExtractiveLLM"},
    "asr": {"pocketsphinx": "gpuserver.providers.pocketsphinx:PocketsphinxASR"},
    "tts": {"espeak": "gpuserver.providers.espeak:EspeakTTS"},
    "vad": {"silero": "gpuserver.providers.silero:SileroVAD"},
    "embeddings": {"minilm": "gpuserver.providers.minilm:MiniLMEmbeddings"},
}


# Language model


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation as a chat model reads it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of course material that can be quoted.

    `id` is unique in its knowledge base; `text` is Markdown (prose, at times one code block);
    `similarity` (0–1) says how well it fits the question it was found for.
    """

    id: str
    kb_id: str
    document: str
    heading: str
    text: str
    language: Language
    page: int | None = None
    similarity: float = 0.0


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float = 0.7
    max_tokens: int = 512


@dataclass(frozen=True, slots=True)
class Request:
    """What a language model is asked.

    A chat model reads `messages`; the extractive engine reads `question` (a follow-up already made
    whole) and `passages` (best first, empty when the material does not cover the question).
    """

    messages: Sequence[Message]
    question: str
    passages: Sequence[Passage]
    language: Language
    sampling: Sampling = Sampling()
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of the answer, as Markdown text with `[n]` for the n-th passage."""

    text: str


class LLM(Protocol):
    def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """The answer in pieces. Closing the generator stops the model. Raises EngineFailed."""
        ...


# Speech recognition


@dataclass(frozen=True)
class Vocabulary:
    """The words of a course, for recognition: it belongs to the course, not to a runtime.

    `sentences` are lower-case and without punctuation. All pronunciations are IPA: `pronunciations`
    from the speech engine, for words a dictionary may lack; `readings` from the course, of words
    that people say in more ways than one.
    """

    words: tuple[str, ...]
    sentences: tuple[str, ...]
    pronunciations: Mapping[str, str] = field(default_factory=dict)
    readings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """What a decoder built from this vocabulary is cached by."""
        parts = (
            "\n".join(self.sentences),
            repr(sorted(self.pronunciations.items())),
            repr(sorted(self.readings.items())),
            " ".join(self.words),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class WordTime:
    """A word and when it sounds, in milliseconds from the start of its audio."""

    text: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Transcript:
    """`text` is empty when no word was heard; `confidence` is 0–1."""

    text: str
    words: tuple[WordTime, ...] = ()
    confidence: float = 1.0


class ASR(Protocol):
    languages: frozenset[str]

    async def transcribe(
        self, audio: Audio, language: Language, vocabulary: Vocabulary | None
    ) -> Transcript:
        """The words of one utterance. Raises EngineFailed, SpeechUnavailable."""
        ...

    async def prepare(self, vocabulary: Vocabulary) -> None:
        """Get ready for a course's words, so that its first student does not wait."""
        ...


# Speech synthesis

# The fifteen mouth shapes of the Oculus/MPEG-4 lip-sync set.
Viseme = Literal[
    "sil", "PP", "FF", "TH", "DD", "kk", "CH", "SS", "nn", "RR", "aa", "E", "I", "O", "U"
]


@dataclass(frozen=True, slots=True)
class VisemeMark:
    """The mouth takes this shape at `ms` and keeps it until the next mark."""

    ms: int
    viseme: Viseme


@dataclass(frozen=True, slots=True)
class Speech:
    """A stretch of speech: PCM16 mono little-endian, with times counted from its own start."""

    pcm: bytes
    sample_rate: int
    words: tuple[WordTime, ...] = ()
    visemes: tuple[VisemeMark, ...] = ()


class TTS(Protocol):
    sample_rate: int
    """Of all its speech, in hertz."""

    def speak(self, clause: str, voice: str, speed: float) -> AsyncGenerator[Speech, None]:
        """A clause aloud, in pieces; nothing for one that has no sound. Raises EngineFailed."""
        ...

    async def pronounce(self, words: Sequence[str]) -> Mapping[str, str]:
        """IPA of each English word."""
        ...


# Voice activity, embeddings

DETECTOR_FRAME: Final = 512
"""Samples, at 16 kHz, of the frames that a detector scores."""


class Detector(Protocol):
    """Listens to one microphone as its sound comes in."""

    def score(self, frame: NDArray[np.int16]) -> float:
        """How likely the next 512 samples at 16 kHz are speech, from 0 to 1. Quick: 0.1 ms."""
        ...

    def reset(self) -> None:
        """Forget what was heard."""
        ...


class VAD(Protocol):
    def trim(self, audio: Audio) -> Audio | None:
        """The part that holds speech, with a little before and after it; None for no speech.

        Blocking (about 0.1 ms for each 32 ms): call it in a thread.
        """
        ...

    def detector(self) -> Detector:
        """A detector of its own for one microphone; it holds no more than about 10 kB."""
        ...


class Embeddings(Protocol):
    languages: frozenset[str]
    dimension: int
    name: str

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 of shape (len(texts), dimension). Blocking: call it in a thread."""
        ...


# Loading


@dataclass(frozen=True, slots=True)
class RuntimeKey:
    """What a runtime is. Two tutors that ask for equal keys share one loaded model."""

    kind: Kind
    provider: str
    model: str = ""


def names(keys: Mapping[Kind, RuntimeKey]) -> dict[str, str]:
    """What runs, by kind, for people to read: {"llm": "extractive"}."""
    return {kind: f"{key.provider} {key.model}".strip() for kind, key in keys.items()}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a provider may keep files and how many processes or threads it may use."""

    data_dir: Path
    workers: int = 1


class Runtime(Protocol):
    """A provider as `runtimes` handles it; its class is called with (model, place)."""

    def load(self) -> None:
        """Get ready to work. Blocking: runs in a thread. Raises ProviderUnavailable."""
        ...

    def close(self) -> None:
        """Free everything. Blocking; safe to call twice and after a failed load."""
        ...


def find(key: RuntimeKey) -> Any:
    """The provider class for a key. Raises ProviderUnavailable, naming what is there instead."""
    known = PROVIDERS[key.kind]
    if key.provider not in known:
        raise ProviderUnavailable(
            problem=f"There is no {key.kind} provider named {key.provider!r}.",
            fix=f"set {key.kind.upper()}_PROVIDER to one of: auto, {', '.join(known)}.",
        )
    module, _, name = known[key.provider].partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ProviderUnavailable(
            problem=f"The {key.kind} provider {key.provider!r} lacks a library: {error}.",
            fix="run ./start.sh again, which installs what it needs.",
        ) from error
