"""Knowledge bases on the disk: damaged, full, of another model, exported and imported."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import resource
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from gpuserver.config import Settings
from gpuserver.course_errors import (
    ArchiveUnsafe,
    DiskFull,
    DocumentTypeUnknown,
    KnowledgeBaseDamaged,
    KnowledgeBaseExists,
    KnowledgeBaseIdInvalid,
    TooManyDocuments,
)
from gpuserver.errors import GpuServerError
from gpuserver.knowledge.disk import full_disk_told, write_whole
from gpuserver.knowledge.info import DocumentInfo
from gpuserver.providers import Place
from gpuserver.providers.minilm import MiniLMEmbeddings
from gpuserver.tutor.tutoring import Tutoring
from tests.fakes import Cast
from tests.knowledge_fakes import MECHANICS, OPTICS, School, ScriptedReader, WordEmbeddings

pytestmark = pytest.mark.slow


@pytest.fixture
def school(tmp_path: Path) -> School:
    return School(tmp_path / "data")


async def two_bases(school: School) -> Path:
    """Bases "physics" and "other", indexed and closed; returns the file of the first."""
    async with school.open() as knowledge:
        await knowledge.create("physics", "Physics")
        await school.upload("physics", "notes.txt", MECHANICS)
        await school.indexed("physics")
        folder = knowledge.incoming("physics").parent
        await knowledge.create("other")
        await school.upload("other", "notes.txt", OPTICS)
        await school.indexed("other")
    return folder / "base.db"


# Damaged files


def overwritten(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def bits_changed(path: Path) -> None:
    with sqlite3.connect(path) as db:
        size = db.execute("SELECT length(vectors) FROM part").fetchone()[0]
        db.execute("UPDATE part SET vectors = zeroblob(?)", (size,))
    db.close()


def words_changed(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE passage SET text = 'Something else.'")
    db.close()


def passages_lost(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM passage WHERE n = 2")
    db.close()


def time_lost(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE document SET updated_at = 1e300")
    db.close()


@pytest.mark.parametrize(
    "damage",
    [
        overwritten,
        truncated,
        emptied,
        Path.unlink,
        bits_changed,
        words_changed,
        passages_lost,
        time_lost,
    ],  # fmt: skip
)
async def test_a_damaged_file_is_one_bases_trouble(
    school: School, damage: Callable[[Path], None]
) -> None:
    path = await two_bases(school)
    await asyncio.to_thread(damage, path)
    async with school.open() as knowledge:
        base = knowledge.base("physics")
        assert base.state == "failed"
        assert base.problem
        assert base.problem[0] == "knowledge_base_damaged"
        assert base.title == "Physics"
        assert str(school.folder) not in base.problem[1]
        assert school.find("friction of a sledge") == []
        with pytest.raises(KnowledgeBaseDamaged):
            knowledge.incoming("physics")
        with pytest.raises(KnowledgeBaseDamaged):
            await knowledge.export("physics", school.folder)
        assert knowledge.base("other").state == "ready"
        assert school.find("how do lenses bend light", "other", "physics")
        await knowledge.delete("physics")
        await knowledge.create("physics")
        await school.upload("physics", "notes.txt", MECHANICS)
        await school.indexed("physics")
        assert school.find("friction of a sledge")


async def test_a_base_that_lost_its_name_can_still_be_deleted(school: School) -> None:
    path = await two_bases(school)
    await asyncio.to_thread(path.with_name("base.json").write_text, "{")
    async with school.open() as knowledge:
        assert [base.kb_id for base in knowledge.bases()] == ["other"]
        with pytest.raises(KnowledgeBaseExists):
            await knowledge.create("physics")
        await knowledge.delete("physics")
        assert (await knowledge.create("physics")).documents == 0


async def test_a_base_of_a_newer_version_is_left_alone(school: School) -> None:
    path = await two_bases(school)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    async with school.open() as knowledge:
        base = knowledge.base("physics")
        assert base.problem
        assert "newer gpuserver" in base.problem[1]


async def test_words_of_an_older_version_are_made_again(school: School) -> None:
    path = await two_bases(school)
    async with school.open(working=False):
        pass
    keep = school.embeddings.texts[:]
    # What an older version wrote is whole, and no longer what this one reads.
    db = sqlite3.connect(path)
    found = hashlib.sha256()
    starts, keys, vectors = db.execute("SELECT starts, keys, vectors FROM part").fetchone()
    for column in (b"old", starts, keys, vectors):
        found.update(len(column).to_bytes(8, "big") + column)
    for row in db.execute("SELECT n, document, heading, page, text FROM passage ORDER BY n"):
        found.update(orjson.dumps(row))
    db.execute("UPDATE part SET terms = ?, digest = ?", (b"old", found.digest()))
    db.commit()
    db.close()
    async with school.open() as knowledge:
        assert knowledge.base("physics").state != "failed"
        assert school.find("friction of a sledge")
        await school.indexed("physics")
    db = sqlite3.connect(path)
    assert db.execute("SELECT terms FROM part").fetchone() != (b"old",)
    db.close()
    assert school.embeddings.texts == keep


# Another embedding model


async def test_vectors_of_another_model_are_made_again(school: School) -> None:
    await two_bases(school)
    school.embeddings, school.reader = WordEmbeddings("another"), ScriptedReader()
    school.embeddings.gate.clear()
    async with school.open() as knowledge:
        await school.until(lambda: knowledge.base("physics").state == "indexing")
        # Meanwhile its words answer.
        assert school.find("friction of a moving sledge")
        assert knowledge.documents("physics")[0].answers
        school.embeddings.gate.set()
        (info,) = await school.indexed("physics")
        assert info.state == "ready"
        assert any("sledge" in text for text in school.embeddings.texts)
        assert school.reader.read == []
        assert await knowledge.text("physics", info.id) == MECHANICS
    school.embeddings = WordEmbeddings("another")
    async with school.open() as knowledge:
        assert knowledge.base("physics").state == "ready"
        assert school.embeddings.texts == []


async def test_vectors_that_took_long_are_not_thrown_away(school: School) -> None:
    path = await two_bases(school)
    db = sqlite3.connect(path)
    db.execute("UPDATE part SET seconds = 600")
    db.commit()
    db.close()
    school.embeddings = WordEmbeddings("another")
    async with school.open() as knowledge:
        base = knowledge.base("physics")
        assert base.problem
        assert (base.state, base.problem[0]) == ("failed", "knowledge_base_outdated")
        for word in ("words", "another", "10 minutes", "EMBEDDINGS_MODEL"):
            assert word in base.problem[1]
        assert "EMBEDDINGS_MODEL" in base.problem_zh
        assert not knowledge.documents("physics")[0].answers
        assert school.find("friction of a sledge") == []
    school.embeddings = WordEmbeddings()
    async with school.open() as knowledge:
        assert knowledge.base("physics").state == "ready"
        assert school.find("friction of a sledge")
    assert school.embeddings.texts == []
    school.embeddings = WordEmbeddings("another")
    async with school.open() as knowledge:
        await knowledge.reindex("physics", knowledge.documents("physics")[0].id)
        await school.indexed("physics")
        assert knowledge.base("physics").state == "ready"
        assert school.find("friction of a sledge")


# A full disk


@contextmanager
def full_disk() -> Iterator[None]:
    """Files can't grow: what a quota that is used up does, and nearly what a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_an_upload_to_a_full_disk_changes_nothing(school: School) -> None:
    await two_bases(school)
    async with school.open() as knowledge:
        (before,) = knowledge.documents("physics")
        original = await knowledge.original("physics", before.id)
        for name in ("notes.txt", "new.txt"):
            scratch = knowledge.incoming("physics") / "scratch"
            await asyncio.to_thread(scratch.write_text, OPTICS)
            with full_disk(), pytest.raises(DiskFull):
                await knowledge.add("physics", name, scratch)
            assert not await asyncio.to_thread(scratch.exists)
        with full_disk(), pytest.raises(DiskFull):
            await knowledge.create("third")
        with full_disk(), pytest.raises(DiskFull):
            await knowledge.export("physics", school.folder)
        assert not knowledge.known("third")
        assert knowledge.documents("physics") == [before]
        assert await asyncio.to_thread(lambda: list(original.parent.iterdir())) == [original]
        assert school.find("friction of a sledge")
        with full_disk(), pytest.raises(DiskFull):
            await knowledge.remove("physics", before.id)
        assert knowledge.documents("physics") == [before]
        await school.upload("physics", "notes.txt", OPTICS)
        await school.indexed("physics")
        assert school.find("how do lenses bend light")
    left = await asyncio.to_thread(
        lambda: [p.name for p in (school.folder / "knowledge").iterdir()]
    )
    assert not [name for name in left if name.startswith(".going")]


async def test_a_disk_that_fills_while_a_document_is_indexed(school: School) -> None:
    await two_bases(school)
    async with school.open() as knowledge:
        school.embeddings.gate.clear()
        info = await school.upload("physics", "notes.txt", OPTICS)
        await school.until(lambda: knowledge.document("physics", info.id).state == "indexing")
        with full_disk():
            school.embeddings.gate.set()
            (failed,) = await school.indexed("physics")
        assert failed.problem
        assert (failed.state, failed.problem[0]) == ("failed", "disk_full")
        assert school.find("friction of a sledge")
        assert not school.find("how do lenses bend light")
        await knowledge.reindex("physics", info.id)
        assert (await school.indexed("physics"))[0].state == "ready"
        assert school.find("how do lenses bend light")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_way_to_say_that_there_is_no_room(number: int) -> None:
    with pytest.raises(DiskFull), full_disk_told():
        raise OSError(number, "no room")
    with pytest.raises(PermissionError), full_disk_told():
        raise PermissionError(errno.EACCES, "not yours")


def test_a_small_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"first")
    with full_disk(), pytest.raises(DiskFull):
        write_whole(tmp_path / "a", b"second")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"first")]


# Zips


def zipped(path: Path, content: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return path


async def take(
    school: School, kb_id: str, content: Mapping[str, str], name: str = "all.zip"
) -> list[DocumentInfo]:
    path = school.knowledge.incoming(kb_id) / "scratch"
    await asyncio.to_thread(zipped, path, content)
    try:
        return await school.knowledge.add(kb_id, name, path)
    finally:
        left = await asyncio.to_thread(lambda: list(school.knowledge.incoming(kb_id).iterdir()))
        assert left == []


async def test_a_zip_gives_many_documents(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        content = {
            "course/week 1/notes.txt": MECHANICS,
            "course/week 2/notes.txt": OPTICS,
            "course/magnets.txt": "Magnets attract iron nails.",
            "course/photo.jpg": "no text",
        }
        infos = await take(school, "physics", content)
        names = ["course - week 1 - notes.txt", "course - week 2 - notes.txt", "magnets.txt"]
        assert sorted(info.name for info in infos) == names
        assert all(info.state == "ready" for info in await school.indexed("physics"))
        assert school.find("which nails do magnets attract")
        again = await take(school, "physics", content)
        assert {info.state for info in again} == {"ready"}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"../../escape.txt": "x"}, ArchiveUnsafe),
        ({"photo.jpg": "x"}, DocumentTypeUnknown),
        ({"zeros.txt": "0" * (30 << 20)}, GpuServerError),
        ({f"{n}.txt": "x" for n in range(4)}, TooManyDocuments),
    ],
)
async def test_a_zip_that_is_refused_leaves_nothing(
    school: School, content: Mapping[str, str], error: type[GpuServerError]
) -> None:
    school.settings = Settings(max_upload_mb=1, max_documents=4)
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await school.upload("physics", "first.txt", MECHANICS)
        with pytest.raises(error):
            await take(school, "physics", content)
        assert [info.name for info in await school.indexed("physics")] == ["first.txt"]
        assert not list(school.folder.parent.rglob("escape.txt"))


# Export and import


async def exported(school: School) -> Path:
    await two_bases(school)
    async with school.open() as knowledge:
        await school.upload("physics", "中文.txt", "苹果因为重力而下落。")
        await school.indexed("physics")
        return await knowledge.export("physics", school.folder)


async def test_a_base_goes_out_and_comes_in(school: School) -> None:
    path = await exported(school)
    async with school.open() as knowledge:
        scratch = knowledge.importing() / "scratch"
        for kb_id, wanted in ((None, "physics"), ("copy", "copy")):
            if kb_id is None:
                await knowledge.delete("physics")
            await asyncio.to_thread(scratch.write_bytes, path.read_bytes())
            made = await knowledge.import_(scratch, kb_id)
            assert (made.kb_id, made.title, made.documents) == (wanted, "Physics", 2)
            infos = await school.indexed(wanted)
            assert [info.name for info in infos] == ["notes.txt", "中文.txt"]
            assert school.find("friction of a sledge", wanted)
            assert knowledge.find("苹果为什么下落", "zh", [wanted])[0]
        await asyncio.to_thread(scratch.write_bytes, path.read_bytes())
        with pytest.raises(KnowledgeBaseExists):
            await knowledge.import_(scratch)
        assert not await asyncio.to_thread(scratch.exists)


async def test_a_full_base_comes_in_again(school: School) -> None:
    path = await exported(school)
    school.settings = Settings(max_documents=2)
    async with school.open() as knowledge:
        scratch = knowledge.importing() / "scratch"
        await asyncio.to_thread(scratch.write_bytes, path.read_bytes())
        assert (await knowledge.import_(scratch, "copy")).documents == 2


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, ArchiveUnsafe),
        ({"documents/a.txt": "x"}, ArchiveUnsafe),
        ({"manifest.json": "["}, ArchiveUnsafe),
        ({"manifest.json": "[]"}, ArchiveUnsafe),
        (
            {"manifest.json": {"format": 2, "kb_id": "x", "title": "", "documents": []}},
            ArchiveUnsafe,
        ),
        (
            {"manifest.json": {"format": 1, "kb_id": "../x", "title": "", "documents": []}},
            KnowledgeBaseIdInvalid,
        ),
        (
            {
                "manifest.json": {"format": 1, "kb_id": "x", "title": "", "documents": ["a.txt"]},
                "../../a.txt": "escape",
            },
            ArchiveUnsafe,
        ),
    ],
)
async def test_an_import_that_is_refused_leaves_nothing(
    school: School, content: Mapping[str, object] | None, error: type[GpuServerError]
) -> None:
    async with school.open() as knowledge:
        scratch = knowledge.importing() / "scratch"
        if content is None:
            await asyncio.to_thread(scratch.write_bytes, b"no zip")
        else:
            texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in content.items()}
            await asyncio.to_thread(zipped, scratch, texts)
        with pytest.raises(error):
            await knowledge.import_(scratch)
        assert knowledge.bases() == []
        assert not await asyncio.to_thread(scratch.exists)
        kept = await asyncio.to_thread(lambda: list((school.folder / "knowledge").iterdir()))
        assert kept == [knowledge.importing()]


# The whole of it: real documents, real embeddings


async def test_a_running_server_indexes_what_is_uploaded(
    make_settings: Callable[..., Settings], cast: Cast
) -> None:
    tutoring = await asyncio.to_thread(lambda: Tutoring(make_settings(), factory=cast.find))
    async with tutoring.running():
        await tutoring.load()
        knowledge = tutoring.knowledge
        assert [base.kb_id for base in knowledge.bases()] == ["loops"]
        await knowledge.create("physics")
        scratch = knowledge.incoming("physics") / "scratch"
        text = "# Motion\n\n## Friction\n\nFriction slows a moving sledge.\n"
        await asyncio.to_thread(scratch.write_text, text)
        await knowledge.add("physics", "motion.md", scratch)
        async with asyncio.timeout(30):
            async for change in knowledge.watch("physics"):
                if isinstance(change, tuple) and change[1].state in {"ready", "failed"}:
                    break
        (info,) = knowledge.documents("physics")
        assert (info.problem, info.state) == (None, "ready")
        it, _, _ = await knowledge.passage("physics", info.id, 1)
        assert "sledge" in it.text
    await tutoring.close()


async def test_with_the_embeddings_that_come_along(school: School, tmp_path: Path) -> None:
    embeddings = MiniLMEmbeddings("", Place(tmp_path))
    await asyncio.to_thread(embeddings.load)
    school.embeddings = embeddings  # type: ignore[assignment]
    async with school.open():
        await school.knowledge.create("physics")
        text = "\n\n".join(f"Remark {n}: a sledge number {n} slides on." for n in range(200))
        await school.upload("physics", "notes.txt", f"{MECHANICS}\n\n{text}")
        await school.until(lambda: school.knowledge.documents("physics")[0].done > 0)
        began = time.monotonic()
        # The server stops in the middle: it does not wait for the rest.
    assert time.monotonic() - began < 10
    async with school.open():
        await school.indexed("physics")
        found = school.find("what pulls an apple down")
        assert found[0] == "Gravity pulls every apple down."
    await asyncio.to_thread(embeddings.close)
