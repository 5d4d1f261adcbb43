"""What the shipped course finds and declines, on questions that were not used to tune it."""

from pathlib import Path

import pytest

from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.language import Language
from gpuserver.providers import Place
from gpuserver.providers.minilm import MiniLMEmbeddings
from tests.retrieval import read, run

pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parent / "data"
SHIPPED = Path(__file__).resolve().parent.parent / "gpuserver" / "courses" / "python"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBases:
    data = tmp_path_factory.mktemp("data")
    embeddings = MiniLMEmbeddings("", Place(data))
    embeddings.load()
    return KnowledgeBases.open(
        {"python": SHIPPED}, embeddings, data / "index", lambda done, total: None
    )


def test_english_questions_find_their_passage(bases: KnowledgeBases) -> None:
    report = run(bases, ["python"], "en", read(DATA / "questions.en.jsonl"))
    assert report.asked >= 20
    assert report.recall_at_3 >= 0.95, report


def test_chinese_questions_that_share_words_find_their_passage(bases: KnowledgeBases) -> None:
    questions = read(DATA / "questions.zh.jsonl")
    report = run(bases, ["python"], "zh", questions, lambda item: bool(item["shares_words"]))
    assert report.asked >= 10
    assert report.recall_at_3 >= 0.8, report


@pytest.mark.parametrize("language", ["en", "zh"])
def test_outside_questions_are_declined(bases: KnowledgeBases, language: Language) -> None:
    report = run(bases, ["python"], language, read(DATA / f"outside.{language}.jsonl"))
    assert report.asked >= 20
    assert report.refusal_rate >= 18 / 20, f"{report}\n" + "\n".join(report.answered)
