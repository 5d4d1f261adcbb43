"""Checks a running server as its users' programs would: one result a promise, the fix beside it."""

from __future__ import annotations

import asyncio
import importlib.resources
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx2
from websockets.exceptions import InvalidStatus, WebSocketException

from gpuserver.audio import decode
from gpuserver.client import LiveConversation, Management, SessionOver, Ticket, converse

_ANSWER_SECONDS: Final = 60.0
_Events = AsyncIterator[dict[str, Any]]
_QUESTION: Final = "What is a list?"
_SILENCE_SECONDS: Final = 3.0
"""After a spoken question: more than the longest wait for its end."""
_SPOKEN_SECONDS: Final = 15.0
"""To say the question, find its end and recognise it."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report. `ok` is None for something that is switched off."""

    name: str
    ok: bool | None
    detail: str
    fix: str = ""


class _Failed(Exception):
    """A promise that does not hold, and what to do about it."""

    def __init__(self, detail: str, fix: str) -> None:
        super().__init__(detail)
        self.detail, self.fix = detail, fix


class _Off(Exception):
    """Something the operator has switched off."""


def spoken_question() -> bytes:
    """The recording that is asked: Ogg/Opus, "what is a list", in a synthetic voice."""
    return (importlib.resources.files("gpuserver") / "samples" / "question.ogg").read_bytes()


async def check(url: str, key: str = "") -> AsyncIterator[Result]:
    """Run every check against the server at `url`; stops early where the rest can't work."""
    try:
        management = Management(url, key)
    except (httpx2.InvalidURL, ValueError) as error:
        yield Result("address", False, str(error), "give --url as http://host:port")
        return
    async with management:
        for name, probe in (("health", _health), ("ready", _ready)):
            result = await _run(name, probe(management))
            yield result
            if not result.ok:
                return
        tickets: list[Ticket] = []
        result = await _run("session", _session(management, tickets))
        yield result
        if not tickets:
            return
        ticket = tickets[0]
        try:
            for name, check_socket in _SOCKET_CHECKS:
                yield await _run(name, check_socket(ticket))
        finally:
            with suppress(httpx2.HTTPError):
                await management.delete_session(ticket.session_id)
        yield await _run("deleted session refused", _refused(ticket))


async def _run(name: str, probe: Awaitable[str]) -> Result:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return Result(name, True, await probe)
    except _Failed as failure:
        return Result(name, False, failure.detail, failure.fix)
    except _Off as off:
        return Result(name, None, str(off))
    except SessionOver as over:
        return Result(name, False, f"the session ended: {over}", "look at the server's log")
    except (ValueError, KeyError, TypeError):
        return Result(name, False, "the answer is not gpuserver's", "is this the right address?")
    except TimeoutError:
        return Result(
            name, False, f"no answer in {_ANSWER_SECONDS:.0f} s", "look at the server's log"
        )
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, WebSocketException) as error:
        return Result(name, False, f"{type(error).__name__}: {error}"[:200], _CONNECT_FIX)


_CONNECT_FIX: Final = (
    "start the server (./start.sh), check --url, and that a proxy in between passes WebSocket on"
)


async def _health(management: Management) -> str:
    answer = await management.get("/health")
    if answer.status_code != 200 or answer.json().get("status") != "healthy":
        raise _Failed(f"HTTP {answer.status_code}", "is another program on this port?")
    body = answer.json()
    return f"{body['active_sessions']} of {body['max_sessions']} sessions"


async def _ready(management: Management) -> str:
    answer = await management.get("/ready")
    if answer.status_code != 200:
        stage = answer.json().get("stage", "")
        raise _Failed(f"still loading: {stage}", "wait a moment and check again")
    return "every model has run"


async def _session(management: Management, tickets: list[Ticket]) -> str:
    try:
        ticket = await management.create_session()
    except httpx2.HTTPStatusError as error:
        status = error.response.status_code
        fix = {
            401: "give the management key with --key or MANAGEMENT_API_KEY",
            403: "check from the server's own machine, or set MANAGEMENT_API_KEY",
            503: "wait for a session to end, or raise MAX_SESSIONS",
        }.get(status, "look at the server's log")
        raise _Failed(f"HTTP {status}", fix) from None
    tickets.append(ticket)
    listed = (await management.get("/v1/sessions")).text
    if ticket.session_id not in listed or ticket.engine_token in listed:
        raise _Failed("the list is wrong", "this is a bug: report it")
    return f"created, listed without its token; engine_url {ticket.engine_url}"


async def _text(ticket: Ticket) -> str:
    async with converse(ticket, v2=False) as socket:
        await socket.receive()
        await socket.text(_QUESTION)
        answer = await socket.until("text", "error")
        _no_error(answer)
        return _short(answer["content"])


async def _audio(ticket: Ticket) -> str:
    async with converse(ticket, v2=False) as socket:
        await socket.receive()
        await socket.audio(spoken_question())
        heard = await socket.until("transcription", "error")
        if heard.get("code") == "speech_unavailable":
            raise _Off(heard["content"])
        _no_error(heard)
        answer = await socket.until("audio", "text", "error")
        _no_error(answer)
        if answer["type"] == "text":
            raise _Off("recognised, but speech is switched off (TTS_PROVIDER)")
        return (
            f"heard {heard['content']!r}, {len(answer['data']) * 3 // 4 // 1024} kB of speech back"
        )


async def _streaming(ticket: Ticket) -> str:
    async with LiveConversation(ticket) as live:
        events = live.events()
        await _next(events, "session.ready")
        await live.text(_QUESTION)
        seen = await _cut_short(live, events)
        return ", ".join(f"{stage} {ms} ms" for stage, ms in seen["turn.done"]["timeline"].items())


async def _live_voice(ticket: Ticket) -> str:
    async with LiveConversation(ticket) as live:
        events = live.events()
        ready = await _next(events, "session.ready")
        tutor = ready["tutor"]
        if tutor["language"] not in tutor["listens"]:
            raise _Off(f"speech is not recognised (set {tutor['missing_speech']})")
        microphone = {"encoding": "pcm16", "sample_rate": 16_000}
        await live.update(input_audio_format=microphone, turn_detection="server")
        clip = await asyncio.to_thread(decode, spoken_question(), _ANSWER_SECONDS)
        pcm = clip.samples.astype("<i2").tobytes()
        speaking = asyncio.create_task(live.speak(pcm, silence=_SILENCE_SECONDS))
        try:
            heard, done = await _spoken_turn(live, events)
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
        timeline = done["timeline"]
        first = timeline.get("first_audio")
        sound = "no sound: speech is switched off" if first is None else f"first sound {first} ms"
        return f"heard {heard!r} from the open microphone, {sound}"


async def _spoken_turn(live: LiveConversation, events: _Events) -> tuple[str, dict[str, Any]]:
    """The words that were recognised, and the end of the turn they began."""
    try:
        async with asyncio.timeout(_SPOKEN_SECONDS):
            heard = await _next(events, "transcription", "error")
    except TimeoutError:
        raise _Failed("the question was not heard", "look at the server's log") from None
    _no_error(heard)
    seen = await _cut_short(live, events)
    return heard["content"], seen["turn.done"]


async def _resume(ticket: Ticket) -> str:
    async with LiveConversation(ticket) as live:
        events = live.events()
        await _next(events, "session.ready")
        await live.text(_QUESTION)
        written = (await _next(events, "text.delta"))["content"]
        await live.drop()
        seen = await _cut_short(live, events)
        # Without a voice, the whole answer may have arrived before the line broke.
        back = seen.get("session.ready") or await _next(events, "session.ready")
        if not back["resumed"]:
            raise _Failed("the server no longer knew the answer", "is RESUME_GRACE_SECONDS 0?")
        if written + seen.get("text.delta", {}).get("content", "") != seen["text"]["content"]:
            raise _Failed("the answer came back with a gap", "this is a bug: report it")
        return "the line dropped within an answer, every message came once"


async def _interrupt(ticket: Ticket) -> str:
    async with LiveConversation(ticket) as live:
        events = live.events()
        ready = await _next(events, "session.ready")
        await live.text(_QUESTION)
        turn = await _next(events, "turn.started")
        if ready["audio"]["sample_rate"]:
            await _next(events, "audio.delta")
        asked = time.monotonic()
        await live.interrupt(turn["turn_id"])
        done = await _next(events, "turn.done")
        if done["status"] == "completed" and not ready["audio"]["sample_rate"]:
            raise _Off("without a voice the answer is there before it can be stopped")
        if done["status"] != "interrupted":
            raise _Failed(f"the turn {done['status']}", "this is a bug: report it")
        return f"the answer stopped after {(time.monotonic() - asked) * 1000:.0f} ms"


async def _cut_short(live: LiveConversation, events: _Events) -> dict[str, dict[str, Any]]:
    """Read a turn until it is written and begins to be heard, stop it, and read its end.

    Gives the last message of each type; of `text.delta`, all in one. Raises _Failed.
    """
    seen: dict[str, dict[str, Any]] = {}
    wanted = {"text", "audio.delta"} if live.ready["audio"]["sample_rate"] else {"text"}
    stopped = False
    while "turn.done" not in seen:
        message = await _next(events)
        earlier = seen.get(message["type"], {})
        seen[message["type"]] = message
        if message["type"] == "text.delta":
            message["content"] = earlier.get("content", "") + message["content"]
        if message["type"] == "error":
            _no_error(message)
        if not stopped and wanted <= seen.keys():
            stopped = True
            await live.interrupt()
    if seen["turn.done"]["status"] == "failed":
        raise _Failed("the turn failed", "look at the server's log")
    return seen


async def _next(events: _Events, *types: str) -> dict[str, Any]:
    """The next message, of one of these types where any are given. Raises SessionOver."""
    async for message in events:
        if not types or message["type"] in types:
            return message
    raise SessionOver("closed")


async def _bad_message(ticket: Ticket) -> str:
    async with converse(ticket, v2=False) as socket:
        await socket.receive()
        for frame in ("not json", "[1,2]", '{"type":"dance"}', b"\0\1"):
            await socket.send(frame)
            if (await socket.receive())["type"] != "error":
                raise _Failed(f"{frame!r} was not refused", "this is a bug: report it")
        await socket.text(_QUESTION)
        _no_error(await socket.until("text", "error"))
        return "refused with a sentence, the socket stays usable"


async def _bad_token(ticket: Ticket) -> str:
    return await _refused(replace(ticket, engine_token="x" * 43))


async def _refused(ticket: Ticket) -> str:
    try:
        async with converse(ticket, v2=False) as socket:
            await socket.receive()
    except InvalidStatus as refusal:
        status = refusal.response.status_code
        if status == 403:
            return "HTTP 403"
        raise _Failed(f"HTTP {status}", "is a proxy in between changing answers?") from None
    raise _Failed("the socket was opened", "this is a bug: report it")


def _no_error(message: dict[str, object]) -> None:
    if message["type"] == "error":
        raise _Failed(str(message["content"]), "look at the server's log")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


_SOCKET_CHECKS: Final[tuple[tuple[str, Callable[[Ticket], Awaitable[str]]], ...]] = (
    ("WebSocket text", _text),
    ("WebSocket audio", _audio),
    ("WebSocket streaming", _streaming),
    ("live voice", _live_voice),
    ("resume", _resume),
    ("interrupt", _interrupt),
    ("bad message", _bad_message),
    ("bad token", _bad_token),
)
