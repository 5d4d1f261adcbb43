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
from gpuserver.live.barge_in import BargeIn, Verdict
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
        self._answer_since: float | None = None
        self._interrupted = False
        """Whether the speech that is being heard has interrupted an answer."""
        self._timer: asyncio.TimerHandle | None = None

    def speech_started(self) -> None:
        self._touch()
        self._interrupted = False
        self._tell(events.SpeechStarted())
        self._meet_answer()
        if self._answering.audible:
            self._act(self._barge_in.speech_started(self._clock()))

    def speech_stopped(self) -> None:
        self._tell(events.SpeechStopped())

    def partial(
        self, stable: str, tentative: str, confidence: float, speech_seconds: float
    ) -> None:
        self._touch()
        self._tell(events.Partial(stable, tentative))
        if self._answering.busy:
            words = f"{stable} {tentative}".strip()
            self._act(self._judge(words, confidence, speech_seconds, ended=False))

    def pause(self, transcript: Transcript, ended: float) -> None:
        # With push to talk a pause says nothing, and may last.
        if not self._answering.busy and not self._manner().manual:
            self._answering.begin_ahead(self._question(transcript), self._listener(), ended)

    def go_on(self) -> None:
        self._answering.drop_ahead()

    def utterance(self, transcript: Transcript, speech_seconds: float, ended: float) -> None:
        """The student has finished; during an answer this counts only if it interrupts."""
        if self._answering.busy:
            verdict = self._judge(
                transcript.text, transcript.confidence, speech_seconds, ended=True
            )
            self._act(verdict)
            if verdict != "interrupt":
                return
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
        self._act(self._barge_in.nothing())
        if error is not None:
            self._tell(events.Refused(error))

    def leave(self) -> None:
        """The microphone is gone."""
        self._answering.drop_ahead()
        self._act(self._barge_in.nothing())

    def _judge(
        self, words: str, confidence: float, speech_seconds: float, *, ended: bool
    ) -> Verdict | None:
        self._meet_answer()
        return self._barge_in.judge(
            words,
            confidence,
            speech_seconds,
            self._clock(),
            ended=ended,
            said=self._answering.saying(_ECHO_MS),
            language=self._manner().language,
        )

    def _meet_answer(self) -> None:
        """Tell when an answer has become audible that was not there before."""
        since = self._answering.audible_since
        if since is not None and since != self._answer_since:
            self._answer_since = since
            self._barge_in.answer_started(since)

    def _act(self, verdict: Verdict | None) -> None:
        match verdict:
            case "pause":
                self._answering.pause(self._listener())
                self._arm()
            case "resume":
                self._disarm()
                self._answering.resume(self._listener())
            case "interrupt":
                self._disarm()
                self._interrupted = True
                self._answering.interrupt(by="voice")

    def _arm(self) -> None:
        """Look again when the pause has lasted long enough."""
        self._disarm()
        deadline = self._barge_in.deadline
        if deadline is not None:
            wait = max(0.0, deadline - self._clock())
            self._timer = asyncio.get_running_loop().call_later(wait, self._look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._act(self._barge_in.tick(self._clock()))

    def _question(self, transcript: Transcript) -> Question:
        manner = self._manner()
        return Question(manner.language, transcript=transcript, speak=manner.speak)

    def _tell(self, event: events.LiveEvent) -> None:
        self._listener().write("", event)
