"""What a turn writes: the same events for every dialect, the command line and the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from gpuserver.errors import GpuServerError
from gpuserver.providers import Passage, Speech, Transcript


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of every turn; `question` is what was typed, "" for a spoken one."""

    question: str = ""


@dataclass(frozen=True, slots=True)
class Recognised:
    """A spoken question, as words."""

    transcript: Transcript


@dataclass(frozen=True, slots=True)
class Sources:
    """The passages the answer may cite, in the order of their numbers, from 1; before any text.

    Where the material does not surely answer, there are none, and `near` are worth a look.
    """

    passages: Sequence[Passage]
    near: Sequence[Passage] = ()


@dataclass(frozen=True, slots=True)
class InLine:
    """A place in the line before a busy model, 1 being the next, and about how long that takes."""

    position: int
    eta_s: int


@dataclass(frozen=True, slots=True)
class AnsweredBy:
    """Another model answers than the tutor's own, which can't; before any text."""

    provider: str


@dataclass(frozen=True, slots=True)
class BeyondCourse:
    """No passage covers the question: the model answers from what it knows; before any text."""


@dataclass(frozen=True, slots=True)
class Thought:
    """What a reasoning model says to itself, in pieces: no part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer, Markdown."""

    text: str


@dataclass(frozen=True, slots=True)
class TextDone:
    """The whole answer, all its deltas put together, as soon as it is written."""

    text: str


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """A stretch of speech that begins `offset` samples (`start_ms`) into the turn's speech."""

    speech: Speech
    offset: int

    @property
    def start_ms(self) -> int:
        return self.offset * 1000 // self.speech.sample_rate

    @property
    def end_ms(self) -> int:
        return (self.offset + len(self.speech.pcm) // 2) * 1000 // self.speech.sample_rate


@dataclass(frozen=True, slots=True)
class SpeechDone:
    """All of the answer's speech has been written."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of every turn, whatever happened.

    `timeline` gives, for each stage reached, milliseconds since the question came in, or since
    the end of its speech. `error` is there when the turn failed. `heard` is the part of an
    interrupted answer that stays in the history, None for one that was not interrupted.
    """

    status: Literal["completed", "interrupted", "failed"]
    timeline: Mapping[str, int]
    usage: Mapping[str, int]
    error: GpuServerError | None = None
    heard: str | None = None


Event = (
    Started
    | Recognised
    | Sources
    | InLine
    | AnsweredBy
    | BeyondCourse
    | Thought
    | TextDelta
    | TextDone
    | SpeechChunk
    | SpeechDone
    | Ended
)


class Sink(Protocol):
    """Where a turn writes. A write may wait, which slows the turn down to the reader's pace."""

    async def write(self, event: Event) -> None: ...
