"""A re-ranker: what it orders and decides, where it has no say, and searching on without it."""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from gpuserver.client import converse
from gpuserver.config import Settings
from gpuserver.errors import EngineFailed, EngineStalled, ProviderUnavailable
from gpuserver.knowledge.index import Index
from gpuserver.knowledge.parts import make_parts
from gpuserver.knowledge.reranking import AT_ONCE, LOOKED_AT, Reranking
from gpuserver.language import Language
from gpuserver.providers import Passage, RuntimeKey, Scale, calibration
from gpuserver.tutor.tutors import Catalogue
from tests.conftest import Serve, local_http
from tests.fakes import Cast, Clock, ScriptedReranker
from tests.knowledge_fakes import WordEmbeddings, quiet

QUESTION = "why do apples fall"
NO_ANSWER = 0.0
ANSWER = 4.0
"""On the scale of the scripted re-ranker, the middle is 2."""


def passage(n: int, text: str, language: Language = "en") -> Passage:
    return Passage(f"p{n}", "kb", "Physics", f"Part{n}", text, language)


APPLES = [
    passage(1, "Apples fall for many reasons."),
    passage(2, "Why apples taste sweet: gravity plays no part."),
    passage(3, "Newton saw apples and thought of gravitation."),
]
UNREAD = [passage(n, f"Apples are sort{n} of fruit.") for n in range(10, 40)]


@pytest.fixture
def reranker() -> ScriptedReranker:
    return ScriptedReranker()


@pytest.fixture
def reranking(reranker: ScriptedReranker) -> Reranking:
    return Reranking(reranker, Clock())


def index_of(
    folder: Path, passages: Sequence[Passage], reranking: Reranking | None = None
) -> Index:
    model = WordEmbeddings()
    index = Index(model, None, reranking)
    index.put(make_parts(passages, model, folder, quiet))
    return index


def ids(passages: Sequence[Passage]) -> list[str]:
    return [item.id for item in passages]


# What it orders, and what it decides


def test_the_best_passages_are_read_again_and_ordered_anew(
    reranker: ScriptedReranker, reranking: Reranking, tmp_path: Path
) -> None:
    plain = index_of(tmp_path, APPLES)
    index = index_of(tmp_path, APPLES, reranking)
    assert ids(plain.search(QUESTION, "en", ["kb"]))[0] == "p1"
    reranker.worth = {"gravitation": ANSWER, "many reasons": 1.0}
    found = index.search(QUESTION, "en", ["kb"], k=2)
    assert ids(found) == ["p3", "p1"]
    assert reranker.asked[0][0] == QUESTION
    assert "Part3\nNewton saw apples and thought of gravitation." in reranker.asked[0][1]
    assert found[0].similarity == pytest.approx(1 / (1 + math.exp(-1)))


def test_of_a_large_course_it_sees_the_same_few_whoever_asks(
    reranker: ScriptedReranker, reranking: Reranking, tmp_path: Path
) -> None:
    index = index_of(tmp_path, [*APPLES, *UNREAD], reranking)
    reranker.worth = {"pples": ANSWER}
    given = index.search(QUESTION, "en", ["kb"])
    explained = index.explain(QUESTION, "en", ["kb"])
    assert (len(given), len(explained)) == (4, 8)
    assert [hit.passage for hit in explained[:4]] == given
    assert [len(texts) for _, texts in reranker.asked] == [LOOKED_AT, LOOKED_AT]


def test_it_decides_whether_the_material_covers_a_question(
    reranker: ScriptedReranker, reranking: Reranking, tmp_path: Path
) -> None:
    plain = index_of(tmp_path, APPLES)
    index = index_of(tmp_path, APPLES, reranking)
    shared, paraphrased = QUESTION, "who discovered the force that pulls down what Newton dropped"
    assert plain.search(shared, "en", ["kb"])
    assert plain.search(paraphrased, "en", ["kb"]) == []
    reranker.worth = {"apples": NO_ANSWER}
    assert index.search(shared, "en", ["kb"]) == []
    reranker.worth = {"gravitation": ANSWER}
    assert ids(index.search(paraphrased, "en", ["kb"]))[0] == "p3"


def test_an_explanation_says_what_it_thought(
    reranker: ScriptedReranker, reranking: Reranking, tmp_path: Path
) -> None:
    reranker.worth = {"gravitation": ANSWER, "reasons": 1.9}
    first, second, *_ = index_of(tmp_path, APPLES, reranking).explain(QUESTION, "en", ["kb"])
    assert (first.passage.id, first.covered) == ("p3", True)
    assert first.by_reranker == first.similarity == first.passage.similarity
    assert (second.passage.id, second.covered) == ("p1", False)
    assert second.by_reranker == pytest.approx(0.4875, abs=0.001)
    plain = {
        hit.passage.id: hit for hit in index_of(tmp_path, APPLES).explain(QUESTION, "en", ["kb"])
    }
    assert {hit.by_reranker for hit in plain.values()} == {None}
    assert (first.by_words, first.by_meaning) == (plain["p3"].by_words, plain["p3"].by_meaning)


# Where it has no say


@pytest.mark.parametrize("served", [{}, {"zh": Scale()}])
def test_a_language_that_it_does_not_serve_is_searched_as_before(
    reranker: ScriptedReranker, reranking: Reranking, tmp_path: Path, served: dict[Language, Scale]
) -> None:
    reranker.scale = served
    plain, index = index_of(tmp_path, APPLES), index_of(tmp_path, APPLES, reranking)
    for question in (QUESTION, "volcano"):
        before = plain.explain(question, "en", ["kb"])
        assert index.explain(question, "en", ["kb"]) == before
        assert index.search(question, "en", ["kb"]) == plain.search(question, "en", ["kb"])
    # A question in a language that it serves, on passages in one that it does not.
    before = plain.explain("apples 为什么掉下来", "zh", ["kb"])
    assert before
    assert index.explain("apples 为什么掉下来", "zh", ["kb"]) == before
    assert reranker.asked == []


def test_nothing_that_could_answer_is_not_read(
    reranker: ScriptedReranker, reranking: Reranking, tmp_path: Path
) -> None:
    assert index_of(tmp_path, [], reranking).search(QUESTION, "en", ["kb"]) == []
    assert reranker.asked == []


@pytest.mark.parametrize(
    "failure", [EngineFailed(engine="reranker"), EngineStalled(engine="reranker", limit="4")]
)
def test_where_it_fails_the_search_goes_on_without_it_and_tries_it_again(
    reranker: ScriptedReranker, tmp_path: Path, failure: Exception
) -> None:
    clock = Clock()
    reranking = Reranking(reranker, clock)
    plain, index = index_of(tmp_path, APPLES), index_of(tmp_path, APPLES, reranking)
    reranker.worth, reranker.failure = {"gravitation": ANSWER}, failure
    without = plain.search(QUESTION, "en", ["kb"])
    with capture_logs() as logs:
        for _ in range(3):
            assert index.search(QUESTION, "en", ["kb"]) == without
        assert len(reranker.asked) == 1, "one that fails is left alone for a while"
        assert "reranker" in reranking.problem
        clock.now += 11
        assert index.search(QUESTION, "en", ["kb"]) == without
        assert len(reranker.asked) == 2
        reranker.failure = None
        clock.now += 21
        assert ids(index.search(QUESTION, "en", ["kb"]))[0] == "p3"
    assert reranking.problem == ""
    assert [line["event"] for line in logs] == [
        "searching without the re-ranker",
        "the re-ranker works again",
    ]
    assert QUESTION not in str(logs)


class Held(ScriptedReranker):
    """Reads until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.let_go = threading.Semaphore(0), threading.Event()

    def score(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        self.reading.release()
        assert self.let_go.wait(20), "more ask it than may"
        return super().score(question, texts)


def test_while_it_is_busy_others_search_without_it_and_hold_no_thread(tmp_path: Path) -> None:
    held = Held()
    held.worth = {"gravitation": ANSWER}
    plain, index = index_of(tmp_path, APPLES), index_of(tmp_path, APPLES, Reranking(held, Clock()))
    with ThreadPoolExecutor(AT_ONCE) as threads:
        first = [threads.submit(index.search, QUESTION, "en", ["kb"]) for _ in range(AT_ONCE)]
        assert all(held.reading.acquire(timeout=20) for _ in first)
        try:
            assert index.search(QUESTION, "en", ["kb"]) == plain.search(QUESTION, "en", ["kb"])
        finally:
            held.let_go.set()
        assert {ids(found.result())[0] for found in first} == {"p3"}
    assert ids(index.search(QUESTION, "en", ["kb"]))[0] == "p3"


# Which one


def test_there_is_none_unless_a_model_is_named(make_settings: Callable[..., Settings]) -> None:
    assert Catalogue(make_settings()).reranker_key is None
    off = make_settings(reranker_provider="none", reranker_model="some/reranker")
    assert Catalogue(off).reranker_key is None
    named = make_settings(profile="cpu", reranker_model="some/reranker")
    key = RuntimeKey("reranker", "sentence-transformers", "some/reranker")
    assert Catalogue(named, lambda key: None).reranker_key == key


@pytest.mark.skipif(
    find_spec("sentence_transformers") is not None, reason="needs an environment without it"
)
def test_without_its_library_it_is_refused(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(ProviderUnavailable, match="reranker provider .* lacks a library"):
        Catalogue(make_settings(reranker_model="some/reranker"))


# The scale of a re-ranker's scores


def judge(right: float, wrong: float, swapped: int = 0) -> calibration.Score:
    """Gives answers one score, other texts another, and the neighbours of `swapped` more."""
    questions = {
        question: number
        for pairs in calibration.PAIRS.values()
        for number, (question, _) in enumerate(pairs)
    }

    def score(question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        scores = np.full(len(texts), wrong, np.float32)
        scores[questions[question]] = right
        if questions[question] < swapped:
            scores[questions[question] + 1] = right + 1
        return scores

    return score


def test_its_bar_lies_between_answers_and_the_best_of_other_texts() -> None:
    told: list[float] = []
    found = calibration.answer_scales(judge(right=7.0, wrong=-9.0), told.append)
    assert found.keys() == {"en", "zh"}
    for raw, share in ((7.0, calibration.PLAIN), (-9.0, -calibration.PLAIN), (-1.0, 0.0)):
        assert raw * found["en"].factor + found["en"].offset == pytest.approx(share)
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] < 1


def test_a_language_in_which_it_finds_no_answers_is_not_served() -> None:
    def found(score: calibration.Score) -> set[Language]:
        return set(calibration.answer_scales(score, lambda share: None))

    assert found(judge(7.0, -9.0, swapped=3)) == {"en", "zh"}
    assert found(judge(7.0, -9.0, swapped=4)) == set()
    assert found(judge(1.0, 1.0)) == set()


# Through the doors


async def test_the_doors_show_it_and_a_failure_fails_no_turn(serve: Serve, cast: Cast) -> None:
    cast.reranker.worth = {"another": 3 * ANSWER}
    question = {"question": "What is a loop?"}
    search = "/mgmt/v1/knowledge-bases/loops/search"
    async with (
        serve(reranker_model="some/reranker") as server,
        local_http(server.url) as client,
    ):
        status = (await client.get("/status")).json()
        assert "reranker" in {row["kind"] for row in status["runtimes"]}
        answer = await client.post(search, json=question)
        first = answer.json()["passages"][0]
        assert first["heading"] == "Nested loops"
        assert first["by_reranker"] == first["similarity"] > 0.9
        cast.reranker.failure = EngineFailed(engine="reranker")
        async with server.management() as management:
            ticket = await management.create_session()
        async with converse(ticket) as socket:
            await socket.text(question["question"])
            messages = await socket.turn()
        assert messages[-1]["status"] == "completed"
        assert any(m["type"] == "sources" for m in messages)
        found = (await client.post(search, json=question)).json()["passages"]
        assert {passage["by_reranker"] for passage in found} == {None}
        health = (await client.get("/health")).json()
        assert (health["ready"], health["degraded"]) == (True, ["reranker"])
        assert (await client.get("/ready")).status_code == 200
    assert cast.reranker.closes == 1
