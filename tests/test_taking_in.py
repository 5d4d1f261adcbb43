"""What comes in: files of one name, hidden ones, exports larger than an upload, odd courses."""

from __future__ import annotations

import asyncio
import sqlite3
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path, PurePosixPath

import pytest

from gpuserver.cli import kb
from gpuserver.cli.remote import Refused
from gpuserver.config import Settings
from gpuserver.course_errors import (
    ArchiveUnsafe,
    DiskFull,
    DocumentHidden,
    DocumentTooLarge,
    DocumentUnreadable,
)
from gpuserver.documents.naming import OneNameTwice, document_names
from gpuserver.errors import ConfigurationError, KnowledgeBaseNotFound
from gpuserver.knowledge import disk
from gpuserver.knowledge.info import DocumentInfo
from gpuserver.knowledge.intake import take_document
from gpuserver.knowledge.notices import notice_of
from gpuserver.tutor.tutors import Catalogue
from tests.conftest import Serve, local_http
from tests.fakes import Cast
from tests.knowledge_fakes import MECHANICS, OPTICS, School, WordEmbeddings


@pytest.fixture
def school(tmp_path: Path) -> School:
    return School(tmp_path / "data")


async def zip_in(school: School, content: Mapping[str, str]) -> list[DocumentInfo]:
    path = school.knowledge.incoming("physics") / "scratch"

    def write() -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)

    await asyncio.to_thread(write)
    return await school.knowledge.add("physics", "all.zip", path)


# Names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/notes.md", "b/other.md"], ["notes.md", "other.md"]),
        (["a/notes.md", "b/notes.md"], ["a - notes.md", "b - notes.md"]),
        (["notes.md", "b/notes.md"], ["notes.md", "b - notes.md"]),
        (["a/notes.md", "b/ notes.md "], ["a - notes.md", "b -  notes.md"]),
        (["a/notes.md", "b/notes.md", "a - notes.md"], None),
        (["x" * 300 + "/notes.md", "y" + "x" * 300 + "/notes.md"], None),
    ],
)
def test_files_of_one_name_carry_their_folders_names(
    paths: list[str], names: list[str] | None
) -> None:
    given = [PurePosixPath(path) for path in paths]
    if names is None:
        with pytest.raises(OneNameTwice):
            document_names(given)
    else:
        assert document_names(given) == names


async def test_no_file_of_a_zip_is_lost(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        both = {"week 1/notes.txt": MECHANICS, "week 2/notes.txt": OPTICS}
        for name in ("week 1 - notes.txt", "Week 3/week 1 - notes.txt"):
            with pytest.raises(ArchiveUnsafe, match="week 1 - notes") as refused:
                await zip_in(school, {**both, name: "Magnets."})
            assert "week 1 - notes.txt" in refused.value.sentence("zh")
        assert knowledge.documents("physics") == []
        taken = await zip_in(school, both)
        assert [info.name for info in taken] == ["week 1 - notes.txt", "week 2 - notes.txt"]


@pytest.mark.parametrize("name", [".notes.md", "~$lesson.docx", "a/.notes.md"])
async def test_a_hidden_file_is_refused_with_the_reason(school: School, name: str) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        with pytest.raises(DocumentHidden, match="hidden or temporary"):
            await school.upload("physics", name, MECHANICS)
        taken = await zip_in(school, {name: MECHANICS, "seen.txt": OPTICS})
        assert [info.name for info in taken] == ["seen.txt"]


def test_a_folder_goes_by_the_same_rules(tmp_path: Path) -> None:
    for name in ("a/notes.md", "b/notes.md", "b/.notes.md", "~$x.docx", "__MACOSX/x.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(kb._collected([tmp_path, tmp_path / "a" / "notes.md"])) == [
        "a - notes.md",
        "b - notes.md",
    ]
    (tmp_path / "a - notes.md").write_text("again")
    with pytest.raises(Refused, match="a - notes.md"):
        kb._collected([tmp_path])


# Imports


def parcel(path: Path, documents: int) -> bytes:
    """An exported base whose documents have 600 kB each, and no less in a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        names = [f"{n}.txt" for n in range(documents)]
        for name in names:
            archive.writestr(f"documents/{name}", f"{name} ".encode() * 100_000)
        listed = ",".join(f'"{name}"' for name in names)
        about = f'{{"format":1,"kb_id":"large","title":"Large","documents":[{listed}]}}'
        archive.writestr("manifest.json", about)
    return path.read_bytes()


async def test_an_export_above_four_gigabytes_comes_in(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1 << 10)  # as if each of them were a gigabyte
    whole = await asyncio.to_thread(parcel, tmp_path / "large.zip", 5)
    end = whole.rindex(b"PK\x06\x06")
    count = slice(end + 32, end + 40)
    assert int.from_bytes(whole[count], "little") == 6
    many, elsewhere = bytearray(whole), bytearray(whole)
    many[count] = (1 << 40).to_bytes(8, "little")
    elsewhere[end + 56 + 8] ^= 1  # where another reader would look
    async with school.open() as knowledge:
        scratch = knowledge.importing() / "scratch"
        for content, problem in ((many, "more than"), (elsewhere, "no exported")):
            await asyncio.to_thread(scratch.write_bytes, content)
            with pytest.raises(ArchiveUnsafe, match=problem):
                await knowledge.import_(scratch)
        await asyncio.to_thread(scratch.write_bytes, whole)
        assert (await knowledge.import_(scratch)).documents == 5


async def test_what_comes_in_as_its_base_goes_is_told_so(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        base = knowledge._uploaded("physics")
        scratch = base.incoming / "scratch"
        await asyncio.to_thread(scratch.write_text, MECHANICS)
        await knowledge.delete("physics")
        with pytest.raises(KnowledgeBaseNotFound):
            await asyncio.to_thread(take_document, base, "notes.txt", scratch, school.settings)


@pytest.mark.slow
async def test_an_import_may_be_larger_than_an_upload(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = await asyncio.to_thread(parcel, tmp_path / "large.zip", 12)
    assert len(content) > 6 << 20
    files = {"file": ("large.zip", content)}
    async with serve(max_upload_mb=1, max_documents=12) as server, local_http(server.url) as client:
        answer = await client.post("/v1/knowledge-bases/import", files=files)
        assert (answer.status_code, answer.json()["documents"]) == (201, 12)
        as_upload = await client.post("/v1/knowledge-bases/large/documents", files=files)
        assert as_upload.json()["code"] == "document_too_large"
        monkeypatch.setattr(disk, "KEPT_FREE_BYTES", 1 << 60)
        full = await client.post(
            "/v1/knowledge-bases/import", files=files, data={"kb_id": "second"}
        )
        assert (full.status_code, full.json()["code"]) == (507, "disk_full")
        assert not server.state.tutoring.knowledge.known("second")


async def test_the_documents_of_an_import_are_no_larger_than_others(
    school: School, tmp_path: Path
) -> None:
    school.settings = Settings(max_upload_mb=1, max_documents=3)

    def with_a_large_one(path: Path) -> None:
        parcel(path, 2)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("documents/big.txt", b"big " * 300_000)

    async with school.open() as knowledge:
        path = knowledge.importing() / "scratch"
        await asyncio.to_thread(with_a_large_one, path)
        with pytest.raises(DocumentTooLarge, match="big.txt"):
            await knowledge.import_(path)
        assert knowledge.bases() == []


async def test_a_zip_is_not_unpacked_onto_a_full_disk(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        monkeypatch.setattr(disk, "KEPT_FREE_BYTES", 1 << 60)
        with pytest.raises(DiskFull):
            await zip_in(school, {"a.txt": OPTICS})
        assert not await asyncio.to_thread(lambda: list(knowledge.incoming("physics").iterdir()))


# Courses


@pytest.mark.parametrize("name", ["events", "import", "Events"])
def test_no_course_hides_behind_a_part_of_the_api(
    make_settings: Callable[..., Settings], cast: Cast, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "tutors.yaml"
    file.write_text(f"courses: {{{name}: course}}\ntutors: [{{id: 1, name: Ada}}]\n")
    with pytest.raises(ConfigurationError, match=f"no course can be called '{name}'"):
        Catalogue(make_settings(), cast.find)


# What the student is told


async def test_the_student_is_told_what_is_so(school: School) -> None:
    def told(kb_id: str = "physics") -> str | None:
        notice = notice_of(school.knowledge, kb_id)
        return None if notice is None else notice.code

    async with school.open() as knowledge:
        assert told("other") == "knowledge_base_not_found"
        await knowledge.create("physics")
        assert told() == "knowledge_base_unprepared"
        school.reader.failures["notes.txt"] = DocumentUnreadable(
            name="notes.txt", problem="it is locked", problem_zh="已加密"
        )
        school.embeddings.gate.clear()
        await school.upload("physics", "optics.txt", OPTICS)
        info = await school.upload("physics", "notes.txt", MECHANICS)
        assert told() == "knowledge_base_unprepared"
        school.embeddings.gate.set()
        await school.indexed("physics")
        assert told() is None
        await knowledge.remove("physics", knowledge.documents("physics")[1].id)
        assert knowledge.documents("physics")[0].id == info.id
        assert told() == "knowledge_base_unreadable"
        path = knowledge.incoming("physics").parent / "base.db"
    await asyncio.to_thread(path.write_bytes, b"no database")
    async with school.open():
        assert told() == "knowledge_base_unreadable"


async def test_a_base_of_which_a_part_is_searched_needs_no_word(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await school.upload("physics", "notes.txt", MECHANICS)
        await school.upload("physics", "optics.txt", OPTICS)
        await school.indexed("physics")
        path = knowledge.incoming("physics").parent / "base.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE part SET seconds = 600")
        db.commit()
    school.embeddings = WordEmbeddings("another")
    async with school.open() as knowledge:
        notice = notice_of(knowledge, "physics")
        assert notice
        assert notice.code == "knowledge_base_unreadable"
        await knowledge.reindex("physics", knowledge.documents("physics")[0].id)
        await school.indexed("physics")
        assert knowledge.base("physics").state == "failed"
        assert notice_of(knowledge, "physics") is None
