"""Taking files over into a base: one document, the many of a zip, or an exported base."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gpuserver.config import Settings
from gpuserver.knowledge import transfer
from gpuserver.knowledge.info import DocumentInfo
from gpuserver.knowledge.uploaded_base import UploadedBase

_ZIP: Final = 10
"""A zip holds this many times the largest document at most: a course of many, and no bomb."""


def take_document(
    base: UploadedBase, name: str, scratch: Path, settings: Settings, document_id: str = ""
) -> list[DocumentInfo]:
    """One upload, which replaces `document_id` if that is given; a zip gives many. Blocking.

    Raises as `KnowledgeBases.add`.
    """
    with _deletion_told(base):
        transfer.check_size(name, scratch, settings.max_upload_mb)
        if transfer.is_archive(name):
            return _take_zip(base, name, scratch, settings, _ZIP * settings.max_upload_mb)
        return base.take([(name, scratch)], settings.max_documents, document_id)


def take_export(base: UploadedBase, scratch: Path, settings: Settings) -> list[DocumentInfo]:
    """The documents of an exported base. Blocking. Raises as `KnowledgeBases.import_`."""
    with _deletion_told(base):
        return _take_zip(base, transfer.IMPORTED, scratch, settings, import_megabytes(settings))


def import_megabytes(settings: Settings) -> int:
    """What an exported base may hold: as much as it may have come to by single uploads."""
    return settings.max_documents * settings.max_upload_mb


@contextmanager
def _deletion_told(base: UploadedBase) -> Iterator[None]:
    """Raises KnowledgeBaseNotFound where files are gone because the base is."""
    try:
        yield
    except FileNotFoundError:
        base.opened()
        raise


def _take_zip(
    base: UploadedBase, name: str, scratch: Path, settings: Settings, megabytes: int
) -> list[DocumentInfo]:
    with tempfile.TemporaryDirectory(dir=base.incoming) as folder:
        found = transfer.inside(name, scratch, Path(folder), settings.max_documents, megabytes)
        for inner, path in found:
            transfer.check_size(inner, path, settings.max_upload_mb)
        return base.take(found, settings.max_documents)
