"""Uploads by hand-written requests: within limits, cut, stalled, refused early, on a full disk."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gpuserver.api import uploads
from tests.conftest import Scripted, Serve, local_http
from tests.memory_knowledge import MemoryKnowledge, in_memory

pytestmark = pytest.mark.slow

DOCUMENTS = "/v1/knowledge-bases/physics/documents"
BOUNDARY = "----line"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@asynccontextmanager
async def door(
    serve: Serve, folder: Path, **settings: Any
) -> AsyncIterator[tuple[Scripted, MemoryKnowledge, httpx2.AsyncClient]]:
    """A server with an empty knowledge base "physics"; its uploads leave nothing in `folder`."""
    async with serve(**settings) as server:
        knowledge = in_memory(server, folder)
        knowledge.put_base("physics")
        async with local_http(server.url) as client:
            yield server, knowledge, client
    assert await asyncio.to_thread(knowledge.scratch) == []


def part(content: bytes, name: str | None = "a.txt", field: str = "file") -> bytes:
    filename = "" if name is None else f'; filename="{name}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"{filename}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def whole(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def post(
    client: httpx2.AsyncClient, body: bytes, path: str = DOCUMENTS, kind: str = FORM, **more: Any
) -> httpx2.Response:
    return await client.post(path, content=body, headers={"Content-Type": kind}, **more)


async def test_files_arrive_whole_and_in_order(serve: Serve, tmp_path: Path) -> None:
    big = bytes(range(256)) * 20_000  # line ends and all
    async with door(serve, tmp_path / "in") as (_, knowledge, client):
        answer = await post(
            client, whole(part(b"one", "1.txt"), part(big, "2.md"), part(b"", "3.txt"))
        )
        assert answer.status_code == 202
        names = {each["name"]: each["id"] for each in answer.json()["documents"]}
        assert list(names) == ["1.txt", "2.md", "3.txt"]
        held = [knowledge.content("physics", each) for each in names.values()]
        assert held == [b"one", big, b""]


PATHS = (
    ("../../etc/passwd.txt", "passwd.txt"),
    ("C:\\\\course\\\\力学.md", "力学.md"),
    ("/abs/lution.html", "lution.html"),
    ("Übung 1.CSV", "Übung 1.CSV"),
)


async def test_a_name_is_never_a_path(
    serve: Serve, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    async with door(serve, tmp_path / "in") as (_, _, client):
        for sent, known_as in PATHS:
            with subtests.test(sent):
                answer = await post(client, whole(part(b"x", sent)))
                assert [each["name"] for each in answer.json()["documents"]] == [known_as]


BAD_NAMES = (
    ("..", "document_name_invalid", 422),
    ("a/", "document_name_invalid", 422),
    ("a\x00.txt", "document_name_invalid", 422),
    ("a\x01.txt", "document_name_invalid", 422),
    ("a\u202efdp.txt", "document_name_invalid", 422),
    ("x" * 300 + ".txt", "document_name_invalid", 422),
    ("virus.exe", "document_type_unknown", 415),
    ("noend", "document_type_unknown", 415),
)


async def test_a_bad_name_is_refused_with_a_sentence(
    serve: Serve, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    async with door(serve, tmp_path / "in") as (_, knowledge, client):
        for name, code, status in BAD_NAMES:
            with subtests.test(repr(name[:20])):
                answer = await post(client, whole(part(b"x", name)))
                assert (answer.status_code, answer.json()["code"]) == (status, code)
                assert len(answer.json()["detail"]) < 400
                assert knowledge.documents("physics") == []


async def test_a_name_that_is_no_text_is_refused(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path / "in") as (_, _, client):
        answer = await post(client, whole(part(b"x", "a.txt").replace(b"a.txt", b"\xff\xfe.txt")))
        assert answer.json()["code"] == "document_name_invalid"


NO_UPLOADS = (
    (b'{"file":1}', "application/json", "no multipart form"),
    (b"file=x", "application/x-www-form-urlencoded", "no multipart form"),
    (whole(part(b"x")), "", "no multipart form"),
    (whole(part(b"x")), "multipart/form-data", "no multipart form"),
    (whole(part(b"x")), "multipart/form-data; boundary=" + "b" * 300, "no multipart form"),
    (b"no form at all", FORM, "no multipart form"),
    (whole(part(b"x")), "multipart/form-data; boundary=other", "no multipart form"),
    (b"", FORM, "ended in the middle"),
    (part(b"x" * 5000), FORM, "ended in the middle"),
    (whole(), FORM, "there is no file"),
    (whole(part(b"", "")), FORM, "there is no file"),
    (whole(part(b"x", None, "title")), FORM, "there is no file"),
    (whole(part(b"x", None)), FORM, "holds text instead of a file"),
    (whole(part(b"x", "a.txt", "attachment")), FORM, "belong in the field 'file'"),
    (whole(part(b"y" * 3_000_000, None, "note"), part(b"x")), FORM, "too much beside"),
    (whole(part(b"x")) + b"z" * 3_000_000, FORM, "too much beside"),
    (whole(*[part(b"x")] * 101), FORM, "more than 100 file"),
)


async def test_what_is_no_upload_is_refused_with_a_sentence(
    serve: Serve, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    async with door(serve, tmp_path / "in") as (_, knowledge, client):
        for body, kind, said in NO_UPLOADS:
            with subtests.test(f"{kind} {body[:30]!r}"):
                answer = await post(client, body, kind=kind)
                assert (answer.status_code, answer.json()["code"]) == (422, "upload_invalid")
                assert said in answer.json()["detail"]
                assert knowledge.documents("physics") == []


async def test_headers_of_a_part_are_bounded(serve: Serve, tmp_path: Path) -> None:
    flood = f"--{BOUNDARY}\r\n".encode() + b"X-A: b\r\n" * 100_000
    async with door(serve, tmp_path / "in") as (_, _, client):
        answer = await post(client, whole(flood))
        assert (answer.status_code, answer.json()["code"]) == (422, "upload_invalid")


async def test_a_file_may_be_as_large_as_the_limit_and_no_larger(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path / "in", max_upload_mb=1) as (_, knowledge, client):
        right = await post(client, whole(part(b"x" * (1 << 20))))
        assert right.status_code == 202
        above = await post(client, whole(part(b"x" * ((1 << 20) + 1), "b.txt")))
        assert (above.status_code, above.json()["code"]) == (413, "document_too_large")
        assert "1 MB" in above.json()["detail"]
        # In one form several may be as large, each for itself.
        both = await post(client, whole(*[part(b"x" * (1 << 20), f"{n}.txt") for n in "cd"]))
        assert both.status_code == 202
        assert [each.name for each in knowledge.documents("physics")] == ["a.txt", "c.txt", "d.txt"]


async def chunks(size: int) -> AsyncIterator[bytes]:
    yield part(b"")[:-2]
    for _ in range(size):
        yield b"x" * (1 << 20)


async def test_the_limit_counts_while_an_upload_of_unknown_size_comes(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path / "in", max_upload_mb=1) as (_, _, client):
        headers = {"Content-Type": FORM}
        answer = await client.post(DOCUMENTS, content=chunks(200), headers=headers)
        assert answer.status_code == 413


REFUSED: tuple[tuple[str, dict[str, str], int], ...] = (
    (DOCUMENTS, {"Authorization": "Bearer wrong"}, 401),
    (DOCUMENTS, {}, 401),
    ("/mgmt" + DOCUMENTS, {"X-API-Key": "wrong"}, 401),
    ("/v1/knowledge-bases/import", {}, 401),
    ("/v1/knowledge-bases/nothing/documents", {"X-API-Key": "right"}, 404),
    ("/v1/knowledge-bases/loops/documents", {"X-API-Key": "right"}, 409),
    (DOCUMENTS + "/0000000000000000", {"X-API-Key": "right"}, 404),
)


async def test_who_still_sends_hundreds_of_megabytes_gets_the_refusal(
    serve: Serve, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    async with door(serve, tmp_path / "in", management_api_key="right") as (server, _, client):
        for path, headers, status in REFUSED:
            with subtests.test(f"{path} {headers}"):
                kind = {"Content-Type": FORM}
                answer = await client.post(path, content=chunks(100), headers=kind | headers)
                assert answer.status_code == status
                assert answer.headers["connection"] == "close"
                # The place of the connection is free for others.
                async with asyncio.timeout(15):
                    while server.server.server_state.tasks:
                        await asyncio.sleep(0.02)


@asynccontextmanager
async def line(
    server: Scripted,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def head(server: Scripted, length: int, *more: str) -> bytes:
    lines = [
        f"POST {DOCUMENTS} HTTP/1.1",
        f"Host: {server.url.removeprefix('http://')}",
        f"Content-Type: {FORM}",
        f"Content-Length: {length}",
        *more,
        "\r\n",
    ]
    return "\r\n".join(lines).encode()


async def arrived(knowledge: MemoryKnowledge) -> None:
    """Wait until a part of the upload is on the disk."""
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(knowledge.scratch):
            await asyncio.sleep(0.01)


async def gone(server: Scripted) -> None:
    async with asyncio.timeout(10):
        while server.server.server_state.tasks:
            await asyncio.sleep(0.01)


async def test_a_refused_upload_is_answered_before_its_body_comes(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path / "in", management_api_key="right") as (server, _, _):
        async with line(server) as (reader, writer), asyncio.timeout(10):
            writer.write(head(server, 50 << 20, "Expect: 100-continue"))
            assert b"401" in await reader.readline()
            body = await reader.read()
            assert b"key_refused" in body
            assert b"100 Continue" not in body


async def test_an_upload_cut_in_the_middle_leaves_nothing_behind(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path / "in") as (server, knowledge, client):
        async with line(server) as (_, writer):
            writer.write(head(server, 50 << 20) + part(b"x" * (3 << 20)))
            await arrived(knowledge)
        await gone(server)
        assert await asyncio.to_thread(knowledge.scratch) == []
        assert knowledge.documents("physics") == []
        assert (await post(client, whole(part(b"x")))).status_code == 202


async def test_a_stalled_upload_is_dropped(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SILENCE_SECONDS", 0.2)
    async with door(serve, tmp_path / "in") as (server, knowledge, _):
        async with line(server) as (reader, writer), asyncio.timeout(15):
            writer.write(head(server, 50 << 20) + part(b"x" * (3 << 20)))
            answer = await reader.read()
        assert b"408" in answer.splitlines()[0]
        assert b"body_too_slow" in answer
        await gone(server)
        assert knowledge.documents("physics") == []


async def test_a_slow_upload_that_goes_on_is_taken(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SILENCE_SECONDS", 5)
    body = whole(part(b"x" * 300))
    async with door(serve, tmp_path / "in") as (server, knowledge, _):
        async with line(server) as (reader, writer), asyncio.timeout(15):
            writer.write(head(server, len(body)))
            for start in range(0, len(body), 40):
                writer.write(body[start : start + 40])
                await asyncio.sleep(0.01)
            assert b"202" in await reader.readline()
        assert [each.bytes for each in knowledge.documents("physics")] == [300]


async def test_an_upload_while_the_server_stops_leaves_nothing_behind(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path / "in", shutdown_grace_seconds=10) as (server, knowledge, _):
        async with line(server) as (reader, writer):
            writer.write(head(server, 50 << 20) + part(b"x" * (3 << 20)))
            await arrived(knowledge)
            stopping = asyncio.create_task(server.server.shutdown())
            await server.state.closing.wait()
            writer.write(b"x" * (1 << 20))
            async with asyncio.timeout(10):
                answer = await reader.read()
                assert b"503" in answer.splitlines()[0]
                assert b"shutting_down" in answer
                await stopping
        assert await asyncio.to_thread(knowledge.scratch) == []


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_is_told_and_nothing_stays(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path / "in") as (_, knowledge, client):
        with full_disk(2 << 20):
            answer = await post(client, whole(part(b"x" * (5 << 20))))
        assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
        assert await asyncio.to_thread(knowledge.scratch) == []
        assert (await post(client, whole(part(b"x" * (5 << 20))))).status_code == 202


async def test_other_requests_are_still_read_whole_and_bounded(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path / "in", max_body_bytes=2000) as (_, _, client):
        answer = await client.post("/v1/knowledge-bases", json={"kb_id": "x", "title": "t" * 3000})
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
