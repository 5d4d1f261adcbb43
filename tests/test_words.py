"""The words of documents: counted once, kept as bytes, joined into a shelf, scored."""

import math

import numpy as np
import pytest

from gpuserver.knowledge.terms import HEADING_WEIGHT, PartTerms, make_terms
from gpuserver.knowledge.words import DOUBT, ELSEWHERE, K1, UNKNOWN, B, Words
from gpuserver.language import Language
from gpuserver.providers import Passage


def passage(heading: str, text: str, language: Language = "en") -> Passage:
    return Passage(heading, "kb", "Chapter", heading, text, language)


ENGLISH = [
    passage("Lists", "A list keeps many values. To write a list, use square brackets."),
    passage("Loops", "A loop repeats code. `list.append(x)` in a loop grows a list."),
    passage("What is it", "It is."),
    passage("Files", "Reading a file loads text from the disk into a program."),
]
CHINESE = [
    passage("函数", "调用函数时要写括号。", "zh"),
    passage(
        "对象", "对象有方法，调用对象的方法要用点。\n\n```python\nprint('你好，世界')\n```", "zh"
    ),
    passage("循环", "循环会重复执行代码，用 for 来写。", "zh"),
]
QUESTIONS = [
    "how do I write a list",
    "list append",
    "volcano",
    "",
    "怎么调用对象的方法",
    "用 for 写循环",
]


def words(*documents: list[Passage]) -> Words:
    return Words([make_terms(document) for document in documents])


@pytest.mark.parametrize("material", [ENGLISH, CHINESE])
@pytest.mark.parametrize("question", QUESTIONS)
def test_how_material_is_cut_into_documents_makes_no_difference(
    material: list[Passage], question: str
) -> None:
    whole, cut = words(material), words(material[:1], [], material[1:3], material[3:])
    asked = whole.of_question(question)
    assert cut.of_question(question) == asked
    np.testing.assert_array_equal(cut.scores(asked), whole.scores(asked))
    np.testing.assert_array_equal(cut.headings(question), whole.headings(question))


def test_a_pair_becomes_a_word_when_another_document_says_it_too() -> None:
    once = [passage("函数", "调用函数。", "zh")]
    again = [passage("方法", "调用方法。", "zh")]
    assert "调用" not in words(once).of_question("怎么调用它")
    assert "调用" in words(once, again).of_question("怎么调用它")
    asked = words(once, again).of_question("调用")
    assert words(once, again).scores(asked).min() > 0


def test_a_score_is_bm25_against_what_is_missing() -> None:
    material = [passage("Lists", "list list values"), passage("Loops", "loop code")]
    built = words(material)
    length = HEADING_WEIGHT + 3
    norm = K1 * (1 - B + B * length / ((length + HEADING_WEIGHT + 2) / 2))
    counted = HEADING_WEIGHT + 2
    rare = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    shared = rare * counted / (counted + norm)
    against = (DOUBT + UNKNOWN) * rare + ELSEWHERE * (2 * rare - shared)
    found = built.scores(["list", "loop", "volcano"])
    assert found[0] == pytest.approx(shared / (shared + against), rel=1e-5)
    assert 0 < found[1] < 1
    assert built.scores(["volcano"]).tolist() == [0, 0]


def test_documents_without_words_or_passages_do_no_harm() -> None:
    for built in (words([passage("What is it", "It is.")]), words([passage("的", "的", "zh")])):
        assert built.scores(built.of_question("list 列表 的")).tolist() == [0]
        assert built.headings("list").tolist() == [0]
    assert words([], []).scores(["list"]).tolist() == []


def test_what_is_kept_comes_back() -> None:
    for material in (ENGLISH, CHINESE, []):
        made = make_terms(material)
        kept = PartTerms.decode(made.encode())
        assert kept.passages == len(material)
        assert kept.encode() == made.encode()
        asked = ["list", "write", "循环"]
        np.testing.assert_array_equal(Words([kept]).scores(asked), Words([made]).scores(asked))


def test_a_large_document_has_the_words_of_its_small_ones() -> None:
    material = [*ENGLISH, *CHINESE] * 30
    whole, cut = words(material), words(*([one] for one in material))
    for question in QUESTIONS:
        asked = whole.of_question(question)
        assert cut.of_question(question) == asked
        np.testing.assert_array_equal(cut.scores(asked), whole.scores(asked))
        np.testing.assert_array_equal(cut.headings(question), whole.headings(question))


def test_damaged_bytes_are_refused() -> None:
    kept = make_terms([*ENGLISH, *CHINESE]).encode()
    damaged = [b"", b"x" * 200, kept[:-1], kept[:20], kept + b"\0"]
    damaged += [kept[:at] + bytes([kept[at] ^ 4]) + kept[at + 1 :] for at in range(len(kept))]
    for data in damaged:
        with pytest.raises(ValueError, match="the kept words of a document are"):
            PartTerms.decode(data)
