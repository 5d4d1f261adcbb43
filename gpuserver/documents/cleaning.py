"""A document's text made safe to keep and to show: nothing hidden in it, no links, no pictures."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Control, zero-width, bidirectional, tag and variation characters: they show nothing and can hide
# words from the teacher who reads the document. Half surrogates can't be stored.
_HIDDEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_BLANKS = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
# Typesetters put these shapes in the place of letters: ligatures, and radicals for characters.
_SHAPES = re.compile("[\ufb00-\ufb06\u2e80-\u2fd5]")
_PICTURE = re.compile(r"!\[([^\[\]\n]{0,500})\]\([^()\n]{0,2000}\)")
# What follows must be an address: `handlers[0](event)` is none.
_LINK = re.compile(
    r"\[([^\[\]\n]{0,500})\]\(\s*<?(?:[A-Za-z][A-Za-z0-9+.-]*:|/|\.|#|www\.)[^()\n]{0,2000}\)"
)
_SPACES = re.compile(r"\s+")
FENCES: Final = ("```", "~~~")


def clean(text: str) -> str:
    """A text in NFC without what can't be seen; lines end in a line feed."""
    text = _BLANKS.sub(" ", _LINE_ENDS.sub("\n", text))
    text = _SHAPES.sub(lambda shape: unicodedata.normalize("NFKC", shape.group()), text)
    return unicodedata.normalize("NFC", _HIDDEN.sub("", text))


def without_links(text: str) -> str:
    """Markdown without pictures; of links the words stay and the address goes."""
    if "](" not in text:
        return text
    return _LINK.sub(r"\1", _PICTURE.sub(r"\1", text))


def one_line(text: str, limit: int = 200) -> str:
    """A cleaned title: its words in one line, cut at `limit` characters."""
    line = _SPACES.sub(" ", without_links(clean(text))).strip()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def table(rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table, its first row the header; "" where nothing is said."""
    kept = [[_SPACES.sub(" ", cell.replace("|", "\\|")).strip() for cell in row] for row in rows]
    kept = [row for row in kept if any(row)]
    if not kept:
        return ""
    width = max(map(len, kept))
    lines = ["| " + " | ".join(row + [""] * (width - len(row))) + " |" for row in kept]
    return "\n".join([lines[0], "|" + " --- |" * width, *lines[1:]])


def fenced(code: str, language: str = "") -> str:
    """Code as a Markdown block, with a fence that it doesn't hold itself."""
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}{language}\n{code.strip(chr(10))}\n{fence}"
