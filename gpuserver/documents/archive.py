"""A zip of documents, unpacked without trusting a word of it."""

from __future__ import annotations

import errno
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from gpuserver.course_errors import ArchiveUnsafe, DiskFull, DocumentUnreadable
from gpuserver.documents import SUFFIXES
from gpuserver.documents.decoding import decode_chinese
from gpuserver.documents.naming import MAX_NAME, is_housekeeping

_CHUNK: Final = 1 << 16
_RATIO: Final = 200
"""Inflated bytes to a stored one: text hardly reaches 30."""
_RATIO_FROM: Final = 1 << 20
_PATH_CHARACTERS: Final = 1000
_ENTRY_BYTES: Final = 46 + 4096
_UTF8_FLAG: Final = 0x800
_ENCRYPTED_FLAG: Final = 0x1
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ARCHIVES: Final = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst")
_END: Final = struct.Struct("<4s4H2LH")
_END_MARK: Final = b"PK\x05\x06"
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_END64_MARK: Final = b"PK\x06\x06"
"""Of a zip above 4 GB: it stands before its locator, which stands before the usual end."""
_LOCATOR: Final = struct.Struct("<4sLQL")
_LOCATOR_MARK: Final = b"PK\x06\x07"
_COMMENT_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """`files`: entries at most; `bytes`: of all of them together, inflated."""

    files: int
    bytes: int


def unpack(
    archive: Path,
    name: str,
    into: Path,
    limits: ArchiveLimits,
    skipped: Callable[[str], None] = lambda _: None,
    needs: Callable[[int], None] = lambda _: None,
) -> list[tuple[str, Path]]:
    """Write the documents of a zip into a folder: (name inside, with `/`; its file there).

    `name` is what the teacher calls the archive. The files get names of our own. `skipped` is told
    of each entry that is no document, and `needs` the bytes of all the others before any is
    written: it may raise. Blocking. Raises ArchiveUnsafe, DocumentUnreadable, DiskFull;
    nothing of it is left in the folder then.
    """
    unpacking = _Unpacking(name, into, limits)
    try:
        unpacking.check_directory(archive)
        with zipfile.ZipFile(archive) as opened:
            unpacking.all_of(opened, skipped, needs)
    # zipfile says ValueError for names that are not in their encoding and places before the start.
    except (
        zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, ValueError,
    ) as error:  # fmt: skip
        unpacking.undo()
        raise unpacking.damaged() from error
    except OSError as error:
        unpacking.undo()
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull from error
        raise
    except BaseException:
        unpacking.undo()
        raise
    return unpacking.written


def check_directory(archive: Path, name: str, limits: ArchiveLimits) -> None:
    """See how long a zip's list of entries is before anything takes it into memory.

    Blocking. Raises ArchiveUnsafe for one that is too long, DocumentUnreadable for no zip.
    """
    _Unpacking(name, archive.parent, limits).check_directory(archive)


class _Unpacking:
    def __init__(self, name: str, into: Path, limits: ArchiveLimits) -> None:
        self._name = name
        self._into = into
        self._limits = limits
        self._left = limits.bytes
        self.written: list[tuple[str, Path]] = []

    def check_directory(self, archive: Path) -> None:
        """Before the library takes the whole list of entries into memory."""
        size = archive.stat().st_size
        with archive.open("rb") as file:
            begin = max(0, size - _END64.size - _LOCATOR.size - _END.size - _COMMENT_BYTES)
            file.seek(begin)
            tail = file.read()
        place = tail.rfind(_END_MARK)
        if place < 0:
            raise self.damaged()
        _, _, _, _, entries, length, _, _ = _END.unpack_from(tail, place)
        if tail[max(0, place - _LOCATOR.size) : place].startswith(_LOCATOR_MARK):
            entries, length = self._large_end(tail, place - _LOCATOR.size, begin)
        if entries > self._limits.files or length > self._limits.files * _ENTRY_BYTES:
            raise self._too_many()

    def _large_end(self, tail: bytes, locator: int, begin: int) -> tuple[int, int]:
        """The entries and the bytes of their list; `tail` begins at `begin` in the file.

        Where the locator points elsewhere than before itself, others might read another end.
        """
        place = locator - _END64.size
        _, _, points, _ = _LOCATOR.unpack_from(tail, locator)
        if place < 0 or points != begin + place:
            raise self.damaged()
        mark, *_, entries, length, _ = _END64.unpack_from(tail, place)
        if mark != _END64_MARK:
            raise self.damaged()
        return entries, length

    def all_of(
        self,
        archive: zipfile.ZipFile,
        skipped: Callable[[str], None],
        needs: Callable[[int], None],
    ) -> None:
        """Look at every name before a byte is written."""
        entries = archive.infolist()
        if len(entries) > self._limits.files:
            raise self._too_many()
        wanted = []
        for entry in entries:
            inside = self._checked_name(entry)
            if entry.is_dir() or is_housekeeping(inside):
                continue
            if inside.suffix.lower() in _ARCHIVES:
                raise self._unsafe("it holds another archive", "其中含有另一个压缩包")
            if inside.suffix.lower() in SUFFIXES:
                wanted.append((entry, inside))
            else:
                skipped(str(inside))
        # No more is taken out of an entry than it says.
        needs(min(self._limits.bytes, sum(entry.file_size for entry, _ in wanted)))
        for entry, inside in wanted:
            path = self._into / f"{len(self.written):05d}{inside.suffix.lower()}"
            self.written.append((str(inside), path))
            self._write(archive, entry, path)

    def _checked_name(self, entry: zipfile.ZipInfo) -> PurePosixPath:
        name = _decoded_name(entry).replace("\\", "/")
        path = PurePosixPath(name)
        drive = len(name) > 1 and name[1] == ":"
        if path.is_absolute() or drive or ".." in path.parts or not name.isprintable():
            raise self._unsafe("a name in it leads out of its folder", "其中的文件名指向文件夹之外")
        if len(path.name) > MAX_NAME or len(name) > _PATH_CHARACTERS:
            raise self._unsafe("a name in it is too long", "其中的文件名过长")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
            raise self._unsafe("it holds a link or a device", "其中含有链接或设备文件")
        if entry.flag_bits & _ENCRYPTED_FLAG:
            raise self._unreadable("it is protected by a password", "文件有密码保护")
        if entry.compress_type not in _METHODS:
            raise self._unreadable("its kind of compression is unknown", "压缩方式未知")
        return path

    def _write(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
        size = 0
        most = max(_RATIO_FROM, entry.compress_size * _RATIO)
        with archive.open(entry) as inflating, path.open("xb") as file:
            while chunk := inflating.read(_CHUNK):
                size += len(chunk)
                self._left -= len(chunk)
                if size > most or self._left < 0:
                    megabytes = (most if size > most else self._limits.bytes) >> 20
                    raise self._unsafe(
                        f"it inflates to more than {megabytes} MB", f"解压后超过 {megabytes} MB"
                    )
                file.write(chunk)

    def undo(self) -> None:
        for _, path in self.written:
            path.unlink(missing_ok=True)

    def damaged(self) -> DocumentUnreadable:
        return self._unreadable("the file is damaged", "文件已损坏")

    def _too_many(self) -> ArchiveUnsafe:
        limit = self._limits.files
        return self._unsafe(f"it holds more than {limit} files", f"其中的文件超过 {limit} 个")

    def _unsafe(self, problem: str, problem_zh: str) -> ArchiveUnsafe:
        return ArchiveUnsafe(name=self._name, problem=problem, problem_zh=problem_zh)

    def _unreadable(self, problem: str, problem_zh: str) -> DocumentUnreadable:
        return DocumentUnreadable(name=self._name, problem=problem, problem_zh=problem_zh)


def _decoded_name(entry: zipfile.ZipInfo) -> str:
    """Windows writes names in its own encoding and doesn't say which; others forget the mark."""
    name = entry.filename
    if not entry.flag_bits & _UTF8_FLAG and not name.isascii():
        raw = name.encode("cp437")
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            name = decode_chinese(raw) or name
    return unicodedata.normalize("NFC", name)
