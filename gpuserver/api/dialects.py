"""How a client is spoken with: what both dialects share, and the first clients' dialect."""

from __future__ import annotations

import asyncio
import base64
import binascii
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Protocol

from gpuserver import protocol
from gpuserver.audio import wav
from gpuserver.errors import AudioInvalid, GpuServerError, MessageInvalid
from gpuserver.language import Language
from gpuserver.live import events as live_events
from gpuserver.live.live_session import LiveSession
from gpuserver.tutor import events
from gpuserver.tutor.ai_engine import AIEngine
from gpuserver.tutor.turn import Question

BEYOND_COURSE: Final[Mapping[Language, str]] = {
    "en": "This answer is general knowledge: the course material does not cover the question.",
    "zh": "以下回答来自通用知识，课程资料里没有讲到这个问题。",
}
_OUTBOX_FRAMES: Final = 256

Frame = str | bytes
"""An encoded message: a text frame or a binary one."""


class Source(Protocol):
    """Where a connection gets what it sends."""

    lost: bool
    """Whether it came to its end because something in it is gone."""
    position: int
    """The number of the last event given; 0 where events have none."""
    direct: Callable[[Frame], bool] | None
    """Takes a frame as it comes, while nobody is behind; says whether it did."""

    def take(self) -> list[Frame]:
        """What is ready, in order; possibly nothing."""
        ...

    async def next(self) -> list[Frame]:
        """The same, waiting for it; nothing when this source has come to its end."""
        ...

    def close(self) -> None:
        """Nobody takes from it any more."""
        ...


class Outlet(Protocol):
    """A connection, as a dialect sees it."""

    resumed: bool
    """Whether its client has said where it left off."""

    def follow(self, source: Source, first: Frame) -> None:
        """Send this frame, and from then on what the source has."""
        ...


class Dialect(ABC):
    """How one kind of client is spoken with. It is the live session's listener."""

    paced = False
    lasting = False

    def __init__(self, live: LiveSession, engine: AIEngine) -> None:
        self._live, self._engine = live, engine
        self._language = engine.tutor.language

    @property
    def returning(self) -> bool:
        """Whether a client of this session may be coming back to what it missed."""
        return False

    def is_return(self, frame: str | None) -> bool:
        """Whether a client's first frame says so; it is then greeted by the answer to that."""
        return False

    @abstractmethod
    def greet(self, outlet: Outlet, notice: GpuServerError | None) -> None:
        """The server speaks first; `notice` is something the student should know."""

    @abstractmethod
    def receive(self, frame: Frame, outlet: Outlet) -> None:
        """Act on one frame. Raises GpuServerError, which `refuse` then tells."""

    @abstractmethod
    def write(self, turn_id: str, event: live_events.LiveEvent) -> None:
        """Translate one event and send it."""

    @abstractmethod
    def refuse(self, error: GpuServerError, turn_id: str | None = None) -> None:
        """Tell what is wrong with what the client sent, or why a turn failed."""

    @abstractmethod
    def farewell(self, error: GpuServerError, last_seq: int | None = None) -> Frame:
        """The last message before the socket is closed.

        `last_seq`: the number of the last event on this socket, where it is not the session's.
        """

    @staticmethod
    @abstractmethod
    def refusal(live: LiveSession, error: GpuServerError) -> Frame:
        """What is sent instead of a greeting when the tutor can't be had."""


def bytes_of(data: str) -> bytes:
    """What a base64 field holds. Raises AudioInvalid."""
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise AudioInvalid(problem="it is not valid base64") from None
    if not raw:
        raise AudioInvalid(problem="it is empty")
    return raw


def now() -> datetime:
    """The wall clock; it is written as ISO 8601 with an offset."""
    return datetime.now(UTC)


class Outbox:
    """Frames for one connection, which are gone with it; a client that takes none is lost."""

    lost = False
    position = 0
    direct: Callable[[Frame], bool] | None = None

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._filled = asyncio.Event()

    def put(self, frame: Frame) -> None:
        if len(self._frames) == _OUTBOX_FRAMES:
            self.lost = True
        self._frames.append(frame)
        self._filled.set()

    def take(self) -> list[Frame]:
        """One frame at a time: a whole spoken answer is one."""
        self._filled.clear()
        return [self._frames.popleft()] if self._frames else []

    def close(self) -> None:
        self._frames.clear()

    async def next(self) -> list[Frame]:
        while not self.lost:
            if frames := self.take():
                return frames
            await self._filled.wait()
        return []


class Dialect1(Dialect):
    """The first clients' dialect: one message in, one whole answer out, in order."""

    def __init__(self, live: LiveSession, engine: AIEngine) -> None:
        super().__init__(live, engine)
        self._outbox: Final = Outbox()
        self._reset()

    def _reset(self) -> None:
        self._text = ""
        self._pcm: list[bytes] = []
        self._sample_rate = 0

    def greet(self, outlet: Outlet, notice: GpuServerError | None) -> None:
        words = [self._engine.tutor.greet()]
        if notice is not None:
            words.append(notice.sentence(self._language))
        outlet.follow(self._outbox, protocol.encode(protocol.Text1(" ".join(words), now())))

    def receive(self, frame: Frame, outlet: Outlet) -> None:
        if isinstance(frame, bytes):
            raise MessageInvalid(problem="binary frames are not used here, send JSON text")
        match protocol.parse_dialect1(frame):
            case protocol.Text(content=content):
                question = Question(self._language, text=content)
            case protocol.AudioClip(data=data):
                self._engine.hears(self._language)
                question = Question(self._language, clip=bytes_of(data), speak=True)
        self._live.ask(question, self)

    def write(self, turn_id: str, event: live_events.LiveEvent) -> None:
        # A question gets one `text` here, and these clients know no other message to pass over:
        # a place in line or another engine's name would be taken for the answer.
        match event:
            case events.Started():
                self._reset()
            case events.Recognised(transcript):
                self._send(protocol.Transcription1(transcript.text, now()))
            case events.BeyondCourse():
                # Whoever reads the answer has to know: here that can only be said in it.
                self._text = f"{BEYOND_COURSE[self._language]}\n\n"
            case events.TextDone(text):
                self._text += text
            case events.SpeechChunk(speech, _):
                self._pcm.append(speech.pcm)
                self._sample_rate = speech.sample_rate
            case events.Ended(status="completed"):
                self._answer()
            case events.Ended(error=GpuServerError() as error):
                self.refuse(error, turn_id)
            case live_events.Refused(error):
                self.refuse(error)

    def _answer(self) -> None:
        if self._pcm:
            data = base64.b64encode(wav(b"".join(self._pcm), self._sample_rate)).decode()
            self._send(protocol.Audio1(self._text, data, data, now()))
        else:
            self._send(protocol.Text1(self._text, now()))

    def refuse(self, error: GpuServerError, turn_id: str | None = None) -> None:
        if turn_id is None:
            self._live.metrics.count_error(error.code)
        self._send(protocol.Error1(error.sentence(self._language), error.code, now()))

    def _send(self, message: protocol.ServerMessage1) -> None:
        self._outbox.put(protocol.encode(message))

    def farewell(self, error: GpuServerError, last_seq: int | None = None) -> Frame:
        return protocol.encode(protocol.Error1(error.sentence(self._language), error.code, now()))

    @staticmethod
    def refusal(live: LiveSession, error: GpuServerError) -> Frame:
        return protocol.encode(protocol.Error1(error.sentence("en"), error.code, now()))
