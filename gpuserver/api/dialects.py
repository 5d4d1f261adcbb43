"""The two dialects of the WebSocket: client frames to questions, turn events to messages."""

from __future__ import annotations

import asyncio
import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final

from gpuserver import protocol
from gpuserver.audio import wav
from gpuserver.errors import AudioInvalid, GpuServerError
from gpuserver.language import LANGUAGES, prose, sentences
from gpuserver.live.live_session import LiveSession
from gpuserver.providers import Passage, names
from gpuserver.tutor import events
from gpuserver.tutor.ai_engine import AIEngine
from gpuserver.tutor.turn import Question

ServerMessage = protocol.ServerMessage1 | protocol.ServerMessage2
Send = Callable[[ServerMessage], Awaitable[None]]

_QUOTE_CHARS: Final = 240


class Dialect(ABC):
    """How one kind of client is spoken with. It is the live session's listener for that client.

    `replaced` is set when another client has taken the session over.
    """

    def __init__(self, live: LiveSession, engine: AIEngine, send: Send) -> None:
        self._live, self._engine, self._send = live, engine, send
        self._language = engine.tutor.language
        self.replaced = asyncio.Event()
        self._over = False

    def replace(self) -> None:
        self.replaced.set()

    @abstractmethod
    async def greet(self, notice: GpuServerError | None) -> None:
        """The server speaks first; `notice` is something the student should know."""

    @abstractmethod
    async def receive(self, frame: str) -> None:
        """Act on one text frame. Raises GpuServerError, which `refuse` then tells."""

    def write(self, turn_id: str, event: events.Event) -> Coroutine[Any, Any, None]:
        """Tell of one turn event; nothing follows the last message."""
        return _nothing() if self._over else self.tell(turn_id, event)

    async def end(self, error: GpuServerError) -> None:
        """Send the last message before the socket is closed."""
        self._over = True
        await self.say_goodbye(error)

    @abstractmethod
    async def tell(self, turn_id: str, event: events.Event) -> None:
        """Translate one turn event and send it."""

    @abstractmethod
    async def refuse(self, error: GpuServerError, turn_id: str | None = None) -> None:
        """Tell what is wrong with what the client sent, or why a turn failed."""

    @abstractmethod
    async def say_goodbye(self, error: GpuServerError) -> None:
        """Send the last message before the socket is closed."""

    @staticmethod
    @abstractmethod
    def refusal(live: LiveSession, error: GpuServerError) -> ServerMessage:
        """What is sent instead of a greeting when the tutor can't be had."""

    def _clip_question(self, data: str) -> Question:
        """Raises AudioInvalid, and SpeechUnavailable where the tutor can't hear its language."""
        self._engine.hears(self._language)
        return Question(self._language, clip=clip_of(data), speak=True)


def clip_of(data: str) -> bytes:
    """The recording in a base64 field. Raises AudioInvalid."""
    try:
        clip = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise AudioInvalid(problem="it is not valid base64") from None
    if not clip:
        raise AudioInvalid(problem="it is empty")
    return clip


async def _nothing() -> None:
    pass


def now() -> datetime:
    """The wall clock; it is written as ISO 8601 with an offset."""
    return datetime.now(UTC)


class Dialect1(Dialect):
    """The first clients' dialect: one message in, one whole answer out, in order."""

    def __init__(self, live: LiveSession, engine: AIEngine, send: Send) -> None:
        super().__init__(live, engine, send)
        self._reset()

    def _reset(self) -> None:
        self._text = ""
        self._pcm: list[bytes] = []
        self._sample_rate = 0

    async def greet(self, notice: GpuServerError | None) -> None:
        words = [self._engine.tutor.greet()]
        if notice is not None:
            words.append(notice.sentence(self._language))
        await self._send(protocol.Text1(" ".join(words), now()))

    async def receive(self, frame: str) -> None:
        match protocol.parse_dialect1(frame):
            case protocol.Text(content=content):
                question = Question(self._language, text=content)
            case protocol.AudioClip(data=data):
                question = self._clip_question(data)
        self._live.ask(question, self)

    async def tell(self, turn_id: str, event: events.Event) -> None:
        match event:
            case events.Started():
                self._reset()
            case events.Recognised(transcript):
                await self._send(protocol.Transcription1(transcript.text, now()))
            case events.TextDone(text):
                self._text = text
            case events.SpeechChunk(speech, _):
                self._pcm.append(speech.pcm)
                self._sample_rate = speech.sample_rate
            case events.Ended(status="completed"):
                await self._answer()
            case events.Ended(error=GpuServerError() as error):
                await self.refuse(error)

    async def _answer(self) -> None:
        if self._pcm:
            data = base64.b64encode(wav(b"".join(self._pcm), self._sample_rate)).decode()
            await self._send(protocol.Audio1(self._text, data, data, now()))
        else:
            await self._send(protocol.Text1(self._text, now()))

    async def refuse(self, error: GpuServerError, turn_id: str | None = None) -> None:
        await self._send(protocol.Error1(error.sentence(self._language), error.code, now()))

    async def say_goodbye(self, error: GpuServerError) -> None:
        await self.refuse(error)

    @staticmethod
    def refusal(live: LiveSession, error: GpuServerError) -> ServerMessage:
        return protocol.Error1(error.sentence("en"), error.code, now())


class DialectV2(Dialect):
    """`tutor.v2`: every event as it happens, numbered without gaps."""

    async def greet(self, notice: GpuServerError | None) -> None:
        limits = self._live.limits
        await self._send(
            protocol.SessionReady(
                *self._stamp(),
                session_id=self._live.session.id,
                tutor=describe(self._engine),
                limits=protocol.Limits(
                    limits.text_chars,
                    limits.audio_seconds,
                    limits.message_bytes,
                    limits.waiting_questions,
                ),
                engines=names(self._engine.keys),
                notice=None if notice is None else notice.sentence(self._language),
            )
        )

    async def receive(self, frame: str) -> None:
        match protocol.parse_v2(frame):
            case protocol.Text(content=content):
                self._live.ask(Question(self._language, text=content, speak=True), self)
            case protocol.AudioClip(data=data):
                self._live.ask(self._clip_question(data), self)
            case protocol.Interrupt(turn_id=turn_id):
                self._live.interrupt(turn_id)
            case protocol.Ping():
                await self._send(protocol.Pong(*self._stamp()))

    async def tell(self, turn_id: str, event: events.Event) -> None:
        match event:
            case events.TextDelta(text):
                await self._send(protocol.TextDelta(*self._stamp(), turn_id, text))
            case events.SpeechChunk():
                await self._speech(turn_id, event)
            case events.Started():
                await self._send(protocol.TurnStarted(*self._stamp(), turn_id))
            case events.Recognised(heard):
                confidence = round(heard.confidence, 3)
                await self._send(
                    protocol.Transcription(*self._stamp(), turn_id, heard.text, confidence)
                )
            case events.Sources(passages):
                sources = [_source(n, passage) for n, passage in enumerate(passages, 1)]
                await self._send(protocol.Sources(*self._stamp(), turn_id, sources))
            case events.TextDone(text):
                await self._send(protocol.TextWhole(*self._stamp(), turn_id, text))
            case events.Ended(status, timeline, usage, error):
                try:
                    if error is not None:
                        await self.refuse(error, turn_id)
                # The ending goes out even when the wait for the sentence before it is interrupted.
                finally:
                    await self._send(
                        protocol.TurnDone(
                            *self._stamp(), turn_id, status, dict(timeline), dict(usage)
                        )
                    )

    async def _speech(self, turn_id: str, event: events.SpeechChunk) -> None:
        """Mouth shapes first, so that they are there when the sound starts."""
        speech, start = event.speech, event.start_ms
        marks = [protocol.Mark(start + mark.ms, mark.viseme) for mark in speech.visemes]
        if marks:
            await self._send(protocol.Visemes(*self._stamp(), turn_id, marks))
        words = [
            protocol.Word(word.text, start + word.start_ms, start + word.end_ms)
            for word in speech.words
        ]
        data = base64.b64encode(speech.pcm).decode()
        await self._send(
            protocol.AudioDelta(
                *self._stamp(), turn_id, data, speech.sample_rate, event.offset, words
            )
        )

    async def refuse(self, error: GpuServerError, turn_id: str | None = None) -> None:
        await self._send(
            protocol.Error(
                *self._stamp(),
                error.code,
                error.sentence(self._language),
                error.retryable,
                turn_id,
                error.retry_after,
            )
        )

    async def say_goodbye(self, error: GpuServerError) -> None:
        reason = str(error.details.get("reason", error.code))
        await self._send(
            protocol.SessionEnding(*self._stamp(), reason, error.sentence(self._language))
        )

    @staticmethod
    def refusal(live: LiveSession, error: GpuServerError) -> ServerMessage:
        return protocol.Error(
            live.session.next_seq(), now(), error.code, error.sentence("en"), error.retryable
        )

    def _stamp(self) -> tuple[int, datetime]:
        return self._live.session.next_seq(), now()


def describe(engine: AIEngine) -> protocol.TutorInfo:
    """A tutor as pages need it."""
    tutor = engine.tutor
    missing = [language for language in LANGUAGES if language not in engine.listens]
    fix = f"ASR_PROVIDER ({', '.join(missing)})" if missing else ""
    return protocol.TutorInfo(
        tutor.id,
        tutor.name,
        tutor.language,
        tutor.greet(),
        list(LANGUAGES),
        list(engine.listens),
        list(engine.speaks),
        fix,
    )


def _source(n: int, passage: Passage) -> protocol.Source:
    return protocol.Source(
        n=n,
        document=passage.document,
        heading=passage.heading,
        page=passage.page,
        quote=_quote(passage),
        score=round(passage.similarity, 3),
    )


def _quote(passage: Passage) -> str:
    """The passage's first sentences, whole ones as far as they fit."""
    between = "" if passage.language == "zh" else " "
    quote = ""
    for sentence in sentences(prose(passage.text)):
        longer = f"{quote}{between if quote else ''}{sentence}"
        if len(longer) > _QUOTE_CHARS:
            break
        quote = longer
    return quote or passage.text[: _QUOTE_CHARS - 1] + "…"
