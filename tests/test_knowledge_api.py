"""The door to course material: every call, what it refuses, and what a student may read."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gpuserver.course_errors import ArchiveUnsafe, DiskFull, DocumentEmpty, TooManyDocuments
from gpuserver.errors import EngineFailed
from tests.conftest import Scripted, Serve, local_http
from tests.memory_knowledge import MemoryKnowledge, in_memory

pytestmark = pytest.mark.slow

BASES = "/v1/knowledge-bases"
PHYSICS = f"{BASES}/physics"
LISTS = f"{BASES}/loops/documents/en%2Flists"
ODD = [
    "..%2f..%2fetc",
    "..%2F..%2Fetc%2Fpasswd",
    "%2fetc%2fpasswd",
    "..",
    "%2e%2e",
    "a%00b",
    "%00",
    "x" * 4096,
    "ph%D1%83sics",  # a Cyrillic у
    "physics%20",
    "physics.",
    "%ff%fe",
    "%0d%0aX-Evil:1",
]


@asynccontextmanager
async def door(
    serve: Serve, folder: Path, **settings: Any
) -> AsyncIterator[tuple[Scripted, MemoryKnowledge, httpx2.AsyncClient]]:
    """A server with the course "loops" and an empty knowledge base "physics"."""
    async with serve(**settings) as server:
        knowledge = in_memory(server, folder / "in")
        knowledge.put_base("physics", "Physics 9")
        async with local_http(server.url) as client:
            yield server, knowledge, client


def file(content: bytes = b"one two three", name: str = "mechanics.md") -> dict[str, Any]:
    return {"files": [("file", (name, content))]}


async def test_a_base_is_made_listed_described_and_deleted(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path) as (_, _, client):
        made = await client.post(BASES, json={"kb_id": "bio-7", "title": "生物"})
        assert made.status_code == 201
        assert made.json() == {
            "kb_id": "bio-7",
            "title": "生物",
            "origin": "uploaded",
            "documents": 0,
            "passages": 0,
            "bytes": 0,
            "state": "ready",
            "problem": None,
            "created_at": "2026-11-21T00:00:00Z",
            "languages": ["en"],
        }
        listed = (await client.get(BASES)).json()
        assert listed["total"] == 3
        assert [base["kb_id"] for base in listed["knowledge_bases"]] == [
            "bio-7",
            "loops",
            "physics",
        ]
        assert (await client.get(f"{BASES}/bio-7")).json() == made.json()
        again = await client.post(BASES, json={"kb_id": "bio-7"})
        assert (again.status_code, again.json()["code"]) == (409, "knowledge_base_exists")
        assert (await client.delete(f"{BASES}/bio-7")).status_code == 204
        gone = await client.get(f"{BASES}/bio-7")
        assert (gone.status_code, gone.json()["code"]) == (404, "knowledge_base_not_found")
        course = await client.delete(f"{BASES}/loops")
        assert (course.status_code, course.json()["code"]) == (409, "knowledge_base_read_only")


async def test_both_prefixes_are_the_same(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path) as (_, _, client):
        taken = await client.post(f"/mgmt{PHYSICS}/documents", **file())
        document = taken.json()["documents"][0]["id"]
        for path in (BASES, PHYSICS, f"{PHYSICS}/documents", f"{PHYSICS}/documents/{document}"):
            one, two = await client.get(path), await client.get(f"/mgmt{path}")
            assert one.status_code == 200
            assert (one.status_code, one.content) == (two.status_code, two.content)


async def test_documents_are_added_read_replaced_and_removed(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path) as (_, knowledge, client):
        two = [("file", ("mechanics.md", b"one two")), ("file", ("光学.txt", b"light"))]
        taken = await client.post(f"{PHYSICS}/documents", files=two)
        assert taken.status_code == 202
        first, second = taken.json()["documents"]
        assert (first["name"], first["state"], first["bytes"]) == ("mechanics.md", "queued", 7)
        assert second["name"] == "光学.txt"
        knowledge.index("physics", first["id"])
        knowledge.index("physics", second["id"], DocumentEmpty(name="光学.txt"))
        listed = (await client.get(f"{PHYSICS}/documents")).json()
        assert listed["total"] == 2
        ready, failed = listed["documents"]
        assert (ready["state"], ready["passages"], ready["problem"]) == ("ready", 2, None)
        assert failed["state"] == "failed"
        assert failed["problem"]["code"] == "document_empty"
        assert "no text" in failed["problem"]["detail"]
        assert "没有文字" in failed["problem"]["detail_zh"]
        path = f"{PHYSICS}/documents/{first['id']}"
        assert (await client.get(path)).json() == ready
        text = await client.get(f"{path}/text")
        assert text.headers["content-type"] == "text/markdown; charset=utf-8"
        assert text.text == "one two"
        replaced = await client.put(path, **file(b"three", "mechanics 2.md"))
        assert (replaced.status_code, replaced.json()["id"]) == (202, first["id"])
        assert replaced.json()["name"] == "mechanics 2.md"
        again = await client.post(f"{path}/reindex")
        assert (again.status_code, again.json()["state"]) == (202, "queued")
        assert (await client.delete(path)).status_code == 204
        gone = await client.get(path)
        assert (gone.status_code, gone.json()["code"]) == (404, "document_not_found")


async def test_the_first_refusal_of_several_files_is_told(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path) as (_, knowledge, client):
        knowledge.refusals["add"] = [TooManyDocuments(limit=1)]
        two = [("file", ("a.md", b"a")), ("file", ("b.md", b"b"))]
        refused = await client.post(f"{PHYSICS}/documents", files=two)
        assert (refused.status_code, refused.json()["code"]) == (409, "too_many_documents")
        assert knowledge.documents("physics") == []
        assert await asyncio.to_thread(knowledge.scratch) == []


async def test_a_document_is_replaced_by_one_document_only(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path) as (_, knowledge, client):
        knowledge.put_document("physics", "1", b"one", "a.md")
        path = f"{PHYSICS}/documents/1"
        for name in ("b.zip", "b.exe", "b"):
            refused = await client.put(path, **file(name=name))
            said = (refused.status_code, refused.json()["code"])
            assert said == (415, "document_type_unknown"), name
        two = [("file", ("a.md", b"a")), ("file", ("b.md", b"b"))]
        assert (await client.put(path, files=two)).json()["code"] == "upload_invalid"
        missing = await client.put(f"{PHYSICS}/documents/2", **file())
        assert missing.json()["code"] == "document_not_found"
        assert knowledge.content("physics", "1") == b"one"


async def test_two_uploads_of_one_document_at_once_both_arrive(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path) as (_, knowledge, client):
        knowledge.gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            uploads = [
                group.create_task(client.post(f"{PHYSICS}/documents", **file(content * 100_000)))
                for content in (b"a ", b"b ")
            ]
            await asyncio.sleep(0.1)
            knowledge.gate.set()
        assert [upload.result().status_code for upload in uploads] == [202, 202]
        [document] = knowledge.documents("physics")
        assert knowledge.content("physics", document.id) in {b"a " * 100_000, b"b " * 100_000}


async def test_a_passage_is_shown_with_its_neighbours(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path) as (_, _, client):
        shown = (await client.get(f"{LISTS}/passages/2")).json()
        assert shown == {
            "kb_id": "loops",
            "document_id": "en/lists",
            "n": 2,
            "document": "lists.md",
            "heading": "Part",
            "page": 2,
            "text": "second",
            "before": {"n": 1, "heading": "Part", "page": 1, "text": "first"},
            "after": {"n": 3, "heading": "Part", "page": 3, "text": "third"},
        }
        assert (await client.get(f"{LISTS}/passages/1")).json()["before"] is None
        for n in ("0", "4", "-1", "1.5", "x", "9" * 5000, "%D9%A1", "1%00"):
            missing = await client.get(f"{LISTS}/passages/{n}")
            assert (missing.status_code, missing.json()["code"]) == (404, "passage_not_found"), n


async def test_a_question_is_tried(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path) as (_, knowledge, client):
        body = {"question": "What is a list?", "tutor_id": 1}
        answer = (await client.post(f"{PHYSICS}/search", json=body)).json()
        assert answer["covered"] is True
        [found] = answer["passages"]
        assert found["document_id"] == "en/lists"
        assert (found["similarity"], found["by_meaning"]) == (0.75, None)
        assert (found["by_words"], found["by_heading"]) == (0.5, 0.25)
        declined = await client.post(f"{PHYSICS}/search", json={"question": "谁是总统？"})
        assert declined.json()["covered"] is False
        await client.post(f"{PHYSICS}/search", json={"question": "x", "language": "zh"})
        assert knowledge.asked == [
            ("What is a list?", "en", ("physics", "loops")),
            ("谁是总统？", "zh", ("physics",)),
            ("x", "zh", ("physics",)),
        ]


NO_QUESTIONS: tuple[tuple[dict[str, Any], int, str], ...] = (
    ({"question": "  "}, 400, "text_empty"),
    ({"question": "a" * 5000}, 400, "text_too_long"),
    ({}, 422, "bad_request"),
    ({"question": "a", "language": "fr"}, 422, "bad_request"),
    ({"question": "a", "tutor_id": 2**70}, 422, "bad_request"),
)


async def test_a_question_that_can_not_be_tried(
    serve: Serve, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    async with door(serve, tmp_path, max_text_chars=4000) as (_, _, client):
        for body, status, code in NO_QUESTIONS:
            with subtests.test(repr(body)[:40]):
                answer = await client.post(f"{PHYSICS}/search", json=body)
                assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_what_fails_below_is_told_by_its_sentence(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path) as (_, knowledge, client):
        knowledge.refusals = {
            "explain": [EngineFailed(engine="minilm")],
            "add": [DiskFull()],
            "create": [DiskFull()],
            "export": [DiskFull()],
            "import_": [ArchiveUnsafe(name="x.zip", problem="it is odd", problem_zh="奇怪")],
        }
        answers = [
            await client.post(f"{PHYSICS}/search", json={"question": "a"}),
            await client.post(f"{PHYSICS}/documents", **file()),
            await client.post(BASES, json={"kb_id": "a"}),
            await client.get(f"{PHYSICS}/export"),
            await client.post(f"{BASES}/import", **file(name="x.zip")),
        ]
        assert [answer.status_code for answer in answers] == [503, 507, 507, 507, 422]
        assert "it is odd" in answers[-1].json()["detail"]
        assert await asyncio.to_thread(knowledge.scratch) == []


async def test_a_base_is_exported_and_imported_under_its_own_id_or_another(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path) as (server, knowledge, client):
        parcel = await client.get(f"{PHYSICS}/export")
        assert parcel.headers["content-type"] == "application/zip"
        assert parcel.headers["content-disposition"] == 'attachment; filename="physics.zip"'
        assert parcel.content == b"physics"
        await quiet(server)
        assert await asyncio.to_thread(knowledge.scratch) == []
        own = await client.post(f"{BASES}/import", **file(b"bio"))
        assert (own.status_code, own.json()["kb_id"]) == (201, "bio")
        taken = await client.post(f"{BASES}/import", **file(b"bio"))
        assert (taken.status_code, taken.json()["code"]) == (409, "knowledge_base_exists")
        other = await client.post(f"{BASES}/import", data={"kb_id": "bio-2"}, **file(b"bio"))
        assert other.json()["kb_id"] == "bio-2"
        assert await asyncio.to_thread(knowledge.scratch) == []


async def test_an_export_that_nobody_waits_for_leaves_nothing_behind(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path) as (server, knowledge, client):
        async with client.stream("GET", f"{PHYSICS}/export"):
            pass
        await quiet(server)
        assert await asyncio.to_thread(knowledge.scratch) == []


async def quiet(server: Scripted) -> None:
    """Wait until no request is being served."""
    async with asyncio.timeout(10):
        while server.server.server_state.tasks:
            await asyncio.sleep(0.01)


async def test_an_odd_id_leads_nowhere(
    serve: Serve, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    async with door(serve, tmp_path) as (_, knowledge, client):
        calls = [
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/documents"),
            ("POST", "/documents"),
            ("GET", "/documents/1/text"),
            ("GET", "/documents/1/passages/1"),
            ("GET", "/events"),
            ("GET", "/export"),
            ("POST", "/search"),
        ]
        for odd, (method, rest) in itertools.product(ODD, calls):
            with subtests.test(f"{method} {odd[:20]}{rest}"):
                # By hand: httpx would tidy the path up.
                status, body = await raw(client, method, f"{BASES}/{odd}{rest}")
                assert status == 404
                assert len(body) < 1000
                assert json.loads(body)["code"] in {"knowledge_base_not_found", "not_found"}
                assert json.loads(body)["detail"]
        assert await asyncio.to_thread(knowledge.scratch) == []
        assert knowledge.asked == []


async def raw(client: httpx2.AsyncClient, method: str, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    body = b'{"question":"a"}'
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    first, _, rest = answer.partition(b"\r\n\r\n")
    return int(first.split()[1]), rest


async def test_no_base_is_made_under_an_odd_id(
    serve: Serve, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    odd_ids = ("../../etc", "/etc", "a\x00b", "phуsics", "a.", "", ".a", "Events")
    async with door(serve, tmp_path) as (_, knowledge, client):
        for odd in (*odd_ids, "x" * 65, "x" * 5000):
            with subtests.test(repr(odd[:20])):
                answer = await client.post(BASES, json={"kb_id": odd})
                assert answer.status_code == 422
                assert answer.json()["code"] in {"knowledge_base_id_invalid", "bad_request"}
                assert len(answer.content) < 1000
                assert [base.kb_id for base in knowledge.bases()] == ["loops", "physics"]


async def test_a_strange_document_leads_nowhere(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path) as (_, _, client):
        for odd in ("..%2f..%2fetc%2fpasswd", "a%00b", "x" * 4096, "%ff"):
            for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/text"), ("PUT", "")):
                status, body = await raw(client, method, f"{PHYSICS}/documents/{odd}{rest}")
                assert status == 404, (method, odd)
                assert json.loads(body)["code"] == "document_not_found"
                assert len(body) < 1000


async def test_every_call_wants_the_management_key(serve: Serve, tmp_path: Path) -> None:
    calls = [
        ("POST", ""),
        ("GET", ""),
        ("GET", "/events"),
        ("POST", "/import"),
        ("GET", "/physics"),
        ("DELETE", "/physics"),
        ("GET", "/physics/events"),
        ("POST", "/physics/search"),
        ("GET", "/physics/export"),
        ("GET", "/physics/documents"),
        ("POST", "/physics/documents"),
        ("GET", "/physics/documents/1"),
        ("PUT", "/physics/documents/1"),
        ("DELETE", "/physics/documents/1"),
        ("GET", "/physics/documents/1/text"),
        ("POST", "/physics/documents/1/reindex"),
        ("GET", "/physics/documents/1/passages/1"),
        ("GET", "/..%2fetc"),
    ]
    async with door(serve, tmp_path, management_api_key="key") as (_, knowledge, client):
        body = {"kb_id": "stranger", "question": "a"}
        for method, path in calls:
            sent = body if method == "POST" else None
            answer = await client.request(method, BASES + path, json=sent)
            assert (answer.status_code, answer.json()["code"]) == (401, "key_refused"), path
        assert [base.kb_id for base in knowledge.bases()] == ["loops", "physics"]
        with_key = await client.get(BASES, headers={"X-API-Key": "key"})
        assert with_key.status_code == 200


async def test_before_the_courses_are_there_it_says_when_to_come_back(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path) as (server, _, client):
        server.state.tutoring.progress.ready = False
        answer = await client.get(BASES)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"]


# What a student may read


async def test_a_student_reads_passages_of_the_session_and_of_the_tutor_only(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path, management_api_key="key") as (server, knowledge, client):
        knowledge.put_base("secret")
        for kb_id in ("physics", "secret"):
            knowledge.put_document(kb_id, "1", b"one two", "a.md")
        async with server.management("key") as management:
            ticket = await management.create_session(kb_id="physics")
            stranger = await management.create_session()

            async def status(
                path: str, token: str = ticket.engine_token, session: str = ticket.session_id
            ) -> int:
                headers = {"Authorization": f"Bearer {token}"}
                answer = await client.get(path, headers=headers, params={"session_id": session})
                if answer.status_code == 404:
                    # Whatever the reason is, it is told as that of a missing passage.
                    told = answer.json()
                    assert told == {
                        "detail": f"This document has no passage {path.rsplit('/')[-1]}.",
                        "code": "passage_not_found",
                    }
                return answer.status_code

            own, foreign = f"{PHYSICS}/documents/1/passages", f"{BASES}/secret/documents/1/passages"
            assert await status(f"{own}/1") == 200
            assert await status(f"{LISTS}/passages/2") == 200, "the tutor's own course"
            assert await status(f"{own}/9") == 404
            assert await status(f"{foreign}/1") == 404
            assert await status(f"{BASES}/none/documents/1/passages/1") == 404
            assert await status(f"{own}/1", token=stranger.engine_token) == 404
            assert await status(f"{own}/1", session=stranger.session_id) == 404
            assert await status(f"{own}/1", token="x") == 404
            assert await status(f"{own}/1", token="key") == 404
            other = (stranger.engine_token, stranger.session_id)
            assert await status(f"{own}/1", *other) == 404, "another session's knowledge base"
            assert await status(f"{LISTS}/passages/2", *other) == 200
            # Nothing else is opened by it.
            headers = {"Authorization": f"Bearer {ticket.engine_token}"}
            params = {"session_id": ticket.session_id}
            for path in (PHYSICS, f"{PHYSICS}/documents", f"{PHYSICS}/documents/1/text"):
                answer = await client.get(path, headers=headers, params=params)
                assert answer.status_code == 401
            await management.delete_session(ticket.session_id)
            assert await status(f"{own}/1") == 404


# Events


async def told(lines: AsyncIterator[str]) -> dict[str, Any]:
    """The next event: its kind as `event`, with its fields."""
    kind = ""
    async for line in lines:
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            return {"event": kind, **json.loads(line.removeprefix("data: "))}
    raise AssertionError("the stream ended")


async def test_events_begin_with_the_present_state_and_tell_every_change(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path) as (_, knowledge, client):
        knowledge.put_document("physics", "1", b"one", "a.md")
        async with client.stream("GET", f"{PHYSICS}/events") as stream, asyncio.timeout(10):
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.aiter_lines()
            base, document = await told(lines), await told(lines)
            assert (base["event"], base["kb_id"], base["title"]) == ("base", "physics", "Physics 9")
            assert (document["event"], document["kb_id"]) == ("document", "physics")
            assert (document["id"], document["state"]) == ("1", "queued")
            knowledge.put_document("loops", "en/other", b"x", "elsewhere.md")
            knowledge.index("physics", "1")
            assert (await told(lines))["state"] == "ready"
            await client.delete(f"{PHYSICS}/documents/1")
            removed = await told(lines)
            assert removed == {"event": "removed", "kb_id": "physics", "document_id": "1"}
            await client.delete(PHYSICS)
            assert (await told(lines))["document_id"] is None
            assert [line async for line in lines if line] == []
        assert knowledge.watchers == set()


async def test_the_events_of_all_bases_and_a_reader_who_leaves(
    serve: Serve, tmp_path: Path
) -> None:
    async with door(serve, tmp_path) as (_, knowledge, client):
        async with client.stream("GET", f"{BASES}/events") as stream, asyncio.timeout(10):
            lines = stream.aiter_lines()
            first = [await told(lines) for _ in range(3)]
            assert [each["event"] for each in first] == ["base", "document", "base"]
            await client.post(BASES, json={"kb_id": "new"})
            assert (await told(lines))["kb_id"] == "new"
            assert len(knowledge.watchers) == 1
        async with asyncio.timeout(10):
            while knowledge.watchers:
                await asyncio.sleep(0.01)


async def test_events_end_cleanly_when_the_server_stops(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path, shutdown_grace_seconds=30) as (server, knowledge, client):
        async with client.stream("GET", f"{PHYSICS}/events") as stream, asyncio.timeout(10):
            lines = stream.aiter_lines()
            await told(lines)
            stopping = asyncio.create_task(server.server.shutdown())
            # An answer that was cut off would raise here.
            assert [line async for line in lines if line] == []
            await stopping
        assert knowledge.watchers == set()


async def test_a_reader_who_reads_nothing_is_dropped(serve: Serve, tmp_path: Path) -> None:
    async with door(serve, tmp_path, send_timeout_seconds=0.3) as (server, knowledge, _):
        raw_socket = socket.socket()
        raw_socket.setblocking(False)
        raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.url.removeprefix("http://").split(":")
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw_socket, (host, int(port)))
        with raw_socket:
            ask = f"GET {PHYSICS}/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"
            await loop.sock_sendall(raw_socket, ask.encode())
            async with asyncio.timeout(10):
                while not knowledge.watchers:
                    await asyncio.sleep(0.01)
            for n in range(300):
                knowledge.put_document("physics", "1", b"x", f"{n}" + "n" * 100_000)
            async with asyncio.timeout(10):
                while knowledge.watchers or server.server.server_state.connections:
                    await asyncio.sleep(0.01)


# With the server's own knowledge


async def test_a_course_is_uploaded_followed_searched_quoted_taken_along_and_deleted(
    serve: Serve,
) -> None:
    optics = "# Optics\n\n## Lenses\n\nA convex lens brings parallel light to its focus.\n"
    heat = "Heat\n\nA thermometer measures how warm a body is.\n"
    async with serve() as server:
        async with local_http(server.url) as client:
            assert (await client.post(BASES, json={"kb_id": "physics"})).status_code == 201
            async with client.stream("GET", f"{PHYSICS}/events") as stream, asyncio.timeout(60):
                lines = stream.aiter_lines()
                assert (await told(lines))["event"] == "base"
                two = [("file", ("optics.md", optics)), ("file", ("热.txt", heat))]
                taken = await client.post(f"{PHYSICS}/documents", files=two)
                assert taken.status_code == 202, taken.text
                states: dict[str, str] = {}
                while list(states.values()) != ["ready", "ready"]:
                    change = await told(lines)
                    if change["event"] == "document":
                        states[change["id"]] = change["state"]
                        assert change["state"] != "failed", change
            asked = {"question": "What does a convex lens do with parallel light?"}
            answer = (await client.post(f"{PHYSICS}/search", json=asked)).json()
            assert answer["covered"] is True
            found = answer["passages"][0]
            assert "Lenses" in found["heading"]
            path = f"{PHYSICS}/documents/{found['document_id']}"
            passage = (await client.get(f"{path}/passages/{found['n']}")).json()
            assert "brings parallel light to its focus" in passage["text"]
            assert "convex lens" in (await client.get(f"{path}/text")).text
            parcel = await client.get(f"{PHYSICS}/export")
            files = {"file": ("physics.zip", parcel.content)}
            copy = await client.post(f"{BASES}/import", files=files, data={"kb_id": "copy"})
            assert (copy.status_code, copy.json()["documents"]) == (201, 2), copy.text
            async with server.management() as management, asyncio.timeout(60):
                assert {d["state"] for d in await management.indexed("copy")} == {"ready"}
                # A student of a session with it reads what is cited.
                ticket = await management.create_session(kb_id="physics")
            bearer = {"Authorization": f"Bearer {ticket.engine_token}"}
            session = {"session_id": ticket.session_id}
            link = f"{path}/passages/{found['n']}"
            assert (await client.get(link, headers=bearer, params=session)).status_code == 200
            elsewhere = link.replace("physics", "copy")
            assert (await client.get(elsewhere, headers=bearer, params=session)).status_code == 404
            assert (await client.delete(path)).status_code == 204
            gone = (await client.post(f"{PHYSICS}/search", json=asked)).json()
            assert found["document_id"] not in {p["document_id"] for p in gone["passages"]}
            assert (await client.delete(PHYSICS)).status_code == 204
            assert (await client.get(link, headers=bearer, params=session)).status_code == 404
            assert (await client.get(f"{BASES}/copy")).json()["documents"] == 2


async def test_a_base_that_is_deleted_during_an_upload_stays_deleted(serve: Serve) -> None:
    async with serve() as server:
        root = server.state.settings.data_dir / "knowledge"
        host, port = server.url.removeprefix("http://").split(":")
        async with local_http(server.url) as client:
            await client.post(BASES, json={"kb_id": "physics"})
            body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
            body += b"word " * 600_000
            end = b"\r\n--b--\r\n"
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                f"POST {PHYSICS}/documents HTTP/1.1\r\nHost: {host}:{port}\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\nConnection: close\r\n"
                f"Content-Length: {len(body) + len(end)}\r\n\r\n".encode()
                + body
            )
            async with asyncio.timeout(20):
                while not await asyncio.to_thread(lambda: list(root.glob("*/incoming/*"))):
                    await asyncio.sleep(0.01)
                assert (await client.delete(PHYSICS)).status_code == 204
                writer.write(end)
                answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            assert b"404" in answer.splitlines()[0]
            assert b"knowledge_base_not_found" in answer
            assert (await client.get(BASES)).json()["total"] == 1
        assert not await asyncio.to_thread(lambda: list(root.glob("[0-9a-f]*")))


async def test_a_program_puts_a_course_in_with_the_client(serve: Serve) -> None:
    async with serve(management_api_key="key") as server, server.management("key") as management:
        await management.create_knowledge_base("physics", "Physics 9")
        [taken] = await management.add_document(
            "physics", "lever.md", b"# Levers\n\nA lever turns."
        )
        async with asyncio.timeout(60):
            [document] = await management.indexed("physics")
        assert (document["id"], document["state"]) == (taken["id"], "ready")
        with pytest.raises(httpx2.HTTPStatusError):
            await management.add_document("physics", "virus.exe", b"MZ")
        await management.delete_knowledge_base("physics")
        with pytest.raises(httpx2.HTTPStatusError):
            await management.documents("physics")
