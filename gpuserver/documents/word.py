"""DOCX: headings by their style, lists, tables and notes, in document order."""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

import docx
from docx.opc.exceptions import PackageNotFoundError
from docx.oxml.ns import qn
from docx.oxml.parser import parse_xml
from lxml import etree

from gpuserver.documents import Extracted
from gpuserver.documents.building import Builder, Source
from gpuserver.documents.cleaning import clean, fenced, table
from gpuserver.documents.office import check_parts

_MAIN: Final = "word/document.xml"
_NOTES: Final = ("/footnotes", "/endnotes")
_PROGRESS_EVERY: Final = 200
_DEPTH: Final = 30
_TITLE: Final = 1
_CODE: Final = ("code", "source", "代码")
_TEXT, _TAB, _BREAK = qn("w:t"), qn("w:tab"), (qn("w:br"), qn("w:cr"))
_FORMULA: Final = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_NOT_SAID: Final = frozenset(
    {qn("w:del"), qn("w:moveFrom"), qn("w:txbxContent"), qn("w:pPr"), qn("w:rPr"), _FALLBACK}
)


def read(source: Source) -> Extracted:
    """Raises DocumentUnreadable, DocumentTooLarge."""
    check_parts(source, _MAIN)
    try:
        document = docx.Document(str(source.path))
        return _Reader(source, document).read()
    except (
        PackageNotFoundError, zipfile.BadZipFile, etree.LxmlError, KeyError, ValueError,
        AttributeError, TypeError, IndexError,
    ) as error:  # fmt: skip
        raise source.damaged() from error


class _Reader:
    def __init__(self, source: Source, document: Any) -> None:
        self._source = source
        self._document = document
        self._builder = Builder(source)
        self._styles = {style.style_id: style for style in document.styles}
        self._counts: dict[str, dict[int, int]] = defaultdict(dict)
        self._bullets = _bulleted(document)
        self._code: list[str] = []
        self._items: list[str] = []

    def read(self) -> Extracted:
        body = list(self._document.element.body)
        for done, element in enumerate(body):
            self._element(element, 0)
            if done % _PROGRESS_EVERY == 0:
                self._source.told(done, len(body))
        self._end_run()
        self._notes()
        self._source.told(len(body), len(body))
        return self._builder.extracted(self._document.core_properties.title or "")

    def _element(self, element: Any, depth: int) -> None:
        if depth > _DEPTH:
            return
        if element.tag == qn("w:p"):
            self._paragraph(element)
        elif element.tag == qn("w:tbl"):
            self._end_run()
            rows = [
                [_cell(cell) for cell in row.iterchildren(qn("w:tc"))]
                for row in element.iterchildren(qn("w:tr"))
            ]
            self._builder.block(table(rows))
        elif element.tag == qn("w:sdt") and not _is_contents(element):
            for content in element.iterchildren(qn("w:sdtContent")):
                for child in content:
                    self._element(child, depth + 1)

    def _paragraph(self, paragraph: Any) -> None:
        text = clean(_text(paragraph)).strip("\n")
        style = self._styles.get(paragraph.style) if paragraph.style else None
        name = (style.name or "").lower() if style is not None else ""
        level = self._level(paragraph, style, name)
        sign = "" if level or not text.strip() else self._item(paragraph, style)
        if any(word in name for word in _CODE) and not level:
            self._code.append(text)
        elif sign:
            self._items.append(sign + text.strip().replace("\n", " "))
        else:
            self._end_run()
            if level:
                self._builder.heading(level, text)
            else:
                self._builder.block(text)
        self._boxes(paragraph)

    def _boxes(self, paragraph: Any) -> None:
        """Text that floats beside its paragraph."""
        for box in paragraph.iter(qn("w:txbxContent")):
            if not any(parent.tag == _FALLBACK for parent in box.iterancestors()):
                for inner in box.iterchildren(qn("w:p")):
                    self._builder.block(_text(inner))

    def _end_run(self) -> None:
        """A run of lines of code, or of items, is one block."""
        self._builder.block("\n".join(self._items))
        if any(line.strip() for line in self._code):
            self._builder.block(fenced("\n".join(self._code)))
        self._items, self._code = [], []

    def _level(self, paragraph: Any, style: Any, name: str) -> int:
        """Of a title, from 1; 0 for what is none."""
        for properties in _properties(paragraph, style):
            for outline in properties.iterchildren(qn("w:outlineLvl")):
                level = int(outline.get(qn("w:val"), "9"))
                return level + 2 if level < 9 else 0
        if name in {"title", "标题"}:
            return _TITLE
        words = name.replace("标题", "heading ").split()
        if len(words) == 2 and words[0] == "heading" and words[1].isdecimal():
            return int(words[1]) + 1
        return 0

    def _item(self, paragraph: Any, style: Any) -> str:
        """What stands before an item of a list: a sign or its number."""
        for properties in _properties(paragraph, style):
            for numbering in properties.iterchildren(qn("w:numPr")):
                number = _value(numbering, "w:numId")
                level = min(8, int(_value(numbering, "w:ilvl") or 0))
                if number in {"", "0"}:
                    return ""
                indent = "  " * level
                if (number, level) in self._bullets:
                    return f"{indent}- "
                counts = self._counts[number]
                counts[level] = counts.get(level, 0) + 1
                for deeper in [other for other in counts if other > level]:
                    del counts[deeper]
                return f"{indent}{counts[level]}. "
        return ""

    def _notes(self) -> None:
        for relation in self._document.part.rels.values():
            if not relation.is_external and relation.reltype.endswith(_NOTES):
                for note in parse_xml(relation.target_part.blob):
                    if note.get(qn("w:type")) is None:
                        self._builder.block(" ".join(map(_text, note.iter(qn("w:p")))))


def _text(paragraph: Any) -> str:
    return "".join(_runs(paragraph, 0))


def _runs(element: Any, depth: int) -> Iterator[str]:
    for child in element if depth <= _DEPTH else ():
        if child.tag in {_TEXT, _FORMULA}:
            yield child.text or ""
        elif child.tag == _TAB:
            yield "\t"
        elif child.tag in _BREAK:
            yield "\n"
        elif child.tag not in _NOT_SAID:
            yield from _runs(child, depth + 1)


def _cell(cell: Any) -> str:
    return clean(" ".join(map(_text, cell.iter(qn("w:p")))))


def _properties(paragraph: Any, style: Any) -> Iterator[Any]:
    """Of the paragraph, of its style, and of the styles that one is based on."""
    if paragraph.pPr is not None:
        yield paragraph.pPr
    for _ in range(_DEPTH):
        if style is None:
            return
        if style.element.pPr is not None:
            yield style.element.pPr
        style = style.base_style


def _value(element: Any, name: str) -> str:
    for child in element.iterchildren(qn(name)):
        return str(child.get(qn("w:val"), ""))
    return ""


def _is_contents(element: Any) -> bool:
    """A table of contents says nothing that its chapters don't."""
    galleries = element.iterfind(f"{qn('w:sdtPr')}/{qn('w:docPartObj')}/{qn('w:docPartGallery')}")
    return any(gallery.get(qn("w:val")) == "Table of Contents" for gallery in galleries)


def _bulleted(document: Any) -> set[tuple[str, int]]:
    """The lists, and their levels, that have signs and no numbers."""
    try:
        numbering = document.part.numbering_part.element
    except (KeyError, NotImplementedError):
        return set()
    kinds: dict[str, set[int]] = {}
    for abstract in numbering.iterchildren(qn("w:abstractNum")):
        kinds[abstract.get(qn("w:abstractNumId"))] = {
            int(level.get(qn("w:ilvl"), "0"))
            for level in abstract.iterchildren(qn("w:lvl"))
            if _value(level, "w:numFmt") in {"bullet", "none"}
        }
    return {
        (number.get(qn("w:numId")), level)
        for number in numbering.iterchildren(qn("w:num"))
        for level in kinds.get(_value(number, "w:abstractNumId"), ())
    }
