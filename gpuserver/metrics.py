"""Metrics: what the server counts and times, for Prometheus, with labels from short lists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from gpuserver.errors import GpuServerError

TurnKind = Literal["text", "voice"]
Status = Literal["completed", "interrupted", "failed"]
Interrupter = Literal["voice", "message"]
Drop = Literal["stalled", "lost"]
"""Why a connection was dropped: its client reads nothing, or the line broke without a close."""
Watched = Literal[
    "sessions", "connections", "live_sessions", "open_microphones", "store_failing", "spool_bytes"
]

STAGES: Final = (
    "commit",
    "transcript",
    "passages",
    "first_token",
    "first_clause",
    "first_audio",
    "first_playback",
    "done",
)
"""The stages of a turn's timeline, in order."""
_SECONDS: Final = (
    *(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0),
)
_WATCHED: Final[Mapping[Watched, str]] = {
    "sessions": "Sessions that have begun and not ended.",
    "connections": "Open WebSockets.",
    "live_sessions": "Sessions that hold an engine.",
    "open_microphones": "Sessions whose microphone is being listened to.",
    "store_failing": "1 while what happens can't be written to disk.",
    "spool_bytes": "Speech kept for clients that come back.",
}

# The creation time of each series would make every scrape longer, and nothing here reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The instruments of one app, in a registry of their own: two apps in a process don't mix.

    Labels are stages, kinds and codes, never an id and never a pupil's words. Counting is safe
    from any thread; what `watch` was given is read on the event loop.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._codes = frozenset(_codes(GpuServerError))
        self._watched: dict[Gauge, Callable[[], float]] = {}
        stages = Histogram(
            "gpuserver_turn_stage_seconds",
            "From the end of the student's speech, or a typed question's arrival, to each stage.",
            ("stage", "kind"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        # Found once: looking a series up costs more than adding to it.
        self._stages = {
            kind: {stage: stages.labels(stage, kind) for stage in STAGES}
            for kind in ("text", "voice")
        }
        self._turns = self._counter("turns", "Turns, by their ending.", "kind", "status")
        self._errors = self._counter("errors", "Errors told to clients.", "code")
        self._interruptions = self._counter("interruptions", "Answers interrupted.", "by")
        self._false_alarms = self._counter(
            "false_alarms", "Answers paused for speech that was no interruption."
        )
        self._skipped = self._counter("audio_skipped", "Speech frames no longer to be had.")
        self._dropped = self._counter("connections_dropped", "Connections dropped.", "reason")
        self._resumes = self._counter("resumes", "Clients that came back.", "resumed")
        ProcessCollector(registry=self.registry)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"gpuserver_{name}", documentation, labels, registry=self.registry)

    def observe_turn(
        self,
        kind: TurnKind,
        status: Status,
        timeline_ms: Mapping[str, int],
        error_code: str | None = None,
    ) -> None:
        """A whole turn, when it has ended: its ending, the stages it reached, its error."""
        self._turns.labels(kind, status).inc()
        stages = self._stages[kind]
        for stage, milliseconds in timeline_ms.items():
            if stage in stages:
                stages[stage].observe(milliseconds / 1000)
        if error_code is not None:
            self.count_error(error_code)

    def count_error(self, code: str) -> None:
        """An error told to a client; one that errors.py does not know counts as internal."""
        self._errors.labels(code if code in self._codes else GpuServerError.code).inc()

    def count_interruption(self, by: Interrupter) -> None:
        """An answer was interrupted, by the student's voice or by a message."""
        self._interruptions.labels(by).inc()

    def count_false_alarm(self) -> None:
        """An answer was paused and went on."""
        self._false_alarms.inc()

    def count_skipped_audio(self, frames: int = 1) -> None:
        """Speech frames that a client asked for again are no longer kept."""
        self._skipped.inc(frames)

    def count_dropped_connection(self, reason: Drop) -> None:
        """A connection ended without a close."""
        self._dropped.labels(reason).inc()

    def count_resume(self, *, resumed: bool) -> None:
        """A client came back; `resumed` says whether it could go on where it was."""
        self._resumes.labels("true" if resumed else "false").inc()

    def watch(self, name: Watched, read: Callable[[], float]) -> None:
        """Show what `read` returns as `gpuserver_<name>`, read at each scrape, on the loop."""
        gauge = Gauge(f"gpuserver_{name}", _WATCHED[name], registry=self.registry)
        self._watched[gauge] = read

    async def page(self) -> bytes:
        """Everything in Prometheus' text format, with the process's CPU time and memory."""
        for gauge, read in self._watched.items():
            gauge.set(read())
        # In a thread: the process's own figures are read from files.
        return await asyncio.to_thread(generate_latest, self.registry)


def _codes(kind: type[GpuServerError]) -> Iterator[str]:
    yield kind.code
    for narrower in kind.__subclasses__():
        yield from _codes(narrower)
