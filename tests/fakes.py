"""Scripted providers: they do what a test wrote down, and complain about what is left over."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuserver.audio import Audio
from gpuserver.language import Language
from gpuserver.providers import (
    Delta,
    Piece,
    Place,
    Request,
    RuntimeKey,
    Scale,
    Speech,
    Transcript,
    VisemeMark,
    Vocabulary,
    WordTime,
)
from gpuserver.providers.numpy import NumpyIndex

RATE = 16_000

Script = Sequence[str | Piece | asyncio.Event | Exception]
"""What a model does for one question: what it gives (a string is a delta of the answer), events to
wait for, a failure to raise."""


class Clock:
    """A clock that stands still until a test moves it, in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class _Runtime:
    """Loads once `load_gate` is set, or fails with `load_failure`; counts loads and closes."""

    load_failure: Exception | None = None

    def __init__(self) -> None:
        self.loads = 0
        self.closes = 0
        self.load_gate = threading.Event()
        self.load_gate.set()

    def __call__(self, model: str, place: Place) -> Any:
        return self

    def load(self) -> None:
        self.loads += 1
        assert self.load_gate.wait(5)
        if self.load_failure is not None:
            raise self.load_failure

    def close(self) -> None:
        self.closes += 1


@dataclass
class ScriptedLLM(_Runtime):
    """Answers each question with the next script: strings are deltas, events are waited for.

    With `echo` it answers anything with "You asked: …". A question that has one of the words of
    `answers` in it gets that script, every time.
    """

    scripts: list[Script] = field(default_factory=list)
    answers: dict[str, Script] = field(default_factory=dict)
    echo: bool = True
    requests: list[Request] = field(default_factory=list)
    running: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        if not request.messages:
            return  # the warm-up, which is no question
        self.requests.append(request)
        script = next((s for word, s in self.answers.items() if word in request.question), None)
        if script is None and self.scripts:
            script = self.scripts.pop(0)
        if script is None:
            assert self.echo, f"no script is left for {request.question!r}"
            script = [f"You asked: {request.question}"]
        self.running += 1
        try:
            for step in script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield Delta(step) if isinstance(step, str) else step
                    await asyncio.sleep(0)
        finally:
            self.running -= 1


@dataclass
class ScriptedASR(_Runtime):
    """Recognises the next of its transcripts in anything it hears; `gate` holds it back.

    After the last one it hears `otherwise`, with `confidence`, as often as it is asked. Sound that
    is as loud as one of `voices` it always hears as that.
    """

    transcripts: list[str | Exception] = field(default_factory=list)
    languages: frozenset[str] = frozenset({"en"})
    heard: list[tuple[float, Language]] = field(default_factory=list)
    prepared: list[Vocabulary] = field(default_factory=list)
    gate: asyncio.Event | None = None
    otherwise: str = ""
    confidence: float = 0.9
    voices: dict[int, str | Exception | asyncio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    async def transcribe(
        self, audio: Audio, language: Language, vocabulary: Vocabulary | None
    ) -> Transcript:
        if self.voices and audio.samples.any():
            said = self.voices.get(int(np.abs(audio.samples).max()))
            if isinstance(said, Exception):
                raise said
            if isinstance(said, asyncio.Event):
                await said.wait()
            elif said is not None:
                return Transcript(said, (), 0.9)
        if audio.samples.any() and not self.transcripts and self.otherwise:
            return Transcript(self.otherwise, (), self.confidence)
        if not audio.samples.any() or not self.transcripts:
            return Transcript("", (), 0.0)
        self.heard.append((audio.seconds, language))
        if self.gate is not None:
            await self.gate.wait()
        step = self.transcripts.pop(0)
        if isinstance(step, Exception):
            raise step
        return Transcript(step, (), 0.9)

    async def prepare(self, vocabulary: Vocabulary) -> None:
        self.prepared.append(vocabulary)


@dataclass
class ToneTTS(_Runtime):
    """Speaks a tone of 10 ms a character; `gate` holds every clause back until it is set.

    For a clause that has one of the words of `instead` in it, it does what is written there.
    """

    clauses: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None
    fail: Exception | None = None
    instead: dict[str, Sequence[Speech | asyncio.Event | Exception]] = field(default_factory=dict)
    sample_rate: int = RATE
    voices: dict[Language, str] = field(default_factory=lambda: {"en": "tone", "zh": "tone"})

    def __post_init__(self) -> None:
        super().__init__()

    async def speak(
        self, clause: str, language: Language, voice: str, speed: float
    ) -> AsyncGenerator[Speech, None]:
        self.clauses.append(clause)
        if self.fail is not None:
            raise self.fail
        for key, steps in self.instead.items():
            if key in clause:
                for step in steps:
                    if isinstance(step, Exception):
                        raise step
                    if isinstance(step, asyncio.Event):
                        await step.wait()
                    else:
                        yield step
                return
        if self.gate is not None:
            await self.gate.wait()
        time = np.arange(len(clause) * RATE // 100) / RATE
        pcm = (np.sin(2 * np.pi * 440 * time) * 9000).astype("<i2").tobytes()
        word = WordTime(clause, 0, len(clause) * 10)
        marks = (VisemeMark(0, "aa"), VisemeMark(len(clause) * 10, "sil"))
        yield Speech(pcm, RATE, (word,), marks)

    async def pronounce(self, words: Sequence[str]) -> Mapping[str, str]:
        return {}


class OpenVAD(_Runtime):
    """Everything that is not digital silence is speech. `fails` breaks the next detector."""

    fails: Exception | None = None

    def trim(self, audio: Audio) -> Audio | None:
        return audio if audio.samples.any() else None

    def detector(self) -> OpenDetector:
        failure, self.fails = self.fails, None
        return OpenDetector(failure)


class OpenDetector:
    """The same of a microphone."""

    def __init__(self, failure: Exception | None = None) -> None:
        self._failure = failure

    def score(self, frame: NDArray[np.int16]) -> float:
        if self._failure is not None:
            raise self._failure
        assert frame.shape == (512,)
        assert frame.dtype == np.int16
        # Resampling leaves a trace of noise where there was none.
        return float(np.abs(frame).max() > 100)

    def reset(self) -> None:
        pass


class HashEmbeddings(_Runtime):
    """Texts that share words are near: each word is one direction.

    `fails` names words that it fails at, or waits at.
    """

    languages = frozenset({"en"})
    dimension = 256
    name = "hash"
    scale: Mapping[Language, Scale] = {}

    def __init__(self) -> None:
        super().__init__()
        self.fails: dict[str, Exception | threading.Event] = {}

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        for word, failure in self.fails.items():
            if any(word in text for text in texts):
                if isinstance(failure, Exception):
                    raise failure
                assert failure.wait(20)
        out = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                out[row, hashlib.sha256(word.strip("?.,!").encode()).digest()[0]] += 1
        norms = np.linalg.norm(out, axis=1, keepdims=True)
        scaled: NDArray[np.float32] = (out / np.maximum(norms, 1e-6)).astype(np.float32)
        return scaled


class ScriptedReranker(_Runtime):
    """Gives each text the sum of what its words are `worth`, on a scale of its own.

    With `failure` it raises that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale: Mapping[Language, Scale] = {"en": Scale(0.5, -1.0)}
        self.worth: dict[str, float] = {}
        self.failure: Exception | None = None
        self.asked: list[tuple[str, Sequence[str]]] = []

    def score(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append((question, texts))
        if self.failure is not None:
            raise self.failure
        worth = [sum(x for word, x in self.worth.items() if word in text) for text in texts]
        return np.array(worth, np.float32)


@dataclass
class Cast:
    """One of each, and a provider table of them."""

    llm: ScriptedLLM = field(default_factory=ScriptedLLM)
    asr: ScriptedASR = field(default_factory=ScriptedASR)
    tts: ToneTTS = field(default_factory=ToneTTS)
    vad: OpenVAD = field(default_factory=OpenVAD)
    embeddings: HashEmbeddings = field(default_factory=HashEmbeddings)
    index: Callable[[str, Place], Any] = NumpyIndex
    reranker: ScriptedReranker = field(default_factory=ScriptedReranker)

    def find(self, key: RuntimeKey) -> Callable[[str, Place], Any]:
        runtime: Callable[[str, Place], Any] = getattr(self, key.kind)
        return runtime

    def assert_used_up(self) -> None:
        assert not self.llm.scripts, f"unused LLM scripts: {self.llm.scripts}"
        assert not self.asr.transcripts, f"unused transcripts: {self.asr.transcripts}"
        assert self.llm.running == 0, "a generation is still running"
