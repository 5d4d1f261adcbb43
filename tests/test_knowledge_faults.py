"""Knowledge bases where something refuses: the index, another process, the folder, the end."""

from __future__ import annotations

import asyncio
import ctypes
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gpuserver.config import Settings
from gpuserver.course_errors import (
    DocumentNotFound,
    KnowledgeBaseBusy,
    KnowledgeBaseNotDeleted,
)
from gpuserver.errors import KnowledgeBaseNotFound, ProviderUnavailable
from gpuserver.knowledge import base_file, disk, indexing, opening, uploaded_base
from gpuserver.knowledge.info import DocumentInfo
from gpuserver.knowledge.vector_store import VectorStore
from gpuserver.providers import Vocabulary
from gpuserver.providers.numpy import NumpyIndex, NumpyVectors
from gpuserver.tutor.tutoring import Progress, Tutoring
from tests.fakes import Cast
from tests.knowledge_fakes import MECHANICS, OPTICS, SHIPPED, School, WordEmbeddings


class Gpu(NumpyIndex):
    """An index with room for so many rows at a time."""

    room = 1000

    def hold(self, matrix: NDArray[np.float32]) -> NumpyVectors:
        if self.room < 0:
            raise ValueError("a bug")
        if len(matrix) > self.room:
            raise ProviderUnavailable(problem="The GPU is full.", fix="free some of it.")
        return super().hold(matrix)


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def school(tmp_path: Path, gpu: Gpu) -> School:
    return School(tmp_path / "data", index=gpu)


async def physics(school: School) -> Path:
    """A base "physics" with one document; its folder."""
    knowledge = school.knowledge
    await knowledge.create("physics")
    await school.upload("physics", "notes.txt", MECHANICS)
    await school.indexed("physics")
    return knowledge.incoming("physics").parent


def old_version_answers(school: School) -> bool:
    found = school.find("friction of a sledge") and not school.find("how do lenses bend light")
    return bool(found)


# The index


async def test_an_index_without_room_leaves_the_old_version_everywhere(
    school: School, gpu: Gpu
) -> None:
    async with school.open() as knowledge:
        await physics(school)
        gpu.room = 2
        await school.upload("physics", "notes.txt", f"{OPTICS}\n\nPrisms split it.\n\nMirrors.")
        (failed,) = await school.indexed("physics")
        assert failed.problem
        assert (failed.state, failed.problem[0]) == ("failed", "provider_unavailable")
        assert (failed.answers, failed.passages) == (True, 2)
        assert old_version_answers(school)
        assert await knowledge.text("physics", failed.id) == MECHANICS
    async with school.open() as knowledge:
        assert knowledge.documents("physics") == [failed]
        assert old_version_answers(school)
        assert await knowledge.text("physics", failed.id) == MECHANICS
        gpu.room = 1000
        await knowledge.reindex("physics", failed.id)
        assert (await school.indexed("physics"))[0].state == "ready"
        assert school.find("how do lenses bend light")


async def test_a_bug_in_the_index_does_not_look_like_a_damaged_file(
    school: School, gpu: Gpu
) -> None:
    async with school.open():
        await physics(school)
        gpu.room = -1
        await school.upload("physics", "notes.txt", OPTICS)
        (failed,) = await school.indexed("physics")
        assert failed.problem
        assert (failed.state, failed.problem[0]) == ("failed", "internal_error")


async def test_an_index_without_room_keeps_what_is_to_be_removed(school: School, gpu: Gpu) -> None:
    async with school.open() as knowledge:
        await physics(school)
        info = await school.upload("physics", "optics.txt", OPTICS)
        await school.indexed("physics")
        gpu.room = 1
        with pytest.raises(ProviderUnavailable):
            await knowledge.remove("physics", info.id)
        assert school.find("how do lenses bend light")
        gpu.room = 1000
        await knowledge.remove("physics", info.id)
        assert not school.find("how do lenses bend light")


# The end in the middle of the first indexing


def test_what_was_embedded_before_the_end_is_kept(tmp_path: Path) -> None:
    class Ends(Exception):
        pass

    def told(done: int, total: int) -> None:
        raise Ends

    texts = [f"Sledge {n}." for n in range(200)]
    first, second = WordEmbeddings(), WordEmbeddings()
    with pytest.raises(Ends):
        VectorStore(tmp_path / "v", first).vectors(texts, told)
    assert 0 < len(first.texts) < 200
    VectorStore(tmp_path / "v", second).vectors(texts, lambda done, total: None)
    assert second.texts == texts[len(first.texts) :]


async def test_the_server_stops_between_two_batches_of_its_first_indexing(
    make_settings: Callable[..., Settings], cast: Cast, tmp_path: Path
) -> None:
    course = tmp_path / "course" / "en" / "02-sledges.md"
    sections = [f"## Sledge {n}\n\nIt is sledge {n}.\n" for n in range(1000)]
    await asyncio.to_thread(course.write_text, "# Sledges\n\n" + "\n".join(sections))
    gate = cast.embeddings.fails["100"] = threading.Event()
    made: list[int] = []

    def told(progress: Progress) -> None:
        if progress.stage == "course":
            made.append(progress.done)

    settings = make_settings()
    house = await asyncio.to_thread(lambda: Tutoring(settings, told, cast.find))
    loading = asyncio.create_task(house.load())
    while not made:
        await asyncio.sleep(0.01)
    loading.cancel()
    await asyncio.sleep(0.05)
    gate.set()
    await asyncio.wait([loading])
    await house.close()
    assert max(made) < 300
    assert len(list((settings.data_dir / "vectors").glob("*.vectors"))) == 1


# Another process


async def being_indexed(school: School, name: str) -> DocumentInfo:
    """A document of "physics" whose texts wait to be embedded."""
    school.embeddings.gate.clear()
    info = await school.upload("physics", name, OPTICS)
    await school.until(lambda: school.knowledge.document("physics", info.id).state == "indexing")
    return info


@contextmanager
def held(folder: Path, how: str = "BEGIN EXCLUSIVE") -> Iterator[None]:
    """Another process has the file of a base, as a backup does."""
    with closing(sqlite3.connect(folder / "base.db", isolation_level=None)) as db:
        db.execute(how)
        if how == "BEGIN":
            db.execute("SELECT * FROM document").fetchall()
        yield
        db.execute("ROLLBACK")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_file, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(opening, "RETRY_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_a_held_file_is_busy_and_not_damaged(school: School) -> None:
    async with school.open() as knowledge:
        folder = await physics(school)
        (info,) = knowledge.documents("physics")
        with held(folder, "BEGIN"):  # it only reads
            with pytest.raises(KnowledgeBaseBusy):
                await school.upload("physics", "optics.txt", OPTICS)
            with pytest.raises(KnowledgeBaseBusy):
                await knowledge.remove("physics", info.id)
            assert knowledge.base("physics").state == "ready"
            assert school.find("friction of a sledge")
        await school.upload("physics", "optics.txt", OPTICS)
        assert {one.state for one in await school.indexed("physics")} == {"ready"}


async def test_many_who_ask_for_a_held_file_wait_together(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_file, "BUSY_SECONDS", 1.0)
    async with school.open() as knowledge:
        folder = await physics(school)
        (info,) = knowledge.documents("physics")
        with held(folder):
            async with asyncio.timeout(5):  # one after another they would take eight seconds
                asked = [knowledge.text("physics", info.id) for _ in range(8)]
                told = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in told} == {KnowledgeBaseBusy}
        assert await knowledge.text("physics", info.id) == MECHANICS


@pytest.mark.usefixtures("impatient")
async def test_a_document_waits_for_a_file_that_is_held(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "BUSY_TRIES", 1000)
    async with school.open() as knowledge:
        folder = await physics(school)
        info = await being_indexed(school, "optics.txt")
        with held(folder, "BEGIN"):
            school.embeddings.gate.set()
            await asyncio.sleep(0.2)
            assert knowledge.document("physics", info.id).state == "indexing"
        await school.indexed("physics")
        assert knowledge.document("physics", info.id).state == "ready"
        assert sum("Lenses" in text for text in school.embeddings.texts) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_document_that_was_read_waits_for_a_file_that_nobody_may_read(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "BUSY_TRIES", 1000)
    async with school.open() as knowledge:
        folder = await physics(school)
        read = school.reader.gates["optics.txt"] = asyncio.Event()
        info = await school.upload("physics", "optics.txt", OPTICS)
        await school.until(lambda: knowledge.document("physics", info.id).state == "reading")
        with held(folder):
            read.set()
            await school.until(lambda: knowledge.document("physics", info.id).state == "indexing")
            await asyncio.sleep(0.3)
            assert knowledge.document("physics", info.id).state == "indexing"
        await school.indexed("physics")
        assert school.find("how do lenses bend light")


@pytest.mark.usefixtures("impatient")
async def test_a_document_does_not_wait_for_ever(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "BUSY_TRIES", 2)
    async with school.open() as knowledge:
        folder = await physics(school)
        info = await being_indexed(school, "notes.txt")
        with held(folder, "BEGIN"):
            school.embeddings.gate.set()
            (failed,) = await school.indexed("physics")
        assert failed.problem
        assert failed.problem[0] == "knowledge_base_busy"
        assert old_version_answers(school)
        await knowledge.reindex("physics", info.id)
        await school.indexed("physics")
        assert school.find("how do lenses bend light")


@pytest.mark.usefixtures("impatient")
async def test_a_base_that_is_held_at_the_start_comes_later(school: School) -> None:
    async with school.open(working=False) as knowledge:
        await knowledge.create("physics")
        await school.upload("physics", "notes.txt", MECHANICS)
        folder = knowledge.incoming("physics").parent
    cut = folder / "incoming" / "cut.upload"
    await asyncio.to_thread(cut.write_text, "half of a lesson")
    with held(folder):
        opened = school.open()
        knowledge = await opened.__aenter__()
        base = knowledge.base("physics")
        assert base.problem
        assert (base.state, base.problem[0]) == ("failed", "knowledge_base_busy")
        with pytest.raises(KnowledgeBaseBusy):
            knowledge.incoming("physics")
    try:
        await school.until(lambda: knowledge.base("physics").state != "failed")
        (ready,) = await school.indexed("physics")
        assert ready.state == "ready"
        assert school.find("friction of a sledge")
        assert not await asyncio.to_thread(cut.exists)
    finally:
        await opened.__aexit__(None, None, None)


@pytest.mark.usefixtures("impatient")
async def test_a_held_base_that_is_deleted_does_not_come_back(school: School) -> None:
    async with school.open() as knowledge:
        folder = await physics(school)
    with held(folder):
        async with school.open() as knowledge:
            await knowledge.delete("physics")
            await asyncio.sleep(0.3)
            assert not knowledge.known("physics")
            assert not school.find("friction of a sledge")


# A folder that can't be removed


@contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Nothing can be made, renamed or removed in these folders, by root neither."""
    modes = [(folder, folder.stat().st_mode) for folder in folders]
    for folder in folders:
        folder.chmod(0o500)
    try:
        with overruling_nothing():
            yield
    finally:
        for folder, mode in modes:
            folder.chmod(mode)


@contextmanager
def overruling_nothing() -> Iterator[None]:
    """This thread, and those that it starts, may not write what its modes forbid (capset(2))."""
    libc, words = ctypes.CDLL(None), ctypes.c_uint32 * 6
    version = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = words()
    assert libc.capget(version, before) == 0
    mortal = words(*before)
    mortal[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(version, mortal) == 0
    try:
        yield
    finally:
        assert libc.capset(version, before) == 0


async def kept_base(school: School) -> Path:
    async with school.open():
        return await physics(school)


def test_a_deleted_base_that_can_not_be_moved_does_not_come_back(school: School) -> None:
    folder = asyncio.run(kept_base(school))

    async def delete() -> None:
        async with school.open() as knowledge:
            await knowledge.delete("physics")
            assert not knowledge.known("physics")
            with pytest.raises(KnowledgeBaseNotDeleted):
                await knowledge.create("physics")

    with read_only(folder.parent, folder / "originals"):
        asyncio.run(delete())
    assert list((folder / "originals").iterdir())  # it could not be removed

    async def again() -> None:
        async with school.open() as knowledge:
            assert knowledge.bases() == []
            assert not school.find("friction of a sledge")
        assert not await asyncio.to_thread(school.on_disk, "sledge")
        async with school.open() as knowledge:
            assert (await knowledge.create("physics")).documents == 0

    asyncio.run(again())


def test_a_base_that_can_not_be_deleted_at_all_stays_whole(school: School) -> None:
    folder = asyncio.run(kept_base(school))
    (folder / "base.json").chmod(0o400)

    async def delete() -> None:
        async with school.open() as knowledge:
            with pytest.raises(KnowledgeBaseNotDeleted):
                await knowledge.delete("physics")
            assert knowledge.base("physics").state == "ready"
            assert school.find("friction of a sledge")

    with read_only(folder.parent, folder):
        asyncio.run(delete())


def test_a_document_whose_file_can_not_be_removed_is_gone_all_the_same(school: School) -> None:
    folder = asyncio.run(kept_base(school))

    async def remove() -> None:
        async with school.open() as knowledge:
            await knowledge.remove("physics", knowledge.documents("physics")[0].id)
            assert knowledge.documents("physics") == []
            assert not school.find("friction of a sledge")

    with read_only(folder / "originals"):
        asyncio.run(remove())
    assert school.on_disk("sledge")

    async def again() -> None:
        async with school.open() as knowledge:
            assert knowledge.documents("physics") == []

    asyncio.run(again())
    assert not school.on_disk("sledge")


async def test_of_two_who_delete_at_once_one_is_told_that_it_is_gone(school: School) -> None:
    async with school.open() as knowledge:
        await physics(school)
        ended = await asyncio.gather(
            *(knowledge.delete("physics") for _ in range(2)), return_exceptions=True
        )
        assert sorted(map(type, ended), key=str) == [type(None), KnowledgeBaseNotFound]
        assert (await knowledge.create("physics")).documents == 0


async def test_what_is_being_removed_is_gone_and_not_damaged(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(paths: Iterable[Path]) -> None:
        begun.set()
        assert go_on.wait(30)
        disk.remove_all(paths)

    async with school.open() as knowledge:
        await physics(school)
        (info,) = knowledge.documents("physics")
        monkeypatch.setattr(uploaded_base, "remove_all", slowly)
        deleting = asyncio.create_task(knowledge.delete("physics"))
        await asyncio.to_thread(begun.wait, 30)
        with pytest.raises((KnowledgeBaseNotFound, DocumentNotFound)):
            await knowledge.text("physics", info.id)
        with pytest.raises(KnowledgeBaseNotFound):
            knowledge.incoming("physics")
        assert not school.find("friction of a sledge")
        go_on.set()
        await deleting
        assert not await asyncio.to_thread(school.on_disk, "sledge")


# What the recogniser keeps


async def test_a_dictionary_goes_with_its_base(school: School) -> None:
    school.courses["python"] = SHIPPED
    words = {name: Vocabulary((name,), (name,)) for name in ("sledge", "python", "both", "lost")}

    async def keep(name: str, *kb_ids: str) -> None:
        def write() -> None:
            folder = kept / words[name].digest
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "words.dict").write_text(name)
            if kb_ids:
                school.knowledge.listened_for(words[name], kb_ids)

        await asyncio.to_thread(write)

    async def names() -> set[str]:
        return await asyncio.to_thread(
            lambda: {path.read_text() for path in kept.glob("*/words.dict")}
        )

    kept = school.folder / "vocabulary"
    async with school.open() as knowledge:
        await physics(school)
        half_made = kept / ".new-1"
        await asyncio.to_thread(half_made.mkdir, parents=True)
        await keep("python", "python")
        await keep("sledge", "physics")
        (info,) = knowledge.documents("physics")
        await knowledge.remove("physics", info.id)
        assert await names() == {"python"}
        await keep("both", "physics", "python")
        await knowledge.delete("physics")
        assert await names() == {"python"}
        assert await asyncio.to_thread(half_made.is_dir)  # a recogniser is writing there
        await keep("lost")
        await keep("both", "physics", "python")
    async with school.open():
        assert await names() == {"python"}
        assert not await asyncio.to_thread(half_made.is_dir)
    del school.courses["python"]
    async with school.open():
        assert await names() == set()
