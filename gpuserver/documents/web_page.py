"""HTML: what a reader of the page would read, without its navigation and without the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import lxml.html
from lxml import etree

from gpuserver.documents import Extracted
from gpuserver.documents.building import Builder, Source
from gpuserver.documents.cleaning import clean, fenced, table
from gpuserver.documents.decoding import decode

_SILENT: Final = frozenset(
    {
        "script", "style", "template", "noscript", "nav", "aside", "footer", "form", "button",
        "select", "option", "textarea", "input", "svg", "math", "iframe", "object", "embed",
        "canvas", "audio", "video", "map", "head",
    }
)  # fmt: skip
_SILENT_ROLES: Final = frozenset(
    {"navigation", "banner", "contentinfo", "search", "complementary", "menu"}
)
_BLOCKS: Final = frozenset(
    {
        "address", "article", "blockquote", "body", "caption", "center", "dd", "details", "div",
        "dl", "dt", "fieldset", "figcaption", "figure", "header", "hr", "html", "li", "main", "p",
        "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr",
    }
)  # fmt: skip
_TITLES: Final = frozenset(f"h{n}" for n in range(1, 7))
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w-]{1,20})", re.IGNORECASE)
_ENCODINGS: Final = {
    b"utf-8": "utf-8", b"utf8": "utf-8", b"gb2312": "gb18030", b"gbk": "gb18030",
    b"gb18030": "gb18030", b"big5": "big5", b"iso-8859-1": "cp1252", b"windows-1252": "cp1252",
    b"us-ascii": "utf-8",
}  # fmt: skip
_LOOKED_AT: Final = 4096
_SPACES = re.compile(r"\s+")
_DECLARED = re.compile(r"^\s*<\?xml[^>]*\?>")
_INDENT: Final = "  "


def read(source: Source) -> Extracted:
    """Raises DocumentUnreadable, DocumentTooLarge."""
    text = _DECLARED.sub("", clean(_decoded(source)))
    parser = lxml.html.HTMLParser(no_network=True, remove_comments=True, remove_pis=True)
    try:
        page = lxml.html.document_fromstring(text, parser=parser)
    except (etree.LxmlError, ValueError) as error:
        raise source.damaged() from error
    title = page.findtext(".//title") or ""
    mains = page.findall(".//main") or page.findall(".//article")
    root = mains[0] if len(mains) == 1 else page
    extracted = _Reader(source, root).read(title)
    source.told(1, 1)
    return extracted


def _decoded(source: Source) -> str:
    data = source.path.read_bytes()
    declared = _CHARSET.search(data[:_LOOKED_AT])
    encoding = _ENCODINGS.get(declared[1].lower()) if declared else None
    text = decode(data)
    if text is None and encoding and b"\x00" not in data:
        text = data.decode(encoding, "replace")
    if text is None:
        raise source.unreadable(
            "it is no text that can be read; save it as UTF-8", "无法识别的文本，请另存为 UTF-8"
        )
    return text


class _Reader:
    """Walks a page in reading order. The parser bounds how deep its elements nest."""

    def __init__(self, source: Source, root: Any) -> None:
        self._builder = Builder(source)
        self._root = root
        self._words: list[str] = []
        self._lists: list[int | None] = []
        self._items: list[str] = []
        self._sign = ""

    def read(self, title: str) -> Extracted:
        self._walk(self._root)
        self._end_paragraph()
        self._end_list()
        return self._builder.extracted(title)

    def _walk(self, element: Any) -> None:
        tag = element.tag
        if not isinstance(tag, str) or tag in _SILENT or _is_hidden(element):
            return
        if tag in _TITLES:
            self._end_paragraph()
            self._end_list()
            self._builder.heading(int(tag[1]), _said(element))
        elif tag == "pre":
            self._whole(fenced(_said(element)) if _said(element).strip() else "")
        elif tag == "table" and not element.findall(".//table"):
            self._whole(table([list(_cells(row)) for row in element.iter("tr")]))
        elif tag in {"ul", "ol"}:
            self._list(element, tag)
        else:
            self._inside(element, tag)

    def _inside(self, element: Any, tag: str) -> None:
        is_block = tag in _BLOCKS
        if is_block:
            self._end_paragraph()
        if tag == "li":
            self._sign = self._next_sign()
        if tag == "br":
            self._words.append("\n")
        elif tag == "code":
            self._words.append(f"`{_SPACES.sub(' ', _said(element)).strip()}`")
        else:
            self._add(element.text)
            for child in element:
                self._walk(child)
                self._add(child.tail)
        if is_block:
            self._end_paragraph()

    def _list(self, element: Any, tag: str) -> None:
        self._end_paragraph()
        self._lists.append(None if tag == "ul" else 1)
        for child in element:
            self._walk(child)
        self._end_paragraph()
        self._lists.pop()
        if not self._lists:
            self._end_list()

    def _next_sign(self) -> str:
        number = self._lists[-1] if self._lists else None
        if number is None:
            return "- "
        self._lists[-1] = number + 1
        return f"{number}. "

    def _add(self, text: str | None) -> None:
        if text:
            self._words.append(_SPACES.sub(" ", text))

    def _whole(self, text: str) -> None:
        """Code or a table: a block of its own."""
        self._end_paragraph()
        self._end_list()
        self._builder.block(text)

    def _end_paragraph(self) -> None:
        lines = [line.strip() for line in "".join(self._words).split("\n")]
        text = "\n".join(line for line in lines if line)
        self._words = []
        if not text:
            return
        if not self._lists:
            self._builder.block(text)
            return
        indent = _INDENT * (len(self._lists) - 1)
        self._items.append(f"{indent}{self._sign or _INDENT}{text.replace(chr(10), ' ')}")
        self._sign = ""

    def _end_list(self) -> None:
        self._builder.block("\n".join(self._items))
        self._items = []


def _is_hidden(element: Any) -> bool:
    return (
        element.get("hidden") is not None
        or element.get("aria-hidden") == "true"
        or element.get("role") in _SILENT_ROLES
        or _HIDDEN.search(element.get("style") or "") is not None
    )


def _said(element: Any) -> str:
    """The text of an element, without what is silent in it."""
    return "".join(_texts(element))


def _texts(element: Any) -> Iterator[str]:
    if not isinstance(element.tag, str) or element.tag in _SILENT or _is_hidden(element):
        return
    if element.tag == "br":
        yield "\n"
    yield element.text or ""
    for child in element:
        yield from _texts(child)
        yield child.tail or ""


def _cells(row: Any) -> Iterator[str]:
    return (_said(cell) for cell in row if cell.tag in {"td", "th"})
