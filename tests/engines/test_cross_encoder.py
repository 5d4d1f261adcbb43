"""The re-ranker of sentence-transformers: a tiny cross-encoder in the real format, and bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from gpuserver import config
from gpuserver.errors import EngineFailed, EngineStalled, ProviderUnavailable
from gpuserver.knowledge.index import Index
from gpuserver.knowledge.parts import make_parts
from gpuserver.knowledge.reranking import Reranking, text_of
from gpuserver.providers import Place, RuntimeKey, minilm
from gpuserver.providers.cross_encoder import BATCH, MAX_TOKENS, CrossEncoderReranker
from gpuserver.providers.minilm import MiniLMEmbeddings
from gpuserver.providers.table import find
from gpuserver.runtimes.runtimes import Runtimes
from tests.engines.tiny_reranker import ASKED, COURSE, OUTSIDE, build
from tests.knowledge_fakes import quiet

QUESTION = next(iter(ASKED))
TEXTS = [text_of(item) for item in COURSE]


def place(folder: Path, **given: object) -> Place:
    return Place(folder, config.load(None, data_dir=folder, offline=True, **given)[0])


def loaded(model: Path | str, folder: Path) -> CrossEncoderReranker:
    reranker = CrossEncoderReranker(str(model), place(folder))
    reranker.load()
    return reranker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("models") / "tiny-reranker")


@pytest.fixture
def real(model: Path, tmp_path: Path) -> Iterator[CrossEncoderReranker]:
    reranker = loaded(model, tmp_path)
    yield reranker
    reranker.close()


# Models that can't be used


@pytest.mark.parametrize("name", ["", "nowhere/model"])
def test_a_model_that_is_not_there_is_named_with_the_fix(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProviderUnavailable, match=rf"{name}.*Fix"):
        loaded(name, tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_model_is_one_sentence_with_a_fix(tmp_path: Path, file: str) -> None:
    damaged = build(tmp_path / "model")
    content = (damaged / file).read_bytes()
    (damaged / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ProviderUnavailable, match="re-ranker .* can't be used") as refused:
        loaded(damaged, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_model_that_was_not_made_for_it_is_refused(tmp_path: Path) -> None:
    several_labels = build(tmp_path / "model", labels=3)
    for folder in (several_labels, minilm.bundled()):
        with pytest.raises(ProviderUnavailable, match="which answer belongs to which question"):
            loaded(folder, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailable, match=r"the re-ranker can use.*DEVICE=auto"):
        CrossEncoderReranker(str(model), place(tmp_path, device="cuda")).load()


# One that works


def test_it_orders_what_was_found_and_declines_what_nothing_answers(
    real: CrossEncoderReranker, tmp_path: Path
) -> None:
    embeddings = MiniLMEmbeddings("", place(tmp_path))
    embeddings.load()
    plain, index = Index(embeddings), Index(embeddings, None, Reranking(real))
    for either in (plain, index):
        either.put(make_parts(COURSE, embeddings, tmp_path, quiet))
    firsts = []
    for question, right in ASKED.items():
        found = index.search(question, "en", ["kb"])
        assert found[0].id == f"p{right}"
        assert found[0].similarity > 0.8
        firsts.append([item.id for item in plain.search(question, "en", ["kb"])][:1])
    assert firsts != [[f"p{right}"] for right in ASKED.values()], "it has nothing to better"
    assert plain.search(OUTSIDE, "en", ["kb"])
    assert index.search(OUTSIDE, "en", ["kb"]) == []
    embeddings.close()


def test_it_serves_the_language_that_it_knows(real: CrossEncoderReranker) -> None:
    assert real.scale.keys() == {"en"}


def test_any_number_of_texts_of_any_length_are_scored_in_order(real: CrossEncoderReranker) -> None:
    many = [TEXTS[n % 3] for n in range(2 * BATCH + 3)]
    scores = real.score(QUESTION, many)
    assert scores.shape == (len(many),)
    assert [n for n, score in enumerate(scores) if score > 0] == [*range(0, len(many), 3)]
    assert real.score(QUESTION, []).shape == (0,)
    assert real.score("why " * 10_000, ["\ud800", "", "apple " * 10 * MAX_TOKENS]).shape == (3,)


def test_it_may_be_asked_by_several_at_once(real: CrossEncoderReranker) -> None:
    def best(question: str) -> int:
        return int(real.score(question, TEXTS).argmax())

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(best, [*ASKED] * 10)) == [*ASKED.values()] * 10


# When it does not


def test_whoever_waits_too_long_goes_without_it(model: Path, tmp_path: Path) -> None:
    reranker = CrossEncoderReranker(str(model), place(tmp_path), patience=0.2)
    reranker.load()
    assert reranker.score(QUESTION, TEXTS[:1]).shape == (1,)
    with reranker._working, pytest.raises(EngineStalled):
        reranker.score(QUESTION, TEXTS)
    assert reranker.score(QUESTION, TEXTS[:1]).shape == (1,)
    reranker.close()


async def test_a_model_that_breaks_says_so_and_no_more(
    real: CrossEncoderReranker, caplog: pytest.LogCaptureFixture
) -> None:
    await real.probe()
    assert real._encoder is not None
    for weights in real._encoder.parameters():
        weights.data.fill_(torch.nan)
    with pytest.raises(EngineFailed):
        real.score(QUESTION, TEXTS)
    with pytest.raises(EngineFailed):
        await real.probe()
    assert "re-ranker failed" in caplog.text
    assert QUESTION not in caplog.text


def test_before_load_and_after_close_it_says_so(real: CrossEncoderReranker, model: Path) -> None:
    with pytest.raises(EngineFailed):
        CrossEncoderReranker(str(model), Place(model.parent)).score(QUESTION, TEXTS)
    real.close()
    with pytest.raises(EngineFailed):
        real.score(QUESTION, TEXTS)


async def test_it_is_measured_leased_and_kept_as_other_large_models(
    model: Path, tmp_path: Path
) -> None:
    key = RuntimeKey("reranker", "sentence-transformers", str(model))
    assert find(key) is CrossEncoderReranker
    runtimes = Runtimes(place(tmp_path))
    assert (await runtimes.fit(key)).fits
    assert isinstance(await runtimes.acquire(key), CrossEncoderReranker)
    await runtimes.release(key)
    (row,) = await runtimes.rows()
    assert (row.key, row.state, row.leases) == (key, "ready", 0)
    await runtimes.close()
