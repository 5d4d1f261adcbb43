"""PPTX: each slide under its title, with its tables and what the speaker notes say."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pptx
from lxml import etree
from pptx.enum.shapes import MSO_SHAPE_TYPE, PP_PLACEHOLDER
from pptx.exc import PythonPptxError

from gpuserver.documents import Extracted
from gpuserver.documents.building import Builder, Source
from gpuserver.documents.cleaning import one_line, table
from gpuserver.documents.office import check_parts

_MAIN: Final = "ppt/presentation.xml"
_DEPTH: Final = 8
_REPEATED: Final = frozenset(
    {PP_PLACEHOLDER.SLIDE_NUMBER, PP_PLACEHOLDER.DATE, PP_PLACEHOLDER.FOOTER, PP_PLACEHOLDER.HEADER}
)
_ITEMS: Final = frozenset({PP_PLACEHOLDER.BODY, PP_PLACEHOLDER.OBJECT})


def read(source: Source) -> Extracted:
    """Raises DocumentUnreadable, DocumentTooLarge."""
    check_parts(source, _MAIN)
    try:
        return _read(source, pptx.Presentation(str(source.path)))
    except (
        PythonPptxError, zipfile.BadZipFile, etree.LxmlError, KeyError, ValueError,
        AttributeError, TypeError, IndexError, NotImplementedError,
    ) as error:  # fmt: skip
        raise source.damaged() from error


def _read(source: Source, deck: Any) -> Extracted:
    count = len(deck.slides)
    if count > source.limits.pages:
        raise source.too_many_pages()
    builder = Builder(source)
    empty: list[int] = []
    title = ""
    for number, slide in enumerate(deck.slides, start=1):
        if not _slide(builder, number, slide):
            empty.append(number)
        if number == 1 and slide.shapes.title is not None:
            title = slide.shapes.title.text_frame.text
        source.told(number, count)
    title = deck.core_properties.title or title
    if title.startswith("PowerPoint "):  # what the program writes by itself
        title = ""
    return builder.extracted(title, count, tuple(empty))


def _slide(builder: Builder, number: int, slide: Any) -> bool:
    """False for a slide that shows a picture and says nothing."""
    shapes = list(_flat(slide.shapes, 0))
    title = slide.shapes.title
    name = one_line(title.text_frame.text) if title is not None else ""
    blocks = [
        text
        for shape in sorted(shapes, key=_place)
        if title is None or shape.shape_id != title.shape_id
        for text in _blocks(shape)
    ]
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        blocks.append("\n".join(_paragraphs(slide.notes_slide.notes_text_frame)))
    blocks = [text for text in blocks if text.strip()]
    if not name and blocks:
        # Without a title of its own its first words name it.
        name = one_line(blocks[0].removeprefix("- ").split("\n")[0], 60)
    builder.heading(1, name, number)
    for text in blocks:
        builder.block(text, number)
    return bool(name or blocks or not any(s.shape_type == MSO_SHAPE_TYPE.PICTURE for s in shapes))


def _flat(shapes: Iterable[Any], depth: int) -> Iterator[Any]:
    for shape in shapes:
        if shape.shape_type == MSO_SHAPE_TYPE.GROUP:
            if depth < _DEPTH:
                yield from _flat(shape.shapes, depth + 1)
        else:
            yield shape


def _place(shape: Any) -> tuple[int, int]:
    return shape.top or 0, shape.left or 0


def _blocks(shape: Any) -> Iterator[str]:
    kind = shape.placeholder_format.type if shape.is_placeholder else None
    if kind in _REPEATED:
        return
    if getattr(shape, "has_table", False) and shape.has_table:
        yield table([[cell.text_frame.text for cell in row.cells] for row in shape.table.rows])
    elif shape.has_text_frame:
        if kind in _ITEMS:
            yield "\n".join(_items(shape.text_frame))
        else:
            yield "\n\n".join(_paragraphs(shape.text_frame))


def _items(frame: Any) -> Iterator[str]:
    paragraphs = [paragraph for paragraph in frame.paragraphs if paragraph.text.strip()]
    for paragraph in paragraphs:
        text = one_line(paragraph.text, 100_000)
        yield text if len(paragraphs) == 1 else f"{'  ' * paragraph.level}- {text}"


def _paragraphs(frame: Any) -> Iterator[str]:
    return (text for paragraph in frame.paragraphs if (text := paragraph.text.strip()))
