"""Three courses as a school has them: a book (PDF), slides (PPTX) and a handout (DOCX, PDF)."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.courses import biology_slides, chemistry_handout, physics_book
from tests.courses.source import TEXTS

CACHE: Final = Path.home() / ".cache" / "gpuserver-tests"

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
    folder = CACHE / f"courses-{_digest()}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=CACHE))
        build(new)
        try:
            new.rename(folder)
        except OSError:  # somebody else was quicker
            shutil.rmtree(new)
    return {name: folder / name for name in _BUILDERS}


def questions() -> list[dict[str, Any]]:
    """What a student asks the courses, each with where its answer stands."""
    return _lines("questions.jsonl")


def outside() -> list[dict[str, Any]]:
    """What a student asks that none of the courses answers."""
    return _lines("outside.jsonl")


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TEXTS / name).read_text("utf-8").splitlines()]


def _digest() -> str:
    made = hashlib.sha256(" ".join(version(library) for library in _LIBRARIES).encode())
    for path in sorted([*Path(__file__).parent.glob("*.py"), *TEXTS.rglob("*.md")]):
        made.update(path.read_bytes())
    return made.hexdigest()[:12]
