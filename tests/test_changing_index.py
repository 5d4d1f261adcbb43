"""An index whose documents come, change and go while it is searched; copies and explanations."""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from gpuserver.errors import ProviderUnavailable
from gpuserver.knowledge.index import Index
from gpuserver.knowledge.parts import Part, texts_to_embed
from gpuserver.knowledge.terms import make_terms
from gpuserver.language import Language
from gpuserver.providers import Passage, Scale
from gpuserver.providers.numpy import NumpyIndex, NumpyVectors
from tests.knowledge_fakes import word_vectors


class Embeddings:
    """Each keyword of a text has its own direction; knows the languages it is told."""

    dimension = 64
    name = "words"
    scale: Mapping[Language, Scale] = {}

    def __init__(self, *languages: Language) -> None:
        self.languages = frozenset[str](languages)

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        return word_vectors(texts, self.dimension)


WORDS_ONLY = Embeddings()


def part(
    document_id: str,
    *sections: tuple[str, str],
    language: Language = "en",
    kb_id: str = "kb",
    embeddings: Embeddings = WORDS_ONLY,
) -> Part:
    passages = tuple(
        Passage(f"{document_id}#{n}", kb_id, "Chapter", heading, text, language, None, 0.0,
                document_id, n)
        for n, (heading, text) in enumerate(sections, start=1)
    )  # fmt: skip
    terms = make_terms(passages)
    if language not in embeddings.languages or not passages:
        return Part(kb_id, document_id, language, passages, terms)
    texts, starts = texts_to_embed(passages)
    return Part(kb_id, document_id, language, passages, terms, embeddings.embed(texts), starts)


LISTS = ("Lists", "A list keeps many values. To write a list, use square brackets.")
LOOPS = ("Loops", "A loop repeats code. A common mistake is to forget the colon.")
ZH_LISTS = ("列表", "列表保存许多值。")


OTHERS = [part(f"other{n}", LOOPS) for n in range(20)]


def found(index: Index, question: str, language: Language = "en", *kb_ids: str) -> list[str]:
    return [item.id for item in index.search(question, language, kb_ids or ["kb"])]


@pytest.fixture(params=["words", "meaning"])
def model(request: pytest.FixtureRequest) -> Embeddings:
    return WORDS_ONLY if request.param == "words" else Embeddings("en")


# Documents come, change and go


def test_a_document_is_found_from_the_moment_it_is_put(model: Embeddings) -> None:
    index = Index(model)
    assert found(index, "what is a list") == []
    index.put([part("a", LISTS, embeddings=model)])
    assert found(index, "what is a list") == ["a#1"]
    index.put([part("b", LOOPS, embeddings=model)])
    assert found(index, "what is a loop")[0] == "b#1"
    assert found(index, "what is a list")[0] == "a#1"
    (passage,) = index.search("list brackets", "en", ["kb"], k=1)
    assert (passage.document_id, passage.n) == ("a", 1)


def test_a_document_that_is_replaced_leaves_nothing_behind(model: Embeddings) -> None:
    index = Index(model)
    index.put([part("a", LISTS, embeddings=model), part("a", ZH_LISTS, language="zh")])
    index.put([part("b", LOOPS, embeddings=model)])
    assert found(index, "列表是什么", "zh") == ["a#1"]
    index.put([part("a", ("Tuples", "A tuple never changes."), embeddings=model)])
    assert found(index, "what is a tuple")[0] == "a#1"
    assert found(index, "square brackets") == []
    assert found(index, "列表是什么", "zh") == []
    assert found(index, "what is a loop")[0] == "b#1"


def test_a_document_that_goes_takes_its_words_along(model: Embeddings) -> None:
    index = Index(model)
    both = [part("a", LISTS, embeddings=model), part("b", LOOPS, embeddings=model)]
    index.put(both)
    index.drop("kb", "a")
    index.drop("kb", "never there")
    index.drop("no such base", "b")
    alone = Index(model)
    alone.put(both[1:])
    for question in ("what is a list", "what is a loop", "repeat the code"):
        assert index.explain(question, "en", ["kb"]) == alone.explain(question, "en", ["kb"])
    index.put([part("b", embeddings=model)])
    assert found(index, "what is a loop") == []
    assert index.explain("what is a loop", "en", ["kb"]) == []


def test_changes_of_one_base_leave_others_alone(model: Embeddings) -> None:
    index = Index(model)
    index.put([part("a", LISTS, embeddings=model)])
    before = index.explain("list values", "en", ["kb"])
    index.put([part("a", LOOPS, kb_id="other", embeddings=model)])
    assert index.explain("list values", "en", ["kb"]) == before
    assert found(index, "what is a list", "en", "other") == []
    index.replace("other", [part("c", ("Files", "A file is on the disk."), kb_id="other",
                                 embeddings=model)])  # fmt: skip
    assert found(index, "what is a loop", "en", "other") == []
    assert found(index, "what is a file", "en", "other") == ["c#1"]
    index.drop_base("other")
    assert found(index, "what is a file", "en", "other") == []
    assert index.explain("list values", "en", ["kb"]) == before


def test_many_documents_put_at_once_are_as_one_after_another(model: Embeddings) -> None:
    parts = [part("a", LISTS, LOOPS, embeddings=model), part("b", ZH_LISTS, language="zh"),
             part("c", LOOPS, kb_id="other", embeddings=model)]  # fmt: skip
    together, single = Index(model), Index(model)
    together.put(parts)
    for each in parts:
        single.put([each])
    for question, language in (("list and loop", "en"), ("列表", "zh")):
        asked = (question, language, ["kb", "other"])
        assert together.explain(*asked) == single.explain(*asked)  # type: ignore[arg-type]


# Searches meanwhile


def test_a_search_sees_a_document_before_or_after_a_change_and_never_between() -> None:
    def version(name: str) -> list[Part]:
        text = f"A list keeps values in edition {name}"
        sections = [(f"Lists {n}", f"{text}, part number {n}.") for n in range(1, 5)]
        return [part("a", *sections)]

    versions = [version("alpha"), version("beta")]
    index = Index(WORDS_ONLY)
    index.put([*OTHERS, *versions[0]])
    wrong: list[object] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            texts = [item.text for item in index.search("list values edition", "en", ["kb"])]
            editions = {text.split("edition ")[1].split(",")[0] for text in texts}
            if len(texts) != 4 or len(editions) != 1:
                wrong.append(texts)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for round_ in range(100):
        index.put(versions[round_ % 2])
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_search_under_way_ends_on_what_it_began_with() -> None:
    class Dropping(Embeddings):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
            if query:
                index.drop_base("kb")
            return super().embed(texts)

    model = Dropping("en")
    index = Index(model)
    index.put([part("a", LISTS, embeddings=model)])
    assert found(index, "what is a list") == ["a#1"]
    assert found(index, "what is a list") == []


def test_changes_from_several_threads_are_all_kept() -> None:
    index = Index(WORDS_ONLY)

    def add(first: int) -> None:
        for n in range(first, first + 10):
            index.put([part(f"d{n}", (f"Topic{n}", f"About subject{n}."))])

    threads = [threading.Thread(target=add, args=[first]) for first in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found(index, f"topic{n}") for n in range(30)] == [[f"d{n}#1"] for n in range(30)]


# What can't be taken in


class NoRoom(NumpyIndex):
    full = False

    def hold(self, matrix: NDArray[np.float32]) -> NumpyVectors:
        if self.full:
            raise ProviderUnavailable(problem="There is no room.", fix="make some.")
        return super().hold(matrix)


def test_a_change_that_fails_changes_nothing() -> None:
    model, room = Embeddings("en"), NoRoom()
    index = Index(model, room)
    index.put([part("a", LISTS, embeddings=model), part("a", ZH_LISTS, language="zh")])
    other = Embeddings("en")
    other.dimension = 32
    with pytest.raises(ValueError, match="of another model"):
        index.put([part("a", LOOPS, embeddings=other)])
    room.full = True
    with pytest.raises(ProviderUnavailable):
        index.put([part("a", LOOPS, embeddings=model)])
    assert found(index, "what is a list") == ["a#1"]
    assert found(index, "列表是什么", "zh") == ["a#1"]
    room.full = False
    index.put([part("a", LOOPS, embeddings=model)])
    assert found(index, "what is a loop") == ["a#1"]


@pytest.mark.parametrize("starts", [[], [0], [0, 0, 1], [1, 2, 3], [0, 1, 9], [0, 2, 1]])
def test_vectors_of_other_passages_are_refused(starts: list[int]) -> None:
    passages = part("a", LISTS, LOOPS, ("Files", "A file.")).passages
    with pytest.raises(ValueError, match="vectors are not of these passages"):
        Part("kb", "a", "en", passages, make_terms(passages), np.zeros((5, 64), np.float32),
             np.array(starts, np.intp))  # fmt: skip
    with pytest.raises(ValueError, match="words are not of these passages"):
        Part("kb", "a", "en", passages, make_terms(passages[:2]))


def test_until_all_have_vectors_words_decide() -> None:
    model = Embeddings("en")
    index = Index(model)
    index.put([part("a", LISTS, embeddings=model), part("b", LOOPS)])
    first = index.explain("what is a list", "en", ["kb"])[0]
    assert (first.passage.id, first.by_meaning) == ("a#1", None)
    index.put([part("b", LOOPS, embeddings=model)])
    first = index.explain("what is a list", "en", ["kb"])[0]
    assert first.by_meaning is not None
    assert first.by_meaning > 0.3


def test_the_nearest_of_very_many_sentences_is_found() -> None:
    model = Embeddings("en")
    passages = part("a", LISTS, LOOPS, ("Files", "A file is on the disk.")).passages
    vectors = np.zeros((120_001, 64), np.float32)
    vectors[:, 0] = 1
    vectors[-1] = model.embed(["volcano"])[0]
    starts = np.array([0, 60_000, 119_999], np.intp)
    index = Index(model)
    index.put([Part("kb", "a", "en", passages, make_terms(passages), vectors, starts)])
    first = index.explain("volcano", "en", ["kb"])[0]
    assert first.passage.heading == "Files"
    assert first.by_meaning == pytest.approx(1)


# Copies

LONG = (
    "A stack gives back last what came first. Pushing puts an element on top, and popping takes "
    "the top element away. An empty stack has nothing to pop, so programs check before."
)


def test_a_text_in_two_documents_is_given_once(model: Embeddings) -> None:
    index = Index(model)
    index.put(
        [
            part("a", ("Stacks", LONG), LOOPS, embeddings=model),
            part("b", ("Notes", LONG.replace("programs", "scripts")), embeddings=model),
            part("c", ("Stacks", LONG), kb_id="other", embeddings=model),
            part("d", ("Queues", "A queue is no stack: first in, first out."), embeddings=model),
        ]
    )
    given = found(index, "what is a stack, and how does popping work", "en", "kb", "other")
    assert sum(name in {"a#1", "b#1", "c#1"} for name in given) == 1
    assert given[0] in {"a#1", "c#1"}
    assert "d#1" in given


def test_the_same_sentence_with_another_number_is_no_copy() -> None:
    index = Index(WORDS_ONLY)
    text = "The final exam of the physics course takes place in the large hall on day {} of June."
    exams = [part(name, ("Exam", text.format(day))) for name, day in (("a", 12), ("b", 19))]
    index.put([*OTHERS, *exams])
    assert sorted(found(index, "when is the physics exam")) == ["a#1", "b#1"]


def test_a_longer_text_stays_beside_a_shorter_one_that_it_holds() -> None:
    index = Index(WORDS_ONLY)
    more = f"{LONG} Compilers evaluate nested brackets, browsers remember visited pages, editors "
    more += "undo recent changes, and interpreters keep return addresses exactly this way."
    index.put([part("a", ("Stacks", LONG)), part("b", ("More", more))])
    assert found(index, "what is a stack") == ["a#1", "b#1"]


# Explained


def test_an_explanation_holds_what_a_search_gives_and_what_is_below_the_bar(
    model: Embeddings,
) -> None:
    index = Index(model)
    index.put([part("a", LISTS, LOOPS, ("Files", "Reading a file loads code."), embeddings=model)])
    given = index.search("how do I write a list with brackets", "en", ["kb"])
    explained = index.explain("how do I write a list with brackets", "en", ["kb"])
    assert [hit.passage for hit in explained][: len(given)] == given
    best = explained[0]
    assert best.covered
    assert best.by_words > 0.5
    assert (best.by_meaning is None) == (model is WORDS_ONLY)
    assert best.passage.similarity == best.similarity
    assert index.explain("list", "en", ["kb"])[0].by_heading == pytest.approx(1)
    below = index.explain("who scored a goal in the code league of volcano football", "en", ["kb"])
    assert below
    assert not any(hit.covered for hit in below)
    assert (
        index.search("who scored a goal in the code league of volcano football", "en", ["kb"]) == []
    )
