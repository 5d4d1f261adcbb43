"""What listening to a microphone needs of an engine, and what it tells."""

from __future__ import annotations

from typing import Protocol

from gpuserver.audio import Audio
from gpuserver.errors import GpuServerError
from gpuserver.language import Language
from gpuserver.providers import Detector, Transcript


class Engine(Protocol):
    """What is needed of an AI engine."""

    def hears(self, language: Language) -> None: ...

    def detector(self) -> Detector: ...

    async def transcribe(self, speech: Audio, language: Language) -> Transcript: ...


class Hearing(Protocol):
    """What wants to know what is heard. All of it is quick."""

    def speech_started(self) -> None: ...

    def speech_stopped(self) -> None:
        """The turn has ended, or it was no speech. It follows each `speech_started` once."""
        ...

    def partial(
        self, stable: str, tentative: str, confidence: float, speech_seconds: float
    ) -> None:
        """The words so far, after each recognition; they need not be others than before."""
        ...

    def pause(self, transcript: Transcript, ended: float) -> None:
        """Probably the end of the turn. `go_on`, or `utterance` with these very words, follows."""
        ...

    def go_on(self) -> None:
        """The words of the last `pause` are void."""
        ...

    def utterance(self, transcript: Transcript, speech_seconds: float, ended: float) -> None:
        """The student has finished; the speech `ended` then, on the clock."""
        ...

    def nothing(self, error: GpuServerError | None) -> None:
        """Sound without words; the error is for a student who waits for an answer to it."""
        ...
