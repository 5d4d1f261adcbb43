"""`gpuserver chat`: a conversation with a server, typed or spoken from recordings."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
from anyio.from_thread import start_blocking_portal

from gpuserver import background, config, observability
from gpuserver.audio import decode, wav
from gpuserver.cli.terminal import Screen, loading, notes, out
from gpuserver.client import LiveConversation, Management, Microphone, Playback, SessionOver
from gpuserver.errors import (
    ConfigurationError,
    GpuServerError,
    SessionEnded,
    SpeechUnavailable,
    TutorNotFound,
    known_cause,
)
from gpuserver.tutor.tutoring import Progress, Tutoring
from gpuserver.unified_server import Server, create_app

_LONGEST_SECONDS: Final = 600.0
_UNHEARD_SECONDS: Final = 8.0
"""A recording after which no question begins for this long was no question."""
_SETTLED_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 0.05
_VOICE: Final = {
    "audio_format": "binary",
    "input_audio_format": {"encoding": "pcm16", "sample_rate": 16_000},
    "turn_detection": "server",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the conversation takes place. Without a `url`: here, for as long as it lasts."""

    settings: config.Settings
    url: str
    key: str
    tutor: int | None
    kb: str | None


def typed(place: Place) -> None:
    """Ask what is typed, until an empty line. Raises GpuServerError."""
    # The loop runs in a thread: the line is kept while the prompt waits, and Ctrl-C ends it.
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_conversation(place)) as live,
    ):
        talk = Talk(live, Screen(out, notes))
        portal.call(talk.begin, {"output": {"audio": False, "visemes": False}})
        while question := _prompt().strip():
            portal.call(talk.ask, question)


def spoken(place: Place, recordings: Sequence[bytes], save: Path | None) -> bool:
    """Say the recordings one after another into an open microphone; whether all were answered.

    They are in any container that `audio.decode` reads. What was heard of the answers is written
    to `save` as WAV. Raises GpuServerError.
    """
    clips = [decode(clip, _LONGEST_SECONDS).samples.astype("<i2").tobytes() for clip in recordings]
    playback = Playback(keep=save is not None)
    try:
        ended = asyncio.run(_speak(place, clips, playback))
    finally:
        if save is not None and playback.recorded:
            write(save, bytes(playback.recorded), playback.sample_rate)
    answered = set(ended) <= {"completed", "interrupted"}
    if save is not None and answered and not playback.recorded:
        write(save, b"", 0)
    return answered


def write(path: Path, pcm: bytes, sample_rate: int) -> None:
    """Speech as a WAV file. Raises ConfigurationError, also where there is none."""
    if not pcm:
        raise ConfigurationError(
            problem="There is no speech to save: the tutor has no voice for this language.",
            fix="set TTS_PROVIDER, or the tutor's voices.",
        )
    try:
        path.write_bytes(wav(pcm, sample_rate))
    except OSError as error:
        raise ConfigurationError(
            problem=f"Can't write {path}: {error.strerror}.", fix="choose another file."
        ) from error
    notes.print(f"speech written to {path}", markup=False)


class Talk:
    """One conversation shown on the terminal: what runs in it, and how each question ended."""

    def __init__(
        self, live: LiveConversation, screen: Screen, playback: Playback | None = None
    ) -> None:
        self._live = live
        self._events = live.events()
        self._screen = screen
        self._playback = playback or Playback()
        self._changed = asyncio.Event()
        self._met = False
        self._running: set[str] = set()
        self.ended: list[str] = []
        """The status of each turn that is done, and `refused` for what made no turn."""
        self.speaking = False

    async def begin(self, settings: dict[str, Any]) -> None:
        """Wait for the server's welcome and show it; then set how to listen and speak.

        Raises ConfigurationError when the server can't.
        """
        while not self._met:
            await self.next()
        await self._live.update(**settings)
        while (answer := await self.next())["type"] != "session.updated":
            if answer["type"] == "error":
                raise ConfigurationError(
                    problem=answer["content"], fix="use a server of this version."
                )

    async def ask(self, question: str) -> None:
        """Ask by typing and show the answer."""
        ended = len(self.ended)
        await self._live.text(question)
        while len(self.ended) == ended or self._running:
            await self.next()

    async def follow(self) -> None:
        """Show all that happens, until cancelled."""
        while True:
            await self.next()

    async def next(self) -> dict[str, Any]:
        """Show the next message. Raises SessionEnded."""
        try:
            message = await anext(self._events)
        except SessionOver as over:
            self._screen.close()
            raise SessionEnded(reason=over.reason) from None
        self._playback.feed(message)
        self._screen.show(message)
        self._note(message)
        self._changed.set()
        return message

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait, while another task follows, until this is so."""
        while not true():
            self._changed.clear()
            with suppress(TimeoutError):
                # Speech that goes on being heard sends no message.
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._changed.wait()

    @property
    def at_rest(self) -> bool:
        """Whether nobody speaks and nothing is being answered."""
        return not self._running and not self.speaking and self._playback.idle

    def unheard(self) -> None:
        """A recording in which the server heard no question."""
        self._screen.tell("No question was heard in this recording.", "red")
        self.ended.append("refused")

    def close(self) -> None:
        self._screen.close()

    def _forget(self) -> None:
        """The server no longer knows what was running."""
        self.ended += ["failed"] * max(1, len(self._running))
        self._running.clear()
        self.speaking = False

    def _note(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "session.ready"} if self._met and not message.get("resumed"):
                self._forget()
            case {"type": "session.ready"}:
                self._met = True
            case {"type": "speech.started"}:
                self.speaking = True
            case {"type": "speech.stopped"}:
                self.speaking = False
            case {"type": "turn.started" | "queue", "turn_id": turn}:
                self._running.add(turn)
            case {"type": "turn.done", "turn_id": turn, "status": status}:
                self._running.discard(turn)
                self.ended.append(status)
            case {"type": "error"} if message.get("turn_id") is None:
                self.ended.append("refused")


async def _speak(place: Place, clips: Sequence[bytes], playback: Playback) -> list[str]:
    async with _conversation(place) as live:
        return await talk_by_voice(live, clips, Screen(out, notes, latency=True), playback)


async def talk_by_voice(
    live: LiveConversation, clips: Sequence[bytes], screen: Screen, playback: Playback
) -> list[str]:
    """Say recordings (PCM16 mono at 16 kHz), each after the answer to the one before it is heard.

    Returns how each question ended: completed, interrupted, failed or refused.
    Raises GpuServerError.
    """
    talk = Talk(live, screen, playback)
    await talk.begin(_VOICE)
    tutor = live.ready["tutor"]
    if tutor["language"] not in tutor["listens"]:
        raise SpeechUnavailable(language=tutor["language"], fix=tutor["missing_speech"])
    microphone = Microphone(live.append)
    try:
        async with asyncio.TaskGroup() as group:
            others = [
                group.create_task(talk.follow()),
                group.create_task(_unless_over(microphone.run())),
                group.create_task(_unless_over(playback.report(live.playback))),
            ]
            for clip in clips:
                await _say(clip, microphone, talk)
            for task in others:
                task.cancel()
    except BaseExceptionGroup as failures:
        raise known_cause(failures) from None
    finally:
        talk.close()
    return talk.ended


async def _say(clip: bytes, microphone: Microphone, talk: Talk) -> None:
    """Say one recording, and wait until what it asked has been answered and heard."""
    ended = len(talk.ended)
    await microphone.say(clip)
    while len(talk.ended) == ended or not talk.at_rest:
        try:
            async with asyncio.timeout(_UNHEARD_SECONDS):
                await talk.until(lambda: len(talk.ended) > ended or not talk.at_rest)
        except TimeoutError:
            talk.unheard()
        await talk.until(lambda: talk.at_rest)
        # The question may follow the end of its speech in a message of its own.
        await asyncio.sleep(_SETTLED_SECONDS)


async def _unless_over(work: Coroutine[Any, Any, None]) -> None:
    """The end of the session is told by the task that reads."""
    with suppress(SessionOver):
        await work


@asynccontextmanager
async def _conversation(place: Place) -> AsyncIterator[LiveConversation]:
    """A session of its own, deleted afterwards. Raises GpuServerError."""
    url = place.url
    if not url:
        found = background.running(place.settings.data_dir)
        if found is None:
            async with _server(place.settings) as url, _session(place, url) as live:
                yield live
            return
        url = found[1]
    async with _session(place, url) as live:
        yield live


@asynccontextmanager
async def _session(place: Place, url: str) -> AsyncIterator[LiveConversation]:
    try:
        async with Management(url, place.key) as management:
            tutor = await _tutor(management, place.tutor)
            ticket = await management.create_session(tutor, kb_id=place.kb)
            try:
                async with LiveConversation(ticket) as live:
                    yield live
            finally:
                with suppress(httpx2.HTTPError):
                    await management.delete_session(ticket.session_id)
    except httpx2.HTTPStatusError as refusal:
        raise _refused(refusal) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ConfigurationError(
            problem=f"No tutor answers at {url} ({type(error).__name__}).",
            fix="start the server (./start.sh), or check --url.",
        ) from error
    except SessionOver as over:
        raise SessionEnded(reason=over.reason) from None


async def _tutor(management: Management, wanted: int | None) -> int:
    """The id to ask for: the one named, or the first there is. Raises TutorNotFound."""
    answer = await management.get("/v1/tutors")
    answer.raise_for_status()
    listed = [int(tutor["id"]) for tutor in answer.json()["tutors"]]
    if wanted is None:
        return listed[0]
    if wanted not in listed:
        raise TutorNotFound(tutor_id=wanted)
    return wanted


def _refused(refusal: httpx2.HTTPStatusError) -> GpuServerError:
    try:
        detail = str(refusal.response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"HTTP {refusal.response.status_code}"
    fix = {
        401: "give the management key with --key or MANAGEMENT_API_KEY.",
        404: "check --url.",
        503: "try again in a moment.",
    }.get(refusal.response.status_code, "look at the server's log.")
    return ConfigurationError(problem=f"The server refused: {detail}", fix=fix)


@asynccontextmanager
async def _server(settings: config.Settings) -> AsyncIterator[str]:
    """A server of this process on a port of its own; gives its address once it is ready."""
    observability.configure("WARNING", "console")
    loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    # Its clients are in this process: they don't come by the public address.
    settings = settings.model_copy(update={"websocket_url": ""})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = background.local_url(*listener.getsockname()[:2])
        with background.claimed(settings.data_dir, url):
            with loading() as show:

                def watch(now: Progress) -> None:
                    show(now.stage, now.done, now.total)
                    if now.ready:
                        loaded.set_result(None)

                app = create_app(settings, Tutoring(settings, watch), loaded.set_exception)
                server = Server(app, settings)
                server.config.load()
                server.lifespan = server.config.lifespan_class(server.config)
                await server.startup([listener])
                await asyncio.wait([loaded])
            try:
                loaded.result()
                yield url
            finally:
                await server.shutdown([listener])


def _prompt() -> str:
    try:
        return input("> ")
    except EOFError:
        return ""
