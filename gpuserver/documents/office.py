"""What Word and PowerPoint files share: a zip of XML parts, checked before a parser sees it."""

from __future__ import annotations

import re
import zipfile
import zlib
from typing import Final

from gpuserver.documents.building import Source

_CHUNK: Final = 1 << 16
_PARTS: Final = 20_000
_XML_PART: Final = 64 << 20
"""Inflated bytes of one XML part: a tree of it takes several times as much."""
_MEMORY_SHARE: Final = 0.4
_XML: Final = (".xml", ".rels", ".vml")
# These files have no document type; one that has may name a file, an address or a bomb.
_DECLARATION = re.compile(
    rb"<!(?:DOCTYPE|ENTITY)|<\x00!\x00(?:D\x00O\x00C|E\x00N\x00T)|\x00<\x00!\x00(?:D\x00O|E\x00N)"
)
_OVERLAP: Final = 32


def check_parts(source: Source, main: str) -> None:
    """Inflate every part, counting. Raises DocumentUnreadable when it is not fit to be parsed.

    `main` is the part that makes the file what its name says.
    """
    try:
        with zipfile.ZipFile(source.path) as archive:
            entries = archive.infolist()
            if len(entries) > _PARTS:
                raise source.damaged()
            if main not in archive.namelist():
                raise source.lies()
            left = _most_bytes(source)
            for entry in entries:
                left -= _inflate(source, archive, entry, left)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise source.damaged() from error
    except (NotImplementedError, RuntimeError) as error:  # an unknown method, or a password
        raise source.unreadable("it is protected by a password", "文件有密码保护") from error


def _most_bytes(source: Source) -> int:
    return int(source.limits.memory_mb * _MEMORY_SHARE) << 20


def _inflate(source: Source, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, left: int) -> int:
    """The part's bytes, inflated; `left` of them may still come."""
    is_xml = entry.filename.lower().endswith(_XML)
    most = min(left, _XML_PART) if is_xml else left
    size, tail = 0, b""
    with archive.open(entry) as part:
        while chunk := part.read(_CHUNK):
            size += len(chunk)
            if size > most:
                megabytes = (_XML_PART if most == _XML_PART else _most_bytes(source)) >> 20
                raise source.unreadable(
                    f"it inflates to more than {megabytes} MB", f"解压后超过 {megabytes} MB"
                )
            if is_xml and _DECLARATION.search(tail + chunk):
                raise source.unreadable(
                    "it holds a document type or entities, which are not allowed",
                    "文件含有不允许的文档类型或实体声明",
                )
            tail = chunk[-_OVERLAP:]
    return size
