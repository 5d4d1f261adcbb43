"""The streaming dialect: numbered events, interrupting, and what the page relies on."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from gpuserver.client import Conversation, converse
from gpuserver.errors import ProviderUnavailable
from tests.conftest import Serve
from tests.test_spec import CLIP


def types(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]


async def ready(socket: Conversation) -> dict[str, Any]:
    message = await socket.receive()
    assert message["type"] == "session.ready"
    return message


async def test_the_server_introduces_tutor_limits_and_engines(serve: Serve) -> None:
    async with serve(max_text_chars=77) as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            hello = await ready(socket)
    assert (hello["seq"], hello["last_seq"], hello["resumed"]) == (0, 0, False)
    assert hello["tutor"]["name"] == "Ada"
    assert hello["tutor"]["listens"] == ["en"]
    assert hello["tutor"]["speaks"] == ["en", "zh"]
    assert hello["limits"]["text_chars"] == 77
    assert hello["engines"]["llm"] == "extractive"
    assert hello["notice"] is None


async def test_a_typed_question_is_answered_in_text_and_speech(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.llm.scripts.append(["A list is ordered. ", "It has items."])
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            await socket.text("What is a list?")
            messages = await socket.turn()
    assert types(messages)[:2] == ["turn.started", "sources"]
    assert [m["seq"] for m in messages] == list(range(1, 1 + len(messages)))
    assert len({m["turn_id"] for m in messages}) == 1
    deltas = "".join(m["content"] for m in messages if m["type"] == "text.delta")
    whole = next(m for m in messages if m["type"] == "text")
    assert whole["content"] == deltas == "A list is ordered. [1] It has items."
    source = next(m for m in messages if m["type"] == "sources")["passages"][0]
    assert (source["n"], source["document"], source["heading"]) == (1, "Loops", "Lists")
    assert source["quote"].startswith("A list is an ordered collection")
    assert (source["kb_id"], source["document_id"], source["passage"]) == (
        "loops",
        "en/01-loops",
        1,
    )
    assert source["url"] == "/v1/knowledge-bases/loops/documents/en%2F01-loops/passages/1"
    at = 0
    for message in messages:
        if message["type"] == "audio.delta":
            assert message["offset"] == at
            at += len(base64.b64decode(message["data"])) // 2
    spoken = [word for m in messages if m["type"] == "visemes" for word in m["words"]]
    assert [word["text"] for word in spoken] == ["A list is ordered.", "It has items."]
    assert spoken[1]["start_ms"] == spoken[0]["end_ms"] == 180
    marks = [mark["ms"] for m in messages if m["type"] == "visemes" for mark in m["marks"]]
    assert marks == sorted(marks)
    assert marks[-1] * 16 == at
    done = messages[-1]
    assert done["status"] == "completed"
    assert done["usage"] == {"text_chars": len(deltas), "speech_samples": at}
    assert "first_audio" in done["timeline"]


async def test_a_spoken_question_tells_what_was_heard(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.transcripts.append("what is a list")
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            await socket.audio(CLIP)
            messages = await socket.turn()
    assert types(messages)[:3] == ["turn.started", "transcription", "sources"]
    assert messages[1]["content"] == "what is a list"
    assert messages[1]["confidence"] == 0.9


async def test_interrupting_stops_the_turn_and_nothing_of_it_follows(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        never = asyncio.Event()
        server.cast.llm.scripts.append(["A first sentence. ", never])
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            await socket.text("What is a list?")
            await socket.until("text.delta")
            await socket.text("one that waits behind it")
            await socket.interrupt()
            for _ in ("the running one", "the one behind it"):
                done = await socket.until("turn.done")
                assert done["status"] == "interrupted"
            await socket.ping()
            assert (await socket.receive())["type"] == "pong"
            assert server.cast.llm.running == 0
            await socket.text("next")
            messages = await socket.turn()
    assert {m["turn_id"] for m in messages} == {"t3"}
    assert messages[-1]["status"] == "completed"


async def test_interrupting_while_the_client_reads_slowly_loses_no_message(serve: Serve) -> None:
    async with serve(max_answer_chars=50_000_000) as server, server.management() as management:
        text = [f"{n} " * 2000 for n in range(1000)]
        server.cast.llm.scripts.append([*text, asyncio.Event()])
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            await socket.update(output={"audio": False})
            await socket.receive()
            await socket.text("What is a list?")
            # The client's own buffer is full, then the network's; the rest stays in the log.
            written = -1
            while written != (written := server.state.sessions.list()[0].seq):
                await asyncio.sleep(0.2)
            for _ in range(3):
                await socket.interrupt()
                await asyncio.sleep(0.05)
            await socket.ping()
            messages = await socket.turn()
            messages.append(await socket.receive())
    assert [m["seq"] for m in messages] == list(range(2, 2 + len(messages)))
    assert messages[-2]["status"] == "interrupted"
    assert messages[-1]["type"] == "pong"


async def test_questions_that_were_dropped_do_not_count_as_waiting(serve: Serve) -> None:
    async with serve(max_waiting_questions=2) as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            for _ in range(8):
                await socket.interrupt()
                await socket.text("What is a list?")
            messages: list[dict[str, Any]] = []
            while not messages or messages[-1].get("status") != "completed":
                messages.append(await socket.receive())
    assert "error" not in types(messages)
    assert [m["turn_id"] for m in messages if m["type"] == "turn.done"][-1] == "t8"


async def test_a_question_interrupted_at_once_has_its_ending_too(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            for _ in range(20):
                await socket.text("What is a list?")
                await socket.interrupt()
                assert (await socket.turn())[-1]["status"] == "interrupted"
            await socket.text("next")
            assert (await socket.turn())[-1]["status"] == "completed"


async def test_a_tutor_that_can_not_be_had_is_explained(serve: Serve) -> None:
    for v2 in (False, True):
        other = {7: {"tts_model": "other"}}
        async with serve(tutor_overrides=other) as server, server.management() as management:
            failure = ProviderUnavailable(problem="No voice.", fix="none.")
            server.cast.tts.load_failure = failure
            ticket = await management.create_session(7)
            async with converse(ticket, v2=v2) as socket:
                error = await socket.receive()
                assert (error["type"], error["code"]) == ("error", "provider_unavailable")
                with pytest.raises(ConnectionClosed):
                    await socket.receive()
            server.cast.tts.load_failure = None
            async with converse(ticket, v2=v2) as socket:
                assert (await socket.receive())["type"] != "error"


async def test_interrupting_another_turn_by_name_changes_nothing(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        gate = asyncio.Event()
        server.cast.llm.scripts.append(["A first sentence. ", gate, "The end."])
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            await socket.interrupt()
            await socket.text("What is a list?")
            await socket.until("text.delta")
            await socket.send({"type": "interrupt", "turn_id": "t99"})
            await socket.ping()
            await socket.until("pong")
            gate.set()
            assert (await socket.turn())[-1]["status"] == "completed"


async def test_a_ping_is_answered_at_once_during_an_answer(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        gate = asyncio.Event()
        server.cast.llm.scripts.append([gate, "Done."])
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            await socket.text("What is a list?")
            await socket.until("sources")
            await socket.ping()
            assert (await socket.receive())["type"] == "pong"
            gate.set()
            await socket.turn()


async def test_a_failed_turn_says_why_and_ends(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.transcripts.append("")
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            await socket.audio(CLIP)
            messages = await socket.turn()
            assert types(messages) == ["turn.started", "error", "turn.done"]
            assert messages[1]["code"] == "not_understood"
            assert messages[1]["turn_id"] == messages[2]["turn_id"]
            assert messages[2]["status"] == "failed"
            await socket.text("next")
            assert (await socket.turn())[-1]["status"] == "completed"


async def test_too_many_waiting_questions_are_refused(serve: Serve) -> None:
    async with serve(max_waiting_questions=2) as server, server.management() as management:
        gate = asyncio.Event()
        server.cast.llm.scripts.append([gate, "Done."])
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            await socket.text("first")
            await socket.until("turn.started")
            for _ in range(3):
                await socket.text("more")
            refusal = await socket.until("error")
            assert (refusal["code"], refusal["retryable"]) == ("busy", True)
            gate.set()
            for _ in range(3):
                await socket.turn()


async def test_a_client_that_does_not_come_back_in_time_stops_the_work(serve: Serve) -> None:
    async with serve(resume_grace_seconds=0.2) as server, server.management() as management:
        server.cast.llm.scripts.append(["A first sentence. ", asyncio.Event()])
        ticket = await management.create_session()
        async with converse(ticket) as socket:
            await ready(socket)
            await socket.text("What is a list?")
            await socket.until("text.delta")
        async with asyncio.timeout(20):
            while server.cast.llm.running:
                await asyncio.sleep(0.01)
        async with converse(ticket) as socket:
            assert (await ready(socket))["seq"] > 1


async def test_the_session_ending_is_told(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket) as socket:
            await ready(socket)
            await management.delete_session(ticket.session_id)
            ending = await socket.receive()
            assert (ending["type"], ending["reason"]) == ("session.ending", "deleted")
            with pytest.raises(ConnectionClosed):
                await socket.receive()


async def test_stopping_the_server_tells_every_client(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        ticket = await management.create_session()
        async with converse(ticket) as socket:
            await ready(socket)
            server.state.sessions.end_all()
            assert (await socket.receive())["reason"] == "shutdown"
            with pytest.raises(ConnectionClosed) as closed:
                await socket.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4000


async def test_a_chinese_tutor_says_what_to_set_for_its_ear(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session(tutor_id=2)) as socket:
            hello = await ready(socket)
            assert "zh" not in hello["tutor"]["listens"]
            assert "ASR_PROVIDER" in hello["tutor"]["missing_speech"]
            await socket.audio(CLIP)
            error = await socket.receive()
            assert error["code"] == "speech_unavailable"
            assert "ASR_PROVIDER" in error["content"]
            assert "语音识别" in error["content"]


async def test_the_chinese_speech_path_with_a_recogniser_that_knows_it(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.languages = frozenset({"en", "zh"})
        server.cast.asr.transcripts.append("什么是列表？")
        server.cast.llm.scripts.append(["列表是有序的。", "可以放很多东西。"])
        async with converse(await management.create_session(tutor_id=2)) as socket:
            await ready(socket)
            await socket.audio(CLIP)
            messages = await socket.turn()
    assert server.cast.asr.heard[-1][1] == "zh"
    assert server.cast.tts.clauses[-2:] == ["列表是有序的。", "可以放很多东西。"]
    assert server.cast.llm.requests[-1].language == "zh"
    assert messages[-1]["status"] == "completed"


async def test_an_answer_that_is_not_from_the_course_is_announced(
    serve: Serve, general_tutor: Path
) -> None:
    chat = {"llm_provider": "openai", "llm_model": "m", "llm_base_url": "http://127.0.0.1:9/v1"}
    given = {**chat, "tutors_file": general_tutor}
    async with serve(**given) as server, server.management() as management:
        server.cast.llm.scripts.append(["France won."])
        async with converse(await management.create_session()) as socket:
            await ready(socket)
            await socket.update(language="zh", output={"audio": False})
            await socket.until("session.updated")
            await socket.text("Who won the world cup in 1998?")
            messages = await socket.turn()
    assert types(messages) == ["turn.started", "notice", "text.delta", "text", "turn.done"]
    assert (messages[1]["code"], messages[1]["provider"]) == ("not_from_course", "")
    assert "通用知识" in messages[1]["content"]
