"""What a follow-up refers to, and what is no follow-up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuserver.language import Language
from gpuserver.tutor.conversation import Conversation, Exchange

DATA = Path(__file__).parent / "data"


def after(topic: str, question: str, language: Language) -> str:
    conversation = Conversation(4)
    conversation.add(Exchange("Earlier?", "Yes.", topic))
    conversation.add(Exchange("Thanks!", "You are welcome."))
    return conversation.whole_question(question, language)


@pytest.mark.parametrize(
    ("language", "question"),
    [
        ("en", "And how do I write one?"),
        ("en", "Why?"),
        ("en", "Can you give me an example?"),
        ("en", "What does it mean?"),
        ("en", "How do I remove an item from it?"),
        ("en", "When should I use them?"),
        ("en", "explain more please"),
        ("zh", "那怎么写呢？"),
        ("zh", "为什么呢"),
        ("zh", "举个例子"),
        ("zh", "它有什么用？"),
        ("zh", "能再讲一遍吗"),
    ],
)
def test_a_follow_up_carries_its_topic(language: Language, question: str) -> None:
    assert after("Lists", question, language) == f"{question} (Lists)"


@pytest.mark.parametrize(
    ("language", "question"),
    [
        ("en", "Why is the sky blue?"),
        ("en", "What is the best example of a mammal?"),
        ("en", "How do I add one to a variable?"),
        ("en", "What about tuples?"),
        ("en", "so what is recursion"),
        ("zh", "元组呢？"),
        ("zh", "那循环怎么写？"),
        ("zh", "为什么天空是蓝色的？"),
    ],
)
def test_a_question_with_its_own_subject_stays_as_it_is(language: Language, question: str) -> None:
    assert after("Lists", question, language) == question


@pytest.mark.parametrize(
    ("language", "question"),
    [
        ("en", "And which things are the opposite?"),
        ("en", "What about the other kind?"),
        ("en", "Would that work underwater too?"),
        ("zh", "那时候还发明了什么？"),
        ("zh", "后来呢？"),
        ("zh", "结果怎么样？"),
    ],
)
def test_what_may_point_back_does_so_if_it_finds_nothing_by_itself(
    language: Language, question: str
) -> None:
    conversation = Conversation(4)
    conversation.add(Exchange("Earlier?", "Yes.", "Python › Lists"))
    assert conversation.whole_question(question, language) == question
    loosely = conversation.whole_question(question, language, loosely=True)
    assert loosely == f"{question} (Lists)"
    whole = "Why is the sky blue?"
    assert conversation.whole_question(whole, "en", loosely=True) == whole


def test_nothing_was_said_yet() -> None:
    assert Conversation(4).whole_question("And how do I write one?", "en") == (
        "And how do I write one?"
    )
    assert after("", "Why?", "en") == "Why?"


@pytest.mark.parametrize("name", ["questions.en", "questions.zh", "outside.en", "outside.zh"])
def test_whole_questions_are_left_alone_after_another_topic(name: str) -> None:
    """Of the questions that were written without a conversation, hardly one is taken for one."""
    language: Language = "zh" if name.endswith("zh") else "en"
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines]
    changed = [q for q in questions if after("Lists", q, language) != q]
    assert len(changed) <= len(questions) // 20, changed
