"""PDF, read by pdfium: pages, columns, headings, and which pages are scans."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

import pypdfium2
import pypdfium2.raw as pdfium

from gpuserver.documents import Extracted
from gpuserver.documents.building import Source
from gpuserver.documents.pdf_columns import in_reading_order
from gpuserver.documents.pdf_contents import without_contents
from gpuserver.documents.pdf_lines import Line, PageText
from gpuserver.documents.pdf_paragraphs import Bookmark, Composer, title_size
from gpuserver.documents.pdf_running import without_running_lines

_BOOKMARKS: Final = 5000
_DEPTH: Final = 6
_PICTURES_LOOKED_FOR: Final = 50
_FORM_DEPTH: Final = 3


def read(source: Source) -> Extracted:
    """Raises DocumentUnreadable, DocumentTooLarge."""
    try:
        document = pypdfium2.PdfDocument(source.path)
    except pypdfium2.PdfiumError as error:
        if error.err_code in {pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY}:
            raise source.unreadable("it is protected by a password", "文件有密码保护") from error
        raise source.damaged() from error
    count = len(document)
    if count > source.limits.pages:
        raise source.too_many_pages()
    pages: list[list[Line]] = []
    empty: list[int] = []
    for number in range(1, count + 1):
        pages.append(_page(source, document, number, empty))
        source.told(number, count)
    larger = title_size([line for lines in pages for line in lines])
    material = without_contents(without_running_lines(pages, larger))
    composer = Composer(source, material, _bookmarks(document))
    return composer.compose(_title(document), tuple(empty))


def _page(source: Source, document: Any, number: int, empty: list[int]) -> list[Line]:
    """A page's lines in reading order. What can't be read of a damaged file is empty too."""
    try:
        page = document[number - 1]
        text_page = page.get_textpage()
    except pypdfium2.PdfiumError:
        empty.append(number)
        return []
    try:
        characters = text_page.count_chars()
        if characters > source.limits.characters:
            raise source.too_many_characters()
        lines = list(PageText(text_page, number).lines())
        if not lines and (characters > 0 or _has_picture(page)):
            empty.append(number)
        upright = page.get_rotation() == 0
        return in_reading_order(lines) if upright else lines
    finally:
        text_page.close()
        page.close()


def _has_picture(page: Any) -> bool:
    shown = (pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_PATH, pdfium.FPDF_PAGEOBJ_SHADING)
    objects = page.get_objects(filter=shown, max_depth=_FORM_DEPTH)
    return any(True for _ in islice(objects, _PICTURES_LOOKED_FOR))


def _bookmarks(document: Any) -> list[Bookmark]:
    """The outline, as far as its entries lead to a page."""
    found: list[Bookmark] = []
    for entry in islice(document.get_toc(max_depth=_DEPTH), _BOOKMARKS):
        destination = entry.get_dest()
        page = destination.get_index() if destination else None
        title = entry.get_title().strip()
        if page is not None and page >= 0 and title:
            found.append(Bookmark(title, entry.level + 1, page + 1))
    return found


def _title(document: Any) -> str:
    """What the file says of itself, unless a program wrote it there by habit."""
    title: str = document.get_metadata_value("Title").strip()
    habit = title.lower().startswith(("untitled", "microsoft ", "powerpoint ", "(anonymous)"))
    return "" if habit or title.lower().endswith((".doc", ".docx", ".pptx", ".tex")) else title
