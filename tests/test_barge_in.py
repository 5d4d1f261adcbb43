"""What interrupts an answer, and when words look finished."""

from __future__ import annotations

import pytest

from gpuserver.language import Language, looks_finished
from gpuserver.live.barge_in import BargeIn, BargeInRules, is_echo
from gpuserver.smalltalk import is_backchannel, is_stop

SAID = (
    "A list is an ordered collection of items. To write a list, put items in square brackets. "
    "You can change a list after it is made, and a for loop goes over the items of a list."
)
SAID_ZH = "列表是一组有顺序的元素。用方括号来写列表，元素之间用逗号隔开。列表可以修改，元组不可以。"


@pytest.fixture
def barge_in() -> BargeIn:
    """After the first answer's grace, and while an answer is heard."""
    barge_in = BargeIn(BargeInRules())
    barge_in.answer_started(0.0)
    return barge_in


def interrupts(
    barge_in: BargeIn,
    words: str,
    confidence: float = 0.6,
    seconds: float = 1.0,
    now: float = 11.0,
    *,
    language: Language = "en",
) -> bool:
    said = SAID if language == "en" else SAID_ZH
    return barge_in.interrupts(words, confidence, seconds, now, said=said, language=language)


# Interrupting


@pytest.mark.parametrize(
    ("words", "language"),
    [
        ("what is a tuple", "en"),
        ("what is a list", "en"),
        ("how do i put items in a list", "en"),
        ("can you change a list after it is made", "en"),
        ("why do you write square brackets", "en"),
        ("i do not understand", "en"),
        ("ok but what is a loop", "en"),
        ("no", "en"),
        ("什么是循环", "zh"),
        ("列表可以修改吗", "zh"),
        ("我不明白", "zh"),
    ],
)
def test_a_question_interrupts(barge_in: BargeIn, words: str, language: Language) -> None:
    assert not interrupts(barge_in, words, seconds=0.4, language=language)
    assert not interrupts(barge_in, words, confidence=0.2, language=language)
    assert interrupts(barge_in, words, language=language)


@pytest.mark.parametrize(
    ("words", "language"),
    [
        ("ok", "en"),
        ("mm-hm", "en"),
        ("uh huh, I see", "en"),
        ("yeah right", "en"),
        ("嗯", "zh"),
        ("嗯嗯，好的", "zh"),
        ("ok", "zh"),
        ("a list is an ordered collection", "en"),
        ("list is ordered collection of items", "en"),
        ("square brackets", "en"),
        ("用方括号来写列表", "zh"),
        ("", "en"),
        ("?", "en"),
    ],
)
def test_backchannels_and_the_tutors_own_words_let_it_go_on(
    barge_in: BargeIn, words: str, language: Language
) -> None:
    assert not interrupts(barge_in, words, confidence=0.9, language=language)


@pytest.mark.parametrize(
    ("words", "language"),
    [("stop", "en"), ("Wait!", "en"), ("hold on", "en"), ("停", "zh"), ("等一下", "zh")],
)
def test_a_command_to_stop_needs_no_length(
    barge_in: BargeIn, words: str, language: Language
) -> None:
    assert interrupts(barge_in, words, 0.15, 0.2, language=language)


def test_speech_that_was_taken_for_a_false_alarm_still_interrupts(barge_in: BargeIn) -> None:
    assert not interrupts(barge_in, "what is", 0.2, now=12.1)
    assert interrupts(barge_in, "what is a tuple", now=12.5)


def test_the_first_answer_can_not_be_interrupted_at_its_beginning() -> None:
    barge_in = BargeIn(BargeInRules(grace_seconds=1.0))
    assert barge_in.pauses(4.0)
    barge_in.answer_started(5.0)
    assert not barge_in.pauses(5.9)
    assert not interrupts(barge_in, "stop", now=5.95)
    assert not interrupts(barge_in, "what is a tuple", now=5.99)
    assert barge_in.pauses(6.0)
    assert interrupts(barge_in, "what is a tuple", now=6.0)
    barge_in.answer_started(20.0)
    assert barge_in.pauses(20.1)


# Words


@pytest.mark.parametrize(
    ("words", "echo"),
    [
        ("a for loop goes over the items", True),
        ("for loop goes over items of a list", True),
        ("a for loop goes under the items", True),
        ("loop", True),
        ("what does a for loop do", False),
        ("what is the for loop over the items", False),
        ("is a list an ordered collection", False),
        ("items collection ordered list", False),
        ("tuple", False),
        ("", False),
    ],
)
def test_echo_is_nearly_all_of_it_in_one_stretch(words: str, echo: bool) -> None:
    assert is_echo(words, SAID) is echo
    assert not is_echo(words, "")


def test_a_long_answer_is_searched_quickly() -> None:
    assert not is_echo("why " * 40, "a list is a list and no tuple " * 20)


def test_backchannels_are_whole() -> None:
    assert is_backchannel("OK, okay. I see!", "en")
    assert is_backchannel("哦，原来如此", "zh")
    assert not is_backchannel("", "en")
    assert not is_backchannel("ok what is that", "en")
    assert not is_backchannel("对象", "zh")
    assert not is_backchannel("no", "en")


def test_commands_to_stop_are_whole() -> None:
    assert is_stop("Stop.", "en")
    assert is_stop("STOP", "zh")
    assert is_stop("停！", "en")
    assert not is_stop("", "en")
    assert not is_stop("stop words", "en")
    assert not is_stop("when does the loop stop", "en")


@pytest.mark.parametrize(
    "text",
    [
        "what is a list",
        "what does this function do",
        "what is it for",
        "what can you do",
        "can you explain what a dictionary is",
        "why",
        "thank you",
        "what is this",
        "can you repeat that",
        "tell me about exceptions",
        "how does it work?",
        "什么是列表",
        "列表和元组有什么区别",
        "这是什么",
        "为什么",
        "你好",
        "谢谢你",
        "循环怎么用？",
        "是的",
        "好的。",
        "ok",
    ],
)
def test_words_that_look_finished(text: str) -> None:
    assert looks_finished(text, "en")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ?",
        "what is",
        "what is the",
        "what is a",
        "how do i",
        "how does it",
        "what is the difference between",
        "what is a list and",
        "what is a list and how do",
        "can you tell me",
        "um",
        "I was wondering if",
        "is there",
        "how many",
        "because",
        "什么是",
        "列表和",
        "列表的",
        "如果",
        "我想问一下，因为",
        "嗯",
        "我不明白怎么",
    ],
)
def test_words_that_lead_on(text: str) -> None:
    assert not looks_finished(text, "en")
