"""Three courses as a school has them: a book (PDF), slides (PPTX) and a handout (DOCX, PDF)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.built import built_once
from tests.courses import biology_slides, chemistry_handout, physics_book
from tests.courses.source import TEXTS

_BUILDERS: Final[Mapping[str, Callable[[Path], None]]] = {
    "physics.pdf": physics_book.write,
    "biology.pptx": biology_slides.write,
    "chemistry.docx": chemistry_handout.write_docx,
    "chemistry.pdf": chemistry_handout.write_pdf,
}
_LIBRARIES: Final = ("reportlab", "python-docx", "python-pptx")


def build(folder: Path) -> Mapping[str, Path]:
    """Write the documents into `folder`, which exists: file name → path."""
    for name, write in _BUILDERS.items():
        write(folder / name)
    return {name: folder / name for name in _BUILDERS}


def built() -> Mapping[str, Path]:
    """The documents, built once for these texts, builders and libraries: file name → path."""
    sources = sorted([*Path(__file__).parent.glob("*.py"), *TEXTS.rglob("*.md")])
    folder = built_once("courses", build, sources, _LIBRARIES)
    return {name: folder / name for name in _BUILDERS}


def questions() -> list[dict[str, Any]]:
    """What a student asks the courses, each with where its answer stands."""
    return _lines("questions.jsonl")


def outside() -> list[dict[str, Any]]:
    """What a student asks that none of the courses answers."""
    return _lines("outside.jsonl")


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TEXTS / name).read_text("utf-8").splitlines()]
