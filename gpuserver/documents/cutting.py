"""A document's blocks cut into pieces: by its structure, within a budget, with some overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from semantic_text_splitter import TextSplitter

from gpuserver.documents import Block, Extracted, Piece
from gpuserver.documents.cleaning import FENCES, fenced
from gpuserver.documents.repetition import without_repetition
from gpuserver.language import HAN, Language, detect, sentences

PIECE_TOKENS: Final = 180
"""MiniLM takes 256 and answers best on fewer; four pieces fit any chat model's prompt."""
_LONGEST: Final = 220
"""Rather than leave a rest of a sentence or two alone."""
_REST: Final = 40
_OVERLAP_TOKENS: Final = 40
_OVERLAP_SENTENCES: Final = 2
_SHORT: Final = 12
"""A section of fewer tokens than this is hardly a sentence."""
_TITLES: Final = 2
_EAST_ASIAN: Final = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
# On the shipped course these are 1.04 (English) and 1.00 (Chinese) times MiniLM's own tokens.
_TOKEN = re.compile(rf"[{_EAST_ASIAN}]|[^\W_{_EAST_ASIAN}]{{1,7}}|[^\w\s]|_")
_PORTION = re.compile(r".{1,10000}(?:\s|$)|.{1,10000}", re.DOTALL)
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,3}[.)])\s")
_ENDS_CLAUSE = re.compile(r"[.!?:;。！？：；]$")


def count_tokens(text: str) -> int:
    """About as many as MiniLM's tokenizer makes: a Chinese character is one, a long word more."""
    return len(_TOKEN.findall(text))


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is not cut any more: a sentence, an item, a table, a block of code."""

    text: str
    tokens: int
    glue: str
    """What stands between it and the unit before."""
    page: int | None
    is_prose: bool


@dataclass(frozen=True, slots=True)
class _Section:
    headings: tuple[str, ...]
    units: tuple[_Unit, ...]

    @property
    def tokens(self) -> int:
        return sum(unit.tokens for unit in self.units)

    @property
    def page(self) -> int | None:
        return self.units[0].page


def cut(extracted: Extracted) -> tuple[Piece, ...]:
    """The pieces of a document in reading order.

    A piece belongs to one section and names the page where what is new in it begins. Two pieces of
    one section share a sentence or two of prose. What is said twice is kept once.
    """
    everything = "\n".join(block.text for block in extracted.blocks[:200])
    default = detect(everything, "en")
    pieces: list[Piece] = []
    for section in _merged(_sections(extracted.blocks)):
        heading = " › ".join(section.headings[-_TITLES:]) or extracted.title
        pieces += _pieces(section, heading, default)
    return tuple(without_repetition(pieces))


def as_markdown(extracted: Extracted) -> str:
    """All of a document, for reading."""
    parts: list[str] = []
    before: tuple[str, ...] = ()
    for block in extracted.blocks:
        same = 0
        while same < min(len(before), len(block.headings)) and (
            before[same] == block.headings[same]
        ):
            same += 1
        parts += [
            f"{'#' * (depth + 1)} {block.headings[depth]}"
            for depth in range(same, len(block.headings))
        ]
        before = block.headings
        if not block.headings or block.text != block.headings[-1]:
            parts.append(block.text)
    return "\n\n".join(parts)


def _sections(blocks: Iterable[Block]) -> Iterator[_Section]:
    for headings, group in groupby(blocks, key=lambda block: block.headings):
        units = tuple(unit for block in group for unit in _units(block))
        if units:
            yield _Section(headings, units)


def _merged(sections: Iterable[_Section]) -> Iterator[_Section]:
    """Sections of a few words joined with a neighbour under the same parent, on the same page."""
    waiting: _Section | None = None
    for section in sections:
        together = waiting and _together(waiting, section)
        if waiting and not together:
            yield waiting
        waiting = together or section
    if waiting:
        yield waiting


def _together(one: _Section, two: _Section) -> _Section | None:
    parent = _parent(one, two)
    short = min(one.tokens, two.tokens) < _SHORT
    if parent is None or not short or one.page != two.page:
        return None
    units = _titled(one, parent) + _titled(two, parent)
    joined = _Section(parent, units)
    return joined if joined.tokens <= PIECE_TOKENS else None


def _parent(one: _Section, two: _Section) -> tuple[str, ...] | None:
    for parent in (one.headings, one.headings[:-1]):
        if parent and two.headings[: len(parent)] == parent:
            deeper = len(two.headings) - len(parent)
            if deeper == 1:
                return parent
    return None


def _titled(section: _Section, parent: tuple[str, ...]) -> tuple[_Unit, ...]:
    """A section's units, under a title that is now a part of the text."""
    first, *rest = section.units
    title = section.headings[-1] if section.headings != parent else ""
    if not title or first.text == title:
        return (replace(first, glue="\n\n"), *rest)
    chinese = re.search(f"[{HAN}]$", title)
    mark = "" if _ENDS_CLAUSE.search(title) else "：" if chinese else ":"
    glue = "\n\n" if not first.is_prose or _ITEM.match(first.text) else "" if chinese else " "
    text = f"{title}{mark}{glue}{first.text}"
    return (_Unit(text, count_tokens(text), "\n\n", first.page, first.is_prose), *rest)


# Units


def _units(block: Block) -> Iterator[_Unit]:
    if block.text.startswith(FENCES):
        parts = _code_parts(block.text)
    elif block.text.startswith("|"):
        parts = _table_parts(block.text)
    else:
        yield from _prose_units(block)
        return
    for part in parts:
        yield _Unit(part, count_tokens(part), "\n\n", block.page, is_prose=False)


def _prose_units(block: Block) -> Iterator[_Unit]:
    glue, place = "\n\n", 0
    is_list = _ITEM.match(block.text) is not None
    found = block.text.split("\n") if is_list else sentences(block.text)
    for sentence in found:
        if not sentence.strip():
            continue
        there = block.text.index(sentence, place)
        between = block.text[place:there]
        place = there + len(sentence)
        if glue != "\n\n" or there:
            glue = "\n" if "\n" in between else " " if between else ""
        for part in _fitting(sentence):
            yield _Unit(part, count_tokens(part), glue, block.page, is_prose=True)
            glue = " " if not re.search(f"[{HAN}，、]$", part) else ""


def _fitting(text: str) -> list[str]:
    """A text in parts of the budget, cut between words where it must be."""
    if count_tokens(text) <= PIECE_TOKENS:
        return [text]
    splitter = TextSplitter.from_callback(count_tokens, PIECE_TOKENS)
    # In portions, as the splitter takes longer than twice the time for twice the text.
    return [part for portion in _PORTION.findall(text) for part in splitter.chunks(portion)]


def _code_parts(text: str) -> Iterator[str]:
    if count_tokens(text) <= _LONGEST:
        yield text
        return
    lines = text.split("\n")
    fence = re.match(r"[`~]+", lines[0])
    inside = lines[1:-1] if fence and lines[-1].startswith(fence.group()) else lines[1:]
    language = lines[0].lstrip("`~")
    cost = 2 * count_tokens(lines[0])
    for part in _grouped(inside, cost):
        yield fenced(part, language)


def _table_parts(text: str) -> Iterator[str]:
    if count_tokens(text) <= _LONGEST:
        yield text
        return
    header, rule, *rows = [*text.split("\n"), ""]
    head = f"{header}\n{rule}"
    cost = count_tokens(head)
    if cost > PIECE_TOKENS // 2:  # too wide to be repeated
        yield from _grouped([header, *rows], 0)
        return
    for part in _grouped(rows, cost):
        yield f"{head}\n{part}"


def _grouped(lines: Iterable[str], cost: int) -> Iterator[str]:
    """As many lines together as fit beside what each group costs by itself."""
    group: list[str] = []
    tokens = cost
    for line in lines:
        for part in _fitting_beside(line, cost):
            count = count_tokens(part)
            if group and tokens + count > PIECE_TOKENS:
                yield "\n".join(group)
                group, tokens = [], cost
            group.append(part)
            tokens += count
    if any(line.strip() for line in group):
        yield "\n".join(group)


def _fitting_beside(line: str, cost: int) -> list[str]:
    room = max(1, PIECE_TOKENS - cost)
    if count_tokens(line) <= room:
        return [line]
    splitter = TextSplitter.from_callback(count_tokens, room, trim=False)
    return [part for portion in _PORTION.findall(line) for part in splitter.chunks(portion)]


# Pieces


def _pieces(section: _Section, heading: str, default: Language) -> Iterator[Piece]:
    for units in _packed(section.units):
        text = units.overlap + units.text
        language = detect(text, default)
        yield Piece(text, heading, units.page, language)


@dataclass(slots=True)
class _Packing:
    """Units for one piece, behind an overlap with the piece before."""

    before: Sequence[_Unit]
    units: list[_Unit]
    tokens: int

    @property
    def text(self) -> str:
        return _said(self.units)

    @property
    def overlap(self) -> str:
        return _said(self.before) + (self.units[0].glue if self.before else "")

    @property
    def page(self) -> int | None:
        return self.units[0].page


def _packed(units: Sequence[_Unit]) -> list[_Packing]:
    packed: list[_Packing] = []
    current = _Packing((), [], 0)
    for unit in units:
        turned = bool(current.units) and current.units[-1].page != unit.page
        full = current.tokens + unit.tokens > PIECE_TOKENS
        if current.units and (full or (turned and current.tokens * 2 > PIECE_TOKENS)):
            packed.append(current)
            before = _overlap(current.units, PIECE_TOKENS - unit.tokens)
            current = _Packing(before, [], sum(shared.tokens for shared in before))
        current.units.append(unit)
        current.tokens += unit.tokens
    rest = sum(unit.tokens for unit in current.units)
    if packed and rest < _REST and packed[-1].tokens + rest <= _LONGEST:
        packed[-1].units += current.units
        packed[-1].tokens += rest
    elif current.units:
        packed.append(current)
    return packed


def _overlap(units: Sequence[_Unit], room: int) -> list[_Unit]:
    """The last sentences of a piece, to begin the next one with."""
    shared: list[_Unit] = []
    room = min(room, _OVERLAP_TOKENS)
    for unit in reversed(units[-_OVERLAP_SENTENCES:]):
        room -= unit.tokens
        if not unit.is_prose or room < 0:
            break
        shared.insert(0, unit)
    return shared if len(shared) < len(units) else []


def _said(units: Sequence[_Unit]) -> str:
    return "".join((unit.glue if place else "") + unit.text for place, unit in enumerate(units))
