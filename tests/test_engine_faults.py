"""Engines that raise, hang, never end or say rubbish, beside a student of another who waits for
none of it."""

from __future__ import annotations

import asyncio
import sqlite3
import struct
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from gpuserver.client import Conversation, converse
from gpuserver.errors import EngineFailed
from gpuserver.providers import Speech
from tests.bystander import bystander, said, samples
from tests.conftest import Scripted, Serve
from tests.fakes import RATE
from tests.test_faults import ticket_of
from tests.test_live_voice import silence, sound
from tests.test_spec import CLIP

# Each of them waits for what a client or an engine does not do.
pytestmark = pytest.mark.slow

FAILURES = [EngineFailed(engine="x"), RuntimeError("a bug")]
KINDS = ["failure", "bug"]


async def fails_and_goes_on(socket: Conversation, question: str | bytes) -> list[dict[str, Any]]:
    """A turn that fails, once, with a reason; the next one works. Gives the failed one."""
    if isinstance(question, bytes):
        await socket.audio(question)
    else:
        await socket.text(question)
    messages = await socket.turn()
    kinds = [m["type"] for m in messages]
    assert kinds[0] == "turn.started"
    assert kinds[-2:] == ["error", "turn.done"]
    assert kinds.count("error") == 1
    assert messages[-1]["status"] == "failed"
    assert "a bug" not in messages[-2]["content"]
    await socket.text("Still there?")
    following = await socket.turn()
    assert following[-1]["status"] == "completed"
    assert [m["seq"] for m in messages + following] == [
        *range(messages[0]["seq"], following[-1]["seq"] + 1)
    ]
    return messages


@pytest.mark.parametrize("failure", FAILURES, ids=KINDS)
async def test_an_engine_that_raises_fails_its_turn_alone(serve: Serve, failure: Exception) -> None:
    async with serve() as server, bystander(server):
        cast = server.cast
        cast.embeddings.fails["pear"] = failure
        cast.llm.answers |= {"early": [failure], "late": ["It begins. ", failure]}
        cast.llm.answers["aloud"] = ["Fine words. ", "Broken words."]
        cast.tts.instead["Broken"] = [failure]
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            cast.asr.transcripts.append(failure)
            await fails_and_goes_on(socket, CLIP)
            await fails_and_goes_on(socket, "What is a pear?")
            await fails_and_goes_on(socket, "Be early.")
            messages = await fails_and_goes_on(socket, "Be late.")
            assert said(messages) == "It begins."
            messages = await fails_and_goes_on(socket, "Say it aloud.")
            assert said(messages).startswith("Fine words. ")


@pytest.mark.parametrize("failure", FAILURES, ids=KINDS)
async def test_a_recogniser_that_raises_leaves_the_microphone_open(
    serve: Serve, failure: Exception
) -> None:
    async with serve() as server, bystander(server):
        server.cast.asr.voices = {3000: failure, 4000: "what is a list"}
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            await socket.append(sound(0.6) + silence(0.8))
            error = await socket.until("error")
            assert error["code"] == "engine_failed"
            loud = np.full(RATE // 2, 4000, "<i2").tobytes()
            await socket.append(loud + silence(0.8))
            assert (await socket.until("turn.done"))["status"] == "completed"


async def test_a_microphone_that_breaks_down_is_had_anew_by_coming_back(serve: Serve) -> None:
    async with serve() as server, bystander(server):
        ticket = await ticket_of(server)
        server.cast.vad.fails = RuntimeError("a bug")
        server.cast.llm.answers["slow"] = ["It begins. ", asyncio.Event()]
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("Be slow.")
            taken = [await socket.until("text.delta")]
            await socket.append(sound(0.6))
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    taken.append(await socket.receive())
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4000
        async with converse(ticket) as socket:
            await socket.resume(taken[-1]["seq"])
            assert (await socket.receive())["resumed"]
            await socket.text("Still there?")
            while taken[-1].get("status") != "completed":
                taken.append(await socket.receive())
            server.cast.asr.otherwise = "what is a list"
            await socket.append(sound(0.6) + silence(0.8))
            assert (await socket.until("turn.done"))["status"] == "completed"
    ends = [m["turn_id"] for m in taken if m["type"] == "turn.done"]
    assert ends == ["t1", "t2"]


async def test_an_engine_that_hangs_is_given_up(serve: Serve) -> None:
    limits = {"first_token_timeout_seconds": 0.4, "token_timeout_seconds": 0.3}
    async with serve(**limits) as server, bystander(server):
        cast, never = server.cast, asyncio.Event()
        cast.llm.answers |= {"early": [never], "late": ["It begins. ", never]}
        cast.llm.answers["aloud"] = ["Stuck words."]
        cast.tts.instead["Stuck"] = [never]
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            for question, engine in (("early", "llm"), ("late", "llm"), ("aloud", "tts")):
                error = (await fails_and_goes_on(socket, f"Be {question}."))[-2]
                assert (error["code"], error["retryable"]) == ("engine_stalled", True), question
                assert engine in error["content"]
    assert server.cast.llm.running == 0


async def test_understanding_that_takes_too_long_is_given_up(serve: Serve) -> None:
    async with serve(turn_timeout_seconds=0.5) as server, bystander(server):
        server.cast.asr.voices = {3000: asyncio.Event()}
        server.cast.llm.answers["slow"] = ["word "] * 3 + [asyncio.Event()]
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            for question in ("Be slow.", "Be slow again."):
                assert (await fails_and_goes_on(socket, question))[-2]["code"] == "turn_timeout"


async def test_a_million_tokens_hold_up_nobody(serve: Serve) -> None:
    async with serve(max_answer_chars=5000) as server, bystander(server):
        server.cast.llm.answers |= {"endless": ["a "] * 1_000_000, "blank": [""] * 1_000_000}
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            messages = await fails_and_goes_on(socket, "Be endless.")
            assert messages[-2]["code"] == "answer_too_long"
            assert len(said(messages)) <= 5000
            await socket.text("Be blank.")
            await socket.interrupt()
            assert (await socket.turn())[-1]["status"] == "interrupted"


async def test_half_characters_are_put_together_or_replaced(serve: Serve) -> None:
    async with serve() as server, bystander(server):
        halves = ["A \ud83d", "\ude00 b", "\ude00", " c\ud83d", "d \ud83d"]
        server.cast.llm.answers["halves"] = halves
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            await socket.text("Send halves.")
            messages = await socket.turn()
    assert messages[-1]["status"] == "completed"
    assert said(messages) == "A \U0001f600 b\ufffd c\ufffdd"
    whole = next(m["content"] for m in messages if m["type"] == "text")
    assert whole == said(messages)


async def test_speech_cut_within_a_sample_comes_whole(serve: Serve) -> None:
    pcm = struct.pack("<16000h", *range(16000))
    async with serve() as server, bystander(server):
        server.cast.llm.answers["odd"] = ["Odd words."]
        server.cast.tts.instead["Odd"] = [
            Speech(pcm[:1001], RATE),
            Speech(pcm[1001:1002], RATE),
            Speech(b"", RATE),
            Speech(pcm[1002:-1], RATE),
        ]
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            await socket.text("Be odd.")
            messages = await socket.turn()
    assert messages[-1]["status"] == "completed"
    heard = b"".join(m["pcm"] for m in messages if m["type"] == "audio.delta")
    assert heard == pcm[:-2]
    assert samples(messages) == messages[-1]["usage"]["speech_samples"] == 15_999


@pytest.mark.parametrize("rate", [8000, 0])
async def test_speech_that_changes_its_rate_is_not_sent(serve: Serve, rate: int) -> None:
    async with serve() as server, bystander(server):
        server.cast.llm.answers["shift"] = ["Shift words."]
        server.cast.tts.instead["Shift"] = [Speech(bytes(3200), RATE), Speech(bytes(3200), rate)]
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            messages = await fails_and_goes_on(socket, "Now shift.")
    assert messages[-2]["code"] == "engine_failed"
    assert samples(messages) == 1600


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
async def test_a_recording_of_what_is_no_number_is_no_sound(serve: Serve, value: float) -> None:
    async with serve() as server, bystander(server):
        server.cast.asr.voices = {}
        async with converse(await ticket_of(server)) as socket:
            await socket.receive()
            await socket.audio(floats(np.full(16_000, value, "<f4")))
            messages = await socket.turn()
            assert messages[-1]["status"] == "failed"
            assert messages[-2]["code"] in {"no_speech", "audio_invalid", "not_understood"}
            await socket.text("Still there?")
            assert (await socket.turn())[-1]["status"] == "completed"


def floats(sound: Any) -> bytes:
    """A WAV file of 32-bit floats."""
    body: bytes = sound.tobytes()
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, RATE, RATE * 4, 4, 32)
    data = struct.pack("<4sI", b"data", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(head) + len(data)) + b"WAVE" + head + data


async def test_an_unreadable_history_is_no_reason_to_have_no_lesson(serve: Serve) -> None:
    async with serve() as server:
        ticket = await ticket_of(server)
        await asyncio.to_thread(break_history, server)
        async with converse(ticket) as socket:
            await socket.receive()
            await socket.text("Still there?")
            assert (await socket.turn())[-1]["status"] == "completed"


def break_history(server: Scripted) -> None:
    path = server.state.settings.data_dir / "sessions.db"
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE exchange RENAME COLUMN payload TO lost")
    db.close()
