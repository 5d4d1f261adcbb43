"""Markdown: what it says and shows as code; pictures, addresses and HTML left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

from gpuserver.documents import Extracted
from gpuserver.documents.building import Builder, Source
from gpuserver.documents.cleaning import FENCES, clean, fenced, table
from gpuserver.documents.plain import joined, text_of

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)\n", re.DOTALL)
_TITLE_LINE = re.compile(r"^title:\s*[\"']?(.+?)[\"']?\s*$", re.MULTILINE)
_INDENT: Final = "  "


def read(source: Source) -> Extracted:
    """Raises DocumentUnreadable, DocumentTooLarge."""
    text = clean(text_of(source))
    title = ""
    if matter := _FRONT_MATTER.match(text):
        found = _TITLE_LINE.search(matter[1])
        title = found[1] if found else ""
        text = text[matter.end() :]
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return _Reader(source, tokens).read(title)


class _Reader:
    def __init__(self, source: Source, tokens: Sequence[Token]) -> None:
        self._source = source
        self._builder = Builder(source)
        self._tokens = tokens
        self._title = ""

    def read(self, title: str) -> Extracted:
        place = 0
        while place < len(self._tokens):
            place = self._block(place)
        self._source.told(1, 1)
        return self._builder.extracted(title or self._title)

    def _block(self, place: int) -> int:
        """Take in the block that begins at a token; gives the place behind it."""
        token = self._tokens[place]
        if token.type == "heading_open":
            text = said(self._tokens[place + 1])
            if token.tag == "h1" and not self._title:
                self._title = text
            self._builder.heading(int(token.tag[1]), text)
            return place + 3
        if token.type in {"bullet_list_open", "ordered_list_open"}:
            end = _end(self._tokens, place)
            self._list(self._tokens[place : end + 1])
            return end + 1
        if token.type == "table_open":
            end = _end(self._tokens, place)
            self._builder.block(_table(self._tokens[place:end]))
            return end + 1
        if token.type in {"fence", "code_block"}:
            self._builder.block(_code(token))
        elif token.type == "inline":
            self._builder.block(said(token))
        return place + 1

    def _list(self, tokens: Sequence[Token]) -> None:
        """A list is one block; code and tables in it are blocks of their own."""
        lines: list[str] = []
        for text in _items(tokens):
            if text.startswith((*FENCES, "|")):
                self._builder.block("\n".join(lines))
                self._builder.block(text)
                lines = []
            else:
                lines.append(text)
        self._builder.block("\n".join(lines))


def _items(tokens: Sequence[Token]) -> list[str]:
    """The items of a list and of those in it, and the code and tables among them."""
    found: list[str] = []
    numbers: list[int | None] = []
    sign = ""
    place = 0
    while place < len(tokens):
        token = tokens[place]
        if token.type in {"bullet_list_open", "ordered_list_open"}:
            ordered = token.type == "ordered_list_open"
            numbers.append(int(token.attrs.get("start", 1)) if ordered else None)
        elif token.type in {"bullet_list_close", "ordered_list_close"}:
            numbers.pop()
        elif token.type == "list_item_open":
            sign = _sign(numbers)
        elif token.type == "inline":
            text = said(token).replace("\n", " ")
            if text:
                found.append(f"{_INDENT * (len(numbers) - 1)}{sign or _INDENT}{text}")
                sign = ""
        elif token.type in {"fence", "code_block"}:
            found.append(_code(token))
        elif token.type == "table_open":
            end = _end(tokens, place)
            found.append(_table(tokens[place:end]))
            place = end
        place += 1
    return found


def _sign(numbers: list[int | None]) -> str:
    """What stands before the next item of the innermost list."""
    number = numbers[-1]
    if number is None:
        return "- "
    numbers[-1] = number + 1
    return f"{number}. "


def said(inline: Token) -> str:
    """The words of a paragraph; of a picture its description, of a link what stands for it."""
    parts: list[str] = []
    for token in inline.children or ():
        if token.type == "text":
            parts.append(token.content)
        elif token.type == "code_inline":
            sign = "``" if "`" in token.content else "`"
            parts.append(f"{sign}{token.content}{sign}")
        elif token.type == "softbreak":
            parts.append("\n")
        elif token.type == "hardbreak":
            parts.append("\n\n")
        elif token.type == "image":
            parts.append(said(token))
    # Lines of a source are no lines of a paragraph, but those that are broken on purpose are.
    lines = "".join(parts).strip().split("\n\n")
    return "\n".join(joined(line.split("\n")) for line in lines)


def _code(token: Token) -> str:
    if not token.content.strip():
        return ""
    return fenced(token.content, token.info.split(" ")[0] if token.info else "")


def _table(tokens: Sequence[Token]) -> str:
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(said(token))
    return table(rows)


def _end(tokens: Sequence[Token], place: int) -> int:
    """Where what opens at a token closes."""
    depth = 0
    for there in range(place, len(tokens)):
        depth += tokens[there].nesting
        if depth == 0:
            return there
    return len(tokens) - 1
