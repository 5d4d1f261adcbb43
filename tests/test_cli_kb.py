"""`gpuserver kb` with a running server, one that refuses, and none."""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import click
import pytest
import typer

from gpuserver.cli import kb
from gpuserver.course_errors import DiskFull, DocumentUnreadable
from tests.commands import NOBODY, run
from tests.conftest import Scripted, Serve
from tests.file_server import FileServer, serving
from tests.memory_knowledge import MemoryKnowledge, in_memory

pytestmark = pytest.mark.slow


def names(folder: Path, beginning: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{beginning}*"))


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A folder with two documents of one name, a Chinese one, and things that are no material."""
    folder = tmp_path / "my course"
    for week in ("week 1", "week 2"):
        (folder / week).mkdir(parents=True)
        (folder / week / "notes.md").write_text(f"# {week}\n\nA lever of {week} turns.\n")
    (folder / "光学.txt").write_text("凸透镜把平行光会聚到焦点。\n", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".git").mkdir()
    (folder / ".git" / "readme.md").write_text("hidden")
    (folder / "~$notes.docx").write_text("lock")
    return folder


async def test_a_folder_goes_in_is_searched_goes_out_and_comes_back(
    serve: Serve, course: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parcel = tmp_path / "physics.zip"
    async with serve() as server:
        url = server.url
        assert await run(lambda: kb.add([course], "physics", "Physics 9", url=url)) == 0
        said = capsys.readouterr()
        for name in ("week 1 - notes.md", "week 2 - notes.md", "光学.txt"):
            assert name in said.out
            assert f"sending {name}" in said.err
        assert said.out.count("ready") == 3
        for stranger in ("picture", "readme", "~$"):
            assert stranger not in said.out

        assert await run(lambda: kb.list_bases(url=url)) == 0
        listed = capsys.readouterr().out
        assert "Physics 9" in listed
        assert "loops" in listed
        assert await run(lambda: kb.search("physics", "What does a lever do?", url=url)) == 0
        found = capsys.readouterr().out
        assert "turns." in found
        assert "fits" in found

        assert await run(lambda: kb.export_base("physics", parcel, url=url)) == 0
        with zipfile.ZipFile(parcel) as archive:
            assert "manifest.json" in archive.namelist()
        assert await run(lambda: kb.remove("physics", "光学.txt", yes=True, url=url)) == 0
        assert await run(lambda: kb.show("physics", url=url)) == 0
        shown = capsys.readouterr().out
        assert "week 1 - notes.md" in shown
        assert await run(lambda: kb.remove("physics", yes=True, url=url)) == 0
        assert await run(lambda: kb.import_base(parcel, url=url)) == 0
        assert capsys.readouterr().out.count("ready") == 3
        assert await run(lambda: kb.import_base(parcel, url=url)) == 1
        assert "already" in capsys.readouterr().err
        assert await run(lambda: kb.import_base(parcel, kb="physics-2", url=url)) == 0
    assert names(tmp_path, "physics") == ["physics.zip"]


async def test_the_same_document_again_replaces(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve() as server:
        knowledge = in_memory(server, tmp_path / "in")
        knowledge.indexes = True
        lesson = tmp_path / "lesson.md"
        for words in ("one", "one two three"):
            await asyncio.to_thread(lesson.write_text, words)
            assert await run(lambda: kb.add([lesson], "physics", url=server.url)) == 0
        [document] = knowledge.documents("physics")
        assert document.passages == 3


async def test_what_fails_is_a_sentence_beside_what_does_not(
    serve: Serve, course: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve() as server:
        knowledge = in_memory(server, tmp_path / "in")
        broken = DocumentUnreadable(name="a.md", problem="it is locked", problem_zh="已加密")
        adding = asyncio.create_task(
            run(lambda: kb.add([course, course / "picture.png"], "physics", url=server.url))
        )
        async with asyncio.timeout(20):
            while not knowledge.known("physics") or len(knowledge.documents("physics")) < 3:
                await asyncio.sleep(0.01)
        one, *others = knowledge.documents("physics")
        knowledge.index("physics", one.id, broken)
        for other in others:
            knowledge.index("physics", other.id)
        assert await adding == 1
    said = capsys.readouterr()
    assert "it is locked" in " ".join(said.out.split())
    assert said.out.count("ready") == 2
    assert "picture.png: 'picture.png' can't be read here" in said.err


async def test_a_full_disk_is_told_once(
    serve: Serve, course: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve() as server:
        knowledge = in_memory(server, tmp_path / "in")
        knowledge.refusals["add"] = [DiskFull(), DiskFull()]
        assert await run(lambda: kb.add([course], "physics", url=server.url)) == 1
        assert len(knowledge.refusals["add"]) == 1, "no further file was sent"
    assert capsys.readouterr().err.count("disk is full") == 1


@asynccontextmanager
async def waiting(
    serve: Serve, folder: Path
) -> AsyncIterator[tuple[Scripted, MemoryKnowledge, asyncio.Task[int]]]:
    """A server, its knowledge, and a command that waits there until a document is ready."""
    lesson = folder / "lesson.md"
    lesson.write_text("one")
    async with serve() as server:
        knowledge = in_memory(server, folder / "in")
        command = asyncio.create_task(run(lambda: kb.add([lesson], "physics", url=server.url)))
        async with asyncio.timeout(20):
            while not knowledge.watchers:
                await asyncio.sleep(0.01)
            yield server, knowledge, command


async def test_a_document_that_is_deleted_meanwhile_is_not_waited_for(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with waiting(serve, tmp_path) as (_, knowledge, command):
        await knowledge.remove("physics", knowledge.documents("physics")[0].id)
        assert await command == 0
    assert "removed" in capsys.readouterr().out


async def test_a_server_that_stops_meanwhile_is_one_sentence(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with waiting(serve, tmp_path) as (server, _, command):
        await server.server.shutdown()
        assert await command == 1
    assert "goes on when it is back" in capsys.readouterr().err


async def test_removing_asks_first(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, True]
    asked: list[str] = []

    def confirm(text: str, *, abort: bool) -> None:
        asked.append(text)
        if not answers.pop(0):
            raise click.exceptions.Abort

    monkeypatch.setattr(typer, "confirm", confirm)
    async with serve() as server:
        knowledge = in_memory(server, tmp_path / "in")
        knowledge.put_base("physics")
        assert await run(lambda: kb.remove("physics", url=server.url)) == 1
        assert knowledge.known("physics")
        assert await run(lambda: kb.remove("physics", url=server.url)) == 0
        assert not knowledge.known("physics")
    assert asked == ["Delete 'physics' for good?"] * 2


async def test_an_odd_id_is_a_sentence(
    serve: Serve, course: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parcel = tmp_path / "x.zip"
    async with serve() as server:
        url = server.url
        for odd in ("..", "../../etc", "a\x00b", "phуsics"):
            assert await run(partial(kb.add, [course], odd, url=url)) == 1
            assert "A knowledge base's id has" in capsys.readouterr().err, odd
            for command in (
                partial(kb.show, odd, url=url),
                partial(kb.remove, odd, yes=True, url=url),
                partial(kb.search, odd, "a", url=url),
                partial(kb.export_base, odd, parcel, url=url),
            ):
                assert await run(command) == 1, command
                assert "There is no knowledge base" in capsys.readouterr().err, command
    assert names(tmp_path, "x.zip") == []


async def test_what_is_not_there_is_a_sentence(
    serve: Serve, course: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    twin = course / "other" / "光学.txt"
    twin.parent.mkdir()
    twin.write_text("x")
    async with serve() as server:
        knowledge = in_memory(server, tmp_path / "in")
        knowledge.put_base("physics")
        url = server.url
        refusals: list[tuple[Callable[[], None], str]] = [
            (lambda: kb.add([tmp_path / "none"], "physics", url=url), "There is no file or folder"),
            (lambda: kb.add([empty], "physics", url=url), "nothing to upload; readable are .pdf"),
            (lambda: kb.add([course / "光学.txt", twin], "physics", url=url), "Two files"),
            (lambda: kb.remove("physics", "none.md", url=url), "has no document 'none.md'"),
            (lambda: kb.import_base(tmp_path / "none.zip", url=url), "Can't read"),
            (lambda: kb.export_base("physics", tmp_path / "no" / "x.zip", url=url), "Can't write"),
        ]
        for command, sentence in refusals:
            assert await run(command) == 1
            assert sentence in capsys.readouterr().err
        assert knowledge.documents("physics") == []


async def test_no_server_a_wrong_key_and_another_program_are_sentences(
    serve: Serve, course: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(lambda: kb.add([course], "physics", url=NOBODY)) == 1
    assert "No server answers" in capsys.readouterr().err
    async with serve(management_api_key="right") as server:
        assert await run(lambda: kb.add([course], "physics", url=server.url, key="wrong")) == 1
        assert "needs the management key" in capsys.readouterr().err
    with serving(FileServer({})) as files:
        assert await run(lambda: kb.list_bases(url=files.url)) == 1
    assert "gpuserver: " in capsys.readouterr().err
