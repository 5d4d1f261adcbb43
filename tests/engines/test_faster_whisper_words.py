"""What surrounds Whisper: its batches, its windows, what it is told and what it writes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError

import numpy as np
import pytest
from numpy.typing import NDArray

from gpuserver.audio import SAMPLE_RATE
from gpuserver.errors import EngineFailed
from gpuserver.metrics import Meter
from gpuserver.providers import Vocabulary, WordTime
from gpuserver.providers.faster_whisper.batches import Batches
from gpuserver.providers.faster_whisper.windows import windows
from gpuserver.providers.faster_whisper.words import (
    CONTEXT,
    STYLE,
    Piece,
    confidence,
    context,
    glued,
    hot_words,
    is_heard,
    is_phantom,
    is_repetitive,
    without_loop,
    words,
)

DEADLINE = 10.0


# Batches


class Gate:
    """Work that begins when it is let; it doubles numbers, and fails with a negative one."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def work(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        self.begun.release()
        assert self.go.acquire(timeout=DEADLINE)
        if min(batch) < 0:
            raise RuntimeError("out of memory")
        return [2 * number for number in batch]


def test_the_first_begins_at_once_and_the_others_follow_together_in_order() -> None:
    gate = Gate()
    batches: Batches[int, int] = Batches("asr", 3, gate.work, Meter())
    first = batches.submit(1)
    assert gate.begun.acquire(timeout=DEADLINE)
    others = [batches.submit(number) for number in (2, 3, 4, 5)]
    assert (batches.running, batches.waiting) == (1, 4)
    gate.go.release(3)
    assert [one.result(DEADLINE) for one in (first, *others)] == [2, 4, 6, 8, 10]
    assert gate.batches == [[1], [2, 3, 4], [5]]
    assert batches.close()


def test_one_that_nobody_waits_for_is_never_begun() -> None:
    gate = Gate()
    batches: Batches[int, int] = Batches("asr", 8, gate.work, Meter())
    first = batches.submit(1)
    assert gate.begun.acquire(timeout=DEADLINE)
    second, third = batches.submit(2), batches.submit(3)
    assert second.cancel()
    assert not first.cancel()  # too late
    gate.go.release(2)
    assert (first.result(DEADLINE), third.result(DEADLINE)) == (2, 6)
    with pytest.raises(CancelledError):
        second.result()
    assert gate.batches == [[1], [3]]
    assert batches.close()


def test_only_those_fail_that_can_not_be_worked_on() -> None:
    gate = Gate()
    gate.go.release(99)
    failures: list[None] = []

    class Counts(Meter):
        def failed(self) -> None:
            failures.append(None)

    batches: Batches[int, int] = Batches("asr", 8, gate.work, Counts())
    for _ in range(20):  # until they are in one batch
        good, bad, other = (batches.submit(number) for number in (1, -1, 2))
        assert (good.result(DEADLINE), other.result(DEADLINE)) == (2, 4)
        assert isinstance(bad.exception(DEADLINE), EngineFailed)
    assert len(failures) == 20
    assert batches.close()


def test_closing_ends_what_runs_and_fails_what_waits() -> None:
    gate = Gate()
    batches: Batches[int, int] = Batches("asr", 1, gate.work, Meter())
    first = batches.submit(1)
    assert gate.begun.acquire(timeout=DEADLINE)
    second, third = batches.submit(2), batches.submit(3)
    third.cancel()
    closing = threading.Thread(target=batches.close)
    closing.start()
    assert isinstance(second.exception(DEADLINE), EngineFailed)
    gate.go.release()
    assert first.result(DEADLINE) == 2
    closing.join(DEADLINE)
    assert batches.close()
    with pytest.raises(EngineFailed):
        batches.submit(4)


# Windows


def bursts(*spoken: tuple[float, float], seconds: float, hiss: float = 0) -> NDArray[np.int16]:
    """A recording in which somebody speaks from second to second; no two samples are equal."""
    samples = np.random.default_rng(0).normal(0, hiss, int(seconds * SAMPLE_RATE))
    for start, end in spoken:
        at = slice(int(start * SAMPLE_RATE), int(end * SAMPLE_RATE))
        samples[at] += np.random.default_rng(1).normal(0, 3000, at.stop - at.start)
    return samples.astype(np.int16)


@pytest.mark.parametrize("hiss", [0, 20, 150])
def test_what_is_said_lies_whole_in_one_window(hiss: float) -> None:
    spoken = [(0.5, 4), (5, 17), (17.4, 24), (24.8, 33), (41, 55), (55.3, 59), (88, 95)]
    samples = bursts(*spoken, seconds=100, hiss=hiss)
    found = [(at / SAMPLE_RATE, (at + len(part)) / SAMPLE_RATE) for at, part in windows(samples)]
    assert all(end - start <= 30 for start, end in found)
    assert all(before[1] <= after[0] for before, after in zip(found, found[1:], strict=False))
    for start, end in spoken:
        assert sum(left <= start and end <= right for left, right in found) == 1
    for at, part in windows(samples):
        assert np.array_equal(part, samples[at : at + len(part)])


def test_speech_without_a_pause_is_cut_and_none_of_it_lost() -> None:
    samples = bursts((0, 70), seconds=70)
    found = list(windows(samples))
    assert np.array_equal(np.concatenate([part for _, part in found]), samples)
    assert all(len(part) <= 30 * SAMPLE_RATE for _, part in found)


def test_half_a_minute_is_left_as_it_is_and_silence_left_out() -> None:
    samples = bursts((10, 11), seconds=30)
    [(at, part)] = windows(samples)
    assert at == 0
    assert part is samples
    assert not list(windows(np.zeros(0, np.int16)))
    assert not list(windows(np.zeros(100 * SAMPLE_RATE, np.int16)))
    assert not list(windows(bursts(seconds=100, hiss=5)))


# What it is told


def by_letters(texts: Sequence[str]) -> list[list[int]]:
    """Short words are one token, the others one a letter."""
    return [
        [token for word in text.split() for token in ([0] if len(word) < 6 else map(ord, word))]
        for text in texts
    ]


def test_the_words_a_course_uses_most_are_told_as_many_as_there_is_room_for() -> None:
    course = Vocabulary(
        words=("loop", "numpy", *(f"word{number}x" for number in range(2000)), "recursion"),
        sentences=("what is recursion", "how does recursion work", "what is a loop"),
        readings={"tuples": ("t",)},
    )
    told = hot_words(course, by_letters)
    assert told[:2] == ["tuples", "recursion"]
    assert "loop" not in told
    assert len(by_letters([" ".join(told)])[0]) <= 40


@pytest.mark.parametrize("told", [[], ["recursion", "tuples"], [f"word{n}" for n in range(500)]])
def test_whatever_is_told_is_equally_long(told: list[str]) -> None:
    for language in STYLE:
        assert len(context(language, told, by_letters)) == CONTEXT - 1
    # Even where a tokenizer makes little of it.
    assert len(context("en", told, lambda texts: [[7] for _ in texts])) == CONTEXT - 1


# How sure it is


def test_confidence_falls_with_doubt_and_where_nobody_speaks() -> None:
    assert confidence(0.0, 0.0) == 1.0
    assert confidence(-0.3, 0.3) > 0.7  # clear speech
    assert 0.35 < confidence(-1.0, 0.0) < 0.4
    assert confidence(-0.1, 0.97) < 0.1
    levels = [confidence(-0.2, no_speech / 10) for no_speech in range(11)]
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize(
    "text",
    [
        "Thanks for watching!",
        "Thank you so much for watching.",
        "you",
        "Please subscribe to my channel.",
        "Subtitles by the Amara.org community",
        "请不吝点赞 订阅 转发 打赏支持明镜与点点栏目",
        "字幕由 Amara.org 社区提供",
        "谢谢观看",
        "I would like to ask a question,",
        "写成简体中文。",
    ],
)
def test_what_whisper_makes_of_silence_is_left_out_unless_it_is_sure(text: str) -> None:
    assert is_phantom(text)
    assert not is_heard(text, -0.7, 0.1)
    assert not is_heard(text, -0.1, 0.7)
    assert is_heard(text, -0.1, 0.1)


@pytest.mark.parametrize(
    "text",
    [
        "Thank you for explaining tuples.", "What are you doing?", "So what is a list?",
        "How do I translate a word?", "我想知道什么是列表。", "谢谢你，我懂了。", "Hi",
    ],
)  # fmt: skip
def test_what_a_student_says_is_not_left_out(text: str) -> None:
    assert not is_phantom(text)
    assert is_heard(text, -0.7, 0.4)


def test_unsure_words_where_nobody_seems_to_speak_are_left_out() -> None:
    assert not is_heard("Some words.", -1.2, 0.7)
    assert is_heard("Some words.", -1.2, 0.5)
    assert not is_heard("", 0.0, 0.0)


def test_going_round_in_circles_is_seen_and_said_once() -> None:
    assert is_repetitive("I don't know. " * 20)
    assert is_repetitive("我不知道。" * 20)
    assert not is_repetitive("What is the difference between a list and a tuple, and why?")
    assert not is_repetitive("")
    assert without_loop([1, 2, 3, *[7, 8, 9] * 20, 7]) == [1, 2, 3, 7, 8, 9]
    assert without_loop([5] * 100) == [5]
    assert without_loop([1, 2, 3, 4, 4, 4]) == [1, 2, 3, 4, 4, 4]
    assert without_loop([]) == []


# Words


def times(*texts: str) -> list[Piece]:
    return [Piece(text, 100 * at, 100 * at + 100) for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((" What", "'s", " a", " tu", "ple", "?"), ["What's", "a", "tuple?"]),
        ((" ", "It", " is", " 3", ".", "14", "."), ["It", "is", "3.14."]),
        (("什么", "是", " list", " compre", "hension", "？"),
         ["什么", "是", "list", "comprehension？"]),
        (("用", "for", "循环", "，", "好", "吗"), ["用", "for", "循环，", "好", "吗"]),
        ((" “", "Stop", "”,", " he", " said"), ["“Stop”,", "he", "said"]),
    ],
)  # fmt: skip
def test_tokens_are_put_together_to_words(pieces: tuple[str, ...], expected: list[str]) -> None:
    found = words(times(*pieces), 10_000)
    assert [word.text for word in found] == expected
    assert found[0].start_ms == 0
    assert found[-1].end_ms == 100 * len(pieces)


def test_word_times_rise_and_stay_in_the_recording() -> None:
    pieces = [Piece(" a", 300, 300), Piece(" b", 300, 250), Piece(" c", 900, 2000)]
    assert words(pieces, 1000) == (
        WordTime("a", 300, 320), WordTime("b", 320, 340), WordTime("c", 900, 1000),
    )  # fmt: skip
    late = words([Piece(f" {n}", 1000, 1000) for n in range(10)], 1000)
    assert late[-1].end_ms == 1000
    assert [word.start_ms for word in late] == sorted({word.start_ms for word in late})
    crowded = words([Piece(f" {n}", 0, 0) for n in range(10)], 50)
    assert all(0 <= word.start_ms <= word.end_ms for word in crowded)


def test_texts_are_joined_as_they_are_written() -> None:
    assert glued(["What is it?", "A list."]) == "What is it? A list."
    assert glued(["什么是元组？", "怎么写循环？"]) == "什么是元组？怎么写循环？"
    assert glued(["用", "Python", "写"]) == "用 Python 写"
    assert glued([]) == ""
