"""The wire: every message of dialect 1 and of `tutor.v2`, both ways."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

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


class AudioAppend(_ClientMessage):
    """The next stretch of the open microphone, base64; the same as a binary frame of its bytes."""

    type: Literal["audio.append"]
    data: str


class AudioCommit(_ClientMessage):
    """The question is complete: answer what was said since the last one."""

    type: Literal["audio.commit"]


class AudioClear(_ClientMessage):
    """Forget what was said since the last question."""

    type: Literal["audio.clear"]


class Interrupt(_ClientMessage):
    """Stop the named answer, or whichever is running; waiting questions are dropped too."""

    type: Literal["interrupt"]
    turn_id: str | None = None


class Playback(_ClientMessage):
    """How much of a turn's speech the student has heard by now, in milliseconds from its start."""

    type: Literal["playback"]
    turn_id: Annotated[str, Field(max_length=40)]
    heard_ms: Annotated[int, Field(ge=0, le=86_400_000)]


class OutputUpdate(_ClientMessage):
    """Which of an answer's forms are sent; what is left out stays as it is."""

    text: bool | None = None
    audio: bool | None = None
    visemes: bool | None = None


class InputFormat(_ClientMessage):
    """What the microphone's bytes are; `sample_rate` counts for pcm16 (mono, little-endian)."""

    encoding: Literal["pcm16", "webm"] = "pcm16"
    sample_rate: Literal[8000, 16000, 24000, 44100, 48000] = 16000


class SessionUpdate(_ClientMessage):
    """Change how the session listens and speaks, from the next question on."""

    type: Literal["session.update"]
    language: Literal["en", "zh"] | None = None
    voice: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    output: OutputUpdate | None = None
    audio_format: Literal["base64", "binary"] | None = None
    input_audio_format: InputFormat | None = None
    turn_detection: Literal["server", "manual"] | None = None


class Feedback(_ClientMessage):
    """What the student thinks of an answer."""

    type: Literal["feedback"]
    turn_id: Annotated[str, Field(max_length=40)]
    rating: Annotated[int, Field(ge=-1, le=1)]
    comment: Annotated[str, Field(max_length=2000)] = ""


class Resume(_ClientMessage):
    """The first message of a client that returns: send again all that came after `last_seq`."""

    type: Literal["resume"]
    last_seq: Annotated[int, Field(ge=0)]


class Ping(_ClientMessage):
    """Answered by `pong` at once, also during an answer."""

    type: Literal["ping"]


ClientMessage1 = Annotated[Text | AudioClip, Field(discriminator="type")]
ClientMessage = (
    Text
    | AudioClip
    | AudioAppend
    | AudioCommit
    | AudioClear
    | Interrupt
    | Playback
    | SessionUpdate
    | Feedback
    | Resume
    | Ping
)
ClientMessage2 = Annotated[ClientMessage, Field(discriminator="type")]

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


# What the server sends, tutor.v2. `seq` counts from 1 for each session without gaps; only
# `session.ready` takes no number: it repeats the one from which this connection counts on.


@dataclass
class TutorInfo:
    """What a page needs to know of a tutor. `languages` are those it answers in; `listens` those
    it recognises by ear; `missing_speech` says what to set for the others; `voices` by language."""

    id: int
    name: str
    language: str
    greeting: str
    languages: list[str]
    listens: list[str]
    speaks: list[str]
    voices: dict[str, str]
    missing_speech: str = ""


@dataclass
class Limits:
    text_chars: int
    audio_seconds: int
    message_bytes: int
    messages_per_second: int
    waiting_questions: int


@dataclass
class Output:
    """Which of an answer's forms are sent."""

    text: bool = True
    audio: bool = True
    visemes: bool = True


@dataclass
class AudioSettings:
    """How the session listens and speaks. `sample_rate`: of the speech sent, in hertz; 0: none."""

    sample_rate: int
    audio_format: Literal["base64", "binary"]
    output: Output
    input_audio_format: dict[str, Any]
    turn_detection: Literal["server", "manual"]
    language: str
    voice: str


@dataclass
class SessionReady:
    seq: int
    timestamp: datetime
    session_id: str
    tutor: TutorInfo
    limits: Limits
    audio: AudioSettings
    engines: dict[str, str]
    last_seq: int
    resumed: bool
    notice: str | None = None
    type: Literal["session.ready"] = "session.ready"


@dataclass
class SessionUpdated:
    seq: int
    timestamp: datetime
    audio: AudioSettings
    type: Literal["session.updated"] = "session.updated"


@dataclass
class SpeechStarted:
    """The student has begun to speak."""

    seq: int
    timestamp: datetime
    type: Literal["speech.started"] = "speech.started"


@dataclass
class SpeechStopped:
    """The student's turn has ended, or what sounded like speech was none."""

    seq: int
    timestamp: datetime
    type: Literal["speech.stopped"] = "speech.stopped"


@dataclass
class TranscriptionDelta:
    """Words as they are recognised: `stable` ones stay and only grow, `tentative` ones may go."""

    seq: int
    timestamp: datetime
    stable: str
    tentative: str
    type: Literal["transcription.delta"] = "transcription.delta"


@dataclass
class Queue:
    """The question waits: its place in the line, 1 being the next, and about how long that takes.
    Before the turn has begun the line is the student's own, after that the model's."""

    seq: int
    timestamp: datetime
    turn_id: str
    position: int
    eta_s: int
    type: Literal["queue"] = "queue"


@dataclass
class TurnStarted:
    """The answer to a question begins. `question` is what was typed; of a spoken one, the words
    follow in `transcription`."""

    seq: int
    timestamp: datetime
    turn_id: str
    question: str
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
    """A passage that the answer may cite as `[n]`; `score` is its similarity, 0 to 1.

    It is passage number `passage` of the document `document_id` of a knowledge base; `url` is the
    path on this server where it can be read.
    """

    n: int
    document: str
    heading: str
    page: int | None
    quote: str
    score: float
    kb_id: str
    document_id: str
    passage: int
    url: str


@dataclass
class Sources:
    """What the answer may cite, or, where the material does not surely answer, what is `near`."""

    seq: int
    timestamp: datetime
    turn_id: str
    passages: list[Source]
    near: list[Source]
    type: Literal["sources"] = "sources"


@dataclass
class Notice:
    """Something about the answer that the student should know, as a sentence; `provider` is the
    engine it is about, "" for none."""

    seq: int
    timestamp: datetime
    turn_id: str
    code: Literal["fallback", "not_from_course"]
    content: str
    provider: str
    type: Literal["notice"] = "notice"


@dataclass
class ThoughtDelta:
    """What a reasoning model thinks before it answers, in pieces; never spoken."""

    seq: int
    timestamp: datetime
    turn_id: str
    content: str
    type: Literal["thought.delta"] = "thought.delta"


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
class AudioDelta:
    """Speech: PCM16 mono little-endian, base64. `offset` is the number of samples before it."""

    seq: int
    timestamp: datetime
    turn_id: str
    data: str
    sample_rate: int
    offset: int
    type: Literal["audio.delta"] = "audio.delta"


@dataclass
class AudioPaused:
    """The student may be interrupting: no speech is sent, and the player should hold still."""

    seq: int
    timestamp: datetime
    turn_id: str
    type: Literal["audio.paused"] = "audio.paused"


@dataclass
class AudioResumed:
    """It was no interruption: the speech goes on where it stopped."""

    seq: int
    timestamp: datetime
    turn_id: str
    type: Literal["audio.resumed"] = "audio.resumed"


@dataclass
class AudioSkipped:
    """Speech from `from_seq` to `to_seq` can't be sent any more. Its own number is `to_seq`."""

    seq: int
    timestamp: datetime
    from_seq: int
    to_seq: int
    type: Literal["audio.skipped"] = "audio.skipped"


@dataclass
class Mark:
    """The mouth takes this shape at `ms` from the start of the turn's speech."""

    ms: int
    viseme: str


@dataclass
class Word:
    """A spoken word and when it sounds, in milliseconds from the start of the turn's speech."""

    text: str
    start_ms: int
    end_ms: int


@dataclass
class Visemes:
    """Mouth shapes and words of the speech that follows, on the clock of the turn's speech."""

    seq: int
    timestamp: datetime
    turn_id: str
    marks: list[Mark]
    words: list[Word]
    type: Literal["visemes"] = "visemes"


@dataclass
class TurnDone:
    """The one ending of a turn. `timeline`: milliseconds to each stage reached, from the end of
    the student's speech (typed: from the question's arrival). `heard`: what of an interrupted
    answer stays in the history; null for a whole one."""

    seq: int
    timestamp: datetime
    turn_id: str
    status: Literal["completed", "interrupted", "failed"]
    timeline: dict[str, int]
    usage: dict[str, int]
    heard: str | None = None
    type: Literal["turn.done"] = "turn.done"


@dataclass
class SessionEnding:
    """The last message before the server closes the socket; `in_s` seconds are left."""

    seq: int
    timestamp: datetime
    reason: str
    content: str
    in_s: int = 0
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
    | SessionUpdated
    | SpeechStarted
    | SpeechStopped
    | TranscriptionDelta
    | Queue
    | TurnStarted
    | Transcription
    | Sources
    | Notice
    | ThoughtDelta
    | TextDelta
    | TextWhole
    | AudioDelta
    | AudioPaused
    | AudioResumed
    | AudioSkipped
    | Visemes
    | TurnDone
    | SessionEnding
    | Error
    | Pong
)


def encode(message: ServerMessage1 | ServerMessage2) -> str:
    """A server message as compact JSON."""
    return orjson.dumps(message).decode()


_SPEECH_HEADER: Final = struct.Struct(">III")


def encode_speech(seq: int, turn_number: int, offset: int, pcm: bytes) -> bytes:
    """`audio.delta` as a binary frame: big-endian u32 seq, u32 turn number (3 of `t3`), u32 sample
    offset, then PCM16 mono little-endian at the session's `sample_rate`."""
    return _SPEECH_HEADER.pack(seq, turn_number, offset) + pcm


def decode_speech(frame: bytes) -> tuple[int, int, int, bytes]:
    """What `encode_speech` wrote: seq, turn number, offset, PCM16. Raises ValueError."""
    if len(frame) < _SPEECH_HEADER.size:
        raise ValueError("shorter than its header")
    return *_SPEECH_HEADER.unpack_from(frame), frame[_SPEECH_HEADER.size :]


# Close codes: 4000–4499 try again, 4500–4999 do not.
CLOSE_REPLACED: Final = 4501
CLOSE_ENDED: Final = 4502
CLOSE_SHUTDOWN: Final = 4000
