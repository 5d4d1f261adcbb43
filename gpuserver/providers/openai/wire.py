"""What an OpenAI-compatible server says: its events, the answer in them, and its refusals."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Literal

import httpx2
import orjson

from gpuserver.providers import Delta

LONGEST_LINE: Final = 256 << 10
LONGEST_STREAM: Final = 64 << 20
MOST_LINES: Final = 64
_LISTING_SECONDS: Final = 10.0
_LONGEST_LISTING: Final = 4 << 20
_LONGEST_REFUSAL: Final = 64 << 10
_OPEN, _CLOSE = "<think>", "</think>"
_NAME: Final = re.compile(r"[A-Za-z_]{1,48}|\d{3}")
"""What an error's code looks like, and no key does."""
_TOO_LONG: Final = re.compile(
    r"context[ _-]?(?:length|window|size)|maximum model length|(?:prompt|input) is too long",
    re.IGNORECASE,
)
_LONGEST_WAIT: Final = 600


class Unreadable(Exception):
    """The server says something that is no answer of its kind, or too much of it."""


class Refusal(Exception):
    """The server says that it won't, or can't.

    `status` is HTTP's, 0 where the refusal stood in an answer that had begun. Its message may hold
    a key or a pupil's words: it is looked at, and never shown; `code` is a bare name.
    """

    def __init__(self, status: int, body: bytes = b"", retry_after: str = "") -> None:
        error = _error_in(body)
        self.status = status
        self.code = next(
            (x for x in map(str, (error.get("code"), error.get("type"))) if _NAME.fullmatch(x)), ""
        )
        self._text = f"{error.get('message')} {error.get('code')} {error.get('type')}"
        self._parameter = error.get("param")
        self.retry_after = (
            min(int(retry_after), _LONGEST_WAIT) if re.fullmatch(r"\d{1,9}", retry_after) else None
        )
        super().__init__(status, self.code)

    @property
    def too_long(self) -> bool:
        """The prompt and the answer asked for are more than the model takes in."""
        return self.status == 413 or bool(_TOO_LONG.search(self._text))

    def names(self, parameter: str) -> bool:
        """Whether it is this parameter that is refused."""
        return self._parameter == parameter or bool(
            re.search(rf"['\"`]{parameter}['\"`]", self._text)
        )


def _error_in(body: bytes) -> Mapping[str, Any]:
    """The error object of a body; servers wrap it in different ways, or not at all."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(found, dict) and "error" in found:
        found = found["error"]
    if isinstance(found, str):
        return {"message": found}
    return found if isinstance(found, dict) else {}


async def list_models(client: httpx2.AsyncClient) -> tuple[str, ...]:
    """The models a server lists, in its order.

    Raises TransportError, TimeoutError, Refusal, Unreadable.
    """
    async with asyncio.timeout(_LISTING_SECONDS), client.stream("GET", "models") as response:
        if response.status_code != 200:
            raise await refusal_of(response)
        listing = await _at_most(response, _LONGEST_LISTING)
        if len(listing) > _LONGEST_LISTING:
            raise Unreadable("too long a list of models")
    try:
        return tuple(str(model["id"]) for model in orjson.loads(listing)["data"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Unreadable("no list of models") from error


async def refusal_of(response: httpx2.Response) -> Refusal:
    """What stands in a response that is no answer."""
    body = await _at_most(response, _LONGEST_REFUSAL)
    return Refusal(response.status_code, body, response.headers.get("Retry-After", ""))


async def _at_most(response: httpx2.Response, size: int) -> bytes:
    """A body, or more of its beginning than `size` bytes."""
    body = bytearray()
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > size:
                break
    return bytes(body)


class EventReader:
    """Server-sent events out of a stream that may be cut anywhere, as the data of each."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the events that this piece of the stream ends. Raises Unreadable."""
        self._size += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LONGEST_LINE or self._size > LONGEST_STREAM:
            raise Unreadable("too much in a line or in all")
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    data, self._data = self._data, []
                    yield b"\n".join(data)
                continue
            name, _, value = line.partition(b":")
            # "error" is llama.cpp's own field. Comments and other fields keep the line alive.
            if name in (b"data", b"error"):
                self._data.append(value.removeprefix(b" "))
                if len(self._data) > MOST_LINES:
                    raise Unreadable("too many lines in an event")


class Reply:
    """An answer as it comes in, event by event."""

    def __init__(self) -> None:
        self.ended = False
        """The server has said that nothing follows."""
        self.finish = ""
        """Why the model stopped; "" while it has not."""
        self.said = False
        """There was a word of the answer itself, thoughts apart."""
        self._usage: Mapping[str, Any] = {}
        self._deltas = 0
        self._thinking = _Thinking()

    def take(self, data: bytes) -> Sequence[Delta]:
        """What one event adds to the answer. Raises Unreadable, Refusal."""
        if data.strip() == b"[DONE]":
            self.ended = True
            return ()
        try:
            event = orjson.loads(data)
            if isinstance(event, dict) and event.get("error"):
                raise Refusal(0, data)
            if isinstance(event.get("usage"), dict):
                self._usage = event["usage"]
            choices = event.get("choices")
            if not choices:
                return ()
            choice = choices[0]
            self.finish = str(choice.get("finish_reason") or self.finish)
            return self._counted(self._deltas_of(choice.get("delta") or {}))
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise Unreadable("an event that is no piece of an answer") from error

    def rest(self) -> Sequence[Delta]:
        """What was held back, once nothing follows."""
        return self._counted(self._thinking.end())

    def tokens(self) -> tuple[int, int, int]:
        """Made, read, and of those read found in a cache: told by the server, or counted."""
        details = self._usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else 0
        made = self._usage.get("completion_tokens") or self._deltas
        prompt = self._usage.get("prompt_tokens")
        found = (x if isinstance(x, int) and x > 0 else 0 for x in (made, prompt, cached))
        return next(found), next(found), next(found)

    def _deltas_of(self, delta: Mapping[str, Any]) -> list[Delta]:
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        content = delta.get("content")
        if thought or content:
            self._deltas += 1
        thoughts = [Delta(_text(thought), thought=True)] if thought else []
        if thoughts:
            self._thinking.told_apart()
        return [*thoughts, *(self._thinking.split(_text(content)) if content else [])]

    def _counted(self, deltas: list[Delta]) -> list[Delta]:
        self.said = self.said or any(not delta.thought for delta in deltas)
        return deltas


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Unreadable("words that are no text")
    return value


class _Thinking:
    """Tells thoughts from the answer where a server hands on the model's own marks.

    A thought stands between them at the very beginning; marks further on are part of the answer.
    """

    def __init__(self) -> None:
        self._where: Literal["beginning", "thought", "gap", "answer"] = "beginning"
        self._held = ""

    def told_apart(self) -> None:
        """The server names thoughts as such: what is left is the answer."""
        if self._where == "beginning":
            self._where = "gap"

    def split(self, text: str) -> list[Delta]:
        """The pieces that this text ends; what may be half a mark is held until it is known."""
        if self._where == "answer":
            return [Delta(text)] if text else []
        self._held += text
        thoughts: list[Delta] = []
        if self._where == "beginning":
            start = self._held.lstrip()
            if len(start) < len(_OPEN) and _OPEN.startswith(start):
                return []
            self._where = "gap"
            if start.startswith(_OPEN):
                self._where, self._held = "thought", start.removeprefix(_OPEN)
        if self._where == "thought":
            thoughts = self._thought()
        return [*thoughts, *self._answer()] if self._where == "gap" else thoughts

    def end(self) -> list[Delta]:
        """What is still held: it was no mark."""
        held, self._held = self._held, ""
        if not held.strip():
            return []
        return [Delta(held, thought=self._where == "thought")]

    def _thought(self) -> list[Delta]:
        thought, mark, self._held = self._held.partition(_CLOSE)
        if mark:
            self._where = "gap"
        else:
            half = next(n for n in range(len(_CLOSE), -1, -1) if thought.endswith(_CLOSE[:n]))
            thought, self._held = thought[: len(thought) - half], thought[len(thought) - half :]
        return [Delta(thought, thought=True)] if thought else []

    def _answer(self) -> list[Delta]:
        """The answer begins with its first word, not with the space before it."""
        start, self._held = self._held.lstrip(), ""
        if not start:
            return []
        self._where = "answer"
        return [Delta(start)]
