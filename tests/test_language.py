"""Words, sentences and code in English and Chinese; small talk."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuserver.language import (
    Language,
    code_blocks,
    detect,
    keywords,
    prose,
    sentences,
    spoken_code,
    stem,
    terms,
)
from gpuserver.smalltalk import Kind, is_small_talk, kind_of

MARKDOWN = (
    "One line\nand its end. Next.\n\n- first\n- second\n\n```python\n# no. prose\n\nx\n```\nAfter."
)


@settings(deadline=None)
@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    for language in ("en", "zh"):
        spoken_code(text, language)
        kind_of(text, language)
        detect(text, language)
    keywords(text)
    prose(text)
    code_blocks(text)
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("", "zh"),
        ("123 ==", "zh"),
        ("what is a list", "en"),
        ("什么是 list comprehension", "zh"),
        ("for 循环", "zh"),
        ("用 for i in range(10): print(i) 循环十次", "zh"),
        ("can you explain to me what 列表 means", "en"),
        ("how do I print 你 on the screen of the computer", "en"),
    ],
)
def test_language_of_a_text(text: str, language: Language) -> None:
    assert detect(text, "zh") == language


def test_terms_keep_operators_that_stand_alone() -> None:
    assert terms("What does == do, and % in 7 % 2?") == [
        "what",
        "does",
        "==",
        "do",
        "and",
        "%",
        "in",
        "7",
        "%",
        "2",
    ]
    assert "#" not in terms("C# and 50% of it")
    assert "%" not in terms("C# and 50% of it")
    assert terms("列表 List") == ["列", "表", "列表", "list"]


@pytest.mark.parametrize(
    ("words", "root"),
    [
        (("loop", "loops", "looping", "looped"), "loop"),
        (("write", "writes", "writing"), "writ"),
        (("dictionary", "dictionaries"), "dictionary"),
        (("class", "classes"), "class"),
        (("nested", "nest"), "nest"),
        (("debugging", "bug")[:1], "debug"),
        (("string",), "string"),
        (("this", "is", "us")[:1], "this"),
    ],
)
def test_stems(words: tuple[str, ...], root: str) -> None:
    assert {stem(word) for word in words} == {root}


def test_keywords_are_what_a_question_is_about() -> None:
    assert keywords("What's the difference between lists and tuples?") == [
        "between",
        "list",
        "and",
        "tupl",
    ]
    assert keywords("How do I use list.append?") == ["list.append", "list", "append"]
    assert keywords("为什么要用列表？") == ["列", "表", "列表"]
    assert keywords("怎么 for 循环") == ["for", "循", "环", "循环"]
    assert keywords("What is it?") == []
    assert keywords("Show me how to show a list") == ["show", "list"]
    # A pair with a function character counts where it is known to be a word.
    assert keywords("调用对象") == ["调", "象"]
    assert keywords("调用对象", {"调用", "对象"}) == ["调", "象", "调用", "对象"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pi is 3.14. So.", ["Pi is 3.14.", "So."]),
        ("Use list.append now. Ok?", ["Use list.append now.", "Ok?"]),
        ("Signs, e.g. a dot. Names, i.e. words.", ["Signs, e.g. a dot.", "Names, i.e. words."]),
        (
            "Lists, tuples, etc. are types, etc. Next.",
            ["Lists, tuples, etc. are types, etc.", "Next."],
        ),
        ("Dr. Ada came. No. 5 too. No. Never.", ["Dr. Ada came.", "No. 5 too.", "No.", "Never."]),
        ('Write `print("Hi. ")` here. Done', ['Write `print("Hi. ")` here.', "Done"]),
        ("1. First. 2", ["1. First.", "2"]),
        ("**Bold.** He said “yes.” Then", ["**Bold.**", "He said “yes.”", "Then"]),
        ("“好。”他说：数；字。完", ["“好。”", "他说：数；字。", "完"]),
        ("One\nTwo", ["One", "Two"]),
        ("  ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert list(sentences(text)) == expected


def test_prose_is_without_code_and_wrapped_lines() -> None:
    assert prose(MARKDOWN) == "One line and its end. Next.\n- first\n- second\nAfter."
    assert prose("列表是\n一种") == "列表是一种"
    assert code_blocks(MARKDOWN) == ["```python\n# no. prose\n\nx\n```"]
    assert prose("text\n```\nnever closed") == "text"


@pytest.mark.parametrize(
    ("code", "english", "chinese"),
    [
        ("for i in range(3):", "for i in range 3", "for i in range 3"),
        ("list.append(x)", "list dot append x", "list 点 append x"),
        ("__init__", "init", "init"),
        ("first_name", "first name", "first name"),
        ("age <= 12", "age less than or equal to 12", "age 小于等于 12"),
        ("17 // 5", "17 integer divided by 5", "17 整除 5"),
        ("2 ** 3", "2 to the power of 3", "2 乘方 3"),
        ("word[0:3]", "word 0 to 3", "word 0 到 3"),
        ("colors[-1]", "colors minus 1", "colors 负 1"),
        ("3.14", "3.14", "3.14"),
        ("()", "round brackets", "圆括号"),
        ("%", "percent sign", "百分号"),
        ("==", "equals equals", "双等号"),
        ("", "", ""),
    ],
)
def test_code_as_words(code: str, english: str, chinese: str) -> None:
    assert spoken_code(code, "en") == english
    assert spoken_code(code, "zh") == chinese


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("", "en"),
        ("   ", "en"),
        ("?!", "zh"),
        ("you", "en"),
        ("please", "en"),
        ("吗", "zh"),
        ("hello what is a list", "en"),
        ("Hello, what is a list?", "en"),
        ("what is", "en"),
        ("how do i repeat something", "en"),
        ("help me with loops", "en"),
        ("hello мир", "en"),
        ("thank you what is a tuple", "en"),
        ("what is your list", "en"),
        ("thanks " * 40, "en"),
        ("你好，什么是列表", "zh"),
        ("什么是循环", "zh"),
        ("对象是什么", "zh"),
        ("请问列表怎么用", "zh"),
        ("帮我写一个循环", "zh"),
    ],
)
def test_questions_are_no_small_talk(question: str, language: Language) -> None:
    assert not is_small_talk(question, language)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("hello", "greeting"),
        ("Hi there, teacher!", "greeting"),
        ("good morning", "greeting"),
        ("thank you very much", "thanks"),
        ("um thanks a lot", "thanks"),
        ("thank you goodbye", "goodbye"),
        ("Bye-bye!", "goodbye"),
        ("what's your name?", "identity"),
        ("whats your name", "identity"),
        ("hello who are you", "identity"),
        ("how are you today", "wellbeing"),
        ("can you repeat that please", "repeat"),
        ("sorry, could you say that again", "repeat"),
        ("what can i ask you", "help"),
        ("who are you and what can you do", "help"),
        ("okay i see", "acknowledgement"),
        ("👋 hello", "greeting"),
        ("你好", "greeting"),
        ("老师您好！", "greeting"),
        ("谢谢老师", "thanks"),
        ("好的，谢谢", "thanks"),
        ("再见", "goodbye"),
        ("你叫什么名字？", "identity"),
        ("你好吗", "wellbeing"),
        ("可以再说一遍吗", "repeat"),
        ("我没听清楚", "repeat"),
        ("我可以问你什么", "help"),
        ("明白了", "acknowledgement"),
        ("hello老师", "greeting"),
    ],
)
def test_small_talk(question: str, kind: Kind) -> None:
    for language in ("en", "zh"):
        assert kind_of(question, language) == kind
