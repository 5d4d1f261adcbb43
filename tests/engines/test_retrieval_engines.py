"""sentence-transformers and faiss: bad models first, then real ones on the shipped course."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from gpuserver import config
from gpuserver.errors import EngineFailed, ProviderUnavailable
from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.metrics import Meter
from gpuserver.providers import Place, RuntimeKey, faiss, minilm
from gpuserver.providers.calibration import PAIRS
from gpuserver.providers.coarse import candidates
from gpuserver.providers.faiss import FaissIndex
from gpuserver.providers.minilm import MiniLMEmbeddings
from gpuserver.providers.numpy import NumpyIndex
from gpuserver.providers.sentence_transformers import SentenceTransformersEmbeddings
from gpuserver.providers.table import find
from tests import vectors as made
from tests.retrieval import read, run

DATA = Path(__file__).resolve().parent.parent / "data"
SHIPPED = Path(__file__).resolve().parents[2] / "gpuserver" / "courses" / "python"
QUESTION = "How do I stop a loop that never ends?"
TEXTS = [QUESTION, "A dictionary is a collection of pairs.", "What is a list?"]


def place(folder: Path, **given: object) -> Place:
    return Place(folder, config.load(None, data_dir=folder, offline=True, **given)[0])


def loaded(model: Path | str, folder: Path) -> SentenceTransformersEmbeddings:
    embeddings = SentenceTransformersEmbeddings(str(model), place(folder))
    embeddings.load()
    return embeddings


def quiet(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentenceTransformersEmbeddings]:
    """MiniLM as it was published, in full precision."""
    embeddings = loaded("", tmp_path_factory.mktemp("data"))
    yield embeddings
    embeddings.close()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The published model in a folder of its own, whose files a test may replace."""
    folder = tmp_path / "model"
    shutil.copytree(minilm.bundled(), folder, copy_function=os.symlink)
    return folder


def replace_file(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def save_weights(tensors: dict[str, torch.Tensor], file: Path) -> None:
    file.unlink(missing_ok=True)
    save_file(tensors, file, {"format": "pt"})


def change(file: Path, **values: object) -> None:
    replace_file(file, json.dumps({**json.loads(file.read_text()), **values}).encode())


# Models that can't be used


def test_a_model_that_is_not_there_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailable, match=r"nowhere/model.*Fix"):
        loaded("nowhere/model", tmp_path)


def test_a_model_of_another_kind_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "modules.json").unlink()
    with pytest.raises(ProviderUnavailable, match=r"modules\.json is missing"):
        loaded(copy, tmp_path)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "modules.json", "tokenizer.json"]
)
def test_a_damaged_model_is_one_sentence_with_a_fix(copy: Path, tmp_path: Path, file: str) -> None:
    content = (copy / file).read_bytes()
    replace_file(copy / file, content[: len(content) // 2])
    with pytest.raises(ProviderUnavailable, match="can't be used") as refused:
        loaded(copy, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_model_that_understands_nothing_is_refused(copy: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    noise = {
        name: torch.randn_like(value) * 0.02 if value.is_floating_point() else value
        for name, value in load_file(copy / "model.safetensors").items()
    }
    save_weights(noise, copy / "model.safetensors")
    with pytest.raises(ProviderUnavailable, match="which answer belongs to which question"):
        loaded(copy, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailable, match="DEVICE=auto"):
        SentenceTransformersEmbeddings("", place(tmp_path, device="cuda")).load()


def test_before_load_and_after_close_it_says_so(tmp_path: Path) -> None:
    embeddings = SentenceTransformersEmbeddings("", place(tmp_path))
    with pytest.raises(EngineFailed):
        embeddings.embed(["a"])
    embeddings.close()
    embeddings.close()
    with pytest.raises(EngineFailed):
        embeddings.embed(["a"], query=True)


# MiniLM through the knowledge


async def test_it_is_the_model_that_ships(
    real: SentenceTransformersEmbeddings, tmp_path: Path
) -> None:
    assert find(RuntimeKey("embeddings", "sentence-transformers")) is type(real)
    ours = MiniLMEmbeddings("", Place(tmp_path))
    ours.load()
    vectors = real.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, real.dimension) == (3, ours.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors * ours.embed(TEXTS)).sum(axis=1).min() > 0.99
    # It knows no Chinese, which ours is read as English; and its cosines are those that the bars
    # are set for.
    assert real.languages == {"en"}
    assert ours.languages == {"en", "zh"}
    assert real.scale["en"].factor == pytest.approx(1, abs=0.03)
    assert real.scale["en"].offset == pytest.approx(0, abs=0.02)
    assert real.name.startswith("all-MiniLM-L6-v2-")
    await real.probe()
    assert real.status().running == real.status().waiting == 0


def test_odd_texts_get_vectors(real: SentenceTransformersEmbeddings) -> None:
    odd = ["", " ", "\0", "\ud800", "loop " * 50_000, "循环"]
    assert np.isfinite(real.embed(odd)).all()
    assert real.embed([]).shape == (0, 384)
    assert np.isfinite(real.embed(["\ud800"], query=True)).all()


def test_many_students_share_batches_and_get_their_own_vectors(tmp_path: Path) -> None:
    class Sizes(Meter):
        seen: list[int] = []

        def batch(self, size: int) -> None:
            self.seen.append(size)

    meter = Sizes()
    embeddings = SentenceTransformersEmbeddings("", replace(place(tmp_path), meter=meter))
    embeddings.load()
    questions = [f"What is number {number}?" for number in range(40)]
    alone = [embeddings.embed([question], query=True)[0] for question in questions]
    meter.seen.clear()
    near: list[float] = []

    def ask(number: int) -> None:
        together = embeddings.embed([questions[number]], query=True)[0]
        near.append(float(together @ alone[number]))

    def index() -> None:
        embeddings.embed(TEXTS * 40)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    threads.insert(0, threading.Thread(target=index))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(near) == 40
    assert min(near) > 0.999
    assert sum(meter.seen) == 40 + 120
    assert len(meter.seen) < 40
    assert max(meter.seen) <= 32
    embeddings.close()


# Models of other kinds


def test_questions_and_passages_get_the_prompts_of_their_model(
    copy: Path, tmp_path: Path, real: SentenceTransformersEmbeddings
) -> None:
    prompts = {"query": "query: ", "document": "passage: "}
    change(copy / "config_sentence_transformers.json", prompts=prompts)
    prompted = loaded(copy, tmp_path)
    plain = real.embed([f"query: {QUESTION}", f"passage: {QUESTION}"])
    asked = np.concatenate([prompted.embed([QUESTION], query=True), prompted.embed([QUESTION])])
    assert (asked * plain).sum(axis=1).min() > 0.999
    assert prompted.name != real.name


def test_weights_that_are_replaced_make_another_name(copy: Path, tmp_path: Path) -> None:
    before = loaded(copy, tmp_path).name
    (moved := tmp_path / "elsewhere").mkdir()
    shutil.copytree(copy, moved / "model")
    assert loaded(moved / "model", tmp_path).name == before
    trained = {name: value * 1.001 if value.is_floating_point() else value
               for name, value in load_file(copy / "model.safetensors").items()}  # fmt: skip
    save_weights(trained, copy / "model.safetensors")
    assert loaded(copy, tmp_path).name != before


def test_a_model_serves_the_languages_that_it_understands(tmp_path: Path) -> None:
    """A vector for each character, made of those of the pairs it is in: letters are in all."""
    pairs = PAIRS["zh"]
    directions = np.random.default_rng(1).standard_normal((len(pairs), 64))
    vectors = {
        character: sum(
            direction for direction, pair in zip(directions, pairs, strict=True)
            if character in "".join(pair)
        )
        for character in {c for pair in pairs for text in pair for c in text}
    }  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["a", *vectors])}, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    weights = np.stack([np.ones(64), *vectors.values()]).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights)]).save(str(tmp_path / "model"))
    chinese = loaded(tmp_path / "model", tmp_path)
    assert chinese.languages == {"zh"}
    assert chinese.dimension == 64
    knowledge = bases(chinese, tmp_path)
    assert knowledge.find("循环是什么", "zh", ["python"])[0]
    assert knowledge.find("What is a loop?", "en", ["python"])[0]


# The course


def bases(
    embeddings: MiniLMEmbeddings | SentenceTransformersEmbeddings,
    folder: Path,
    index: NumpyIndex | FaissIndex | None = None,
) -> KnowledgeBases:
    return KnowledgeBases.open({"python": SHIPPED}, embeddings, folder, quiet, index)


def declined(knowledge: KnowledgeBases) -> int:
    return run(knowledge, ["python"], "en", read(DATA / "outside.en.jsonl")).declined


def test_the_course_is_found_and_outside_questions_are_declined(
    real: SentenceTransformersEmbeddings, tmp_path: Path
) -> None:
    knowledge = bases(real, tmp_path)
    report = run(knowledge, ["python"], "en", read(DATA / "questions.en.jsonl"))
    assert report.recall_at_3 >= 0.95, report
    assert declined(knowledge) >= 18


def test_a_model_of_crowded_cosines_declines_as_much(
    copy: Path, tmp_path: Path, real: SentenceTransformersEmbeddings
) -> None:
    """As E5 does, it gives any two texts a cosine of 0.7 or more."""
    spread = torch.nn.functional.pad(torch.eye(384), (0, 0, 0, 1))
    (copy / "3_Dense").mkdir()
    shape = {"in_features": 384, "out_features": 385, "bias": True}
    activation = {"activation_function": "torch.nn.modules.linear.Identity"}
    (copy / "3_Dense" / "config.json").write_text(json.dumps(shape | activation))
    bias = torch.zeros(385)
    bias[384] = 1.6
    layer = {"linear.weight": spread, "linear.bias": bias}
    save_weights(layer, copy / "3_Dense" / "model.safetensors")
    modules = json.loads((copy / "modules.json").read_text())
    dense = {"idx": 3, "name": "3", "path": "3_Dense"}
    modules.append({**dense, "type": "sentence_transformers.models.Dense"})
    replace_file(copy / "modules.json", json.dumps(modules).encode())
    crowded = loaded(copy, tmp_path)
    vectors = crowded.embed([QUESTION, "The emperor of Rome"])
    assert vectors[0] @ vectors[1] > 0.7
    knowledge = bases(crowded, tmp_path / "crowded")
    report = run(knowledge, ["python"], "en", read(DATA / "questions.en.jsonl"))
    assert report.recall_at_3 >= 0.95, report
    assert declined(knowledge) >= 18
    # Without the scale all is near: the bar lets through what it is there to decline, but for short
    # questions of strange words.
    crowded.scale = {}
    assert declined(knowledge) <= 6
    crowded.close()


# faiss


@pytest.fixture
def index(tmp_path: Path) -> Iterator[FaissIndex]:
    assert find(RuntimeKey("index", "faiss")) is FaissIndex
    index = FaissIndex("", place(tmp_path))
    index.load()
    yield index
    index.close()


def unit(rows: int, seed: int = 1) -> NDArray[np.float32]:
    matrix = np.random.default_rng(seed).standard_normal((rows, 64)).astype(np.float32)
    found: NDArray[np.float32] = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return found


def test_after_close_it_says_so(index: FaissIndex) -> None:
    matrix = unit(10)
    vectors = index.hold(matrix)
    index.close()
    index.close()
    with pytest.raises(EngineFailed):
        vectors.cosines(matrix[0])


@pytest.mark.parametrize("rows", [1, 2, 1000, faiss.NEAREST])
def test_of_few_rows_it_gives_what_numpy_gives(index: FaissIndex, rows: int) -> None:
    matrix, (query,) = unit(rows), unit(1, seed=2)
    exact = NumpyIndex().hold(matrix).cosines(query)
    np.testing.assert_allclose(index.hold(matrix).cosines(query), exact, atol=1e-5)


def test_of_many_rows_it_gives_the_nearest(index: FaissIndex) -> None:
    matrix, (query,) = unit(20_000), unit(1, seed=2)
    exact = NumpyIndex().hold(matrix).cosines(query)
    found = index.hold(matrix).cosines(query)
    nearest = np.argsort(-exact)[: faiss.NEAREST]
    np.testing.assert_allclose(found[nearest], exact[nearest], atol=1e-5)
    assert np.count_nonzero(found) == faiss.NEAREST


@pytest.fixture
def large(tmp_path: Path) -> Iterator[FaissIndex]:
    """On a CPU, so that it looks at codes from 1001 rows on."""
    index = FaissIndex("", place(tmp_path, device="cpu"), exact_rows=1000)
    index.load()
    yield index
    index.close()


@pytest.mark.parametrize("make", [made.topics, made.one_sided, made.unit])
def test_of_codes_it_finds_the_nearest_and_compares_them_exactly(
    large: FaissIndex, make: Callable[[int, int], NDArray[np.float32]]
) -> None:
    matrix = make(20_000, 384)
    vectors = large.hold(matrix)
    assert made.recall(vectors, matrix, made.about(matrix[::500], seed=2)) >= 0.99
    assert made.recall(vectors, matrix, made.unit(40, 384, seed=3)) >= 0.99
    assert np.count_nonzero(vectors.cosines(matrix[0])) == candidates(20_000)


@pytest.mark.parametrize(("rows", "dimension"), [(1000, 384), (5000, 32), (5000, 385)])
def test_what_has_no_codes_is_searched_exactly(
    large: FaissIndex, rows: int, dimension: int
) -> None:
    matrix, (query,) = made.unit(rows, dimension), made.unit(1, dimension, seed=2)
    nearest = np.count_nonzero(large.hold(matrix).cosines(query))
    assert nearest == min(rows, faiss.NEAREST) != candidates(rows)


@pytest.mark.parametrize("rows", [1, 2, 31, 33])
def test_few_rows_may_have_codes(tmp_path: Path, rows: int) -> None:
    index = FaissIndex("", place(tmp_path, device="cpu"), exact_rows=0)
    index.load()
    matrix = made.unit(rows, 384)
    assert int(index.hold(matrix).cosines(matrix[-1]).argmax()) == rows - 1
    index.close()


@pytest.mark.parametrize("damage", [np.nan, 1e20])
def test_damaged_rows_do_not_hide_those_that_have_codes(large: FaissIndex, damage: float) -> None:
    matrix = made.topics(20_000, 384).copy()
    query = made.about(matrix[101:102], seed=2)[0]
    matrix[::200] = damage
    assert large.hold(matrix).cosines(query)[101] == pytest.approx(matrix[101] @ query, abs=1e-5)


def test_codes_too_are_let_go(large: FaissIndex) -> None:
    matrix = made.unit(2000, 384)
    vectors = large.hold(matrix)
    large.close()
    with pytest.raises(EngineFailed):
        vectors.cosines(matrix[0])


def test_threads_search_at_once(index: FaissIndex) -> None:
    matrix = unit(5000)
    vectors = index.hold(matrix)
    assert made.missed_by_threads(vectors, matrix) == []


def test_the_course_is_found_alike_by_both(index: FaissIndex, tmp_path: Path) -> None:
    embeddings = MiniLMEmbeddings("", Place(tmp_path))
    embeddings.load()
    exact, near = bases(embeddings, tmp_path), bases(embeddings, tmp_path, index)
    questions = [
        item["question"]
        for name in ("questions.en", "spoken.en", "outside.en")
        for item in read(DATA / f"{name}.jsonl")
    ]

    def first(knowledge: KnowledgeBases) -> list[Sequence[str]]:
        found = (knowledge.find(question, "en", ["python"])[0] for question in questions)
        return [[passage.id for passage in passages] for passages in found]

    assert first(near) == first(exact)
