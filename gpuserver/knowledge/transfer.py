"""Knowledge bases and documents as zips: what comes in, and a whole base that goes out."""

from __future__ import annotations

import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Final

import orjson

from gpuserver.course_errors import (
    ArchiveUnsafe,
    DocumentHidden,
    DocumentTooLarge,
    DocumentTypeUnknown,
    DocumentUnreadable,
)
from gpuserver.documents import SUFFIXES
from gpuserver.documents.archive import ArchiveLimits, check_directory, unpack
from gpuserver.documents.naming import OneNameTwice, document_names, is_housekeeping
from gpuserver.knowledge.disk import check_room, full_disk_told
from gpuserver.knowledge.info import BaseInfo, check_id, check_name

MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1
_FOLDER: Final = "documents/"
_MAX_MANIFEST: Final = 8 << 20
IMPORTED: Final = "import.zip"
"""What an archive is called whose own name nobody tells."""
_ARCHIVES: Final = (".zip",)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an exported base is called, and its documents."""

    kb_id: str
    title: str
    documents: tuple[str, ...]


def check_type(name: str, *, archives: bool = True) -> str:
    """The name itself. Raises DocumentTypeUnknown, DocumentHidden."""
    if is_housekeeping(PurePath(name)):
        raise DocumentHidden(name=name)
    if not name.lower().endswith((*SUFFIXES, *(_ARCHIVES if archives else ()))):
        raise DocumentTypeUnknown(name=name)
    return name


def is_archive(name: str) -> bool:
    """Whether a file holds documents instead of being one."""
    return name.lower().endswith(_ARCHIVES)


def inside(
    name: str, archive: Path, into: Path, files: int, megabytes: int
) -> list[tuple[str, Path]]:
    """The documents of a zip, each under a name of its own; `megabytes`: of all. Blocking.

    Raises ArchiveUnsafe, DocumentTypeUnknown for a zip that holds none, DiskFull.
    """
    limits = _limits(files, megabytes << 20)
    found = unpack(archive, name, into, limits, needs=partial(check_room, into))
    if not found:
        raise DocumentTypeUnknown(name=name)
    try:
        names = document_names([PurePosixPath(inner) for inner, _ in found])
    except OneNameTwice as error:
        raise ArchiveUnsafe(
            name=name,
            problem=f"two of its files would be called {error.name!r}; rename one of them",
            problem_zh=f"其中两个文件都会叫 {error.name!r}，请重命名其中一个",
        ) from error
    return [(check_name(its), path) for its, (_, path) in zip(names, found, strict=True)]


def _limits(files: int, size: int) -> ArchiveLimits:
    # One entry more than documents: an exported base has its manifest beside them.
    return ArchiveLimits(files=files + 1, bytes=size)


def check_size(name: str, path: Path, megabytes: int) -> None:
    """Blocking. Raises DocumentTooLarge."""
    if path.stat().st_size > megabytes << 20:
        raise DocumentTooLarge(name=name, limit=f"{megabytes} MB")


def write_export(base: BaseInfo, originals: Sequence[tuple[str, Path]], into: Path) -> Path:
    """A zip of the originals, by their names, and what the base is called. Blocking.

    A document that is removed meanwhile is left out. Raises DiskFull.
    """
    target = into / f"{base.kb_id}.zip"
    scratch = into / f".{uuid.uuid4().hex}"
    with full_disk_told():
        try:
            with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                scratch.chmod(0o600)
                names = []
                for name, path in originals:
                    try:
                        archive.write(path, _FOLDER + name)
                    except FileNotFoundError:
                        continue
                    names.append(name)
                about = {
                    "format": _FORMAT,
                    "kb_id": base.kb_id,
                    "title": base.title,
                    "documents": names,
                }
                archive.writestr(MANIFEST, orjson.dumps(about, option=orjson.OPT_INDENT_2))
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
    return target


def read_manifest(archive: Path, files: int) -> Manifest:
    """What a zip that `write_export` wrote is called, with so many documents at most. Blocking.

    Raises ArchiveUnsafe, KnowledgeBaseIdInvalid.
    """
    try:
        check_directory(archive, IMPORTED, _limits(files, _MAX_MANIFEST))
        with zipfile.ZipFile(archive) as opened, opened.open(MANIFEST) as file:
            content = file.read(_MAX_MANIFEST + 1)
        about = orjson.loads(content) if len(content) <= _MAX_MANIFEST else {}
        if about["format"] != _FORMAT:
            raise ValueError("another format")
        names = tuple(map(str, about["documents"]))
        return Manifest(check_id(str(about["kb_id"])), str(about["title"]), names)
    # zipfile says NotImplementedError and RuntimeError for what it can't inflate or decrypt.
    except (
        zipfile.BadZipFile, OSError, LookupError, ValueError, TypeError, RuntimeError, EOFError,
        DocumentUnreadable,
    ) as error:  # fmt: skip
        raise ArchiveUnsafe(
            name=IMPORTED,
            problem="it is no exported knowledge base",
            problem_zh="它不是导出的知识库",
        ) from error
