"""Who is speaking: what an open microphone hears becomes questions, pauses and interruptions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from gpuserver.errors import GpuServerError
from gpuserver.language import Language
from gpuserver.live import events
from gpuserver.live.answering import Answering, Listener
from gpuserver.live.barge_in import BargeIn
from gpuserver.providers import Transcript
from gpuserver.smalltalk import is_stop
from gpuserver.tutor.turn import Question

_ECHO_MS: Final = 4000
"""How long after the tutor has said a word it may still come back through the microphone."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a session speaks and is spoken with: what a client may change."""

    language: Language
    speak: bool = True
    manual: bool = False
    """Push to talk: no question is complete before the client says so."""
    encoding: Literal["pcm16", "webm"] = "pcm16"
    sample_rate: int = 16_000


class Dialogue:
    """Decides what the student's speech means while the tutor thinks, speaks, or is silent.

    It is the `Hearing` of the session's microphone: everything in it is quick.
    """

    def __init__(
        self,
        answering: Answering,
        listener: Callable[[], Listener],
        manner: Callable[[], Manner],
        barge_in: BargeIn,
        touch: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answering, self._listener = answering, listener
        self._manner = manner
        self._barge_in = barge_in
        self._touch = touch
        self._clock = clock
        self._interrupted = False
        """Whether the speech that is being heard has interrupted an answer."""
        self._waiting: asyncio.TimerHandle | None = None
        """Ends the pause that speech has made."""

    def speech_started(self) -> None:
        self._touch()
        self._interrupted = False
        self._tell(events.SpeechStarted())
        self._meet_answer()
        if self._answering.audible and self._barge_in.pauses(self._clock()):
            self._pause()

    def speech_stopped(self) -> None:
        self._tell(events.SpeechStopped())

    def partial(
        self, stable: str, tentative: str, confidence: float, speech_seconds: float
    ) -> None:
        self._touch()
        self._tell(events.Partial(stable, tentative))
        words = f"{stable} {tentative}".strip()
        if self._answering.busy and self._interrupts(words, confidence, speech_seconds):
            self._interrupt()

    def pause(self, transcript: Transcript, ended: float) -> None:
        # With push to talk a pause says nothing, and may last.
        if not self._answering.busy and not self._manner().manual:
            self._answering.begin_ahead(self._question(transcript), self._listener(), ended)

    def go_on(self) -> None:
        self._answering.drop_ahead()

    def utterance(self, transcript: Transcript, speech_seconds: float, ended: float) -> None:
        """The student has finished; during an answer this counts only if it interrupts."""
        if self._answering.busy:
            if not self._interrupts(transcript.text, transcript.confidence, speech_seconds):
                self._resume()
                return
            self._interrupt()
        interrupted, self._interrupted = self._interrupted, False
        if interrupted and is_stop(transcript.text, self._manner().language):
            # "Stop" has done its work and asks nothing.
            return
        try:
            self._answering.ask(self._question(transcript), self._listener(), ended)
        except GpuServerError as error:
            self._tell(events.Refused(error))

    def nothing(self, error: GpuServerError | None) -> None:
        """Sound without words: what was paused for it goes on."""
        self._answering.drop_ahead()
        self._resume()
        if error is not None:
            self._tell(events.Refused(error))

    def leave(self) -> None:
        """The microphone is gone."""
        self._answering.drop_ahead()
        self._resume()

    def _interrupts(self, words: str, confidence: float, speech_seconds: float) -> bool:
        self._meet_answer()
        return self._barge_in.interrupts(
            words,
            confidence,
            speech_seconds,
            self._clock(),
            said=self._answering.saying(_ECHO_MS),
            language=self._manner().language,
        )

    def _meet_answer(self) -> None:
        """Tell when an answer has become audible."""
        since = self._answering.audible_since
        if since is not None:
            self._barge_in.answer_started(since)

    def _pause(self) -> None:
        """Hold the answer still until it is known whether this interrupts it, but not for long."""
        self._answering.pause(self._listener())
        self._stop_waiting()
        wait = self._barge_in.rules.wait_seconds
        self._waiting = asyncio.get_running_loop().call_later(wait, self._resume)

    def _resume(self) -> None:
        """What paused the answer, if anything did, is no interruption, or not yet."""
        self._stop_waiting()
        self._answering.resume(self._listener())

    def _interrupt(self) -> None:
        self._stop_waiting()
        self._interrupted = True
        self._answering.interrupt(by="voice")

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _question(self, transcript: Transcript) -> Question:
        manner = self._manner()
        return Question(manner.language, transcript=transcript, speak=manner.speak)

    def _tell(self, event: events.LiveEvent) -> None:
        self._listener().write("", event)
