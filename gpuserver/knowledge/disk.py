"""Files that are whole or not there, and a full disk told apart from other failures."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from gpuserver.course_errors import DiskFull
from gpuserver.observability import get_logger

log = get_logger(__name__)

KEPT_FREE_BYTES: Final = 256 << 20

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# SQLite says "full" for a full disk alone; a quota that is used up is a write that failed.
_SQLITE_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE})


@contextmanager
def full_disk_told() -> Iterator[None]:
    """Raises DiskFull in place of what the system says when there is no room; all else passes."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull from error
        raise
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) in _SQLITE_FULL:
            raise DiskFull from error
        raise


def check_room(folder: Path, size: int = 0) -> None:
    """Blocking. Raises DiskFull where so many bytes more would leave the disk no room for others.

    What may be as large as a disk is not written until it is full: sessions are kept there too.
    """
    if shutil.disk_usage(folder).free - size < KEPT_FREE_BYTES:
        raise DiskFull


def write_whole(path: Path, content: bytes) -> None:
    """A small file, whole or not at all, also when the power fails. Raises OSError, DiskFull."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with full_disk_told():
        try:
            scratch.write_bytes(content)
            settle(scratch)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private_folder(path: Path) -> Path:
    """A folder that only this user can look into, made where there is none."""
    with full_disk_told():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def put_aside(path: Path) -> list[Path]:
    """Move a folder out of the way at once; what is to be removed then, or at the next start.

    Raises OSError, and nothing has changed, where it can't be moved.
    """
    doomed = path.with_name(f"{GOING}{uuid.uuid4().hex}")
    try:
        path.replace(doomed)
    except FileNotFoundError:
        return []
    return [doomed]


def remove_folder(path: Path) -> None:
    """Out of the way at once, then gone. Raises as `put_aside`."""
    remove_all(put_aside(path))


def remove_all(paths: Iterable[Path]) -> None:
    """Files and folders, as far as that can be done; what stays is logged, by its name alone."""
    for path in paths:
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if os.path.lexists(path):
            log.warning("can't be removed, and is tried again at the next start", name=path.name)


GOING: Final = ".going-"
"""Begins the names of folders that are being removed or made."""
