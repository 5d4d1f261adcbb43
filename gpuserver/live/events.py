"""What happens in a live session beside its turns' own events."""

from __future__ import annotations

from dataclasses import dataclass

from gpuserver.errors import GpuServerError
from gpuserver.tutor import events as turn_events


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The student has begun to speak."""


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The student's turn is over, or what sounded like speech was none."""


@dataclass(frozen=True, slots=True)
class Partial:
    """Words as they are recognised: `stable` ones only grow, `tentative` ones may go."""

    stable: str
    tentative: str


@dataclass(frozen=True, slots=True)
class Queued:
    """A question waits behind `position` others, about `eta_s` seconds."""

    position: int
    eta_s: int


@dataclass(frozen=True, slots=True)
class SpeechPaused:
    """The answer holds still: the student may be interrupting."""


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """It was no interruption."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Something the student did could not be acted on."""

    error: GpuServerError


LiveEvent = (
    turn_events.Event
    | SpeechStarted
    | SpeechStopped
    | Partial
    | Queued
    | SpeechPaused
    | SpeechResumed
    | Refused
)
