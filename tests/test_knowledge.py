"""Courses, the index, knowledge bases and vocabularies: bad files and disks first."""

import logging
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from gpuserver.errors import ConfigurationError
from gpuserver.knowledge import course, vocabulary
from gpuserver.knowledge.course_base import CourseBase
from gpuserver.knowledge.index import Index
from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.knowledge.vocabularies import MOST_PASSAGES, Vocabularies
from gpuserver.language import Language
from gpuserver.providers import Passage
from tests.knowledge_fakes import SHIPPED, WordEmbeddings, quiet

CHAPTER = "# Loops\n\n## The while loop\n\nA `while` loop repeats code.\n\n```python\n# note\n```\n"


def passage(heading: str, text: str, language: Language = "en", kb_id: str = "kb") -> Passage:
    return Passage(heading, kb_id, "Chapter", heading, text, language)


ENGLISH = [
    passage("Lists", "A list keeps many values. To write a list, use square brackets."),
    passage("Loops", "A loop repeats code. A common mistake is to forget the colon."),
    passage("Files", "Reading a file loads text from the disk into a program."),
]
CHINESE = [
    passage("列表", "列表保存许多值，英文叫 list。", "zh"),
    passage("循环", "循环会重复执行代码。", "zh"),
]


def headings(found: Sequence[Passage]) -> list[str]:
    return [item.heading for item in found]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.build([*ENGLISH, *CHINESE], WordEmbeddings(), tmp_path, quiet)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Index:
    passages = course.load("python", SHIPPED).passages
    return Index.build(passages, WordEmbeddings(), tmp_path_factory.mktemp("index"), quiet)


# Courses


def write(root: Path, content: bytes, language: str = "en") -> Path:
    (root / language).mkdir(parents=True, exist_ok=True)
    path = root / language / "05-loops.md"
    path.write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no passage"),
        (b"# Title\n", "no passage"),
        (b"text\n", "line 1: this text belongs to no passage"),
        (b"# Title\n\nintro\n\n## A\n\nx\n", "line 3: this text belongs to no passage"),
        (b"## A\n\nx\n", "line 1: a passage before the chapter title"),
        (b"# One\n\n## A\n\nx\n\n# Two\n", "line 7: a second chapter title"),
        (b"# One\n\n## A\n\n## B\n\nx\n", "line 3: a passage without text"),
        (b"# One\n\n## ?!\n\nx\n", "line 3: an empty heading"),
        (b"# One\n\n## A b\n\nx\n\n## a - B\n\ny\n", "line 7: a second passage 'a - B'"),
        (b"# One\n\n## A\n\n```python\nx = 1\n", "line 5: this code block never ends"),
        (b"# One\n\n## A\n\n\xff\xfe\n", "not UTF-8"),
    ],
)
def test_a_malformed_course_is_refused_with_file_and_line(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"05-loops\.md.*Fix: ") as caught:
        course.load("kb", write(tmp_path, content))
    assert problem in str(caught.value)


@pytest.mark.parametrize("make", ["nothing", "empty", "file"])
def test_a_folder_without_a_course_is_refused(tmp_path: Path, make: str) -> None:
    root = tmp_path / "course"
    if make == "empty":
        (root / "en").mkdir(parents=True)
    elif make == "file":
        root.write_text("no folder")
    with pytest.raises(ConfigurationError, match="no course material"):
        course.load("kb", root)


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "MAX_FILE_BYTES", 10)
    with pytest.raises(ConfigurationError, match="larger than 10 bytes"):
        course.load("kb", write(tmp_path, CHAPTER.encode()))


def test_a_course_is_read_into_passages(tmp_path: Path) -> None:
    # A byte order mark and Windows line ends are no mistake of a teacher's.
    content = b"\xef\xbb\xbf" + CHAPTER.replace("\n", "\r\n").encode()
    base = course.load("kb", write(write(tmp_path / "my-course", content), CHAPTER.encode(), "zh"))
    assert (base.kb_id, base.title) == ("kb", "My course")
    first = base.passages[0]
    assert first.id == "en/05-loops#the-while-loop"
    assert (first.document, first.heading, first.language) == ("Loops", "The while loop", "en")
    assert first.text == "A `while` loop repeats code.\n\n```python\n# note\n```"
    assert base.passages[1].id == "zh/05-loops#the-while-loop"


def test_the_shipped_course_is_well_formed() -> None:
    passages = course.load("python", SHIPPED).passages
    assert len({item.id for item in passages}) == len(passages) > 100
    assert {item.language for item in passages} == {"en", "zh"}


# The index


def test_nothing_indexed_finds_nothing(tmp_path: Path) -> None:
    empty = Index.build([], WordEmbeddings(), tmp_path, quiet)
    assert empty.search("what is a list", "en", ["kb"]) == []


@pytest.mark.parametrize(
    "question", ["", "  ", "?!", "what is it", "\ud800", "光合作用", "volcano"]
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_question_the_material_does_not_cover(
    index: Index, question: str, language: Language
) -> None:
    assert index.search(question, language, ["kb"]) == []


def test_passages_of_nothing_but_stop_words_do_no_harm(tmp_path: Path) -> None:
    built = Index.build(
        [passage("What is it", "It is."), passage("的", "的", "zh")],
        WordEmbeddings(),
        tmp_path,
        quiet,
    )
    assert built.search("lists", "en", ["kb"]) == []
    assert built.search("列表", "zh", ["kb"]) == []


def test_best_first_with_similarity(index: Index) -> None:
    found = index.search("how do I write a list with brackets", "en", ["kb"])
    assert headings(found)[0] == "Lists"
    scores = [item.similarity for item in found]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] <= scores[0] <= 1
    assert headings(index.search("列表是什么", "zh", ["kb"]))[0] == "列表"
    assert len(index.search("list loop file", "en", ["kb"], k=2)) == 2


@pytest.mark.parametrize(
    ("question", "heading"),
    [
        ("什么是列表？", "列表"),
        ("列表", "列表"),
        ("列表的索引是什么", "列表的索引"),
        ("那怎么写呢？ (列表)", "列表"),
        ("那元组呢？ (列表)", "元组"),
        ("那怎么添加一个元素？ (列表)", "添加和删除列表元素"),
        ("创建对象时要做什么", "类和对象"),
        ("救命，我的程序一直跑停不下来了，怎么强行停止它？", "死循环"),
        ("老师，我想问一下，这个掷骰子到底是怎么做的呀", "random 模块"),
    ],
)
def test_chinese_words_find_the_passage_they_name(
    shipped: Index, question: str, heading: str
) -> None:
    assert headings(shipped.search(question, "zh", ["python"]))[0] == heading


@pytest.mark.parametrize(
    "question",
    ["世界和平什么时候来", "今年你去哪里", "那足球比赛谁赢了？ (列表)", "Java 怎么写循环"],
)
def test_chance_words_do_not_cover_a_question(shipped: Index, question: str) -> None:
    assert shipped.search(question, "zh", ["python"]) == []


def test_a_comparison_finds_both_sides(shipped: Index) -> None:
    found = shipped.search("列表和元组有什么区别？", "zh", ["python"])
    assert set(headings(found)[:2]) == {"列表", "元组"}
    shipped.search("列表和" * 2000 + "(" * 2000 + "列表)", "zh", ["python"])


def test_other_knowledge_bases_and_languages_stay_out(tmp_path: Path) -> None:
    other = [passage("Lists elsewhere", "A list keeps many values.", kb_id="other")]
    built = Index.build([*ENGLISH, *CHINESE, *other], WordEmbeddings(), tmp_path, quiet)
    assert built.search("list", "en", []) == []
    assert built.search("list", "en", ["unknown"]) == []
    assert headings(built.search("list", "en", ["other", "unknown"])) == ["Lists elsewhere"]
    both = built.search("list values", "en", ["kb", "other"])
    assert {item.kb_id for item in both} == {"kb", "other"}
    assert {item.language for item in both} == {"en"}


def test_the_other_language_only_where_there_is_none_of_the_question(tmp_path: Path) -> None:
    built = Index.build(ENGLISH, WordEmbeddings(), tmp_path, quiet)
    assert headings(built.search("什么是 list 呢", "zh", ["kb"]))[0] == "Lists"
    built = Index.build([*ENGLISH, *CHINESE], WordEmbeddings(), tmp_path, quiet)
    assert headings(built.search("什么是 list 呢", "zh", ["kb"]))[0] == "列表"


def test_vectors_are_made_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first, second = WordEmbeddings(), WordEmbeddings()
    Index.build([*ENGLISH, *CHINESE], first, tmp_path, lambda *progress: seen.append(progress))
    Index.build([*ENGLISH, *CHINESE], second, tmp_path, quiet)
    # Only English is embedded.
    assert "A list keeps many values." in first.texts
    assert not any("列" in text for text in first.texts)
    assert second.texts == []
    assert seen[-1] == (5, 5)
    assert seen == sorted(seen)


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    Index.build(ENGLISH, WordEmbeddings(), tmp_path, quiet)
    (cached,) = (tmp_path / "vectors").iterdir()
    good = cached.read_bytes()
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    cached.write_bytes(flipped if content is None else content)
    again = WordEmbeddings()
    with caplog.at_level(logging.WARNING):
        Index.build(ENGLISH, again, tmp_path, quiet)
    assert again.texts
    assert "damaged" in caplog.text
    assert cached.read_bytes() == good
    assert list((tmp_path / "vectors").iterdir()) == [cached]


def test_without_a_cache_folder_the_index_still_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    built = Index.build(ENGLISH, WordEmbeddings(), tmp_path / "file" / "cache", quiet)
    assert "can't be kept" in caplog.text
    assert built.search("list values", "en", ["kb"])


def test_threads_may_search_at_once(index: Index) -> None:
    questions = {"list values": "Lists", "loop code": "Loops", "file disk": "Files"}
    wrong: list[str] = []

    def work(question: str, heading: str) -> None:
        found = [headings(index.search(question, "en", ["kb"]))[0] for _ in range(50)]
        wrong.extend(other for other in found if other != heading)

    threads = [threading.Thread(target=work, args=pair) for pair in questions.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Knowledge bases


def test_a_malformed_course_stops_the_build(tmp_path: Path) -> None:
    folders = {"good": SHIPPED, "bad": write(tmp_path / "bad", b"text")}
    with pytest.raises(ConfigurationError, match="belongs to no passage"):
        KnowledgeBases.open(folders, WordEmbeddings(), tmp_path, quiet)


def test_knowledge_bases(tmp_path: Path) -> None:
    root = write(tmp_path / "course", CHAPTER.encode())
    bases = KnowledgeBases.open({"a": root, "b": SHIPPED}, WordEmbeddings(), tmp_path, quiet)
    assert bases.known("a")
    assert not bases.known("c")
    (found,) = bases.find("while loop", "en", ["a", "c"])[0]
    assert (found.kb_id, found.id) == ("a", "en/05-loops#the-while-loop")
    small = bases.vocabulary(["a", "c"])
    assert bases.vocabulary(["a"]) is small
    assert len(bases.vocabulary(["a", "b"]).words) > len(small.words)
    assert "hello" in bases.vocabulary([]).words


def test_of_a_large_base_a_recogniser_gets_what_it_can_hold(tmp_path: Path) -> None:
    text = "# Words\n\n" + "".join(f"## {_spelt(n)}\n\nA thing.\n\n" for n in range(6000))
    large = write(tmp_path / "large", text.encode())
    small = write(tmp_path / "small", CHAPTER.encode())
    bases = [CourseBase("large", large, 1), CourseBase("small", small, 2)]
    words = set(Vocabularies().of(bases).words)
    assert "repeats" in words
    kept = [n for n in range(6000) if _spelt(n) in words]
    assert 2900 < len(kept) <= MOST_PASSAGES
    assert max(after - n for n, after in pairwise([0, *kept, 6000])) < 10


def _spelt(number: int) -> str:
    return "zq" + "".join("abcdefghij"[int(digit)] for digit in str(number))


# Vocabulary


def build(text: str, *titles: str, language: Language = "en") -> set[str]:
    built = vocabulary.build([passage("H", text, language)], titles)
    assert set(" ".join(built.sentences).split()) == set(built.words)
    assert list(built.words) == sorted(built.words)
    return set(built.sentences)


def test_sentences_are_lower_case_words_only() -> None:
    said = build(
        "Use `for i in range(3):` 12 times. Café costs 3.5, or 1,234567890!\n\n"
        "```python\nsecret = 1\n```\n\nA [b](c) `__init__` don’t 你好."
    )
    assert "use for i in range three twelve times" in said
    assert "cafe costs three point five or one" in said
    assert not any("secret" in sentence for sentence in said)
    for sentence in said:
        assert set(sentence) <= set("abcdefghijklmnopqrstuvwxyz' "), sentence
        assert sentence == " ".join(sentence.split())
        assert sentence


def test_a_course_may_say_how_its_words_are_read(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "a.md").write_text("# A\n\n## Tuples\n\nA tuple is fixed.\n", "utf-8")
    readings = tmp_path / "readings.txt"
    readings.write_text("# remark\n\nTuple tˈuːpəl tˈʌpəl  # both\n", "utf-8")
    bases = KnowledgeBases.open({"a": tmp_path}, WordEmbeddings(), tmp_path / "cache", quiet)
    assert bases.vocabulary(["a"]).readings == {"tuple": ("tˈuːpəl", "tˈʌpəl")}
    readings.write_text("tuple\n", "utf-8")
    with pytest.raises(ConfigurationError, match="line 1: 'tuple' has no reading"):
        KnowledgeBases.open({"a": tmp_path}, WordEmbeddings(), tmp_path / "cache", quiet)


def test_numbers_in_words() -> None:
    said = build("It has 0 and 13 and 40 and 99 and 105 and 1000 and 250017.")
    assert (
        "it has zero and thirteen and forty and ninety nine and one hundred five and one thousand "
        "and two hundred fifty thousand seventeen"
    ) in said


def test_questions_about_headings_definitions_and_actions() -> None:
    said = build(
        "A tuple is fixed. To write a tuple, use `()`. A mistake is to forget the comma.",
        "The words break and continue",
        "Lists",
        "字典 和 list",
    )
    for sentence in (
        "what is a tuple",
        "how do i write a tuple",
        "what happens if i forget the comma",
        "what is a list",
        "what is lists used for",
        "what is the difference between break and continue",
        "how do i use break",
        "can you repeat that",
        "what is your name",
        "thank you",
    ):
        assert sentence in said, sentence


def test_chinese_material_adds_no_words() -> None:
    assert build("列表 list.", "列表", language="zh") == build("", language="zh")


def test_the_shipped_course_can_be_heard() -> None:
    passages = course.load("python", SHIPPED).passages
    built = vocabulary.build(passages, [item.heading for item in passages])
    assert {"elif", "tuple", "recursion", "understand", "goodbye"} <= set(built.words)
    assert len(vocabulary.EVERYDAY) > 150
    assert 500 < len(built.words) < 3000
