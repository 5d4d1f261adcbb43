"""The wire: every message of dialect 1 and of `tutor.v2`, both ways."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gpuserver.errors import MessageInvalid

TUTOR_V2: Final = "tutor.v2"
"""The WebSocket subprotocol that chooses the streaming dialect."""
BEARER: Final = "bearer."
"""Prefix of the subprotocol that carries the engine token beside `tutor.v2`."""

# What a client sends. Unknown keys are ignored: clients may be newer than the server.


class _ClientMessage(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Text(_ClientMessage):
    """A typed question."""

    type: Literal["text"]
    content: str


class AudioClip(_ClientMessage):
    """A spoken question: one whole recording, base64, in any container a browser records."""

    type: Literal["audio"]
    data: str


class Interrupt(_ClientMessage):
    """Stop the named answer, or whichever is running; waiting questions are dropped too."""

    type: Literal["interrupt"]
    turn_id: str | None = None


class Ping(_ClientMessage):
    """Answered by `pong` at once, also during an answer."""

    type: Literal["ping"]


ClientMessage1 = Annotated[Text | AudioClip, Field(discriminator="type")]
ClientMessage2 = Annotated[Text | AudioClip | Interrupt | Ping, Field(discriminator="type")]
ClientMessage = Text | AudioClip | Interrupt | Ping

_M = TypeVar("_M")
_CLIENT_1: TypeAdapter[Text | AudioClip] = TypeAdapter(ClientMessage1)
_CLIENT_2: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage2)


def parse_dialect1(frame: str) -> Text | AudioClip:
    """One text frame of dialect 1. Raises MessageInvalid for anything that is not a message."""
    return _parse(_CLIENT_1, frame)


def parse_v2(frame: str) -> ClientMessage:
    """One text frame of `tutor.v2`. Raises MessageInvalid for anything that is not a message."""
    return _parse(_CLIENT_2, frame)


def _parse(adapter: TypeAdapter[_M], frame: str) -> _M:
    # The parser itself bounds nesting and the length of numbers and refuses lone surrogates.
    try:
        return adapter.validate_json(frame)
    except ValidationError as error:
        raise MessageInvalid(problem=_explain(error)) from None


def _explain(error: ValidationError) -> str:
    """A short phrase for the first problem; never the client's own input, which may be huge."""
    first = error.errors(include_url=False, include_input=False, include_context=True)[0]
    kind = first["type"]
    if kind == "string_unicode":
        return "it is not valid Unicode text"
    if kind == "json_invalid":
        return "it is not valid JSON"
    if kind in {"union_tag_not_found", "model_attributes_type", "model_type", "dict_type"}:
        return "it must be a JSON object with a 'type'"
    if kind == "union_tag_invalid":
        known = first.get("ctx", {}).get("expected_tags", "")
        return f"its 'type' must be one of {known}"
    where = ".".join(str(part) for part in first["loc"][1:])
    return f"field '{where}': {first['msg'].lower()}"


# What the server sends, dialect 1. No slots: orjson writes a dataclass without them twice as fast.


@dataclass
class Text1:
    content: str
    timestamp: datetime
    type: Literal["text"] = "text"
    role: Literal["assistant"] = "assistant"


@dataclass
class Transcription1:
    content: str
    timestamp: datetime
    type: Literal["transcription"] = "transcription"
    role: Literal["user"] = "user"


@dataclass
class Audio1:
    """The spoken answer: one playable WAV, base64, under both names that clients read."""

    content: str
    data: str
    audio: str
    timestamp: datetime
    type: Literal["audio"] = "audio"
    role: Literal["assistant"] = "assistant"


@dataclass
class Error1:
    content: str
    code: str
    timestamp: datetime
    type: Literal["error"] = "error"


# What the server sends, tutor.v2. `seq` counts from 1 for each session without gaps.


@dataclass
class TutorInfo:
    """What a page needs to know of a tutor. `languages` are those it answers in; `listens` those
    it recognises by ear; `missing_speech` says what to set for the others."""

    id: int
    name: str
    language: str
    greeting: str
    languages: list[str]
    listens: list[str]
    speaks: list[str]
    missing_speech: str = ""


@dataclass
class Limits:
    text_chars: int
    audio_seconds: int
    message_bytes: int
    waiting_questions: int


@dataclass
class SessionReady:
    seq: int
    timestamp: datetime
    session_id: str
    tutor: TutorInfo
    limits: Limits
    engines: dict[str, str]
    notice: str | None = None
    type: Literal["session.ready"] = "session.ready"


@dataclass
class TurnStarted:
    seq: int
    timestamp: datetime
    turn_id: str
    type: Literal["turn.started"] = "turn.started"


@dataclass
class Transcription:
    """The words recognised in a spoken question."""

    seq: int
    timestamp: datetime
    turn_id: str
    content: str
    confidence: float
    type: Literal["transcription"] = "transcription"


@dataclass
class Source:
    """A passage that the answer may cite as `[n]`; `score` is its similarity, 0 to 1."""

    n: int
    document: str
    heading: str
    page: int | None
    quote: str
    score: float


@dataclass
class Sources:
    seq: int
    timestamp: datetime
    turn_id: str
    passages: list[Source]
    type: Literal["sources"] = "sources"


@dataclass
class TextDelta:
    """The next piece of the answer's text (Markdown)."""

    seq: int
    timestamp: datetime
    turn_id: str
    content: str
    type: Literal["text.delta"] = "text.delta"


@dataclass
class TextWhole:
    """The whole answer's text, once it is complete: what all the deltas add up to."""

    seq: int
    timestamp: datetime
    turn_id: str
    content: str
    type: Literal["text"] = "text"


@dataclass
class Word:
    """A spoken word and when it sounds, in milliseconds from the start of the turn's speech."""

    text: str
    start_ms: int
    end_ms: int


@dataclass
class AudioDelta:
    """Speech: PCM16 mono little-endian, base64. `offset` is the number of samples before it."""

    seq: int
    timestamp: datetime
    turn_id: str
    data: str
    sample_rate: int
    offset: int
    words: list[Word]
    type: Literal["audio.delta"] = "audio.delta"


@dataclass
class Mark:
    """The mouth takes this shape at `ms` from the start of the turn's speech."""

    ms: int
    viseme: str


@dataclass
class Visemes:
    seq: int
    timestamp: datetime
    turn_id: str
    marks: list[Mark]
    type: Literal["visemes"] = "visemes"


@dataclass
class TurnDone:
    """The one ending of a turn. `timeline`: milliseconds from its start to each stage reached."""

    seq: int
    timestamp: datetime
    turn_id: str
    status: Literal["completed", "interrupted", "failed"]
    timeline: dict[str, int]
    usage: dict[str, int]
    type: Literal["turn.done"] = "turn.done"


@dataclass
class SessionEnding:
    """The last message before the server closes the socket."""

    seq: int
    timestamp: datetime
    reason: str
    content: str
    type: Literal["session.ending"] = "session.ending"


@dataclass
class Error:
    seq: int
    timestamp: datetime
    code: str
    content: str
    retryable: bool
    turn_id: str | None = None
    retry_after: int | None = None
    type: Literal["error"] = "error"


@dataclass
class Pong:
    seq: int
    timestamp: datetime
    type: Literal["pong"] = "pong"


ServerMessage1 = Text1 | Transcription1 | Audio1 | Error1
ServerMessage2 = (
    SessionReady
    | TurnStarted
    | Transcription
    | Sources
    | TextDelta
    | TextWhole
    | AudioDelta
    | Visemes
    | TurnDone
    | SessionEnding
    | Error
    | Pong
)


def encode(message: ServerMessage1 | ServerMessage2) -> str:
    """A server message as compact JSON."""
    return orjson.dumps(message).decode()


# Close codes: 4000–4499 try again, 4500–4999 do not.
CLOSE_REPLACED: Final = 4501
CLOSE_ENDED: Final = 4502
CLOSE_SHUTDOWN: Final = 4000
