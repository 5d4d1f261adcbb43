"""Damaged, hostile and mislabelled documents: a sentence each, and no process left."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from gpuserver.course_errors import (
    DocumentEmpty,
    DocumentTooLarge,
    DocumentTypeUnknown,
    DocumentUnreadable,
)
from gpuserver.documents import ReadDocument
from gpuserver.documents.cutting import count_tokens
from gpuserver.documents.reading import _Reply, read_document
from tests.documents.conftest import LIMITS

pytestmark = pytest.mark.slow

Read = Callable[..., ReadDocument]


def pdf(*objects: bytes, trailer: bytes = b"/Root 1 0 R") -> bytes:
    """A PDF of these objects, numbered from 1."""
    out, places = bytearray(b"%PDF-1.5\n"), []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for place in places:
        out += b"%010d 00000 n \n" % place
    out += b"trailer\n<</Size %d %s>>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1, trailer, start,
    )  # fmt: skip
    return bytes(out)


def stream(content: bytes) -> bytes:
    packed = zlib.compress(content, 1)
    return b"<</Length %d /Filter /FlateDecode>>stream\n%s\nendstream" % (len(packed), packed)


def with_page(content: bytes) -> bytes:
    return pdf(
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R"
        b"/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>>>",
        stream(content),
    )  # fmt: skip


def test_an_encrypted_pdf(read: Read) -> None:
    file = io.BytesIO()
    canvas = Canvas(file, encrypt=StandardEncryption("secret", strength=128))
    canvas.drawString(100, 100, "hidden")
    canvas.save()
    with pytest.raises(DocumentUnreadable, match="protected by a password") as caught:
        read("secret.pdf", file.getvalue())
    assert "密码" in caught.value.sentence("zh")


def test_a_scan_holds_no_text(read: Read) -> None:
    with pytest.raises(DocumentEmpty, match="OCR"):
        read("scan.pdf")


def test_scanned_pages_among_others_are_named(read_apart: Read) -> None:
    file = io.BytesIO()
    canvas = Canvas(file)
    for page in range(3):
        if page == 1:
            canvas.rect(50, 50, 400, 600, fill=1)
        else:
            canvas.drawString(100, 700, f"A sentence on page {page + 1}.")
        canvas.showPage()
    canvas.save()
    document = read_apart("mixed.pdf", file.getvalue())
    assert document.empty_pages == (2,)
    assert [piece.page for piece in document.pieces] == [1]


def test_a_pdf_whose_pages_loop(read_apart: Read) -> None:
    looping = pdf(
        b"<</Type/Catalog/Pages 2 0 R/Outlines 4 0 R>>",
        b"<</Type/Pages/Kids[2 0 R 3 0 R 2 0 R]/Count 3>>",
        b"<</Type/Pages/Parent 2 0 R/Kids[2 0 R]/Count 90>>",
        b"<</Type/Outlines/First 5 0 R/Last 5 0 R>>",
        b"<</Title(again)/Parent 4 0 R/Next 5 0 R/First 5 0 R/Last 5 0 R>>",
    )
    with pytest.raises((DocumentUnreadable, DocumentEmpty)):
        read_apart("loop.pdf", looping)


def test_too_many_pages(read: Read) -> None:
    many = pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count 100000>>" % (b"3 0 R " * 100_000),
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]>>",
    )
    with pytest.raises(DocumentTooLarge, match="500 pages") as caught:
        read("many.pdf", many)
    assert "500 页" in caught.value.sentence("zh")


def test_a_page_that_inflates_beyond_the_memory(read_apart: Read) -> None:
    bomb = with_page(b"BT /F1 9 Tf (" + b"a" * (250 << 20) + b") Tj ET")
    assert len(bomb) < 2 << 20
    with pytest.raises((DocumentUnreadable, DocumentTooLarge, DocumentEmpty)):
        read_apart("bomb.pdf", bomb, replace(LIMITS, memory_mb=256))


def test_a_page_with_too_many_words(read: Read) -> None:
    wordy = with_page(b"BT /F1 9 Tf " + b"(all work and no play) Tj 0 -9 Td " * 3000 + b"ET")
    with pytest.raises(DocumentTooLarge, match="10000 characters"):
        read("wordy.pdf", wordy, replace(LIMITS, characters=10_000))


@pytest.mark.slow
def test_a_page_that_takes_for_ever(read_apart: Read) -> None:
    slow = with_page(b"BT /F1 9 Tf " + b"(a) Tj 1 1 Td " * 6_000_000 + b"ET")
    begun = time.monotonic()
    with pytest.raises(DocumentUnreadable, match="longer than 3 seconds"):
        read_apart("slow.pdf", slow, replace(LIMITS, seconds=3, memory_mb=4096))
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("name", ["physics.pdf", "handbook.docx", "deck.pptx"])
@pytest.mark.parametrize("part", [0.03, 0.5, 0.95])
def test_a_file_that_was_cut(read: Read, library: Path, name: str, part: float) -> None:
    whole = (library / name).read_bytes()
    with pytest.raises((DocumentUnreadable, DocumentEmpty)):
        read(name, whole[: int(len(whole) * part)])


@pytest.mark.parametrize("name", ["physics.pdf", "handbook.docx", "deck.pptx"])
def test_a_file_with_wrong_bytes(read_apart: Read, library: Path, name: str) -> None:
    content = bytearray((library / name).read_bytes())
    for place in range(400, len(content), 97):
        content[place] ^= 0x5A
    try:
        read_apart(name, bytes(content))
    except (DocumentUnreadable, DocumentEmpty) as error:
        assert "Traceback" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("physics.pdf", "physics.docx"), ("handbook.docx", "handbook.pdf"),
        ("handbook.docx", "handbook.pptx"), ("deck.pptx", "deck.txt"), ("scan.pdf", "scan.html"),
    ],
)  # fmt: skip
def test_a_type_that_lies(read: Read, source: str, name: str) -> None:
    with pytest.raises(DocumentUnreadable, match="not what the ending"):
        read(source, as_name=name)


@pytest.mark.parametrize("name", ["run.exe", "course.zip", "notes", "x.pdf.exe", ".pdf"])
def test_a_type_that_is_not_read(read: Read, name: str) -> None:
    with pytest.raises(DocumentTypeUnknown):
        read("physics.pdf", as_name=name)


@pytest.mark.parametrize("name", ["a.txt", "a.pdf", "a.docx", "a.csv", "a.md", "a.html"])
def test_nothing_at_all(read: Read, name: str) -> None:
    with pytest.raises(DocumentEmpty):
        read(name, b"")


def test_bytes_that_are_no_text(read: Read) -> None:
    for content in (b"caf\xe9 cr\xe8me, \xe0 la carte", bytes(range(256)) * 4):
        with pytest.raises(DocumentUnreadable, match="UTF-8"):
            read("a.txt", content)


def test_an_old_word_file_or_one_with_a_password(read: Read) -> None:
    with pytest.raises(DocumentUnreadable, match="save it as .docx"):
        read("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))


def repacked(path: Path, part: str, content: bytes) -> bytes:
    """An Office file with one part replaced or added."""
    file = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if entry.filename != part:
                new.writestr(entry, old.read(entry))
        new.writestr(part, content)
    return file.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_in_an_office_file(
    read: Read, library: Path, tmp_path: Path, encoding: str
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("canary")
    xml = (
        f'<?xml version="1.0" encoding="{encoding}"?>'
        f'<!DOCTYPE d [<!ENTITY x SYSTEM "file://{secret}">]>'
        '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        "<w:body><w:p><w:r><w:t>&x;</w:t></w:r></w:p></w:body></w:document>"
    )
    content = repacked(library / "handbook.docx", "word/document.xml", xml.encode(encoding))
    with pytest.raises(DocumentUnreadable, match="entities"):
        read("handbook.docx", content)


def test_an_office_file_that_inflates(read: Read, library: Path) -> None:
    content = repacked(library / "deck.pptx", "ppt/media/big.bin", bytes(120 << 20))
    with pytest.raises(DocumentUnreadable, match="inflates to more than 102 MB"):
        read("deck.pptx", content, replace(LIMITS, memory_mb=256))


def test_an_office_file_without_sense(read: Read, library: Path) -> None:
    for xml in (b"", b"<a/>", b"<" * 5000, b"<w:document"):
        with pytest.raises((DocumentUnreadable, DocumentEmpty)):
            read("handbook.docx", repacked(library / "handbook.docx", "word/document.xml", xml))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.html", b"<div>" * 50_000 + b"deep"), ("deep.md", b"> " * 50_000 + b"deep"),
        ("links.md", b"[" * 10_000 + b"x"), ("stars.md", b"*a_" * 10_000),
        ("wide.csv", b"a," * 100_000 + b"\n1,2\n"), ("quote.csv", b'a,b\n"' + b"x" * 90_000),
    ],
)  # fmt: skip
def test_deep_and_endless_markup_is_read_or_refused(read: Read, name: str, content: bytes) -> None:
    with contextlib.suppress(DocumentUnreadable, DocumentEmpty, DocumentTooLarge):
        assert all(count_tokens(piece.text) <= 220 for piece in read(name, content).pieces)


CONFINED = """
import sys
from gpuserver.documents.confinement import confine
confine(memory_mb=256, seconds=1)
try:
    bytearray(300 << 20)
except MemoryError:
    print("memory")
try:
    with open(sys.argv[1], "wb") as file:
        file.write(b"x")
except OSError:
    print("file")
while True:
    pass
"""


def test_the_limits_hold(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-c", CONFINED, str(tmp_path / "written")]
    child = subprocess.run(command, capture_output=True, timeout=60)
    assert child.stdout.split() == [b"memory", b"file"]
    assert child.returncode == -signal.SIGXCPU


@pytest.mark.parametrize("name", ["physics.pdf", "handbook.docx", "deck.pptx"])
def test_a_document_read_apart_is_the_same(read: Read, read_apart: Read, name: str) -> None:
    assert read_apart(name, None, replace(LIMITS, memory_mb=256)) == read(name)


def readers(parent: int) -> list[int]:
    """The confined processes that read documents for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        nice = int(fields[16])
        if int(fields[1]) == parent and b"gpuserver.documents" in command and nice >= 10:
            found.append(int(folder.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def child_of(reading: asyncio.Task[ReadDocument]) -> int:
    while not (found := await asyncio.to_thread(readers, os.getpid())):
        assert not reading.done()
        await asyncio.sleep(0.01)
    return found[0]


async def test_the_child_is_killed_when_nobody_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    os.mkfifo(path)  # the child waits for somebody to write there
    reading = asyncio.create_task(read_document(path, "a.txt", LIMITS, lambda *_: None))
    child = await child_of(reading)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not await asyncio.to_thread(is_running, child)


async def test_the_deadline_ends_a_child_that_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    os.mkfifo(path)
    with pytest.raises(DocumentUnreadable, match="longer than 1 seconds"):
        await read_document(path, "a.txt", replace(LIMITS, seconds=1), lambda *_: None)
    assert not await asyncio.to_thread(readers, os.getpid())


async def test_a_child_that_is_killed_is_an_error_of_the_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    os.mkfifo(path)
    reading = asyncio.create_task(read_document(path, "a.txt", LIMITS, lambda *_: None))
    os.kill(await child_of(reading), signal.SIGSEGV)
    with pytest.raises(DocumentUnreadable, match="damaged"):
        await reading


async def test_a_child_that_writes_nonsense_is_an_error_of_the_document() -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print('x' * 10_000_000)", stdout=subprocess.PIPE,
        start_new_session=True, limit=1 << 16,
    )  # fmt: skip
    reply = _Reply("a.txt", LIMITS, lambda *_: None)
    async with asyncio.timeout(60):
        await reply.take_from(child)
        code = await child.wait()
    with pytest.raises(DocumentUnreadable, match="the file is damaged"):
        reply.result(code)


async def test_progress_is_told_in_order(library: Path) -> None:
    told: list[tuple[int, int]] = []
    await read_document(
        library / "physics.pdf", "x.pdf", LIMITS, lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


PARENT = """
import asyncio, pathlib, sys
from gpuserver.documents.cutting import count_tokens
from gpuserver.documents.reading import ReadingLimits, read_document
limits = ReadingLimits(60, 1024, 5, 1000)
asyncio.run(read_document(pathlib.Path(sys.argv[1]), "a.txt", limits, lambda *_: None))
"""


def test_the_child_dies_with_a_server_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    os.mkfifo(path)
    server = subprocess.Popen([sys.executable, "-c", PARENT, str(path)])
    try:
        while not (found := readers(server.pid)):
            time.sleep(0.01)
    finally:
        server.kill()
        server.wait()
    while is_running(found[0]):
        time.sleep(0.01)
