"""Metrics: what the server counts and times, for Prometheus, with labels from short lists."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, Protocol

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
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
_FACTORS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_UP: Final = frozenset({"ready", "asleep"})
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


class Meter:
    """Counts the work of one runtime; the base class forgets it. Times are in seconds.

    Safe from any thread.
    """

    def tokens(self, made: int, prompt: int = 0, cached: int = 0) -> None:
        """A chat model's work: tokens made, read, and of those read found in its prefix cache."""

    def first_token(self, seconds: float) -> None:
        """From asking a chat model to its first token, waiting included."""

    def waited(self, seconds: float) -> None:
        """A request waited so long for its turn."""

    def worked(self, seconds: float, audio_seconds: float) -> None:
        """Speech of a length was recognised or made in so much time."""

    def batch(self, size: int) -> None:
        """So many requests were worked on together."""

    def failed(self) -> None:
        """The model, or its process, failed."""


class RuntimeState(Protocol):
    """What is shown of a runtime as it is now; memory in megabytes."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def leases(self) -> int: ...
    @property
    def memory_mb(self) -> int: ...
    @property
    def gpu_memory_mb(self) -> Mapping[int, int]: ...


class _RuntimeGauges:
    """How all runtimes are; a runtime that is gone leaves no series behind."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            name, labels = f"gpuserver_runtime_{name}", ("runtime", *labels)
            return Gauge(name, documentation, labels, registry=registry)

        self._up = gauge("up", "1 while a model works, also if it sleeps; 0 while it does not.")
        self._running = gauge("running", "Requests that a model works on.")
        self._waiting = gauge("waiting", "Requests that wait for a model.")
        self._leases = gauge("leases", "Tutors that hold a model.")
        self._memory = gauge("memory_bytes", "Memory of the host that a model takes.")
        self._gpu_memory = gauge("gpu_memory_bytes", "Memory of a GPU that a model takes.", "gpu")

    def show(self, states: Iterable[RuntimeState]) -> None:
        for gauge in (self._up, self._running, self._waiting, self._leases, self._memory):
            gauge.clear()
        self._gpu_memory.clear()
        for state in states:
            self._up.labels(state.name).set(state.state in _UP)
            self._running.labels(state.name).set(state.running)
            self._waiting.labels(state.name).set(state.waiting)
            self._leases.labels(state.name).set(state.leases)
            self._memory.labels(state.name).set(state.memory_mb << 20)
            for index, mb in state.gpu_memory_mb.items():
                self._gpu_memory.labels(state.name, str(index)).set(mb << 20)


class _RuntimeMeters:
    """The instruments of all runtimes, labelled by `runtime`: its provider and model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, documentation: str, *labels: str) -> Counter:
            name, labels = f"gpuserver_runtime_{name}", ("runtime", *labels)
            return Counter(name, documentation, labels, registry=registry)

        def histogram(name: str, documentation: str, buckets: Sequence[float]) -> Histogram:
            name = f"gpuserver_runtime_{name}"
            return Histogram(name, documentation, ("runtime",), registry=registry, buckets=buckets)

        self.tokens = counter("tokens", "Tokens of a chat model.", "kind")
        self.failures = counter("failures", "Failures of a model or of its process.")
        self.first_token = histogram(
            "first_token_seconds", "From asking a chat model to its first token.", _SECONDS
        )
        self.waits = histogram("wait_seconds", "How long requests waited for a model.", _SECONDS)
        self.batches = histogram("batch_size", "Requests worked on together.", _SIZES)
        self.pace = histogram(
            "real_time_factor", "Time to recognise or make speech, by its length.", _FACTORS
        )


class _RuntimeMeter(Meter):
    def __init__(self, meters: _RuntimeMeters, runtime: str) -> None:
        # Found once: looking a series up costs more than adding to it.
        self._made = meters.tokens.labels(runtime, "made")
        self._read = meters.tokens.labels(runtime, "read")
        self._cached = meters.tokens.labels(runtime, "cached")
        self._failures = meters.failures.labels(runtime)
        self._first_token = meters.first_token.labels(runtime)
        self._waits = meters.waits.labels(runtime)
        self._batches = meters.batches.labels(runtime)
        self._pace = meters.pace.labels(runtime)

    def tokens(self, made: int, prompt: int = 0, cached: int = 0) -> None:
        self._made.inc(made)
        self._read.inc(prompt)
        self._cached.inc(cached)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def waited(self, seconds: float) -> None:
        self._waits.observe(seconds)

    def worked(self, seconds: float, audio_seconds: float) -> None:
        if audio_seconds > 0:
            self._pace.observe(seconds / audio_seconds)

    def batch(self, size: int) -> None:
        self._batches.observe(size)

    def failed(self) -> None:
        self._failures.inc()


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
        self._runtimes = _RuntimeMeters(self.registry)
        self._gauges = _RuntimeGauges(self.registry)
        self._read_runtimes: Callable[[], Awaitable[Iterable[RuntimeState]]] | None = None
        ProcessCollector(registry=self.registry)

    def meter(self, runtime: str) -> Meter:
        """What counts the work of the runtime of this name: its provider and model."""
        return _RuntimeMeter(self._runtimes, runtime)

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

    def watch_runtimes(self, read: Callable[[], Awaitable[Iterable[RuntimeState]]]) -> None:
        """Show what `read` returns as `gpuserver_runtime_…`, read at each scrape."""
        self._read_runtimes = read

    async def page(self) -> bytes:
        """Everything in Prometheus' text format, with the process's CPU time and memory."""
        for gauge, read in self._watched.items():
            gauge.set(read())
        if self._read_runtimes is not None:
            self._gauges.show(await self._read_runtimes())
        # In a thread: the process's own figures are read from files.
        return await asyncio.to_thread(generate_latest, self.registry)


def _codes(kind: type[GpuServerError]) -> Iterator[str]:
    yield kind.code
    for narrower in kind.__subclasses__():
        yield from _codes(narrower)
