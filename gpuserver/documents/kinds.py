"""What a file is: its name's ending and its content must say the same."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final, cast

from gpuserver.course_errors import DocumentEmpty, DocumentTypeUnknown
from gpuserver.documents import Extracted
from gpuserver.documents.building import Source

Reader = Callable[[Source], Extracted]

# By name, so that reading a text loads no library for PDF.
_READERS: Final = {
    ".pdf": "pdf:read", ".docx": "word:read", ".pptx": "slides:read", ".md": "markdown:read",
    ".markdown": "markdown:read", ".html": "web_page:read", ".htm": "web_page:read",
    ".txt": "plain:read", ".csv": "rows:read",
}  # fmt: skip
_PDF: Final = b"%PDF-"
_ZIP: Final = b"PK\x03\x04"
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_BINARY: Final = (_PDF, _ZIP, _OLE, b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"\x1f\x8b", b"\x7fELF",
                  b"MZ\x90", b"Rar!", b"7z\xbc\xaf", b"RIFF", b"OggS", b"ID3")  # fmt: skip
_HEAD: Final = 1024


def suffix_of(name: str) -> str:
    """The ending of a document's name, in lower case. Raises DocumentTypeUnknown."""
    suffix = Path(name).suffix.lower()
    if suffix not in _READERS:
        raise DocumentTypeUnknown(name=name)
    return suffix


def extract(source: Source) -> Extracted:
    """Read a document of any kind. Blocking; for a process with limits.

    Raises DocumentTypeUnknown, DocumentUnreadable, DocumentTooLarge, DocumentEmpty.
    """
    suffix = suffix_of(source.name)
    _check_content(source, suffix)
    module, _, function = _READERS[suffix].partition(":")
    read = cast(Reader, getattr(import_module(f"gpuserver.documents.{module}"), function))
    found = read(source)
    if not found.blocks:
        raise DocumentEmpty(name=source.name)
    return found


def _check_content(source: Source, suffix: str) -> None:
    with source.path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise DocumentEmpty(name=source.name)
    if suffix == ".pdf":
        if _PDF not in head:
            raise source.lies()
    elif suffix in {".docx", ".pptx"}:
        if head.startswith(_OLE):
            raise source.unreadable(
                f"it is protected by a password or in the old format; save it as {suffix}",
                f"文件有密码保护或是旧格式，请另存为 {suffix}",
            )
        if not head.startswith(_ZIP):
            raise source.lies()
    elif head.startswith(_BINARY):
        raise source.lies()
