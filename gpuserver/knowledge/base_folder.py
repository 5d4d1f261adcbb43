"""The folder of one uploaded knowledge base: what it is, its file, originals and uploads."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson

from gpuserver.course_errors import KnowledgeBaseExists, KnowledgeBaseNotDeleted
from gpuserver.knowledge.base_file import BaseFile
from gpuserver.knowledge.disk import (
    GOING,
    private_folder,
    put_aside,
    remove_all,
    remove_folder,
    settle,
    write_whole,
)
from gpuserver.knowledge.info import clean_title, folder_name, is_id

_ABOUT: Final = "base.json"
_FILE: Final = "base.db"
_ORIGINALS: Final = "originals"
_INCOMING: Final = "incoming"
_DELETED: Final = b'{"deleted":true}'


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """What stands in `base.json` lies beside the file, so that one that is damaged has a name."""

    path: Path
    kb_id: str
    title: str
    created_at: datetime

    @classmethod
    def make(cls, root: Path, kb_id: str, title: str) -> BaseFolder:
        """An empty base, whole or not at all. Blocking.

        Raises KnowledgeBaseExists, DiskFull, and KnowledgeBaseNotDeleted where one of this id can't
        be removed.
        """
        folder = cls(root / folder_name(kb_id), kb_id, clean_title(title, kb_id), datetime.now(UTC))
        if is_deleted(folder.path):
            remove_all(folder.delete())
            if folder.path.exists():
                raise KnowledgeBaseNotDeleted(kb_id=kb_id)
        if folder.path.exists():
            raise KnowledgeBaseExists(kb_id=kb_id)
        making = private_folder(root / f"{GOING}{uuid.uuid4().hex}")
        try:
            about = {
                "kb_id": kb_id,
                "title": folder.title,
                "created_at": folder.created_at.isoformat(),
            }
            write_whole(making / _ABOUT, orjson.dumps(about))
            for name in (_ORIGINALS, _INCOMING):
                private_folder(making / name)
            BaseFile(making / _FILE, kb_id, new=True).close()
            making.replace(folder.path)
        except OSError as error:  # made by another in the meantime
            remove_folder(making)
            if folder.path.exists():
                raise KnowledgeBaseExists(kb_id=kb_id) from error
            raise
        except BaseException:
            remove_folder(making)
            raise
        return folder

    @classmethod
    def at(cls, path: Path) -> BaseFolder | None:
        """The base that a folder holds, None for none. Blocking."""
        try:
            about = orjson.loads((path / _ABOUT).read_bytes())
            kb_id, title = str(about["kb_id"]), str(about["title"])
            created_at = datetime.fromisoformat(about["created_at"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
        if not is_id(kb_id) or folder_name(kb_id) != path.name:
            return None
        return cls(path, kb_id, title, created_at)

    @property
    def file(self) -> Path:
        return self.path / _FILE

    @property
    def incoming(self) -> Path:
        return self.path / _INCOMING

    def delete(self) -> list[Path]:
        """What is to be removed next; it does not come back, whether or not that can be. Blocking.

        Raises KnowledgeBaseNotDeleted, DiskFull; nothing has changed then.
        """
        try:
            return put_aside(self.path)
        except OSError as error:
            # It can't be moved out of the way, and so it is marked before anything is removed.
            try:
                write_whole(self.path / _ABOUT, _DELETED)
            except OSError:
                raise KnowledgeBaseNotDeleted(kb_id=self.kb_id) from error
            return left_of_deleted(self.path)

    def original(self, name: str) -> Path:
        """Where an uploaded file lies."""
        return self.path / _ORIGINALS / name

    def left_over(self, known: Collection[str]) -> list[Path]:
        """What a server that was killed left behind: all but the originals `known`. Blocking."""
        originals = private_folder(self.path / _ORIGINALS).iterdir()
        uploads = private_folder(self.incoming).iterdir()
        return [*(path for path in originals if path.name not in known), *uploads]

    @classmethod
    def remove_nameless(cls, root: Path, kb_id: str) -> bool:
        """Remove the folder of a base whose `base.json` is lost, if there is one. Blocking.

        Raises KnowledgeBaseNotDeleted.
        """
        folder = root / folder_name(kb_id)
        if not is_id(kb_id) or not folder.is_dir() or is_deleted(folder):
            return False
        if cls.at(folder) is not None:
            return False
        try:
            remove_folder(folder)
        except OSError as error:
            raise KnowledgeBaseNotDeleted(kb_id=kb_id) from error
        return True


def is_deleted(path: Path) -> bool:
    """Whether a folder holds what could not be removed of a base. Blocking."""
    try:
        return (path / _ABOUT).read_bytes() == _DELETED
    except OSError:
        return False


def left_of_deleted(path: Path) -> list[Path]:
    """What of such a folder is to be removed next: what marks it goes last. Blocking."""
    try:
        return [inner for inner in path.iterdir() if inner.name != _ABOUT] or [path]
    except OSError:
        return []


def prepared(scratch: Path) -> bytes:
    """The digest of an upload, which nobody else can read and which is settled on the disk."""
    scratch.chmod(0o600)
    settle(scratch)
    with scratch.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
