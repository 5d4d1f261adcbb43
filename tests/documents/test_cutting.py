"""What is cut loses nothing, keeps to its budget, and stays under its titles."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuserver.documents import Block, Extracted, Piece
from gpuserver.documents.cutting import PIECE_TOKENS, as_markdown, count_tokens, cut
from gpuserver.language import sentences

LONGEST = 220


def cut_blocks(*blocks: Block) -> tuple[Piece, ...]:
    return cut(Extracted("Course", blocks))


def bare(text: str) -> str:
    return re.sub(r"\s+", "", text)


def numbered(count: int, language: str = "en") -> str:
    if language == "zh":
        return "".join(f"第{n}颗行星绕着太阳转一圈要很久。" for n in range(count))
    return " ".join(f"Planet number {n} needs a while to go round the sun." for n in range(count))


words = st.text("abcdefgh 物理力.。,|#`-*\n", min_size=1, max_size=400)
blocks = st.builds(
    Block,
    words.filter(str.strip).map(str.strip),
    st.integers(1, 3),
    st.lists(st.sampled_from("ABC"), max_size=3).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(blocks, max_size=12))
def test_no_sentence_is_lost_and_none_too_long(given_blocks: list[Block]) -> None:
    pieces = cut_blocks(*given_blocks)
    everything = [re.sub(r"[\s.。,|`-]", "", piece.text) for piece in pieces]
    for block in given_blocks:
        for sentence in sentences(block.text):
            if count_tokens(sentence) > PIECE_TOKENS:
                continue
            said = re.sub(r"[\s.。,|`-]", "", sentence)
            assert any(said in text for text in everything)
    assert all(count_tokens(piece.text) <= LONGEST for piece in pieces)
    assert all(piece.heading and piece.text.strip() for piece in pieces)


def test_neighbours_share_a_sentence_but_sections_do_not() -> None:
    first, second = numbered(40), "The moon is no planet."
    pieces = cut_blocks(Block(first, 1, ("Sun",)), Block(second + " " + numbered(3), 2, ("Moon",)))
    suns = [piece for piece in pieces if piece.heading == "Sun"]
    assert len(suns) > 2
    for before, after in zip(suns, suns[1:], strict=False):
        last = list(sentences(before.text))[-1]
        assert after.text.startswith((last, list(sentences(before.text))[-2]))
        assert before.text not in after.text
    assert pieces[-1].text.startswith("The moon is no planet.")


def test_chinese_is_cut_at_sentences_and_counted_by_character() -> None:
    pieces = cut_blocks(Block(numbered(60, "zh"), None, ("行星",)))
    assert len(pieces) > 3
    assert all(piece.text.endswith("。") and piece.language == "zh" for piece in pieces)
    assert all(100 < count_tokens(piece.text) <= LONGEST for piece in pieces[:-1])
    assert count_tokens("物理 is fun.") == 5


def test_a_sentence_longer_than_the_budget_is_cut_between_words() -> None:
    endless = " ".join(f"word{n}" for n in range(900))
    pieces = cut_blocks(Block(endless))
    assert " ".join(piece.text for piece in pieces).split() == endless.split()


def test_tables_and_code_are_kept_whole_where_they_fit() -> None:
    code = "```python\n" + "\n".join(f"value_{n} = {n}" for n in range(30)) + "\n```"
    pieces = cut_blocks(Block(numbered(12)), Block(code))
    assert any(code in piece.text for piece in pieces)


def test_long_tables_repeat_their_header_and_long_code_its_fence() -> None:
    rows = [f"| planet {n} | {n} moons and a ring |" for n in range(80)]
    table = "\n".join(["| name | has |", "| --- | --- |", *rows])
    code = "~~~c\n" + "\n".join(f"int value_{n} = {n};" for n in range(90)) + "\n~~~"
    tables = cut_blocks(Block(table, 1, ("Planets",)))
    codes = cut_blocks(Block(code, 1, ("Code",)))
    assert len(tables) > 2
    assert len(codes) > 2
    assert all(piece.text.startswith("| name | has |\n| --- | --- |\n| planet") for piece in tables)
    assert all(row in "\n".join(piece.text for piece in tables) for row in rows)
    assert all(re.fullmatch(r"```c\n.*\n```", piece.text, re.DOTALL) for piece in codes)


def test_a_piece_names_the_page_where_what_is_new_in_it_begins() -> None:
    pieces = cut_blocks(*(Block(numbered(14).replace("Planet", f"Page {n}"), n) for n in (1, 2, 3)))
    for piece in pieces:
        new = [s for s in sentences(piece.text) if f"Page {piece.page} " in s]
        assert new
    assert {piece.page for piece in pieces} == {1, 2, 3}


def test_sections_of_a_few_words_join_a_neighbour_of_the_same_page() -> None:
    pieces = cut_blocks(
        Block("A push or a pull.", 1, ("Physics", "Force")),
        Block("How much matter there is.", 1, ("Physics", "Mass")),
        Block("How fast.", 2, ("Physics", "Speed")),
        Block("It lives.", 2, ("Biology", "Cell")),
    )
    assert [(piece.heading, piece.page, piece.text) for piece in pieces] == [
        ("Physics", 1, "Force: A push or a pull.\n\nMass: How much matter there is."),
        ("Physics › Speed", 2, "How fast."),
        ("Biology › Cell", 2, "It lives."),
    ]


def test_what_is_said_twice_is_kept_once() -> None:
    notice = "This course belongs to the school and may be used in its lessons only."
    pieces = cut_blocks(
        Block("Cells divide in two, and both go on.", 1, ("Cells",)),
        Block(notice, 2, ("Notice",)),
        Block(notice.upper(), 3, ("Again",)),
        Block("Cells divide in two, and both go on. They need sugar.", 4, ("Cells",)),
        Block("The answer is 4.", 5, ("Exercise 1",)),
        Block("The answer is 4.", 6, ("Exercise 2",)),
        Block("A car goes 20 metres in 3 seconds; how fast does it go on average?", 7, ("Ex. 3",)),
        Block("A car goes 20 metres in 4 seconds; how fast does it go on average?", 8, ("Ex. 4",)),
        Block("```\nif total_weight == allowed_weight_of_lorry:\n```", 9, ("Code",)),
        Block("```\nif total_weight != allowed_weight_of_lorry:\n```", 9, ("Code",)),
    )
    assert [piece.page for piece in pieces] == [2, 4, 5, 6, 7, 8, 9]


def test_repetition_is_found_quickly_among_thousands() -> None:
    blocks = [Block("Yes, that is right.", n, (f"Question {n}",)) for n in range(1500)]
    blocks += [Block(numbered(4), n, (f"Slide {n}",)) for n in range(1500)]
    assert len(cut_blocks(*blocks)) == 1501


def test_the_whole_text_shows_each_title_once() -> None:
    blocks = (
        Block("One.", 1, ("A", "B")), Block("Two.", 1, ("A", "B")), Block("Three.", 1, ("A", "C")),
        Block("D", 1, ("D",)),
    )  # fmt: skip
    text = as_markdown(Extracted("Course", blocks))
    assert text == "# A\n\n## B\n\nOne.\n\nTwo.\n\n## C\n\nThree.\n\n# D"
