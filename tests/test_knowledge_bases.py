"""Knowledge bases as teachers change them: uploaded, replaced, removed, interrupted, restarted."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from gpuserver.config import Settings
from gpuserver.course_errors import (
    DocumentEmpty,
    DocumentNameInvalid,
    DocumentNotFound,
    DocumentTooLarge,
    DocumentTypeUnknown,
    DocumentUnreadable,
    KnowledgeBaseExists,
    KnowledgeBaseIdInvalid,
    KnowledgeBaseReadOnly,
    PassageNotFound,
    TooManyDocuments,
)
from gpuserver.errors import KnowledgeBaseNotFound
from gpuserver.knowledge.carrying import carry_out, given_away
from gpuserver.knowledge.info import BaseInfo, DocumentInfo, Removed
from tests.knowledge_fakes import MECHANICS, OPTICS, SHIPPED, School, ScriptedReader, WordEmbeddings


@pytest.fixture
def school(tmp_path: Path) -> School:
    return School(tmp_path / "data")


# What a base and a document may be called

BAD_IDS = [
    "", ".", "..", "../../etc", "/etc/passwd", "a/b", "a\\b", "%2e%2e%2f", "a\0b", "a\n", "-a",
    "a.", "рhysics", "physics９", "ﬁ", "x" * 65, "x" * 4096, "a b", "~root", ".hidden",
    "events", "Import",
]  # fmt: skip


@pytest.mark.parametrize("kb_id", BAD_IDS)
async def test_an_id_is_never_a_path(school: School, kb_id: str) -> None:
    async with school.open() as knowledge:
        before = sorted(school.folder.parent.rglob("*"))
        with pytest.raises(KnowledgeBaseIdInvalid):
            await knowledge.create(kb_id)
        for ask in (knowledge.base, knowledge.documents, knowledge.incoming, knowledge.watch):
            with pytest.raises(KnowledgeBaseNotFound):
                ask(kb_id)
        with pytest.raises(KnowledgeBaseNotFound):
            await knowledge.delete(kb_id)
        assert not knowledge.known(kb_id)
        assert knowledge.find("gravity", "en", [kb_id])[0] == []
        assert sorted(school.folder.parent.rglob("*")) == before


async def test_ids_that_differ_in_case_only_are_one(school: School) -> None:
    school.courses["Python"] = SHIPPED
    async with school.open() as knowledge:
        made = await asyncio.gather(
            *(knowledge.create(kb_id) for kb_id in ("physics", "Physics", "PHYSICS")),
            return_exceptions=True,
        )
        assert [type(x) for x in made].count(BaseInfo) == 1
        assert [type(x) for x in made].count(KnowledgeBaseExists) == 2
        with pytest.raises(KnowledgeBaseExists):
            await knowledge.create("python")
        assert len(knowledge.bases()) == 2


@pytest.mark.parametrize(
    ("name", "kept"),
    [("../../etc/notes.txt", "notes.txt"), ("C:\\school\\notes.txt", "notes.txt")],
)
async def test_a_name_is_never_a_path(school: School, name: str, kept: str) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        assert (await school.upload("physics", name, MECHANICS)).name == kept


@pytest.mark.parametrize("name", ["", "..", "a/", "a\0.txt", "a\n.txt", "x" * 201 + ".txt"])
async def test_a_name_that_is_none(school: School, name: str) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        with pytest.raises(DocumentNameInvalid):
            await school.upload("physics", name, MECHANICS)
        assert knowledge.documents("physics") == []


# The life of a document


async def test_an_upload_becomes_searchable(school: School) -> None:
    async with school.open() as knowledge:
        made = await knowledge.create("physics", "  Physics,\n year 9 ")
        assert (made.title, made.state, made.documents) == ("Physics, year 9", "ready", 0)
        queued = await school.upload("physics", "mechanics.txt", MECHANICS)
        assert (queued.state, queued.answers) == ("queued", False)
        (ready,) = await school.indexed("physics")
        assert (ready.state, ready.id, ready.passages, ready.pages) == ("ready", queued.id, 2, 2)
        assert ready.answers
        assert len(ready.id) == 16
        (found,) = knowledge.find("what pulls an apple", "en", ["physics"])[0][:1]
        assert (found.document, found.document_id, found.n, found.page) == (
            "mechanics", ready.id, 2, 2,
        )  # fmt: skip
        assert await knowledge.text("physics", ready.id) == MECHANICS
        it, before, after = await knowledge.passage("physics", ready.id, 2)
        assert (it.text, before and before.n, after) == (found.text, 1, None)
        original = await knowledge.original("physics", ready.id)
        assert original.read_text() == MECHANICS
        assert original.stat().st_mode & 0o077 == 0
        base = knowledge.base("physics")
        assert (base.documents, base.passages, base.languages) == (1, 2, ("en",))
        assert base.bytes == len(MECHANICS)


async def test_what_there_is_not(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        info = await school.upload("physics", "mechanics.txt", MECHANICS)
        await school.indexed("physics")
        for n in (0, -1, 3):
            with pytest.raises(PassageNotFound):
                await knowledge.passage("physics", info.id, n)
        for ask in (knowledge.text, knowledge.original, knowledge.reindex, knowledge.remove):
            with pytest.raises(DocumentNotFound):
                await ask("physics", "../../etc")
        with pytest.raises(DocumentNotFound):
            await knowledge.passage("physics", "0" * 16, 1)


async def test_the_old_version_answers_until_the_new_one_is_ready(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        first = await school.upload("physics", "notes.txt", MECHANICS)
        await school.indexed("physics")
        gate = school.reader.gates["notes.txt"] = asyncio.Event()
        old = await knowledge.original("physics", first.id)
        second = await school.upload("physics", "notes.txt", OPTICS)
        assert second.id == first.id
        await school.until(lambda: knowledge.document("physics", first.id).state == "reading")
        assert knowledge.document("physics", first.id).answers
        assert school.find("friction of a sledge")
        assert not school.find("how do lenses bend light")
        gate.set()
        (ready,) = await school.indexed("physics")
        assert (ready.id, ready.passages, ready.bytes) == (first.id, 1, len(OPTICS))
        assert school.find("how do lenses bend light")
        assert not school.find("friction of a sledge")
        assert not await asyncio.to_thread(old.exists)


async def test_the_same_file_again_is_no_work(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await school.upload("physics", "notes.txt", MECHANICS)
        (ready,) = await school.indexed("physics")
        version = knowledge.version(["physics"])
        assert await school.upload("physics", "notes.txt", MECHANICS) == ready
        assert school.reader.read == ["notes.txt"]
        assert knowledge.version(["physics"]) == version


async def test_unchanged_paragraphs_keep_their_vectors(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await school.upload("physics", "notes.txt", MECHANICS)
        await school.indexed("physics")
        school.embeddings.texts.clear()
        await school.upload("physics", "notes.txt", f"{OPTICS}\n\n{MECHANICS}")
        await school.indexed("physics")
        assert [text for text in school.embeddings.texts if "Lenses" not in text] == []
        assert school.find("what pulls every apple") == ["Gravity pulls every apple down."]


@pytest.mark.parametrize("stage", ["queued", "reading", "indexing"])
async def test_of_two_uploads_at_once_the_later_wins(school: School, stage: str) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        gate = asyncio.Event()
        if stage == "indexing":
            school.embeddings.gate.clear()
        else:
            school.reader.gates["block.txt" if stage == "queued" else "notes.txt"] = gate
        if stage == "queued":
            await school.upload("physics", "block.txt", "Nothing of interest.")
        info = await school.upload("physics", "notes.txt", MECHANICS)
        await school.until(lambda: knowledge.document("physics", info.id).state == stage)
        again = await school.upload("physics", "notes.txt", OPTICS)
        assert again.id == info.id
        gate.set()
        school.embeddings.gate.set()
        infos = {info.name: info for info in await school.indexed("physics")}
        assert infos["notes.txt"].bytes == len(OPTICS)
        assert school.find("how do lenses bend light")
        assert not school.find("friction of a sledge")
        assert await knowledge.text("physics", info.id) == OPTICS


async def test_uploads_that_race_end_as_one_document(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        texts = [f"Chapter {n} is about sledges and friction." for n in range(8)]
        paths = [knowledge.incoming("physics") / str(n) for n in range(8)]
        for path, text in zip(paths, texts, strict=True):
            await asyncio.to_thread(path.write_text, text)
        await asyncio.gather(*(knowledge.add("physics", "notes.txt", path) for path in paths))
        (info,) = await school.indexed("physics")
        text = await knowledge.text("physics", info.id)
        assert text in texts
        assert school.find("sledges and friction") == [text]
        original = await knowledge.original("physics", info.id)
        assert await asyncio.to_thread(original.read_text) == text
        assert len(list(original.parent.iterdir())) == 1


async def test_a_document_may_get_a_file_of_another_name(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        info = await school.upload("physics", "draft.txt", MECHANICS)
        await school.upload("physics", "optics.txt", OPTICS)
        await school.indexed("physics")

        async def replace(name: str, text: str) -> DocumentInfo:
            scratch = knowledge.incoming("physics") / "scratch"
            await asyncio.to_thread(scratch.write_text, text)
            return await knowledge.replace("physics", info.id, name, scratch)

        with pytest.raises(DocumentNameInvalid):
            await replace("optics.txt", "Prisms split light.")
        with pytest.raises(DocumentTypeUnknown):
            await replace("all.zip", "Prisms split light.")
        assert (await replace("final.txt", "Prisms split light.")).id == info.id
        assert [d.name for d in await school.indexed("physics")] == ["final.txt", "optics.txt"]
        assert school.find("what do prisms split") == ["Prisms split light."]
        assert not school.find("friction of a sledge")


# What fails


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DocumentEmpty(name="notes.txt"), "document_empty"),
        (
            DocumentUnreadable(name="notes.txt", problem="it is locked", problem_zh="已加密"),
            "document_unreadable",
        ),
        (RuntimeError("a bug"), "internal_error"),
    ],
)
async def test_a_failure_leaves_the_old_version(
    school: School, error: Exception, code: str
) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await school.upload("physics", "notes.txt", MECHANICS)
        await school.indexed("physics")
        school.reader.failures["notes.txt"] = error
        await school.upload("physics", "notes.txt", OPTICS)
        await school.upload("physics", "other.txt", "Magnets attract iron nails.")
        failed, other = await school.indexed("physics")
        assert failed.problem
        assert (failed.state, failed.problem[0], failed.answers) == ("failed", code, True)
        assert failed.problem_zh
        assert other.state == "ready"
        assert school.find("friction of a sledge")
    async with school.open() as knowledge:
        assert knowledge.document("physics", failed.id) == failed
        assert school.find("friction of a sledge")
        school.reader.failures.clear()
        assert (await knowledge.reindex("physics", failed.id)).state == "queued"
        await school.indexed("physics")
        assert school.find("how do lenses bend light")
        assert knowledge.document("physics", failed.id).problem is None


async def test_what_is_refused_leaves_nothing(school: School) -> None:
    school.settings = Settings(max_documents=2, max_upload_mb=1)
    school.courses["python"] = SHIPPED
    async with school.open() as knowledge:
        await knowledge.create("physics")
        for name, text, error in (
            ("virus.exe", MECHANICS, DocumentTypeUnknown),
            ("big.txt", "x" * ((1 << 20) + 1), DocumentTooLarge),
        ):
            with pytest.raises(error):
                await school.upload("physics", name, text)
        await school.upload("physics", "one.txt", MECHANICS)
        await school.upload("physics", "two.txt", OPTICS)
        with pytest.raises(TooManyDocuments):
            await school.upload("physics", "three.txt", "Three.")
        await school.upload("physics", "two.txt", "Another optics.")
        assert len(await school.indexed("physics")) == 2
        assert not any(knowledge.incoming("physics").iterdir())
        for change in (knowledge.delete("python"), knowledge.remove("python", "en/lists")):
            with pytest.raises(KnowledgeBaseReadOnly):
                await change


# What is removed


@pytest.mark.parametrize("stage", ["queued", "reading", "indexing", "ready"])
@pytest.mark.parametrize("whole", [False, True])
async def test_what_is_deleted_leaves_nothing(school: School, stage: str, whole: bool) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await knowledge.create("other")
        kept = await school.upload("other", "kept.txt", OPTICS)
        await school.indexed("other")
        gate = asyncio.Event()
        if stage == "queued":
            school.reader.gates["block.txt"] = gate
            await school.upload("other", "block.txt", "Nothing of interest.")
        elif stage == "reading":
            school.reader.gates["notes.txt"] = gate
        elif stage == "indexing":
            school.embeddings.gate.clear()
        info = await school.upload("physics", "notes.txt", MECHANICS)
        await school.until(lambda: knowledge.document("physics", info.id).state == stage)
        assert await asyncio.to_thread(school.on_disk, "sledge")
        if whole:
            await knowledge.delete("physics")
            assert not knowledge.known("physics")
        else:
            await knowledge.remove("physics", info.id)
            assert knowledge.documents("physics") == []
        gate.set()
        school.embeddings.gate.set()
        await school.upload("other", "later.txt", "Magnets attract iron nails.")
        await school.indexed("other")
        assert not await asyncio.to_thread(school.on_disk, "sledge")
        assert not school.find("friction of a sledge", "physics", "other")
        assert knowledge.document("other", kept.id).answers
        assert school.find("how do lenses bend light", "other")
        if whole:
            await knowledge.create("physics")
            assert knowledge.documents("physics") == []
    async with school.open() as knowledge:
        assert knowledge.documents("physics") == []


async def test_searches_go_on_while_documents_come_and_go(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await school.upload("physics", "kept.txt", MECHANICS)
        await school.indexed("physics")
        over = threading.Event()

        def search() -> int:
            searches = 0
            while not over.is_set():
                assert "Gravity pulls every apple down." in school.find("gravity pulls an apple")
                searches += 1
            return searches

        work = asyncio.create_task(asyncio.to_thread(search))
        try:
            for _ in range(3):
                info = await school.upload("physics", "comes.txt", OPTICS)
                await school.indexed("physics")
                await knowledge.remove("physics", info.id)
        finally:
            over.set()
            assert await work > 0


# Restarts


@pytest.mark.parametrize("stage", ["queued", "reading", "indexing"])
async def test_a_restart_in_the_middle(school: School, stage: str) -> None:
    gate = school.reader.gates["notes.txt"] = asyncio.Event()
    async with school.open(working=stage != "queued") as knowledge:
        await knowledge.create("physics")
        if stage == "indexing":
            gate.set()
            school.embeddings.gate.clear()
            threading.Timer(0.3, school.embeddings.gate.set).start()
        info = await school.upload("physics", "notes.txt", MECHANICS)
        await school.until(lambda: knowledge.document("physics", info.id).state == stage)
    gate.set()
    async with school.open() as knowledge:
        (ready,) = await school.indexed("physics")
        assert (ready.id, ready.state) == (info.id, "ready")
        assert school.find("friction of a sledge")


async def test_an_upload_that_was_cut_off_is_swept_away(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await asyncio.to_thread(
            (knowledge.incoming("physics") / "half").write_text, "Half a sledge"
        )
        info = await school.upload("physics", "notes.txt", OPTICS)
        original = await knowledge.original("physics", info.id)
        await asyncio.to_thread(original.with_name("orphan").write_text, "Half a sledge")
    async with school.open():
        assert not await asyncio.to_thread(school.on_disk, "Half a sledge")
        assert await asyncio.to_thread(original.exists)


async def test_a_second_process_that_asks_removes_nothing(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await school.upload("physics", "notes.txt", MECHANICS)
        await school.indexed("physics")
        half = knowledge.incoming("physics") / "half"
        await asyncio.to_thread(half.write_text, "still coming in")
        asking = School(school.folder, WordEmbeddings(), school.reader)
        async with asking.open(working=False):
            assert asking.find("friction of a sledge")
        assert await asyncio.to_thread(half.exists)


async def test_a_caller_that_goes_away_leaves_no_document_behind(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        scratch = knowledge.incoming("physics") / "scratch"
        await asyncio.to_thread(scratch.write_text, MECHANICS)
        adding = asyncio.create_task(knowledge.add("physics", "notes.txt", scratch))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        adding.cancel()
        await asyncio.wait([adding])
        # Whichever came first: it is not there, or it is indexed.
        await asyncio.sleep(0.2)
        for info in await school.indexed("physics"):
            assert info.state == "ready"
        assert not await asyncio.to_thread(scratch.exists)


async def test_a_file_stays_until_who_reads_it_is_done(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    await asyncio.to_thread(scratch.write_text, MECHANICS)
    begun, go_on = threading.Event(), threading.Event()
    taken: list[str] = []

    def read() -> str:
        begun.set()
        go_on.wait(10)
        return scratch.read_text()

    async def take() -> None:
        async with given_away(scratch):
            await carry_out(read, taken.append)

    taking = asyncio.create_task(take())
    await asyncio.to_thread(begun.wait, 10)
    taking.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([taking])
    assert taking.cancelled()
    assert taken == [MECHANICS]
    assert not await asyncio.to_thread(scratch.exists)


async def test_a_restart_embeds_nothing_again(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics", "Physics")
        await school.upload("physics", "mechanics.txt", MECHANICS)
        await school.upload("physics", "zh.txt", "苹果因为重力而下落。")
        infos = await school.indexed("physics")
        base = knowledge.base("physics")
    school.embeddings, school.reader = WordEmbeddings(), ScriptedReader()
    async with school.open() as knowledge:
        assert knowledge.base("physics") == base
        assert knowledge.documents("physics") == infos
        assert school.find("friction of a sledge")
        assert knowledge.find("苹果为什么下落", "zh", ["physics"])[0]
        assert (school.embeddings.texts, school.reader.read) == ([], [])


# Bases beside each other


async def test_bases_are_indexed_in_turn(school: School) -> None:
    gate = school.reader.gates["a0.txt"] = asyncio.Event()
    async with school.open() as knowledge:
        for kb_id in ("aa", "bb"):
            await knowledge.create(kb_id)
        for n in range(3):
            await school.upload("aa", f"a{n}.txt", f"Sledge number {n}.")
        await school.upload("bb", "b0.txt", "Apples.")
        gate.set()
        await school.indexed("aa")
        await school.indexed("bb")
        assert school.reader.read.index("b0.txt") <= 2


async def test_a_base_holds_what_is_its_own(school: School) -> None:
    school.courses["python"] = SHIPPED
    async with school.open() as knowledge:
        for kb_id, text in (("physics", MECHANICS), ("secret", "Canary Zanzibar sings at dawn.")):
            await knowledge.create(kb_id)
            await school.upload(kb_id, "notes.txt", text)
            await school.indexed(kb_id)
        for question in ("canary zanzibar sings", "notes", "dawn"):
            for kb_ids in (["physics"], ["physics", "python"], [], ["Secret"], ["secret/"]):
                found = knowledge.find(question, "en", kb_ids)[0]
                assert not {p.kb_id for p in found} - set(kb_ids)
                assert not any("Canary" in p.text for p in found)
                assert not any(
                    "Canary" in hit.passage.text
                    for hit in knowledge.explain(question, "en", kb_ids)
                )
                assert "zanzibar" not in knowledge.vocabulary(kb_ids).words
        assert school.find("canary zanzibar sings", "secret", "physics")
        assert "zanzibar" in knowledge.vocabulary(["secret", "physics"]).words


async def test_the_vocabulary_follows_the_documents(school: School) -> None:
    school.courses["python"] = SHIPPED
    async with school.open() as knowledge:
        await knowledge.create("physics")
        both = ["physics", "python"]
        before = knowledge.vocabulary(both)
        assert "elif" in before.words
        assert knowledge.vocabulary(both) is before
        version = knowledge.version(both)
        info = await school.upload("physics", "notes.txt", MECHANICS)
        await school.indexed("physics")
        assert knowledge.version(both) != version
        assert {"sledge", "friction", "elif"} <= set(knowledge.vocabulary(both).words)
        assert "what is friction" in knowledge.vocabulary(both).sentences
        await knowledge.remove("physics", info.id)
        assert "sledge" not in knowledge.vocabulary(both).words
        assert knowledge.version(both) not in {version, ()}


async def test_a_course_can_be_looked_into(school: School) -> None:
    school.courses["python"] = SHIPPED
    async with school.open() as knowledge:
        (base,) = knowledge.bases()
        assert (base.origin, base.state, base.created_at) == ("course", "ready", None)
        infos = knowledge.documents("python")
        assert base.documents == len(infos) > 10
        assert sum(info.passages for info in infos) == base.passages
        (found, *_) = knowledge.find("what is a list", "en", ["python"])[0]
        it, _, _ = await knowledge.passage("python", found.document_id, found.n)
        assert it.text == found.text
        assert found.text in await knowledge.text("python", found.document_id)
        assert (await knowledge.original("python", found.document_id)).suffix == ".md"


# Who watches


async def test_a_watcher_sees_a_document_come_and_go(school: School) -> None:
    seen: list[Any] = []
    async with school.open() as knowledge:
        await knowledge.create("physics")
        await knowledge.create("other")

        async def watch() -> None:
            seen.extend([change async for change in knowledge.watch("physics")])

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        info = await school.upload("physics", "notes.txt", MECHANICS)
        await school.upload("other", "notes.txt", OPTICS)
        await school.indexed("physics")
        await knowledge.remove("physics", info.id)
        await knowledge.delete("physics")
        await asyncio.wait_for(watching, 10)
        # What has not been read when the base goes, goes with it.
        assert isinstance(seen[0], BaseInfo)
        assert seen[-1] == Removed("physics")
        states = [change[1].state for change in seen if isinstance(change, tuple)]
        assert states[0] == "queued"
        assert "ready" in states
        assert all((c[0] if isinstance(c, tuple) else c.kb_id) == "physics" for c in seen)
        with pytest.raises(KnowledgeBaseNotFound):
            knowledge.watch("physics")


async def test_a_slow_watcher_is_told_the_newest_alone(school: School) -> None:
    async with school.open() as knowledge:
        await knowledge.create("physics")
        watcher = knowledge.watch()
        for n in range(20):
            await school.upload("physics", "notes.txt", f"Sledge number {n}.")
        (ready,) = await school.indexed("physics")
        await school.until(lambda: knowledge.base("physics").state == "ready")
        told = [await anext(watcher), await anext(watcher)]
        assert ("physics", ready) in told
        assert knowledge.base("physics") in told
    # The server stops: so does the watching.
    assert [change async for change in watcher] == []
