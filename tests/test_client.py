"""The Python client against scripted servers: coming back, numbers, microphone and loudspeaker."""

from __future__ import annotations

import asyncio
import base64
import time
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from gpuserver import protocol
from gpuserver.client import (
    Backoff,
    LiveConversation,
    MessagesMissing,
    Microphone,
    Playback,
    SessionOver,
    Ticket,
    converse,
)
from gpuserver.client.microphone import speak
from tests.fakes import Clock
from tests.leaping_loop import in_leaps
from tests.scripted_socket import Peer, serving

QUICK = Backoff(first=0.005, most=0.02, attempts=5, seconds=5)
PCM = bytes(range(256)) * 2


async def read(live: LiveConversation, last: int) -> list[dict[str, Any]]:
    """All events up to the one of this number."""
    out = []
    async with aclosing(live.events()) as events:
        async for message in events:
            out.append(message)
            if message["type"] != "session.ready" and message.get("seq") == last:
                break
    return out


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [m["seq"] for m in messages if m["type"] == "text.delta"]


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    return [m["type"] for m in messages if m["type"] != "text.delta"]


# One connection


async def test_every_verb_is_a_message_that_the_server_understands() -> None:
    heard: list[Any] = []

    async def script(peer: Peer) -> None:
        while len(heard) < 13:
            frame = await peer.socket.recv()
            heard.append(frame if isinstance(frame, bytes) else protocol.parse_v2(frame))

    async with serving(script) as server, converse(server.ticket) as talk:
        await talk.resume(7)
        await talk.text("why?")
        await talk.audio(b"clip")
        await talk.append(b"\1\0")
        await talk.append(b"\1\0", binary=False)
        await talk.commit()
        await talk.clear()
        await talk.interrupt()
        await talk.interrupt("t3")
        await talk.playback("t3", 1840)
        await talk.update(language="zh", output={"audio": False})
        await talk.feedback("t3", 1, "good")
        await talk.ping()
    sound = base64.b64encode(b"\1\0").decode()
    assert heard == [
        protocol.Resume(type="resume", last_seq=7),
        protocol.Text(type="text", content="why?"),
        protocol.AudioClip(type="audio", data=base64.b64encode(b"clip").decode()),
        b"\1\0",
        protocol.AudioAppend(type="audio.append", data=sound),
        protocol.AudioCommit(type="audio.commit"),
        protocol.AudioClear(type="audio.clear"),
        protocol.Interrupt(type="interrupt"),
        protocol.Interrupt(type="interrupt", turn_id="t3"),
        protocol.Playback(type="playback", turn_id="t3", heard_ms=1840),
        protocol.SessionUpdate(
            type="session.update", language="zh", output=protocol.OutputUpdate(audio=False)
        ),
        protocol.Feedback(type="feedback", turn_id="t3", rating=1, comment="good"),
        protocol.Ping(type="ping"),
    ]


async def test_speech_has_one_shape_in_both_formats() -> None:
    async def script(peer: Peer) -> None:
        await peer.ready(sample_rate=22_050)
        speech = {"turn_id": "t3", "offset": 640, "sample_rate": 22_050}
        await peer.say("audio.delta", 1, data=base64.b64encode(PCM).decode(), **speech)
        await peer.socket.send(protocol.encode_speech(2, 3, 896, PCM))

    async with serving(script) as server, converse(server.ticket) as talk:
        await talk.until("session.ready")
        text, binary = await talk.receive(), await talk.receive()
    assert text.pop("data") == base64.b64encode(PCM).decode()
    assert text == {
        "type": "audio.delta",
        "seq": 1,
        "turn_id": "t3",
        "offset": 640,
        "sample_rate": 22_050,
        "pcm": PCM,
    }
    assert binary == {**text, "seq": 2, "offset": 896}


async def test_numbers_count_on_from_the_welcome_over_skipped_speech() -> None:
    async def script(peer: Peer) -> None:
        await peer.ready(40)
        await peer.deltas(41, 42)
        await peer.say("audio.skipped", 60, from_seq=43, to_seq=60)
        await peer.deltas(61, 61)
        await peer.deltas(63, 63)

    async with serving(script) as server, converse(server.ticket) as talk:
        seen = []
        for _ in range(5):
            await talk.receive()
            seen.append(talk.last_seq)
        with pytest.raises(MessagesMissing, match="63 came after 61"):
            await talk.receive()
    assert seen == [40, 41, 42, 60, 61]


async def test_a_resumed_welcome_must_not_start_later_than_asked() -> None:
    async def script(peer: Peer) -> None:
        await peer.hear()
        await peer.ready(9, resumed=True)

    async with serving(script) as server, converse(server.ticket) as talk:
        await talk.resume(7)
        with pytest.raises(MessagesMissing):
            await talk.receive()


@pytest.mark.parametrize("frame", [b"short", "not json"])
async def test_what_is_no_message_is_a_value_error(frame: str | bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.socket.send(frame)

    async with serving(script) as server, converse(server.ticket) as talk:
        with pytest.raises(ValueError):  # noqa: PT011
            await talk.receive()


# Coming back


async def test_a_dropped_line_comes_back_and_nothing_is_missed_or_told_twice() -> None:
    async def first(peer: Peer) -> None:
        await peer.ready()
        await peer.deltas(1, 3)
        assert await peer.hear() == {"type": "ping"}
        peer.vanish()

    async def second(peer: Peer) -> None:
        assert await peer.hear() == {"type": "resume", "last_seq": 3}
        await peer.ready(3, resumed=True)
        await peer.deltas(2, 6)
        await peer.hear()

    async with serving(first, second) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            before = await read(live, 3)
            await live.ping()
            after = await read(live, 6)
            assert live.last_seq == 6
            await live.ping()
    assert numbers(before) == [1, 2, 3]
    assert numbers(after) == [4, 5, 6]
    assert kinds(before + after) == ["session.ready", "connection.lost", "session.ready"]
    assert live.ready["resumed"] is True


async def test_a_gap_is_healed_by_coming_back() -> None:
    async def first(peer: Peer) -> None:
        await peer.ready()
        await peer.deltas(1, 2)
        await peer.deltas(4, 4)
        await peer.until_left()

    async def second(peer: Peer) -> None:
        assert await peer.hear() == {"type": "resume", "last_seq": 2}
        await peer.ready(2, resumed=True)
        await peer.deltas(3, 4)

    async with serving(first, second) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            assert numbers(await read(live, 4)) == [1, 2, 3, 4]


async def test_a_server_that_has_forgotten_is_told_the_settings_again() -> None:
    async def first(peer: Peer) -> None:
        await peer.ready()
        await peer.deltas(1, 5)
        await peer.hear()
        await peer.hear()
        await peer.socket.close(protocol.CLOSE_SHUTDOWN)

    async def second(peer: Peer) -> None:
        assert await peer.hear() == {"type": "resume", "last_seq": 5}
        await peer.ready(0)
        told = await peer.hear()
        assert told == {
            "type": "session.update",
            "audio_format": "binary",
            "output": {"text": True, "visemes": False},
        }
        await peer.deltas(1, 2)

    async with serving(first, second) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            await live.update(audio_format="binary", output={"text": False, "visemes": False})
            await live.update(output={"text": True})
            assert numbers(await read(live, 5)) == [1, 2, 3, 4, 5]
            after = await read(live, 2)
    assert numbers(after) == [1, 2]
    assert after[0]["code"] == protocol.CLOSE_SHUTDOWN
    assert live.last_seq == 2


async def test_a_verb_waits_for_the_next_connection() -> None:
    async def first(peer: Peer) -> None:
        await peer.ready()
        peer.vanish()

    async def second(peer: Peer) -> None:
        assert (await peer.hear())["type"] == "resume"
        await peer.ready(0, resumed=True)
        assert await peer.hear() == {"type": "text", "content": "still there?"}
        await peer.deltas(1, 1)

    async with serving(first, second) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            async with aclosing(live.events()) as events:
                assert (await anext(events))["type"] == "session.ready"
                assert (await anext(events))["type"] == "connection.lost"
            # Nobody reads now: the verb by itself brings the connection back.
            await live.text("still there?")
            assert numbers(await read(live, 1)) == [1]


async def test_a_later_client_goes_on_where_an_earlier_one_was() -> None:
    async def script(peer: Peer) -> None:
        assert await peer.hear() == {"type": "resume", "last_seq": 0}
        await peer.ready(0, resumed=True)
        await peer.deltas(1, 2)

    async with serving(script) as server:
        async with LiveConversation(server.ticket, last_seq=0) as live:
            assert numbers(await read(live, 2)) == [1, 2]


@pytest.mark.parametrize(
    ("code", "reason"), [(protocol.CLOSE_REPLACED, "replaced"), (protocol.CLOSE_ENDED, "expired")]
)
async def test_a_session_that_is_over_is_not_tried_again(code: int, reason: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        await peer.say("session.ending", 1, reason=reason)
        await peer.socket.close(code, reason)

    async with serving(script) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            assert kinds(await read(live, 1)) == ["session.ready", "session.ending"]
            with pytest.raises(SessionOver) as over:
                await read(live, 2)
            assert (over.value.code, over.value.reason) == (code, reason)
            with pytest.raises(SessionOver):
                await live.text("anyone?")


async def test_a_refused_token_is_not_tried_again() -> None:
    async with serving(refusals=(HTTPStatus.FORBIDDEN, HTTPStatus.FORBIDDEN)) as server:
        with pytest.raises(SessionOver) as over:
            async with LiveConversation(server.ticket, backoff=QUICK):
                pass
    assert over.value.code == 403
    assert server.refused == 1


async def test_a_busy_server_is_tried_until_it_admits() -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        await peer.deltas(1, 1)

    busy = (HTTPStatus.SERVICE_UNAVAILABLE,) * 3
    async with serving(script, refusals=busy) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            assert numbers(await read(live, 1)) == [1]
    assert server.refused == 3


async def test_it_is_given_up_after_so_many_attempts() -> None:
    refusals = (HTTPStatus.SERVICE_UNAVAILABLE,) * 20
    async with serving(refusals=refusals) as server:
        with pytest.raises(SessionOver, match="could not be brought back: .*503") as over:
            async with LiveConversation(server.ticket, backoff=QUICK):
                pass
    assert over.value.code == 503
    assert server.refused == QUICK.attempts + 1


async def test_it_is_given_up_after_so_long() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    nowhere = Ticket("s", "ws://127.0.0.1:9/", "secret")
    patient = Backoff(first=0.001, most=0.001, attempts=1000, seconds=10)
    with pytest.raises(SessionOver, match="could not be brought back") as over:
        async with LiveConversation(nowhere, backoff=patient, clock=clock):
            pass
    assert over.value.code is None
    assert 10 < now[0] < 20


async def test_connections_that_bring_nothing_count_as_failures() -> None:
    async def useless(peer: Peer) -> None:
        await peer.ready()
        await peer.say("session.updated", 1, audio={"sample_rate": 16_000})
        peer.vanish()

    async with serving(*[useless] * (QUICK.attempts + 1)) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            with pytest.raises(SessionOver, match="could not be brought back"):
                await read(live, 2)
    assert server.connections == QUICK.attempts + 1


async def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(SessionOver, match="isn't a valid URI"):
        async with LiveConversation(Ticket("s", "http://127.0.0.1", "secret"), backoff=QUICK):
            pass


async def test_leaving_ends_the_events_and_the_waiting_verbs() -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        await peer.until_left()

    async with serving(script) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            reading = asyncio.create_task(read(live, 99))
            await asyncio.sleep(0.05)
        assert kinds(await reading) == ["session.ready"]
        with pytest.raises(SessionOver, match="closed by this client"):
            await live.text("too late")


def test_waits_double_up_to_a_limit_and_chance_shortens_them() -> None:
    backoff = Backoff(first=0.25, most=5.0)
    longest = [backoff.delay(n, 0.0) for n in range(1, 9)]
    assert longest == [0.25, 0.5, 1, 2, 4, 5, 5, 5]
    assert backoff.delay(3, 1.0) == 0.5
    assert backoff.delay(10_000, 0.0) == 5


# The microphone


async def test_a_recording_is_spoken_with_silence_after_it() -> None:
    frames: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.ready()
        async for frame in peer.socket:
            assert isinstance(frame, bytes)
            frames.append(frame)

    async with serving(script) as server:
        async with LiveConversation(server.ticket) as live:
            began = time.monotonic()
            await live.speak(b"\1\2" * 1000, silence=0.2)
            took = time.monotonic() - began
            await live.speak(b"\3\4" * 160_000, realtime=False, silence=0)
            at_once = time.monotonic() - began - took
    # 1000 samples are three frames and a part; 0.2 s of silence are ten.
    assert [len(frame) for frame in frames] == [640] * (14 + 500)
    assert b"".join(frames[:14]) == b"\1\2" * 1000 + bytes(14 * 640 - 2000)
    assert took > 0.27
    assert at_once < 5  # of the ten seconds that it lasts


@in_leaps
async def test_speech_is_as_long_as_it_sounds_however_late_the_wake_ups_are() -> None:
    now = asyncio.get_running_loop().time
    sent: list[float] = []

    async def append(frame: bytes) -> None:
        sent.append(now())
        await asyncio.sleep(0.015)  # nearly the whole of a frame

    await speak(append, bytes(640 * 50), realtime=True, silence=0.2, clock=now)
    assert sent == pytest.approx([0.02 * n for n in range(60)])
    assert now() == pytest.approx(1.2)


async def test_an_open_microphone_is_silent_until_something_is_said() -> None:
    frames: list[bytes] = []

    async def append(frame: bytes) -> None:
        frames.append(frame)

    microphone = Microphone(append)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(microphone.run())
        await asyncio.sleep(0.05)
        await microphone.say(b"\1\1" * 640)
        await microphone.say(b"\2\2" * 320)
        await asyncio.sleep(0.05)
        running.cancel()
    spoken = [frame[:1] for frame in frames if any(frame)]
    assert spoken == [b"\1", b"\1", b"\2"]
    assert not any(frames[0])
    assert not any(frames[-1])
    assert {len(frame) for frame in frames} == {640}


@in_leaps
async def test_sound_that_could_not_be_sent_is_not_hurried_after() -> None:
    """A real microphone that was cut off does not deliver the lost second afterwards."""
    now = [0.0]
    waits: list[float] = []

    async def append(frame: bytes) -> None:
        now[0] += 10.0 if len(waits) == 0 else 0.0
        waits.append(now[0])

    microphone = Microphone(append, lambda: now[0])
    running = asyncio.create_task(microphone.run())
    await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.wait([running])
    # Half a second's frames at once at most, then it waits again.
    assert 20 <= len(waits) <= 30


# The loudspeaker

RATE = 16_000


def speech(turn_id: str, offset_ms: int, ms: int) -> dict[str, Any]:
    return {
        "type": "audio.delta",
        "turn_id": turn_id,
        "offset": offset_ms * RATE // 1000,
        "sample_rate": RATE,
        "pcm": bytes([offset_ms // 100 % 250 + 1, 0]) * (ms * RATE // 1000),
    }


def test_the_playhead_moves_in_real_time_and_waits_for_more() -> None:
    clock = Clock(0.0)
    playback = Playback(clock, keep=True)
    clock.now = 5.0
    playback.feed(speech("t1", 0, 300))
    assert not playback.idle
    clock.now = 5.1
    assert playback.heard_ms("t1") == 100
    clock.now = 6.0
    assert playback.heard_ms("t1") == 300
    assert playback.idle
    playback.feed(speech("t1", 300, 200))
    clock.now = 6.15
    assert playback.heard_ms("t1") == 450
    assert playback.heard_ms("t9") == 0
    assert len(playback.recorded) == 450 * 16 * 2


def test_the_loudspeaker_holds_still_while_it_is_paused() -> None:
    clock = Clock(0.0)
    playback = Playback(clock)
    playback.feed(speech("t1", 0, 1000))
    clock.now = 0.2
    playback.feed({"type": "audio.paused"})
    clock.now = 1.2
    assert playback.heard_ms("t1") == 200
    playback.feed({"type": "audio.resumed"})
    clock.now = 1.5
    assert playback.heard_ms("t1") == 500


def test_an_interruption_throws_away_what_is_not_played() -> None:
    clock = Clock(0.0)
    playback = Playback(clock, keep=True)
    playback.feed(speech("t1", 0, 1000))
    clock.now = 0.3
    playback.feed({"type": "audio.paused"})
    clock.now = 0.5
    playback.feed({"type": "turn.done", "turn_id": "t1", "status": "interrupted"})
    assert playback.idle
    playback.feed(speech("t2", 0, 400))
    clock.now = 0.6
    assert playback.heard_ms("t1") == 300
    assert playback.heard_ms("t2") == 100
    assert len(playback.recorded) == 400 * 16 * 2


def test_a_turn_is_played_after_the_one_before_it() -> None:
    clock = Clock(0.0)
    playback = Playback(clock)
    playback.feed(speech("t1", 0, 300))
    playback.feed({"type": "turn.done", "turn_id": "t1", "status": "completed"})
    playback.feed(speech("t2", 0, 300))
    clock.now = 0.2
    assert (playback.heard_ms("t1"), playback.heard_ms("t2")) == (200, 0)
    clock.now = 0.4
    assert (playback.heard_ms("t1"), playback.heard_ms("t2")) == (300, 100)


def test_skipped_speech_counts_on_the_turns_clock_but_makes_no_sound() -> None:
    clock = Clock(0.0)
    playback = Playback(clock, keep=True)
    playback.feed(speech("t1", 0, 100))
    playback.feed(speech("t1", 500, 100))
    clock.now = 0.15
    assert playback.heard_ms("t1") == 550
    assert len(playback.recorded) == 150 * 16 * 2


def test_a_server_that_has_forgotten_empties_the_loudspeaker() -> None:
    clock = Clock(0.0)
    playback = Playback(clock)
    playback.feed(speech("t1", 0, 500))
    playback.feed({"type": "session.ready", "resumed": True})
    assert not playback.idle
    playback.feed({"type": "session.ready", "resumed": False})
    assert playback.idle
    playback.feed(speech("t1", 0, 500))
    clock.now = 0.1
    assert playback.heard_ms("t1") == 100


def test_only_what_has_changed_is_due() -> None:
    clock = Clock(0.0)
    playback = Playback(clock)
    assert playback.due() == []
    playback.feed(speech("t1", 0, 300))
    assert playback.due() == []
    clock.now = 0.1
    assert playback.due() == [("t1", 100)]
    assert playback.due() == []
    playback.feed(speech("t2", 0, 300))
    clock.now = 0.5
    assert playback.due() == [("t1", 300), ("t2", 200)]
    clock.now = 9.0
    assert playback.due() == [("t2", 300)]
    assert playback.due() == []


async def test_a_stop_is_reported_at_once() -> None:
    clock = Clock(0.0)
    playback = Playback(clock)
    told: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    async def tell(turn_id: str, heard_ms: int) -> None:
        await told.put((turn_id, heard_ms))

    reporting = asyncio.create_task(playback.report(tell, every=60))
    await asyncio.sleep(0)
    playback.feed(speech("t1", 0, 1000))
    clock.now = 0.7
    playback.feed({"type": "turn.done", "turn_id": "t1", "status": "interrupted"})
    async with asyncio.timeout(20):
        assert await told.get() == ("t1", 700)
    reporting.cancel()
    await asyncio.wait([reporting])


async def test_reports_go_out_as_the_speech_is_heard() -> None:
    playback = Playback()
    told: asyncio.Queue[int] = asyncio.Queue()

    async def tell(turn_id: str, heard_ms: int) -> None:
        await told.put(heard_ms)

    playback.feed(speech("t1", 0, 5000))
    began = time.monotonic()
    reporting = asyncio.create_task(playback.report(tell, every=0.02))
    async with asyncio.timeout(5):
        heard = [await told.get() for _ in range(4)]
    took = (time.monotonic() - began) * 1000
    reporting.cancel()
    await asyncio.wait([reporting])
    assert heard == sorted(set(heard))
    assert 60 < heard[-1] <= took


async def test_closing_codes_are_there_for_the_plain_conversation() -> None:
    async def script(peer: Peer) -> None:
        await peer.socket.close(protocol.CLOSE_ENDED, "deleted")

    async with serving(script) as server, converse(server.ticket) as talk:
        with pytest.raises(ConnectionClosed) as closed:
            await talk.receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == protocol.CLOSE_ENDED
