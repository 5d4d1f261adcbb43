"""What a student is told of a model that is busy, thinks first, or is stood in for: on the wire."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuserver.api.dialects import BEYOND_COURSE
from gpuserver.client import converse
from gpuserver.errors import EngineBusy
from gpuserver.providers import Delta, Fallback, Waiting
from gpuserver.providers.extractive import NOT_COVERED
from tests.conftest import Serve
from tests.fakes import Script
from tests.test_live_voice import collect, say, silence, sound

ThinkingServe = Callable[..., Any]

SCRIPT: Script = [
    Waiting(3, 8),
    Waiting(1, 2),
    Fallback("extractive"),
    Delta("Lists first. ", thought=True),
    Delta("Then items.", thought=True),
    "A list is ordered. ",
    "It has items.",
]
NEWS = ["queue", "queue", "notice", "thought.delta", "thought.delta"]
TOLD = {"queue", "notice", "thought.delta", "text.delta"}


@pytest.fixture
def thinking(serve: Serve, tmp_path: Path) -> ThinkingServe:
    """`serve` with tutors that show their thoughts."""
    file = tmp_path / "thinking.yaml"
    file.write_text(
        "courses: {loops: course}\n"
        "tutors:\n"
        "  - {id: 1, name: Ada, knowledge: [loops], show_thoughts: true}\n"
        "  - {id: 2, name: 林老师, language: zh, knowledge: [loops], show_thoughts: true}\n",
        encoding="utf-8",
    )
    return lambda **given: serve(tutors_file=file, **given)


def told(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages if message["type"] in TOLD]


async def test_news_of_the_model_comes_in_order_before_the_text(thinking: ThinkingServe) -> None:
    async with thinking() as server, server.management() as management:
        server.cast.llm.scripts.append(SCRIPT)
        ticket = await management.create_session()
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            messages = await socket.turn()
        async with converse(ticket) as socket:
            await socket.resume(0)
            await socket.receive()
            again = await socket.turn()
    assert told(messages) == [*NEWS, "text.delta", "text.delta"]
    assert [m["seq"] for m in messages] == list(range(1, 1 + len(messages)))
    assert {m["turn_id"] for m in messages} == {"t1"}
    first, second, notice, *_ = [m for m in messages if m["type"] in TOLD]
    assert (first["position"], first["eta_s"]) == (3, 8)
    assert (second["position"], second["eta_s"]) == (1, 2)
    assert (notice["code"], notice["provider"]) == ("fallback", "extractive")
    assert "smaller engine (extractive)" in notice["content"]
    thought = "".join(m["content"] for m in messages if m["type"] == "thought.delta")
    assert thought == "Lists first. Then items."
    # A client that comes back has each of them once more, in the same places.
    kept = [m for m in messages if m["type"] != "audio.delta"]
    assert [m for m in again if m["type"] not in {"audio.delta", "audio.skipped"}] == kept


async def test_thoughts_are_neither_spoken_nor_remembered(thinking: ThinkingServe) -> None:
    async with thinking() as server, server.management() as management:
        server.cast.llm.scripts.append(SCRIPT)
        server.cast.tts.clauses.clear()
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            messages = await socket.turn()
            await socket.text("Really?")
            await socket.turn()
    answer = "A list is ordered. [1] It has items."
    assert next(m for m in messages if m["type"] == "text")["content"] == answer
    assert server.cast.tts.clauses[:2] == ["A list is ordered.", "It has items."]
    history = server.cast.llm.requests[-1].messages
    said = [m.content for m in history if m.role == "assistant"]
    assert said == [answer.replace(" [1]", "")]


@pytest.mark.parametrize("reason", ["the tutor keeps them", "the client wants no text"])
async def test_thoughts_stay_where_they_are_not_wanted(
    serve: Serve, thinking: ThinkingServe, reason: str
) -> None:
    keeps = reason == "the tutor keeps them"
    async with (serve if keeps else thinking)() as server, server.management() as management:
        server.cast.llm.scripts.append(SCRIPT)
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.update(output={"text": keeps})
            await socket.receive()
            await socket.text("What is a list?")
            messages = await socket.turn()
    assert told(messages) == NEWS[:3] + ["text.delta"] * (2 if keeps else 0)


async def test_the_notice_is_in_the_sessions_language(thinking: ThinkingServe) -> None:
    async with thinking() as server, server.management() as management:
        server.cast.llm.scripts.append([Fallback("extractive"), "列表是有序的。"])
        async with converse(await management.create_session(tutor_id=2)) as socket:
            await socket.receive()
            await socket.text("什么是列表？")
            notice = await socket.until("notice")
            await socket.until("turn.done")
    assert "较小的引擎（extractive）" in notice["content"]


async def test_a_character_cut_in_two_is_thought_whole(thinking: ThinkingServe) -> None:
    async with thinking() as server, server.management() as management:
        server.cast.llm.scripts.append(
            [Delta("a \ud83d", thought=True), Delta("\ude00", thought=True), "Yes."]
        )
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            messages = await socket.turn()
    thought = [m["content"] for m in messages if m["type"] == "thought.delta"]
    assert thought == ["a ", "😀"]
    assert messages[-1]["status"] == "completed"


async def test_thoughts_are_shown_as_far_as_an_answer_may_go(thinking: ThinkingServe) -> None:
    async with thinking(max_answer_chars=100) as server, server.management() as management:
        server.cast.llm.scripts.append([*[Delta("x" * 30, thought=True)] * 9, "Yes."])
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            messages = await socket.turn()
    assert told(messages) == ["thought.delta"] * 3 + ["text.delta"]
    assert messages[-1]["status"] == "completed"


async def test_what_was_told_ahead_is_held_back_and_comes_in_order(
    thinking: ThinkingServe,
) -> None:
    async with thinking() as server, server.management() as management:
        server.cast.asr.otherwise = "what is a list"
        server.cast.llm.scripts.append(SCRIPT)
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await say(socket, sound(1.0) + silence(1.0))
            messages = await collect(socket, "turn.done")
    assert len(server.cast.llm.requests) == 1
    turn = [m["type"] for m in messages if m.get("turn_id") == "t1"]
    assert turn[:3] == ["turn.started", "transcription", "sources"]
    assert told(messages) == [*NEWS, "text.delta", "text.delta"]


async def test_an_engine_that_is_full_says_when_to_come_back(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.llm.scripts.append([Waiting(2, 9), EngineBusy(seconds=7)])
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            messages = await socket.turn()
    error = next(m for m in messages if m["type"] == "error")
    assert (error["code"], error["retryable"]) == ("engine_busy", True)
    assert (error["retry_after"], error["turn_id"]) == (7, "t1")
    assert messages[-1]["status"] == "failed"


async def test_dialect_1_gives_one_answer_and_nothing_else(thinking: ThinkingServe) -> None:
    async with thinking() as server, server.management() as management:
        server.cast.llm.scripts.append(SCRIPT)
        async with converse(await management.create_session(), v2=False) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            answer = await socket.receive()
            await socket.text("Really?")
            following = await socket.receive()
    assert answer.pop("timestamp")
    content = "A list is ordered. [1] It has items."
    assert answer == {"type": "text", "role": "assistant", "content": content}
    assert following["content"].startswith("You asked: ")


async def test_a_chat_model_is_not_asked_what_the_course_does_not_cover(serve: Serve) -> None:
    async with serve(llm_provider="vllm") as server, server.management() as management:
        server.cast.llm.scripts += [["From the beginning?"]]
        async with converse(await management.create_session(), v2=False) as socket:
            await socket.receive()
            await socket.text("Who won the football world cup in 1998?")
            answer = (await socket.receive())["content"]
            # That asks for nothing that a course could lack.
            await socket.text("Go on, please.")
            following = (await socket.receive())["content"]
    assert answer == NOT_COVERED["en"]
    assert following == "From the beginning?"


async def test_dialect_1_says_in_the_answer_that_it_is_not_from_the_course(
    serve: Serve, general_tutor: Path
) -> None:
    async with serve(tutors_file=general_tutor) as server, server.management() as management:
        server.cast.llm.scripts += [["France won."], ["Thanks."]]
        async with converse(await management.create_session(), v2=False) as socket:
            await socket.receive()
            await socket.text("Who won the football world cup in 1998?")
            answer = (await socket.receive())["content"]
            await socket.text("Thank you!")
            following = (await socket.receive())["content"]
    assert answer == f"{BEYOND_COURSE['en']}\n\nFrance won."
    assert following == "Thanks."
