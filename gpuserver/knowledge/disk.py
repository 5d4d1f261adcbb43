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


def remove_folder(path: Path) -> None:
    """Out of the way at once, then gone; what a crash leaves of it is swept at the next start."""
    doomed = path.with_name(f"{GOING}{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        path.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_all(paths: Iterable[Path]) -> None:
    """Files and folders, as far as that can be done."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


GOING: Final = ".going-"
"""Begins the names of folders that are being removed or made."""
