"""Zips of documents: what is in them, and what is refused before it does harm."""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuserver.course_errors import ArchiveUnsafe, DocumentUnreadable
from gpuserver.documents.archive import ArchiveLimits, unpack

LIMITS = ArchiveLimits(files=20, bytes=8 << 20)
Pack = Callable[..., Path]
Entry = tuple[str | zipfile.ZipInfo, bytes]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    def packing(*entries: Entry, method: int = zipfile.ZIP_DEFLATED) -> Path:
        path = tmp_path / "scratch"
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in entries:
                archive.writestr(name, content, method)
        return path

    return packing


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def test_documents_are_unpacked_and_others_named(pack: Pack, into: Path) -> None:
    path = pack(
        ("course/", b""), ("course/waves.md", b"# Waves"), ("course/力学.TXT", "力".encode()),
        ("course\\\\light.csv", b"a,b"), ("photo.jpg", b"x"), (".hidden.md", b"x"),
        ("__MACOSX/._waves.md", b"x"), ("~$notes.docx", b"x"), ("Thumbs.db", b"x"),
    )  # fmt: skip
    skipped: list[str] = []
    found = unpack(path, "course.zip", into, LIMITS, skipped.append)
    assert [(name, file.read_bytes()) for name, file in found] == [
        ("course/waves.md", b"# Waves"), ("course/力学.TXT", "力".encode()),
        ("course/light.csv", b"a,b"),
    ]  # fmt: skip
    assert all(file.parent == into and file.suffix in {".md", ".txt", ".csv"} for _, file in found)
    assert skipped == ["photo.jpg"]


@pytest.mark.parametrize("encoding", ["gbk", "utf-8"])
def test_chinese_names_without_a_mark(pack: Pack, into: Path, encoding: str) -> None:
    path = pack(("XXXXXXXXXXXX.txt", b"x"))
    raw = "牛顿定律".encode(encoding).ljust(12, b"_")
    path.write_bytes(path.read_bytes().replace(b"XXXXXXXXXXXX", raw))
    ((name, _),) = unpack(path, "a.zip", into, LIMITS)
    assert name == f"牛顿定律{'_' * (12 - len('牛顿定律'.encode(encoding)))}.txt"


@pytest.mark.parametrize(
    "name",
    ["../evil.md", "a/../../evil.md", "/etc/evil.md", "C:\\evil.md", "..\\evil.md", "a\x07.md",
     "n" * 220 + ".md"],
)  # fmt: skip
def test_names_that_lead_elsewhere(pack: Pack, into: Path, name: str) -> None:
    path = pack(("good.md", b"x"), (name, b"x"))
    with pytest.raises(ArchiveUnsafe) as caught:
        unpack(path, "a.zip", into, LIMITS)
    assert "evil" not in str(caught.value)
    assert not list(into.iterdir())


def test_links_and_archives_inside(pack: Pack, into: Path) -> None:
    link = zipfile.ZipInfo("link.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ArchiveUnsafe, match="link"):
        unpack(pack((link, b"/etc/passwd")), "a.zip", into, LIMITS)
    with pytest.raises(ArchiveUnsafe, match="another archive"):
        unpack(pack(("a.md", b"x"), ("b.ZIP", b"x")), "a.zip", into, LIMITS)
    assert not list(into.iterdir())


def test_a_bomb_is_refused_while_it_inflates(pack: Pack, into: Path) -> None:
    path = pack(("a.md", b"fine"), ("bomb.txt", bytes(5 << 20)))
    assert path.stat().st_size < 6000
    with pytest.raises(ArchiveUnsafe, match="inflates"):
        unpack(path, "a.zip", into, LIMITS)
    assert not list(into.iterdir())


def test_a_bomb_that_says_it_is_small(pack: Pack, into: Path) -> None:
    path = pack(("bomb.txt", bytes(5 << 20)))
    size = struct.pack("<L", 5 << 20)
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<L", 10)))
    with pytest.raises((ArchiveUnsafe, DocumentUnreadable)):
        unpack(path, "a.zip", into, LIMITS)
    assert not list(into.iterdir())


def test_together_they_may_not_be_too_large(pack: Pack, into: Path) -> None:
    entries = [(f"{n}.txt", bytes(range(256)) * 4096) for n in range(9)]
    with pytest.raises(ArchiveUnsafe, match="more than 8 MB"):
        unpack(pack(*entries, method=zipfile.ZIP_STORED), "a.zip", into, LIMITS)
    assert not list(into.iterdir())


def test_too_many_files(pack: Pack, into: Path) -> None:
    entries = [(f"{n}.txt", b"x") for n in range(21)]
    with pytest.raises(ArchiveUnsafe, match="more than 20 files"):
        unpack(pack(*entries), "a.zip", into, LIMITS)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_no_archive_or_one_that_was_cut(pack: Pack, into: Path, part: float) -> None:
    path = pack(("a.md", b"text " * 100), ("b.md", b"more"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(DocumentUnreadable, match="damaged"):
        unpack(path, "a.zip", into, LIMITS)
    assert not list(into.iterdir())


def test_wrong_bytes_inside_leave_nothing(pack: Pack, into: Path) -> None:
    path = pack(("a.md", b"first"), ("b.md", b"text and more text " * 50))
    content = bytearray(path.read_bytes())
    content[content.index(b"b.md") + 8] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DocumentUnreadable, match="damaged"):
        unpack(path, "a.zip", into, LIMITS)
    assert not list(into.iterdir())


def test_a_name_that_is_not_in_its_encoding(pack: Pack, into: Path) -> None:
    path = pack(("力.md", b"x"))
    path.write_bytes(path.read_bytes().replace("力".encode(), b"\xff\xfe\xfd"))
    with pytest.raises(DocumentUnreadable, match="damaged"):
        unpack(path, "a.zip", into, LIMITS)


def test_a_password_is_said(pack: Pack, into: Path) -> None:
    path = pack(("a.md", b"x"))
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    with pytest.raises(DocumentUnreadable, match="password"):
        unpack(path, "a.zip", into, LIMITS)
