"""An open microphone on the wire: questions, interruptions, and what the history keeps."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from gpuserver.client import Conversation, converse
from tests.conftest import Scripted, Serve

LONG = "A list holds many items in order. " * 6


def sound(seconds: float) -> bytes:
    """What the scripted detector takes for speech."""
    return np.full(int(seconds * 16_000), 3000, "<i2").tobytes()


def silence(seconds: float) -> bytes:
    return bytes(int(seconds * 16_000) * 2)


def of(kind: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] == kind]


async def collect(socket: Conversation, until: str) -> list[dict[str, Any]]:
    messages = [await socket.receive()]
    while messages[-1]["type"] != until:
        messages.append(await socket.receive())
    return messages


async def say(socket: Conversation, pcm: bytes) -> None:
    """As a microphone does, in frames of 20 ms, but as fast as they are taken."""
    for at in range(0, len(pcm), 640):
        await socket.append(pcm[at : at + 640])


async def test_a_spoken_question_is_found_recognised_and_answered(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.otherwise = "what is a list"
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await say(socket, silence(0.5) + sound(1.2) + silence(1.0))
            messages = await collect(socket, "turn.done")
    kinds = [m["type"] for m in messages]
    assert kinds[0] == "speech.started"
    assert "transcription.delta" in kinds[: kinds.index("speech.stopped")]
    rest = kinds[kinds.index("speech.stopped") :]
    assert rest[:4] == ["speech.stopped", "turn.started", "transcription", "sources"]
    assert of("transcription", messages)[0]["content"] == "what is a list"
    assert [m["seq"] for m in messages] == list(range(1, len(messages) + 1))
    timeline = messages[-1]["timeline"]
    assert {"commit", "transcript", "passages", "first_token", "first_audio"} <= timeline.keys()
    assert timeline["commit"] <= timeline["first_audio"]


async def test_the_same_microphone_as_base64_and_at_24_khz(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.otherwise = "what is a list"
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.update(input_audio_format={"encoding": "pcm16", "sample_rate": 24000})
            updated = await socket.receive()
            assert updated["audio"]["input_audio_format"]["sample_rate"] == 24000
            tone = np.sin(np.arange(36_000) / 10) * 9000
            pcm = tone.astype("<i2").tobytes() + bytes(48_000)
            for at in range(0, len(pcm), 960):
                await socket.append(pcm[at : at + 960], binary=False)
            assert (await collect(socket, "turn.done"))[-1]["status"] == "completed"


async def test_push_to_talk_answers_only_when_told(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.otherwise = "what is a list"
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.update(turn_detection="manual")
            await socket.receive()
            await say(socket, sound(0.8) + silence(3.0))
            await asyncio.sleep(0.3)
            await socket.commit()
            messages = await collect(socket, "turn.done")
            assert messages[-1]["status"] == "completed"
            await say(socket, sound(0.8))
            await socket.clear()
            await socket.commit()
            refusal = await socket.until("error")
    assert refusal["code"] == "no_speech"
    assert len(server.cast.llm.requests) == 1


async def test_noise_without_words_is_not_answered(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await say(socket, sound(1.0) + silence(2.5))
            messages = await collect(socket, "speech.stopped")
            await socket.ping()
            assert (await socket.receive())["type"] == "pong"
    assert [m["type"] for m in messages] == ["speech.started", "speech.stopped"]


async def asked(server: Scripted) -> None:
    """Wait until the model has been asked something."""
    async with asyncio.timeout(20):
        while not server.cast.llm.requests:
            await asyncio.sleep(0.01)


async def writing(server: Scripted) -> None:
    """Wait until the model is at work."""
    async with asyncio.timeout(5):
        while not server.cast.llm.running:
            await asyncio.sleep(0.005)


async def heard_half(socket: Conversation) -> tuple[str, int]:
    """Ask by typing and report one second of the answer's speech as heard."""
    await socket.text("What is a list?")
    turn = (await socket.until("turn.started"))["turn_id"]
    while True:
        message = await socket.until("audio.delta")
        if message["offset"] >= 16_000:
            break
    await socket.playback(turn, 1000)
    return turn, 1000


async def answering(server: Scripted, socket: Conversation) -> str:
    server.cast.llm.scripts.append([LONG])
    await socket.receive()
    return (await heard_half(socket))[0]


async def test_speaking_interrupts_and_the_history_keeps_what_was_heard(serve: Serve) -> None:
    async with serve(barge_in_grace_seconds=0) as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            turn = await answering(server, socket)
            server.cast.asr.otherwise = "what is a loop"
            await say(socket, sound(1.5) + silence(1.0))
            messages = await collect(socket, "turn.done")
            paused = of("audio.paused", messages)
            assert [m["turn_id"] for m in paused] == [turn]
            done = messages[-1]
            assert (done["turn_id"], done["status"]) == (turn, "interrupted")
            after = messages[messages.index(paused[0]) :]
            assert not of("audio.delta", after)
            heard = done["heard"]
            assert LONG.startswith(heard)
            assert 0 < len(heard) < len(LONG) * 0.8
            following = await collect(socket, "turn.done")
            assert {m["turn_id"] for m in following if "turn_id" in m} == {"t2"}
            assert following[-1]["status"] == "completed"
        told = server.cast.llm.requests[-1].messages
        answer = next(m.content for m in told if m.role == "assistant")
        assert answer == heard
        assert "interrupted" in told[-1].content
        page = (await management.get("/metrics")).text
        assert 'gpuserver_interruptions_total{by="voice"} 1.0' in page
        assert 'gpuserver_turns_total{kind="voice",status="completed"} 1.0' in page


async def test_stop_stops_and_asks_nothing(serve: Serve) -> None:
    async with serve(barge_in_grace_seconds=0) as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            await answering(server, socket)
            server.cast.asr.otherwise = "stop"
            await say(socket, sound(0.5) + silence(1.0))
            assert (await collect(socket, "turn.done"))[-1]["status"] == "interrupted"
            await say(socket, silence(1.0))
            await asyncio.sleep(0.3)
            await socket.text("next")
            following = await collect(socket, "turn.done")
    assert {m["turn_id"] for m in following if "turn_id" in m} == {"t2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "confidence"),
    [("mm hm", 0.9), ("what is a loop", 0.2), ("many items in order", 0.9)],
    ids=["backchannel", "unsure", "echo"],
)
async def test_a_false_alarm_pauses_and_goes_on(
    serve: Serve, words: str, confidence: float
) -> None:
    async with serve(barge_in_grace_seconds=0) as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            turn = await answering(server, socket)
            server.cast.asr.otherwise, server.cast.asr.confidence = words, confidence
            await say(socket, sound(0.8) + silence(1.0))
            messages = await collect(socket, "turn.done")
    kinds = [m["type"] for m in messages]
    assert kinds.count("audio.paused") == kinds.count("audio.resumed") == 1
    assert kinds.index("audio.paused") < kinds.index("audio.resumed")
    assert (messages[-1]["turn_id"], messages[-1]["status"]) == (turn, "completed")
    assert len(server.cast.llm.requests) == 1


@pytest.mark.slow
async def test_noise_that_lasts_lets_the_answer_go_on_in_time(serve: Serve) -> None:
    settings = {"barge_in_grace_seconds": 0, "barge_in_wait_seconds": 0.5}
    async with serve(**settings) as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            await answering(server, socket)
            await say(socket, sound(2.0))
            messages = await collect(socket, "audio.resumed")
            assert "speech.stopped" not in [m["type"] for m in messages]
            assert (await collect(socket, "turn.done"))[-1]["status"] == "completed"


@pytest.mark.slow
async def test_the_first_answer_can_not_be_interrupted_at_once(serve: Serve) -> None:
    async with serve(barge_in_grace_seconds=10) as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            await answering(server, socket)
            server.cast.asr.otherwise = "what is a loop"
            await say(socket, sound(1.0) + silence(1.0))
            messages = await collect(socket, "turn.done")
    assert not of("audio.paused", messages)
    assert messages[-1]["status"] == "completed"


async def test_a_late_report_amends_the_history_until_the_next_turn(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            turn = await answering(server, socket)
            await socket.interrupt()
            heard = (await socket.until("turn.done"))["heard"]
            await socket.playback(turn, 400)
            await socket.text("Really?")
            await socket.until("turn.done")
            told = server.cast.llm.requests[-1].messages
            await socket.playback(turn, 1)
            await socket.text("Again?")
            await socket.until("turn.done")
            later = server.cast.llm.requests[-1].messages
    answers = [m.content for m in told if m.role == "assistant"]
    assert len(answers[0]) < len(heard)
    assert [m.content for m in later if m.role == "assistant"][0] == answers[0]


@pytest.mark.slow
async def test_speech_is_paced_to_real_time(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.llm.scripts.append(["A list holds many items, all in order. " * 5])
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            await socket.until("audio.delta")
            began = asyncio.get_running_loop().time()
            last = 0
            while (message := await socket.receive())["type"] != "turn.done":
                if message["type"] == "audio.delta":
                    last = message["offset"]
            took = asyncio.get_running_loop().time() - began
    assert last / 16_000 - 0.35 < took


async def test_binary_speech_carries_the_same_sound(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            hello = await socket.receive()
            assert hello["audio"]["sample_rate"] == 16_000
            await socket.text("What is a list?")
            plain = b"".join(m["pcm"] for m in of("audio.delta", await socket.turn()))
            await socket.update(audio_format="binary", output={"visemes": False, "text": False})
            assert (await socket.receive())["audio"]["audio_format"] == "binary"
            await socket.text("What is a list?")
            messages = await socket.turn()
    assert b"".join(m["pcm"] for m in of("audio.delta", messages)) == plain
    assert {m["type"] for m in messages} == {"turn.started", "sources", "audio.delta", "turn.done"}
    assert {m["turn_id"] for m in messages} == {"t2"}


async def test_settings_that_can_not_be_are_refused_whole(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.update(voice="nobody", turn_detection="manual")
            error = await socket.receive()
            assert (error["code"], error["type"]) == ("update_refused", "error")
            await socket.update(language="zh")
            audio = (await socket.receive())["audio"]
            assert (audio["language"], audio["turn_detection"]) == ("zh", "server")
            await socket.append(silence(0.02))
            assert (await socket.receive())["code"] == "speech_unavailable"


async def test_feedback_is_kept_for_turns_that_were(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            await socket.turn()
            await socket.feedback("t1", 1, "good")
            await socket.feedback("t9", 1)
            error = await socket.receive()
    assert error["code"] == "turn_unknown"


async def test_a_question_during_an_answer_waits_and_is_told_so(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        gate = asyncio.Event()
        server.cast.llm.scripts.append([gate, "Done."])
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.text("first")
            await socket.until("turn.started")
            await socket.text("second")
            queued = await socket.until("queue")
            assert (queued["turn_id"], queued["position"]) == ("t2", 1)
            assert queued["eta_s"] >= 1
            gate.set()
            assert (await socket.until("turn.done"))["turn_id"] == "t1"
            assert (await socket.until("turn.done"))["turn_id"] == "t2"


async def test_or_it_replaces_the_answer(serve: Serve) -> None:
    async with serve(question_during_answer="replace") as server:
        async with server.management() as management:
            server.cast.llm.scripts.append([asyncio.Event()])
            async with converse(await management.create_session()) as socket:
                await socket.receive()
                await socket.text("first")
                await writing(server)
                await socket.text("second")
                done = await socket.until("turn.done")
                assert (done["turn_id"], done["status"]) == ("t1", "interrupted")
                done = await socket.until("turn.done")
                assert (done["turn_id"], done["status"]) == ("t2", "completed")


async def test_an_answer_begun_ahead_on_words_that_changed_leaves_no_trace(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.otherwise = "what is a"
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await say(socket, sound(1.0) + silence(0.4))
            await asked(server)
            server.cast.asr.otherwise = "what is a list"
            await say(socket, sound(0.6) + silence(1.0))
            messages = await collect(socket, "turn.done")
            await socket.text("Really?")
            await socket.turn()
    assert {m["turn_id"] for m in messages if "turn_id" in m} == {"t1"}
    assert of("transcription", messages)[0]["content"] == "what is a list"
    told = [m.content for m in server.cast.llm.requests[-1].messages if m.role == "user"]
    assert len(told) == 2
    assert "what is a list" in told[0]


async def test_interrupt_and_ping_are_served_at_once_behind_many_frames(serve: Serve) -> None:
    async with serve() as server, server.management() as management:
        server.cast.asr.otherwise = "what is a list"
        gate = server.cast.asr.gate = asyncio.Event()
        server.cast.llm.scripts.append([asyncio.Event()])
        async with converse(await management.create_session()) as socket:
            await socket.receive()
            await socket.text("What is a list?")
            await writing(server)
            await say(socket, sound(1.0))
            await socket.interrupt()
            await socket.ping()
            async with asyncio.timeout(5):
                left = {"turn.done", "pong"}
                while left:
                    left.discard((await socket.receive())["type"])
            gate.set()
