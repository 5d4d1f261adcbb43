"""What a model must be able to do here, one to three verbs a kind."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Final, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gpuserver.audio import Audio
from gpuserver.config import DEFAULTS, Settings
from gpuserver.language import Language
from gpuserver.metrics import Meter

Kind = Literal["llm", "asr", "tts", "vad", "embeddings", "index", "reranker"]


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
    `similarity` (0–1) says how well it fits the question it was found for. `document_id` and `n`,
    its number in the document from 1, name it together with `kb_id` for a link.
    """

    id: str
    kb_id: str
    document: str
    heading: str
    text: str
    language: Language
    page: int | None = None
    similarity: float = 0.0
    document_id: str = ""
    n: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a chat model chooses its words; `max_tokens` bounds an answer, thoughts included."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What a language model is asked.

    A chat model reads `messages`; the extractive engine reads `question` (a follow-up already made
    whole) and `passages` (best first, empty when the material does not cover the question; `near`
    are then those that are worth a look all the same).
    `adapter` is the folder of a LoRA adapter, "" for the model as it is. With a `json_schema` a
    chat model that can hold itself to one answers with JSON that fits it.
    """

    messages: Sequence[Message]
    question: str
    passages: Sequence[Passage]
    language: Language
    sampling: Sampling = Sampling()
    adapter: str = ""
    json_schema: Mapping[str, Any] | None = None
    near: Sequence[Passage] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of the answer, as Markdown text with `[n]` for the n-th passage.

    A `thought` is what a reasoning model says to itself: no part of the answer, never spoken.
    """

    text: str
    thought: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """A place in the line before a busy model, 1 being the next, and about how long that takes.

    Said again when it changes, and now and then while it does not.
    """

    position: int
    eta_s: int


LINE_SECONDS: Final = 10.0
"""A line speaks sooner than this; whoever stands in one is not before a model that hangs."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """Another model answers than the tutor's own, which can't. Before its first `Delta`."""

    provider: str


Piece = Delta | Waiting | Fallback


class LLM(Protocol):
    def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """The answer in pieces. Closing the generator stops the model.

        Raises EngineFailed, EngineBusy, EngineStalled, PromptTooLong.
        """
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
    """`text` is empty when no word was heard; `confidence` is 0–1.

    `language` is the one that was detected, None where none was looked for.
    """

    text: str
    words: tuple[WordTime, ...] = ()
    confidence: float = 1.0
    language: Language | None = None


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
    voices: Mapping[Language, str]
    """The languages it speaks, each with the voice for a tutor that names none."""

    def speak(
        self, clause: str, language: Language, voice: str, speed: float
    ) -> AsyncGenerator[Speech, None]:
        """A clause aloud, in pieces; nothing for one that has no sound. Raises EngineFailed."""
        ...

    async def pronounce(self, words: Sequence[str]) -> Mapping[str, str]:
        """IPA of each English word; empty from an engine that can't tell."""
        ...


# Voice activity, embeddings, the index of vectors, re-ranking

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


@dataclass(frozen=True, slots=True)
class Scale:
    """How a model's numbers compare with others': `factor` × number + `offset`."""

    factor: float = 1.0
    offset: float = 0.0

    def of(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        """A model's numbers as they compare."""
        scaled: NDArray[np.float32] = numbers * self.factor + self.offset
        return scaled


class Embeddings(Protocol):
    languages: frozenset[str]
    dimension: int
    name: str
    """Of the model with these very weights: vectors that are kept belong to a name."""
    scale: Mapping[Language, Scale]
    """Brings the cosines of questions in a language to MiniLM's; one left out has them already."""

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Unit vectors, float32 of shape (len(texts), dimension); zeros for a text that can't be
        read. Blocking: call it in a thread.

        `query` says that the texts are questions, which some models read otherwise than what
        answers them. Raises EngineFailed.
        """
        ...


@runtime_checkable
class Translated(Protocol):
    """Embeddings that read some languages word by word in another one. Such vectors tell what a
    text is about; whether it says the same as another they don't."""

    translated: frozenset[str]


class Vectors(Protocol):
    """Unit vectors that are held where they are searched. Any number of threads may search."""

    def cosines(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cosine of every row, in order, to a unit vector: float32 of shape (rows,).

        An index that finds the nearest rows alone gives all others 0. Blocking (20 ms for 100,000
        rows). Raises EngineFailed.
        """
        ...


class VectorIndex(Protocol):
    def hold(self, matrix: NDArray[np.float32]) -> Vectors:
        """Make unit vectors, float32 of shape (rows, dimension), searchable until `close`.

        Blocking. Raises ProviderUnavailable.
        """
        ...


class Reranker(Protocol):
    scale: Mapping[Language, Scale]
    """Of each language that it serves. On it, what is above 0 rather answers a question than not,
    2 is a plain answer and -2 none."""

    def score(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """How well each text answers a question: float32 of shape (len(texts),), more is better.

        Blocking: call it in a thread. Raises EngineFailed, and EngineStalled where it takes longer
        than a student can wait.
        """
        ...


# Loading


@dataclass(frozen=True, slots=True)
class RuntimeKey:
    """What a runtime is. Two tutors that ask for equal keys share one loaded model.

    `adapters` are the LoRA folders of all tutors on this model, so that it has room for them.
    """

    kind: Kind
    provider: str
    model: str = ""
    adapters: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Provider and model, for anybody to read: of a path only its end."""
        parts = PurePath(self.model).parts
        return f"{self.provider} {'/'.join(parts[-2:]).lstrip('/')}".strip()


def names(keys: Mapping[Kind, RuntimeKey]) -> dict[str, str]:
    """What runs, by kind, for people to read: {"llm": "extractive"}."""
    return {kind: str(key) for kind, key in keys.items()}


LoadStage = Literal["fetching", "loading", "warming"]
OnProgress = Callable[[LoadStage, float | None], None]
"""Told each stage of a load and the share of it that is done (None: can't tell); any thread."""


def _unwatched(stage: LoadStage, share: float | None) -> None:
    """Nobody looks at this load's progress."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a provider works with: a folder for files, the settings, its model's adapters, the
    meter it counts its work by, who is told how its load goes on, and the GPU it goes to: an index
    among those that CUDA shows, None for the CPU."""

    data_dir: Path
    settings: Settings = DEFAULTS
    adapters: tuple[str, ...] = ()
    meter: Meter = field(default_factory=Meter)
    on_progress: OnProgress = _unwatched
    gpu: int | None = None


class Runtime(Protocol):
    """A provider as `runtimes` handles it; its class is called with (model, place)."""

    def load(self) -> None:
        """Get ready to work. Blocking: runs in a thread. Raises ProviderUnavailable."""
        ...

    def close(self) -> None:
        """Free everything. Blocking; safe to call twice and after a failed load."""
        ...


@dataclass(frozen=True, slots=True)
class Status:
    """How a loaded runtime is. `pids` are processes of its own, beside the server's."""

    state: Literal["ready", "asleep", "restarting"] = "ready"
    running: int = 0
    waiting: int = 0
    pids: tuple[int, ...] = ()


@runtime_checkable
class Watched(Protocol):
    """A runtime that tells how it is; one that doesn't is ready as long as it is loaded."""

    def status(self) -> Status:
        """At once; any thread."""
        ...

    async def probe(self) -> None:
        """A cheap real forward pass, a token or a few samples. Raises EngineFailed."""
        ...
