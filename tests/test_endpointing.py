"""When speech begins, pauses and ends, counted in frames of 32 ms."""

from __future__ import annotations

import pytest

from gpuserver.live.endpointing import FRAME_SECONDS, Change, Endpointer, Endpointing

SPEECH, UNSURE, SILENCE = 0.9, 0.4, 0.1


def run(endpointer: Endpointer, *parts: tuple[float, int]) -> list[tuple[int, Change]]:
    """Feed (score, frames) parts; what changed, with the number of frames before it."""
    changes: list[tuple[int, Change]] = []
    at = 0
    for score, frames in parts:
        for _ in range(frames):
            change = endpointer.feed(score)
            if change is not None:
                changes.append((at, change))
            at += 1
    return changes


@pytest.fixture
def endpointer() -> Endpointer:
    return Endpointer(Endpointing(0.5, 1.6, 60))


def test_a_click_is_no_speech(endpointer: Endpointer) -> None:
    assert run(endpointer, (SILENCE, 5), (SPEECH, 2), (SILENCE, 9), (SPEECH, 2), (SILENCE, 9)) == []
    assert endpointer.state == "idle"


def test_what_is_never_sure_is_no_speech(endpointer: Endpointer) -> None:
    assert run(endpointer, (UNSURE, 100)) == []


def test_speech_begins_with_the_third_frame(endpointer: Endpointer) -> None:
    assert run(endpointer, (SILENCE, 5), (SPEECH, 1), (UNSURE, 2)) == [(7, "start")]
    assert endpointer.speech_seconds == pytest.approx(3 * FRAME_SECONDS)


def test_a_finished_turn_ends_after_half_a_second(endpointer: Endpointer) -> None:
    assert run(endpointer, (SPEECH, 20), (SILENCE, 6)) == [(2, "start"), (25, "pause")]
    endpointer.finished = True
    (end,) = run(endpointer, (SILENCE, 30))[:1]
    assert end == (9, "end")  # the sixteenth frame of silence: 512 ms


def test_an_unfinished_turn_is_waited_for(endpointer: Endpointer) -> None:
    run(endpointer, (SPEECH, 20), (SILENCE, 6))
    endpointer.finished = False
    assert run(endpointer, (SILENCE, 80))[0] == (43, "end")  # 1.6 s


def test_nothing_ends_while_nobody_knows_the_words(endpointer: Endpointer) -> None:
    run(endpointer, (SPEECH, 20), (SILENCE, 6))
    assert run(endpointer, (SILENCE, 300)) == []
    endpointer.finished = False
    assert endpointer.over


def test_speech_goes_on_after_a_pause(endpointer: Endpointer) -> None:
    run(endpointer, (SPEECH, 20), (SILENCE, 6))
    endpointer.finished = True
    assert run(endpointer, (SILENCE, 5), (SPEECH, 5)) == [(6, "go_on")]
    assert run(endpointer, (SILENCE, 6)) == [(5, "pause")]
    assert endpointer.finished is None
    assert endpointer.speech_frames == 25


def test_a_click_in_a_pause_is_not_going_on(endpointer: Endpointer) -> None:
    run(endpointer, (SPEECH, 20), (SILENCE, 6))
    endpointer.finished = True
    assert run(endpointer, (SPEECH, 1), (SILENCE, 16)) == [(16, "end")]


def test_gaps_within_words_are_no_pause(endpointer: Endpointer) -> None:
    parts = [(SPEECH, 6), (SILENCE, 5)] * 10
    assert run(endpointer, *parts) == [(2, "start")]


def test_no_turn_is_longer_than_the_limit() -> None:
    endpointer = Endpointer(Endpointing(max_audio_seconds=2))
    assert run(endpointer, (SPEECH, 63)) == [(2, "start"), (62, "end")]


def test_no_silence_ends_a_manual_turn(endpointer: Endpointer) -> None:
    endpointer.manual = True
    run(endpointer, (SPEECH, 20), (SILENCE, 6))
    endpointer.finished = True
    assert run(endpointer, (SILENCE, 500)) == []
    endpointer.manual = False
    assert run(endpointer, (SILENCE, 1)) == [(0, "end")]


def test_after_a_reset_it_waits_for_the_next_speech(endpointer: Endpointer) -> None:
    run(endpointer, (SPEECH, 2))
    endpointer.reset()
    assert run(endpointer, (SPEECH, 2)) == []
    assert run(endpointer, (SPEECH, 1)) == [(0, "start")]
