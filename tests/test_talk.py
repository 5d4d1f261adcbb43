"""What `gpuserver chat` shows and does, against scripted servers and a terminal of its own."""

from __future__ import annotations

import asyncio
import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from gpuserver import protocol
from gpuserver.cli import talk, terminal
from gpuserver.cli.terminal import Screen, latency_strip
from gpuserver.client import Backoff, LiveConversation, Playback
from gpuserver.errors import ConfigurationError, SessionEnded, SpeechUnavailable
from gpuserver.tutor import events
from tests.scripted_socket import Peer, serving

QUICK = Backoff(first=0.005, most=0.02, attempts=5, seconds=5)
CLIP = b"\1\1" * 3200
TUTOR = {"greeting": "Hello!", "language": "en", "listens": ["en"], "missing_speech": "ASR"}


class Shown(Screen):
    """A screen that keeps what it shows, answers and notes together."""

    def __init__(self) -> None:
        self.written = io.StringIO()
        console = Console(file=self.written, width=200, highlight=False)
        super().__init__(console, console, latency=True)

    @property
    def lines(self) -> list[str]:
        return self.written.getvalue().splitlines()


async def greet(peer: Peer, **tutor: Any) -> None:
    """Welcome the client and accept its settings."""
    await peer.ready(0, tutor={**TUTOR, **tutor})
    assert (await peer.hear())["type"] == "session.update"
    await peer.say("session.updated", 1, audio={"sample_rate": 16_000})


async def hear_clip(peer: Peer) -> None:
    """Listen to the microphone until a recording in it is over."""
    spoken = False
    while True:
        frame = await peer.hear()
        if isinstance(frame, bytes):
            if spoken and not any(frame):
                return
            spoken = spoken or any(frame)


async def answer(peer: Peer, turn: str, first_seq: int) -> int:
    """Answer a spoken question with 0.2 s of speech; the next number."""
    seq = first_seq
    said: list[tuple[str, dict[str, Any]]] = [
        ("speech.started", {}),
        ("speech.stopped", {}),
        ("turn.started", {"turn_id": turn}),
        ("transcription", {"turn_id": turn, "content": "what is a list", "confidence": 1.0}),
        ("text.delta", {"turn_id": turn, "content": "A list "}),
        ("text.delta", {"turn_id": turn, "content": "is ordered. [1]"}),
        ("text", {"turn_id": turn, "content": "A list is ordered. [1]"}),
    ]
    for kind, fields in said:
        await peer.say(kind, seq, **fields)
        seq += 1
        # Each is read by itself: at the end of the speech nothing seems to go on.
        await asyncio.sleep(0.01)
    await peer.socket.send(protocol.encode_speech(seq, int(turn[1:]), 0, b"\2\2" * 3200))
    timeline = {"commit": 5, "first_audio": 40}
    await peer.say("turn.done", seq + 1, turn_id=turn, status="completed", timeline=timeline)
    return seq + 2


async def test_recordings_are_answered_one_after_another() -> None:
    shown = Shown()
    heard_by: list[float] = []

    async def script(peer: Peer) -> None:
        await greet(peer)
        await hear_clip(peer)
        heard_by.append(time.monotonic())
        seq = await answer(peer, "t1", 2)
        await hear_clip(peer)
        heard_by.append(time.monotonic())
        await answer(peer, "t2", seq)
        await peer.until_left()

    playback = Playback(keep=True)
    async with serving(script) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            ended = await talk.talk_by_voice(live, [CLIP, CLIP], shown, playback)
    assert ended == ["completed", "completed"]
    # The second is said once the first answer, 0.2 s of speech, has been heard.
    assert heard_by[1] - heard_by[0] > 0.39
    assert bytes(playback.recorded) == b"\2\2" * 6400
    lines = shown.lines
    turn = [
        "(heard: what is a list)",
        "A list is ordered. [1]",
        "end of turn 5 · first sound 40 ms",
    ]
    assert lines == ["Hello!", *turn, *turn]


async def test_a_line_that_drops_within_an_answer_is_told_and_comes_back() -> None:
    shown = Shown()

    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.hear()
        await peer.say("turn.started", 2, turn_id="t1")
        await peer.say("text.delta", 3, turn_id="t1", content="A list")
        peer.vanish()

    async def second(peer: Peer) -> None:
        assert await peer.hear() == {"type": "resume", "last_seq": 3}
        await peer.ready(3, resumed=True, tutor=TUTOR)
        await peer.say("text.delta", 4, turn_id="t1", content=" is ordered.")
        await peer.say("text", 5, turn_id="t1", content="A list is ordered.")
        await peer.say("turn.done", 6, turn_id="t1", status="completed", timeline={})
        await peer.until_left()

    async with serving(first, second) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            chat = talk.Talk(live, shown)
            await chat.begin({})
            await chat.ask("What is a list?")
    assert chat.ended == ["completed"]
    assert shown.lines == [
        "Hello!",
        "A list",
        "The connection was lost; trying again …",
        "The connection is back.",
        " is ordered.",
    ]


async def test_a_question_that_the_server_has_forgotten_ends() -> None:
    shown = Shown()

    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.hear()
        await peer.say("turn.started", 2, turn_id="t1")
        peer.vanish()

    async def second(peer: Peer) -> None:
        await peer.hear()
        await peer.ready(0, tutor=TUTOR)
        await peer.until_left()

    async with serving(first, second) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            chat = talk.Talk(live, shown)
            await chat.begin({})
            await chat.ask("What is a list?")
    assert chat.ended == ["failed"]
    assert "please ask again" in shown.written.getvalue()


async def test_a_session_that_ends_while_speaking_is_one_sentence() -> None:
    shown = Shown()

    async def script(peer: Peer) -> None:
        await greet(peer)
        await hear_clip(peer)
        await peer.socket.close(protocol.CLOSE_ENDED, "expired")

    async with serving(script) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            with pytest.raises(SessionEnded, match="expired"):
                await talk.talk_by_voice(live, [CLIP], shown, Playback())


async def test_a_tutor_that_does_not_listen_is_told_first() -> None:
    shown = Shown()

    async def script(peer: Peer) -> None:
        await greet(peer, language="zh")
        await peer.until_left()

    async with serving(script) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            with pytest.raises(SpeechUnavailable, match="Set ASR"):
                await talk.talk_by_voice(live, [CLIP], shown, Playback())


async def test_settings_that_the_server_refuses_are_told() -> None:
    shown = Shown()

    async def script(peer: Peer) -> None:
        await peer.ready(0, tutor=TUTOR)
        await peer.hear()
        await peer.say("error", 1, code="update_refused", content="No such voice.")
        await peer.until_left()

    async with serving(script) as server:
        async with LiveConversation(server.ticket, backoff=QUICK) as live:
            with pytest.raises(ConfigurationError, match="No such voice"):
                await talk.Talk(live, shown).begin({"voice": "nobody"})


# The screen


def screen(*, is_terminal: bool) -> tuple[Screen, io.StringIO]:
    written = io.StringIO()
    console = Console(
        file=written,
        width=80,
        highlight=False,
        force_terminal=is_terminal,
        color_system="standard" if is_terminal else None,
        legacy_windows=False,
        _environ={},
    )
    return Screen(console, console), written


DIM = "\x1b[2m"


def test_tentative_words_are_dim_and_taken_back() -> None:
    view, written = screen(is_terminal=True)
    view.show({"type": "transcription.delta", "stable": "what is", "tentative": "a lift"})
    assert f"… what is {DIM}a lift" in written.getvalue()
    view.show({"type": "transcription", "turn_id": "t1", "content": "what is a list"})
    after = written.getvalue().split("a lift")[-1]
    assert "\x1b[2K" in after
    assert "(heard: what is a list)" in after


def test_partial_words_are_not_written_to_a_file() -> None:
    view, written = screen(is_terminal=False)
    view.show({"type": "transcription.delta", "stable": "what", "tentative": "is"})
    assert written.getvalue() == ""


def test_sources_follow_the_answer_and_an_interruption_says_what_was_heard() -> None:
    view, written = screen(is_terminal=False)
    passages = [{"n": 1, "document": "Loops", "heading": "Lists"}]
    view.show({"type": "sources", "turn_id": "t1", "passages": passages})
    view.show({"type": "text", "turn_id": "t1", "content": "A list is ordered. [1]"})
    done = {"type": "turn.done", "turn_id": "t1", "timeline": {}}
    view.show({**done, "status": "interrupted", "heard": "A list"})
    assert written.getvalue().splitlines()[:3] == [
        "A list is ordered. [1]",
        "[1] Loops: Lists",
        "(interrupted; heard: A list)",
    ]


def test_the_latency_strip_names_the_stages_reached() -> None:
    assert latency_strip({"commit": 12, "first_token": 80, "new_stage": 90}) == (
        "end of turn 12 · first word 80 · new_stage 90 ms"
    )
    assert latency_strip({}) == ""


def test_the_strip_knows_every_stage_of_the_protocol() -> None:
    page = (
        "commit, transcript, passages, first_token, first_clause, first_audio, first_playback, done"
    )
    assert ", ".join(terminal._STAGES) == page


def test_a_terminal_shows_the_place_in_line_the_notice_and_the_thoughts_dimmed() -> None:
    view, written = screen(is_terminal=True)
    view.show({"type": "queue", "turn_id": "t1", "position": 3, "eta_s": 8})
    view.show({"type": "notice", "turn_id": "t1", "code": "fallback", "content": "Smaller."})
    view.show({"type": "thought.delta", "turn_id": "t1", "content": "Lists "})
    view.show({"type": "thought.delta", "turn_id": "t1", "content": "first."})
    view.show({"type": "text.delta", "turn_id": "t1", "content": "A list."})
    view.show({"type": "text", "turn_id": "t1", "content": "A list."})
    shown = written.getvalue()
    assert f"{DIM}(number 3 in line, about 8 s)" in shown
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines() == [
        "(number 3 in line, about 8 s)",
        "Smaller.",
        "Lists first.",
        "A list.",
    ]
    # The thoughts are dim, the answer is not.
    assert shown.index("\x1b[2;3mfirst.") < shown.index("\nA list.")


async def test_a_single_answer_keeps_all_else_out_of_a_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printer = terminal.Printer()
    for event in (
        events.InLine(3, 8),
        events.AnsweredBy("extractive"),
        events.Thought("Lists "),
        events.Thought("first."),
        events.TextDelta("A list."),
        events.TextDone("A list."),
    ):
        await printer.write(event)
    said = capsys.readouterr()
    assert said.out == "A list.\n"
    assert said.err.splitlines() == [
        "(number 3 in line, about 8 s)",
        "(answered by extractive: the tutor's own model isn't available)",
        "Lists first.",
    ]
