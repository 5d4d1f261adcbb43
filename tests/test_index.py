"""Vectors: kept with the model that made them, searched, and brought to one scale of cosines."""

import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gpuserver.config import Settings
from gpuserver.errors import ConfigurationError, EngineFailed, ProviderUnavailable
from gpuserver.knowledge.index import COVERED_BY_MEANING, STRANGE, WORDS_WEIGHT, Index
from gpuserver.knowledge.vector_store import VectorStore, path_of
from gpuserver.language import Language
from gpuserver.providers import Passage, RuntimeKey, Scale, calibration
from gpuserver.providers.numpy import NumpyIndex
from gpuserver.providers.table import find
from gpuserver.tutor.tutors import Catalogue
from tests.fakes import Clock

TEXTS = [f"text {number}" for number in range(200)]


class SlowEmbeddings:
    """Random directions, the same ones for the same text; each text takes `seconds`."""

    languages: frozenset[str] = frozenset({"en"})
    dimension = 8

    def __init__(self, clock: Clock, name: str = "first", seconds: float = 0.0) -> None:
        self.name = name
        self.scale: Mapping[Language, Scale] = {}
        self.clock, self.seconds = clock, seconds
        self.texts: list[str] = []
        self.questions: list[str] = []
        self.fails_after = 1 << 30

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        (self.questions if query else self.texts).extend(texts)
        if len(self.texts) > self.fails_after:
            raise EngineFailed(engine="embeddings")
        self.clock.now += self.seconds * len(texts)
        seeds = [np.random.default_rng(list(f"{self.name} {text}".encode())) for text in texts]
        rows = np.array([seed.standard_normal(self.dimension) for seed in seeds])
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit.astype(np.float32)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return path_of(tmp_path / "vectors", "kb.en")


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


# Vectors of another model


def test_vectors_that_took_long_are_not_given_up_for_another_model(
    path: Path, clock: Clock
) -> None:
    first = SlowEmbeddings(clock, "first", seconds=9.0)
    made = VectorStore(path, first, clock).vectors(TEXTS, quiet)
    second = SlowEmbeddings(clock, "second")
    with pytest.raises(ProviderUnavailable) as refused:
        VectorStore(path, second, clock).vectors(TEXTS, quiet)
    sentence = str(refused.value)
    assert "200 vectors" in sentence
    assert "made by first in 30 minutes" in sentence
    assert "is now second" in sentence
    assert "EMBEDDINGS_MODEL back" in sentence
    assert f"delete {path} " in sentence
    assert second.texts == []
    # Both fixes work: the model set back finds its vectors, and without the file the new one works.
    again = SlowEmbeddings(clock, "first")
    np.testing.assert_array_equal(VectorStore(path, again, clock).vectors(TEXTS, quiet), made)
    assert again.texts == []
    path.unlink()
    VectorStore(path, second, clock).vectors(TEXTS, quiet)
    assert second.texts == TEXTS


def test_vectors_that_are_soon_made_are_made_again_and_it_is_said(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    VectorStore(path, SlowEmbeddings(clock, "first", seconds=0.1), clock).vectors(TEXTS, quiet)
    second = SlowEmbeddings(clock, "second")
    with caplog.at_level(logging.WARNING):
        found = VectorStore(path, second, clock).vectors(TEXTS, quiet)
    assert second.texts == TEXTS
    assert "made by first" in caplog.text
    assert "took 20 s" in caplog.text
    np.testing.assert_array_equal(found, SlowEmbeddings(clock, "second").embed(TEXTS))


def test_a_course_indexed_by_another_model_stops_the_start(tmp_path: Path, clock: Clock) -> None:
    passages = [Passage("id", "kb", "Chapter", "Lists", "A list keeps values.", "en")]
    Index.build(passages, SlowEmbeddings(clock, "first"), tmp_path, quiet)
    (path,) = (tmp_path / "vectors").iterdir()
    header, _, body = path.read_bytes().partition(b"\n")
    costly = json.dumps({**json.loads(header), "seconds": 1800}).encode()
    path.write_bytes(costly + b"\n" + body)
    with pytest.raises(ProviderUnavailable, match="made by first in 30 minutes"):
        Index.build(passages, SlowEmbeddings(clock, "second"), tmp_path, quiet)


# Vectors that are kept


def test_a_text_that_has_not_changed_keeps_its_vector(path: Path, clock: Clock) -> None:
    VectorStore(path, SlowEmbeddings(clock, seconds=1.0), clock).vectors(TEXTS, quiet)
    edited = [*TEXTS[:50], "new", *reversed(TEXTS[50:150])]
    again = SlowEmbeddings(clock, seconds=1.0)
    told: list[tuple[int, int]] = []
    found = VectorStore(path, again, clock).vectors(edited, lambda *done: told.append(done))
    assert again.texts == ["new"]
    assert told == [(151, 151)]
    np.testing.assert_array_equal(found, SlowEmbeddings(clock).embed(edited))
    # What the kept ones took still counts.
    assert json.loads(path.read_bytes().partition(b"\n")[0])["seconds"] == pytest.approx(151)


def test_work_that_is_cut_short_is_not_done_twice(path: Path, clock: Clock) -> None:
    killed = SlowEmbeddings(clock, seconds=1.0)
    killed.fails_after = 150
    with pytest.raises(EngineFailed):
        VectorStore(path, killed, clock).vectors(TEXTS, quiet)
    again = SlowEmbeddings(clock)
    found = VectorStore(path, again, clock).vectors(TEXTS, quiet)
    assert again.texts == TEXTS[128:]
    np.testing.assert_array_equal(found, SlowEmbeddings(clock).embed(TEXTS))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"[]\n",
        b"{}\n",
        b"[" * 100_000,
        b'{"model":"first","rows":-1,"dimension":8,"seconds":0,"digest":""}\n',
        b'{"model":"first","rows":"x","dimension":8,"seconds":0,"digest":""}\n',
    ],
)
def test_a_file_that_is_no_store_is_made_again(path: Path, clock: Clock, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    model = SlowEmbeddings(clock)
    assert VectorStore(path, model, clock).vectors(TEXTS, quiet).shape == (200, 8)
    assert model.texts == TEXTS


def test_vectors_of_another_dimension_are_made_again(path: Path, clock: Clock) -> None:
    VectorStore(path, SlowEmbeddings(clock), clock).vectors(TEXTS, quiet)
    wider = SlowEmbeddings(clock)
    wider.dimension = 16
    assert VectorStore(path, wider, clock).vectors(TEXTS, quiet).shape == (200, 16)


def test_what_a_kill_left_half_written_goes_at_the_next_start(tmp_path: Path, clock: Clock) -> None:
    passages = [Passage("id", "kb", "Chapter", "Lists", "A list keeps values.", "en")]
    Index.build(passages, SlowEmbeddings(clock), tmp_path, quiet)
    (kept,) = (tmp_path / "vectors").iterdir()
    foreign = tmp_path / "vectors" / ".notes.vectors.txt"
    foreign.write_text("mine")
    for name in (kept.name, "old-course-en-0123abcd.vectors"):
        (tmp_path / "vectors" / f".{name}.{uuid.uuid4().hex}").write_bytes(b"half")
    again = SlowEmbeddings(clock)
    Index.build(passages, again, tmp_path, quiet)
    assert set((tmp_path / "vectors").iterdir()) == {kept, foreign}
    assert again.texts == []


def test_files_stay_in_their_folder_and_apart(tmp_path: Path) -> None:
    names = ["../../up.en", "a/b.en", "a-b.en", "课程.zh", "课本.zh", "x" * 500, "\ud800"]
    paths = {path_of(tmp_path, name) for name in names}
    assert len(paths) == len(names)
    assert {path.parent for path in paths} == {tmp_path}
    assert max(len(path.name.encode()) for path in paths) < 200


# The index


def test_an_index_that_is_not_known_is_refused_with_those_that_are(
    make_settings: Callable[..., Settings],
) -> None:
    with pytest.raises(ConfigurationError, match=r"INDEX_PROVIDER to one of: auto, numpy, faiss"):
        Catalogue(make_settings(index_provider="annoy"))
    assert Catalogue(make_settings()).index_key == RuntimeKey("index", "numpy")


@pytest.mark.skipif(find_spec("faiss") is not None, reason="needs an environment without faiss")
def test_without_its_library_faiss_is_refused(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(ProviderUnavailable, match="'faiss' lacks a library"):
        Catalogue(make_settings(index_provider="faiss"))


def test_numpy_gives_the_cosine_of_every_row() -> None:
    index = find(RuntimeKey("index", "numpy"))
    assert index is NumpyIndex
    matrix = SlowEmbeddings(Clock()).embed(TEXTS)
    cosines = NumpyIndex().hold(matrix).cosines(matrix[7])
    assert cosines.shape == (200,)
    assert cosines[7] == pytest.approx(1)
    assert int(cosines.argmax()) == 7


def test_questions_are_embedded_as_questions(tmp_path: Path, clock: Clock) -> None:
    passages = [Passage("id", "kb", "Chapter", "Lists", "A list keeps values.", "en")]
    model = SlowEmbeddings(clock)
    Index.build(passages, model, tmp_path, quiet).search("a list", "en", ["kb"])
    assert model.texts == ["A list keeps values."]
    assert model.questions == ["a list"]


# The scale of a model's cosines


def pairs(related: float, unrelated: float, swapped: int = 0) -> calibration.Embed:
    """A model that gives a question and its answer one cosine, and all other pairs another.

    With `swapped`, so many questions are near to another one's answer.
    """

    def embed(texts: Sequence[str], query: bool) -> NDArray[np.float32]:
        count = len(texts)
        own = [*np.roll(range(swapped), 1), *range(swapped, count)] if query else [*range(count)]
        apart = np.eye(count)[own] * np.sqrt(related - unrelated)
        together = np.full((count, 1), np.sqrt(unrelated))
        return np.hstack([together, apart]).astype(np.float32)

    return embed


def test_cosines_are_brought_to_the_scale_that_the_bars_are_set_for() -> None:
    found = calibration.scales(pairs(related=0.9, unrelated=0.75))
    assert found.keys() == {"en", "zh"}
    scale = found["en"]
    assert scale.factor * 0.9 + scale.offset == pytest.approx(calibration.MINILM_RELATED)
    assert scale.factor * 0.75 + scale.offset == pytest.approx(calibration.MINILM_UNRELATED)


def test_a_language_whose_questions_find_no_answers_is_not_served() -> None:
    assert calibration.scales(pairs(0.9, 0.2, swapped=3)).keys() == {"en", "zh"}
    assert calibration.scales(pairs(0.9, 0.2, swapped=4)) == {}


class FlatEmbeddings(SlowEmbeddings):
    """Gives every question the same cosine to every passage."""

    cosine = 0.0

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        cosine = self.cosine if query else 1.0
        row = np.zeros(self.dimension, np.float32)
        row[:2] = cosine, np.sqrt(1 - cosine**2)
        return np.tile(row, (len(texts), 1))


NO_WORDS = "What is it?"
"""None that says what it is about, so that its meaning alone decides."""


def test_the_bar_is_on_the_scaled_cosine(tmp_path: Path, clock: Clock) -> None:
    passages = [Passage("id", "kb", "Chapter", "Lists", "A list keeps values.", "en")]
    model = FlatEmbeddings(clock)
    index = Index.build(passages, model, tmp_path, quiet)
    model.cosine = 0.76
    assert index.search(NO_WORDS, "en", ["kb"])
    model.scale = calibration.scales(pairs(related=0.84, unrelated=0.76))
    assert index.search(NO_WORDS, "en", ["kb"]) == []
    model.cosine = 0.86
    (found,) = index.search(NO_WORDS, "en", ["kb"])
    scale = model.scale["en"]
    nearness = scale.factor * 0.86 + scale.offset
    assert found.similarity == pytest.approx(nearness / (1 + WORDS_WEIGHT), abs=0.001)


def test_what_does_not_surely_answer_may_still_be_near(tmp_path: Path, clock: Clock) -> None:
    passages = [Passage("id", "kb", "Chapter", "Lists", "A list keeps values.", "en")]
    model = FlatEmbeddings(clock)
    index = Index.build(passages, model, tmp_path, quiet)
    for similarity, answers, near in ((0.5, 1, 0), (0.3, 0, 1), (0.1, 0, 0)):
        model.cosine = similarity * (1 + WORDS_WEIGHT)
        assert [*map(len, index.find(NO_WORDS, "en", ["kb"]))] == [answers, near]
    assert index.find(NO_WORDS, "en", ["another"]) == ([], [])


def test_a_short_question_about_a_strange_word_needs_more(tmp_path: Path, clock: Clock) -> None:
    passages = [Passage("id", "kb", "Chapter", "Lists", "A list keeps values.", "en")]
    model = FlatEmbeddings(clock)
    index = Index.build(passages, model, tmp_path, quiet)
    model.cosine = (COVERED_BY_MEANING + STRANGE / 2) * (1 + WORDS_WEIGHT)
    assert index.search(NO_WORDS, "en", ["kb"])
    assert not index.search("What is a volcano?", "en", ["kb"])
    chatter = "Yesterday my older sister loudly shouted out of our kitchen window about a volcano"
    assert index.search(chatter, "en", ["kb"])
