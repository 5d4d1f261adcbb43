"""Chat models of any OpenAI-compatible server: vLLM, Ollama, llama.cpp, Ray Serve, a hosted one."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from pathlib import PurePath
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx2
import orjson

from gpuserver.errors import (
    EngineBusy,
    EngineFailed,
    EngineStalled,
    PromptTooLong,
    ProviderUnavailable,
)
from gpuserver.observability import get_logger
from gpuserver.providers import Delta, Piece, Place, Request, Status
from gpuserver.providers.circuit_breaker import CircuitBreaker
from gpuserver.providers.openai import request as asking
from gpuserver.providers.openai.wire import (
    EventReader,
    Refusal,
    Reply,
    Unreadable,
    list_models,
    refusal_of,
)
from gpuserver.providers.waiting_line import WaitingLine

log = get_logger(__name__)

_CONNECT_SECONDS: Final = 3.0
_SHARE_OF_DEADLINE: Final = 0.9
"""Of the turn's own deadline: a little sooner, so that it is known here that the server hangs."""
_LAST_WORDS_SECONDS: Final = 2.0
"""What may follow the end of an answer: its usage, and that the stream is over."""
_PAUSES: Final = (0.2, 0.6)
"""Before a request is made again."""
_LONGEST_PAUSE: Final = 2.0
"""A server that asks for more than this is busy."""
_FINISH_SECONDS: Final = 0.2
_BUSY_SECONDS: Final = 5
_FAILURES: Final = 3
_BREAKER_SECONDS: Final = (1.0, 30.0)
_LATER: Final = frozenset({429, 502, 503})


class OpenAILLM:
    """`LLM`, `Runtime` and `Watched`. The model is the server's; nothing is loaded here.

    With no model named it uses the first that the server lists.
    """

    def __init__(self, model: str, place: Place) -> None:
        self._model, self._place, self._settings = model, place, place.settings
        self._listed: tuple[str, ...] = ()
        self._breaker = CircuitBreaker(_FAILURES, *_BREAKER_SECONDS)
        self._line = WaitingLine(self._settings.llm_running, self._settings.llm_waiting)
        self._left_out: frozenset[str] = frozenset()
        self._tls: ssl.SSLContext | None = None
        self._client: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def load(self) -> None:
        """Ask the server for its models. One that can't be reached may come yet: it is tried again
        when a student asks. Raises ProviderUnavailable."""
        self._place.on_progress("loading", None)
        _check(self._settings.llm_base_url, self._settings.llm_api_key.get_secret_value())
        self._tls = _tls(self._settings.llm_base_url)
        try:
            asyncio.run(self._introduce(self._new_client()))
        except httpx2.InvalidURL as error:
            raise _unusable("is no address.") from error
        except Unreadable as error:
            raise _unusable("does not answer like an OpenAI-compatible server.") from error
        except Refusal as refusal:
            _explain(refusal)
            self._out_of_reach(refusal.status)
        except (httpx2.TransportError, TimeoutError) as error:
            if _untrusted(error):
                raise _unusable("has a certificate that this machine does not trust.") from error
            self._out_of_reach(0)

    def close(self) -> None:
        client, loop = self._client, self._loop
        self._tls = self._client = None
        if client is not None and loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(_CONNECT_SECONDS)

    def status(self) -> Status:
        # When a trial is due it is ready for one: a probe may be it, before a student has to.
        state: Literal["ready", "restarting"] = "restarting" if self._breaker.refuses else "ready"
        return Status(state, self._line.running, self._line.waiting)

    async def probe(self) -> None:
        """Ask for the list of models: even one token may cost the operator money elsewhere.

        It is also the trial of a server that was given up. Raises EngineFailed.
        """
        given_up, caller = self._breaker.is_open, object()
        if not self._breaker.admits(caller):
            raise EngineFailed(engine="llm")
        try:
            self._listed = await list_models(self._http())
        except (httpx2.TransportError, TimeoutError, Unreadable, Refusal) as error:
            raise self._failed(error, caller) from None
        finally:
            self._breaker.left(caller)
        if given_up:
            self._breaker.succeeded()

    async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Raises EngineFailed, EngineBusy, EngineStalled, PromptTooLong.

        A request without messages is the warm-up: there is nothing to warm, and it may cost money.
        """
        if not request.messages:
            return
        asked = time.monotonic()
        async with self._line.place(self._place.meter) as waits:
            async for waiting in waits:
                yield waiting
            async with aclosing(self._answer(request, asked)) as deltas:
                async for delta in deltas:
                    yield delta

    async def _answer(self, request: Request, asked: float) -> AsyncGenerator[Delta, None]:
        caller = object()
        limit = _SHARE_OF_DEADLINE * self._settings.first_token_timeout_seconds
        try:
            due = asyncio.get_running_loop().time() + limit
            async with asyncio.timeout_at(due):
                response = await self._open(request, caller)
            async with aclosing(self._read(response, due)) as deltas:
                async for delta in deltas:
                    if asked:
                        self._breaker.succeeded()
                        self._place.meter.first_token(time.monotonic() - asked)
                        asked = 0.0
                    yield delta
        except TimeoutError as error:
            self._failed(error, caller)
            seconds = limit if asked else self._settings.token_timeout_seconds
            raise EngineStalled(engine="llm", limit=f"{seconds:g}") from None
        except Refusal as refusal:
            if refusal.too_long:
                self._breaker.succeeded()
                raise PromptTooLong from None
            raise self._failed(refusal, caller) from None
        except (httpx2.HTTPError, httpx2.StreamError, Unreadable) as error:
            raise self._failed(error, caller) from None
        finally:
            self._breaker.left(caller)

    async def _read(self, response: httpx2.Response, due: float) -> AsyncGenerator[Delta, None]:
        """The answer in an open response, which is closed at the end, whatever happens."""
        loop = asyncio.get_running_loop()
        reader, reply = EventReader(), Reply()
        try:
            async with aclosing(response.aiter_raw()) as chunks:
                while not reply.ended and (chunk := await _next(chunks, due, reply)):
                    for data in reader.feed(chunk):
                        for delta in reply.take(data):
                            yield delta
                            due = loop.time() + self._settings.token_timeout_seconds
                    if reply.finish:
                        due = min(due, loop.time() + _LAST_WORDS_SECONDS)
                for delta in reply.rest():
                    yield delta
                if reply.ended:
                    await _finish(chunks)
            if not (reply.ended or reply.finish):
                raise Unreadable("the answer is cut off")
            if not reply.said:
                raise Unreadable("there is no word in the answer")
        finally:
            self._place.meter.tokens(*reply.tokens())
            await response.aclose()

    async def _open(self, request: Request, caller: object) -> httpx2.Response:
        """Ask, again if need be, until the server begins to answer."""
        # An adapter is a model of its own on servers that have it.
        model = self._served(PurePath(request.adapter).name) or self._served(self._model)
        body = asking.body(request, model or self._model, self._left_out)
        left_out = set(self._left_out)
        pauses = iter(_PAUSES)
        while True:
            if not self._breaker.admits(caller):
                raise EngineFailed(engine="llm")
            try:
                body["model"] = body["model"] or await self._first_model()
                response = await self._post(body)
            except Refusal as refusal:
                if not asking.adapt(body, refusal, left_out):
                    await self._wait(refusal, next(pauses, None), caller)
            except httpx2.TimeoutException:
                raise
            except httpx2.TransportError as error:
                await self._wait(error, next(pauses, None), caller)
            else:
                self._left_out = frozenset(left_out)
                return response

    async def _wait(
        self, error: Refusal | httpx2.TransportError, pause: float | None, caller: object
    ) -> None:
        """Until the next try. Raises EngineBusy, or the error itself, where there is none."""
        wanted = 0
        if isinstance(error, Refusal):
            wanted = error.retry_after or 0
            if error.status not in _LATER:
                raise error
        if isinstance(error, Refusal) and (error.status == 429 or wanted):
            # Whoever says so is there.
            self._breaker.succeeded()
            if pause is None or wanted > _LONGEST_PAUSE:
                raise EngineBusy(seconds=wanted or _BUSY_SECONDS) from None
        elif pause is None:
            raise error
        else:
            self._failed(error, caller)
        await asyncio.sleep(max(pause, wanted))

    async def _post(self, body: Mapping[str, Any]) -> httpx2.Response:
        """A response that has begun, for the caller to close. Raises Refusal."""
        client = self._http()
        request = client.build_request("POST", "chat/completions", content=orjson.dumps(body))
        response = await client.send(request, stream=True)
        if response.status_code == 200:
            return response
        try:
            raise await refusal_of(response)
        finally:
            await response.aclose()

    def _served(self, name: str) -> str:
        """The name under which the server lists this model; "" if it does not."""
        return next((x for x in (name, f"{name}:latest") if name and x in self._listed), "")

    async def _first_model(self) -> str:
        if not self._listed:
            self._listed = await list_models(self._http())
        if not self._listed:
            raise Unreadable("it lists no model")
        return self._listed[0]

    async def _introduce(self, client: httpx2.AsyncClient) -> None:
        """What the server lists, compared with what is wanted of it."""
        async with client:
            self._listed = await list_models(client)
        named = ", ".join(self._listed[:5])
        if not self._listed or (self._model and not self._served(self._model)):
            raise ProviderUnavailable(
                problem=f"The chat server at LLM_BASE_URL has no model {self._model!r}."
                if self._model
                else "The chat server at LLM_BASE_URL lists no model.",
                fix=f"set LLM_MODEL to one that it lists: {named or 'at the moment none'}.",
            )
        for adapter in self._place.adapters:
            if not self._served(PurePath(adapter).name):
                log.warning("adapter is not served", adapter=PurePath(adapter).name)
        log.info("chat server found", model=self._served(self._model) or self._listed[0])

    def _out_of_reach(self, status: int) -> None:
        self._breaker.open()
        log.warning("chat server can't be reached yet", status=status)

    def _failed(self, error: Exception, caller: object) -> EngineFailed:
        """Note a failure, and give what the student is told of it."""
        status, code = 0, ""
        if isinstance(error, Refusal):
            status, code = error.status, error.code
        if status in {401, 403}:
            log.error("LLM_API_KEY is refused by the chat server", status=status)
        else:
            reason = str(error) if isinstance(error, Unreadable) else type(error).__name__
            log.warning("chat server failed", reason=reason, status=status, code=code)
        self._place.meter.failed()
        if 400 <= status < 500 and status not in {401, 403, 404}:
            # It is there: this one request is what it does not take.
            self._breaker.succeeded()
        else:
            self._breaker.failed(caller)
        return EngineFailed(engine="llm")

    def _http(self) -> httpx2.AsyncClient:
        if self._tls is None:
            raise EngineFailed(engine="llm")
        if self._client is None:
            self._client, self._loop = self._new_client(), asyncio.get_running_loop()
        return self._client

    def _new_client(self) -> httpx2.AsyncClient:
        assert self._tls is not None
        key = self._settings.llm_api_key.get_secret_value()
        # Plain text: what is packed could unpack to any size.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return httpx2.AsyncClient(
            base_url=self._settings.llm_base_url,
            headers={**headers, **({"Authorization": f"Bearer {key}"} if key else {})},
            verify=self._tls,
            trust_env=False,
            timeout=httpx2.Timeout(_CONNECT_SECONDS, read=None),
            # Some for those that are just being closed.
            limits=httpx2.Limits(
                max_connections=self._settings.llm_running + 8,
                max_keepalive_connections=self._settings.llm_running,
            ),
        )


async def _next(chunks: AsyncGenerator[bytes, None], due: float, reply: Reply) -> bytes:
    """What comes until `due`; nothing at the end. Raises TimeoutError, TransportError."""
    try:
        async with asyncio.timeout_at(due):
            return await anext(chunks, b"")
    except (TimeoutError, httpx2.TransportError):
        if reply.finish:
            return b""
        raise


async def _finish(chunks: AsyncGenerator[bytes, None]) -> None:
    """Read to the end of a response: only then can its connection be used again."""
    with suppress(TimeoutError, httpx2.TransportError):
        async with asyncio.timeout(_FINISH_SECONDS):
            await anext(chunks, b"")


def _check(base_url: str, key: str) -> None:
    if not base_url:
        raise ProviderUnavailable(
            problem="The llm provider 'openai' does not know its server.",
            fix="set LLM_BASE_URL, for example http://127.0.0.1:8000/v1.",
        )
    try:
        # Reading it is what checks it.
        urlsplit(base_url).port  # noqa: B018
    except ValueError as error:
        raise _unusable("has a port that is none.") from error
    if not re.fullmatch(r"[!-~]*", key):
        raise ProviderUnavailable(
            problem="LLM_API_KEY holds something that can't be sent.",
            fix="use ASCII letters, digits and signs, no spaces.",
        )


def _tls(base_url: str) -> ssl.SSLContext:
    """What checks the server's certificate; the certificates to check by take 0.1 s to read."""
    if base_url.startswith("https:"):
        return httpx2.create_ssl_context(trust_env=False)
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _unusable(problem: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        problem=f"The chat server at LLM_BASE_URL {problem}",
        fix="correct LLM_BASE_URL, which usually ends in /v1.",
    )


def _explain(refusal: Refusal) -> None:
    """Raises ProviderUnavailable for a refusal that waiting does not mend."""
    if refusal.status in {401, 403}:
        raise ProviderUnavailable(
            problem="The chat server at LLM_BASE_URL refuses the key.",
            fix="set LLM_API_KEY to a key that it takes.",
        ) from None
    if refusal.status < 500 and refusal.status not in {408, 429}:
        raise _unusable(f"answers {refusal.status} when asked for its models.") from None


def _untrusted(error: BaseException | None) -> bool:
    """Whether a connection failed because of the server's certificate."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
