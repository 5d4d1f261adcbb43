"""Which model answers when the tutor's own can't, and that the student is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gpuserver.client import Conversation, Management, converse
from gpuserver.config import Settings
from gpuserver.errors import (
    EngineBusy,
    EngineFailed,
    EngineStalled,
    GpuServerError,
    PromptTooLong,
)
from gpuserver.providers import Delta, Fallback, Piece, Request, RuntimeKey, Waiting
from gpuserver.providers.table import find
from gpuserver.tutor.fallback import Chain
from gpuserver.tutor.tutoring import Tutoring
from gpuserver.unified_server import create_app
from tests.bystander import said
from tests.chat_server import DONE, Answer, ChatServer, event, refusal, words
from tests.conftest import uvicorn_on
from tests.fakes import Cast, Clock
from tests.leaping_loop import in_leaps

REQUEST = Request((), "What is a list?", (), "en", adapter="/adapters/ada")
NEVER = "never"
FAILURES = [
    EngineFailed(engine="llm"),
    EngineBusy(seconds=3),
    EngineStalled(engine="llm", limit="1"),
    PromptTooLong(),
]

Step = Piece | str | Exception


@dataclass
class Model:
    """Does what is written down for each question; `NEVER` hangs, other words are said."""

    scripts: list[Sequence[Step]] = field(default_factory=list)
    otherwise: Sequence[Step] = ("Hello.",)
    requests: list[Request] = field(default_factory=list)
    running: int = 0

    async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        self.requests.append(request)
        self.running += 1
        try:
            for step in self.scripts.pop(0) if self.scripts else self.otherwise:
                if isinstance(step, Exception):
                    raise step
                if step == NEVER:
                    await asyncio.Event().wait()
                yield Delta(step) if isinstance(step, str) else step
        finally:
            self.running -= 1


def chain(*models: Model, seconds: float = 20.0, clock: Clock | None = None) -> Chain:
    named = [(f"m{number}", model) for number, model in enumerate(models, 1)]
    return Chain(named, seconds, clock or Clock())


async def ask(llm: Chain) -> list[Piece]:
    async with asyncio.timeout(10), aclosing(llm.generate(REQUEST)) as pieces:
        return [piece async for piece in pieces]


async def test_the_first_model_answers_alone() -> None:
    first, second = Model([["A ", "list."]]), Model()
    assert await ask(chain(first, second)) == [Delta("A "), Delta("list.")]
    assert first.requests == [REQUEST]
    assert not second.requests


@pytest.mark.parametrize("failure", FAILURES, ids=lambda x: x.code)
async def test_the_next_one_answers_and_the_student_is_told_first(
    failure: GpuServerError,
) -> None:
    second = Model()
    pieces = await ask(chain(Model([[Waiting(1, 5), failure]]), second))
    assert pieces == [Waiting(1, 5), Fallback("m2"), Delta("Hello.")]
    assert second.requests[0].adapter == "", "the adapter is of another model"
    assert second.requests[0].question == REQUEST.question


async def test_only_the_one_that_answers_is_named() -> None:
    busy = EngineBusy(seconds=3)
    pieces = await ask(chain(Model([[busy]]), Model([[busy]]), Model()))
    assert pieces == [Fallback("m3"), Delta("Hello.")]


async def test_the_last_error_is_what_the_student_hears() -> None:
    broken = chain(Model([[EngineFailed(engine="llm")]]), Model([[EngineBusy(seconds=7)]]))
    with pytest.raises(EngineBusy) as failure:
        await ask(broken)
    assert failure.value.retry_after == 7


async def test_nothing_is_said_twice() -> None:
    second = Model()
    heard: list[Piece] = []
    llm = chain(Model([["It begins", EngineFailed(engine="llm")]]), second)
    with pytest.raises(EngineFailed):
        async with aclosing(llm.generate(REQUEST)) as pieces:
            async for piece in pieces:
                heard.append(piece)  # noqa: PERF401
    assert heard == [Delta("It begins")]
    assert not second.requests


@pytest.mark.parametrize("end", [[EngineFailed(engine="llm")], []], ids=["fails", "says nothing"])
async def test_a_model_that_only_thinks_is_replaced(end: list[Step]) -> None:
    thought = Delta("Hm.", thought=True)
    pieces = await ask(chain(Model([[thought, Delta(""), *end]]), Model()))
    assert pieces == [thought, Delta(""), Fallback("m2"), Delta("Hello.")]


async def test_a_bug_is_not_hidden() -> None:
    second = Model()
    with pytest.raises(ZeroDivisionError):
        await ask(chain(Model([[ZeroDivisionError()]]), second))
    assert not second.requests


# Hanging


@in_leaps
async def test_a_model_that_hangs_is_left_after_its_share() -> None:
    first = Model([[NEVER]])
    # The turn itself would give up after these 0.4 s.
    async with asyncio.timeout(0.4):
        pieces = await ask(chain(first, Model(), seconds=0.4))
    assert pieces == [Fallback("m2"), Delta("Hello.")]
    assert first.running == 0


@in_leaps
async def test_one_that_waits_its_turn_or_thinks_does_not_hang() -> None:
    class Slow(Model):
        async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
            for step in (Waiting(2, 9), Waiting(1, 5), Delta("Hm.", thought=True), Delta("Yes.")):
                await asyncio.sleep(0.1)
                yield step
            await asyncio.sleep(0.35)
            yield Delta("After a while.")

    pieces = await ask(chain(Slow(), Model(), seconds=0.6))
    assert pieces[-2:] == [Delta("Yes."), Delta("After a while.")]


@in_leaps
async def test_a_line_that_speaks_seldom_is_no_model_that_hangs() -> None:
    class Busy(Model):
        async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
            yield Waiting(1, 5)
            await asyncio.sleep(0.2)
            yield Delta("Yes.")

    assert await ask(chain(Busy(), Model(), seconds=0.1)) == [Waiting(1, 5), Delta("Yes.")]


@in_leaps
async def test_the_last_model_has_the_time_that_is_left() -> None:
    waiting = asyncio.ensure_future(ask(chain(Model([[NEVER]]), Model([[NEVER]]), seconds=0.1)))
    await asyncio.sleep(0.3)
    assert not waiting.done(), "its end is the turn's to decide"
    waiting.cancel()
    await asyncio.wait([waiting])


@in_leaps
async def test_one_that_hung_is_passed_over_for_a_while() -> None:
    clock = Clock()
    first = Model(otherwise=[NEVER])
    llm = chain(first, Model(), seconds=0.1, clock=clock)
    for pause in (30, 60, 120):
        tried = len(first.requests)
        for _ in range(3):
            assert await ask(llm) == [Fallback("m2"), Delta("Hello.")]
        assert len(first.requests) == tried + 1, "not every student waits for it"
        clock.now += pause + 1
    first.otherwise = ["Better."]
    assert await ask(llm) == [Delta("Better.")]
    assert await ask(llm) == [Delta("Better.")]


@in_leaps
async def test_one_that_fails_at_once_is_asked_each_time() -> None:
    first = Model(otherwise=[EngineFailed(engine="llm")])
    llm = chain(first, Model())
    for _ in range(3):
        await ask(llm)
    assert len(first.requests) == 3


@in_leaps
async def test_a_student_who_leaves_stops_the_model_and_not_the_trial() -> None:
    clock = Clock()
    first, second = Model([[NEVER]]), Model()
    llm = chain(first, second, seconds=0.1, clock=clock)
    await ask(llm)
    clock.now += 31
    first.scripts.append(["It begins ", NEVER])
    async with aclosing(llm.generate(REQUEST)) as pieces:
        assert await anext(pieces) == Delta("It begins ")
    assert first.running == 0
    clock.now += 31
    first.scripts.append([NEVER])
    leaving = asyncio.ensure_future(ask(llm))
    await asyncio.sleep(0.02)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert first.running == 0
    assert await ask(llm) == [Delta("Hello.")], "the trial had no verdict: the next one may try"


# A whole turn


Serve = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
async def chat() -> AsyncIterator[ChatServer]:
    async with ChatServer().on() as server:
        yield server


@pytest.fixture
def tutor(chat: ChatServer, cast: Cast, make_settings: Callable[..., Settings]) -> Serve:
    """`async with tutor() as url:` runs a server whose tutors answer through `chat`, and where it
    does not, from the course; ears and voice are scripted."""

    def factory(key: RuntimeKey) -> Any:
        return find(key) if key.kind == "llm" else cast.find(key)

    @asynccontextmanager
    async def run(**given: Any) -> AsyncIterator[str]:
        usual = {"llm_base_url": chat.url, "llm_fallback": "extractive"}

        def assemble() -> tuple[Settings, Tutoring, Any]:
            settings = make_settings(**{**usual, **given})
            tutoring = Tutoring(settings, factory=factory)
            return settings, tutoring, create_app(settings, tutoring)

        settings, tutoring, app = await asyncio.to_thread(assemble)
        async with uvicorn_on(app, settings) as (url, _):
            while not tutoring.progress.ready:
                await asyncio.sleep(0.005)
            yield url

    return run


@asynccontextmanager
async def student(url: str) -> AsyncIterator[Conversation]:
    async with Management(url, "") as management:
        ticket = await management.create_session(student_id=7)
    async with converse(ticket) as socket:
        await socket.receive()
        yield socket


async def turn(socket: Conversation) -> tuple[str, list[str], dict[str, Any]]:
    """A question's answer, who is said to answer it in place of another, and its ending."""
    await socket.text("What is a list?")
    messages = await socket.turn()
    notices = [m["provider"] for m in messages if m["type"] == "notice"]
    kinds = [m["type"] for m in messages]
    if notices:
        assert kinds.index("notice") < kinds.index("text.delta")
    return said(messages), notices, messages[-1]


FROM_THE_COURSE = "A list is an ordered collection of items."


async def test_a_turn_is_answered_from_the_course_when_the_server_is_gone(
    chat: ChatServer, tutor: Serve
) -> None:
    async with tutor() as url, student(url) as socket:
        assert (await turn(socket))[:2] == ("Hello.", [])
        chat.scripts.append(refusal(500))
        text, notices, done = await turn(socket)
        assert text.startswith(FROM_THE_COURSE)
        assert notices == ["extractive"]
        assert done["status"] == "completed"
        # Its own words are in the history, for whoever answers next.
        assert (await turn(socket))[:2] == ("Hello.", [])
    said = text.replace(" [1]", "")
    assert said in [m["content"] for m in chat.questions[-1].body["messages"]]


async def test_a_turn_is_answered_in_time_when_the_server_hangs(
    chat: ChatServer, tutor: Serve
) -> None:
    chat.otherwise = Answer([asyncio.Event()])
    async with tutor(first_token_timeout_seconds=3.0) as url:
        async with student(url) as socket, student(url) as bystander:
            first, *others = await asyncio.gather(turn(socket), turn(bystander))
            for text, notices, done in (first, *others, await turn(socket)):
                assert text.startswith(FROM_THE_COURSE)
                assert notices == ["extractive"]
                assert done["status"] == "completed"
        await chat.quiet()
    assert len(chat.questions) == 2, "the third turn does not wait for it again"
    assert chat.left == 2


async def test_a_turn_that_breaks_off_says_so(chat: ChatServer, tutor: Serve) -> None:
    chat.scripts.append(Answer([event("It begins.")]))
    async with tutor() as url, student(url) as socket:
        text, notices, done = await turn(socket)
        assert (text, notices, done["status"]) == ("It begins.", [], "failed")
        assert (await turn(socket))[0] == "Hello."


async def test_without_a_fallback_the_student_hears_what_is_wrong(
    chat: ChatServer, tutor: Serve
) -> None:
    async with tutor(llm_fallback="") as url, student(url) as socket:
        chat.scripts += [refusal(429, Retry_After="20")]
        await socket.text("What is a list?")
        error = await socket.until("error")
        assert (error["code"], error["retryable"]) == ("engine_busy", True)
        assert error["retry_after"] == 20
        await socket.until("turn.done")
        chat.scripts.append(words("Yes."))
        assert (await turn(socket))[0] == "Yes."


@pytest.mark.slow
async def test_the_start_succeeds_while_the_server_is_not_there(
    chat: ChatServer, tutor: Serve
) -> None:
    away = ChatServer()
    async with away.on():
        pass
    async with tutor(llm_base_url=away.url) as url, student(url) as socket:
        assert (await turn(socket))[1] == ["extractive"]
        async with away.on():
            away.otherwise = Answer([event("Back."), event(finish="stop"), DONE])
            await asyncio.sleep(1.05)
            assert (await turn(socket))[:2] == ("Back.", [])
