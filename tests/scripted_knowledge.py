"""A server of the console page over course material that a test scripts: it refuses, it breaks."""

from __future__ import annotations

import json
import mimetypes
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from tests.scripted_tutor import POLICY, WEB

ROOT: Final = "/mgmt/v1/knowledge-bases"
_NAME: Final = re.compile(rb'name="file"; filename="([^"]*)"')
_MACHINE: Final = {
    "/ready": {"ready": True, "stage": "", "done": 0, "total": 0, "reason": None},
    "/status": {
        "max_sessions": 10,
        "active_sessions": 0,
        "active_connections": 0,
        "tutors": {},
        "cached_engines": 0,
        "uptime_seconds": 7200,
        "version": "1",
        "degraded": [],
    },
    "/mgmt/v1/models": {
        "models": [],
        "gpus": [],
        "host": {"total_mb": 131072, "free_mb": 98304, "used_mb": 32768},
        "disk": {"folder": "models", "free_mb": 51200, "models_mb": 20480},
    },
}


def base(kb_id: str, title: str = "", **more: Any) -> dict[str, Any]:
    """A knowledge base as the API tells of it."""
    return {
        "kb_id": kb_id,
        "title": title,
        "origin": "uploaded",
        "documents": 0,
        "passages": 0,
        "bytes": 0,
        "state": "ready",
        "problem": None,
        "created_at": "2026-11-21T08:00:00Z",
        "languages": ["en"],
        **more,
    }


def document(number: int, name: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    """A document as the API tells of it."""
    ready = state == "ready"
    return {
        "id": f"{number:016x}",
        "name": name,
        "state": state,
        "done": 0,
        "total": 0,
        "bytes": 2_400_000,
        "pages": 120 if ready else None,
        "passages": 340 if ready else 0,
        "empty_pages": [],
        "problem": None,
        "updated_at": "2026-11-21T08:00:00Z",
        "answers": ready,
        **more,
    }


@dataclass
class ScriptedKnowledge:
    """The knowledge bases of a server, and what happens to calls."""

    url: str = ""
    bases: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path below the knowledge bases, and the JSON or the file's name of each change."""
    keys: list[str] = field(default_factory=list)
    """The keys that calls below the knowledge bases came with."""
    answers: dict[str, Any] = field(default_factory=dict)
    """Method and path → (status, JSON) or text, instead of what they would answer."""
    breaking: str = ""
    """The end of paths whose answers break off."""
    streams: int = 0
    no_streams: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _said: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)
    _breaks: int = 0
    _closing: bool = False

    def put(self, kb_id: str, told: Mapping[str, Any], silent: bool = False) -> None:
        """A document is new, or has changed, which those who listen hear unless it is `silent`."""
        with self._changed:
            documents = self.documents.setdefault(kb_id, {})
            documents[told["id"]] = dict(told)
            self.bases[kb_id]["documents"] = len(documents)
            if not silent:
                self._said.setdefault(kb_id, []).append(("document", dict(told)))
            self._changed.notify_all()

    def tell_base(self, kb_id: str, **changed: Any) -> None:
        """A knowledge base has changed, which those who listen hear."""
        with self._changed:
            self.bases[kb_id].update(changed)
            self._said.setdefault(kb_id, []).append(("base", dict(self.bases[kb_id])))
            self._changed.notify_all()

    def break_streams(self) -> None:
        with self._changed:
            self._breaks += 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    # What calls are answered with

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        with self._changed:
            if method != "GET":
                self.asked.append((method, path, body))
            if f"{method} {path}" in self.answers:
                given: tuple[int, Any] = self.answers[f"{method} {path}"]
                return given
            return self._answer(method, [unquote(part) for part in path.split("/") if part], body)

    def _answer(self, method: str, parts: list[str], body: Any) -> tuple[int, Any]:
        match (method, parts):
            case ("GET", []):
                known = list(self.bases.values())
                return 200, {"total": len(known), "knowledge_bases": known}
            case ("POST", []):
                self.bases[body["kb_id"]] = made = base(body["kb_id"], body["title"])
                return 201, made
            case ("DELETE", [kb_id]):
                del self.bases[kb_id]
                return 204, None
            case ("GET", [kb_id, "documents"]):
                found = list(self.documents.get(kb_id, {}).values())
                return 200, {"total": len(found), "documents": found}
            case ("DELETE", [kb_id, "documents", one]):
                del self.documents[kb_id][one]
                self.bases[kb_id]["documents"] -= 1
                removed = {"kb_id": kb_id, "document_id": one}
                self._said.setdefault(kb_id, []).append(("removed", removed))
                self._changed.notify_all()
                return 204, None
            case ("POST", [kb_id, "documents"]):
                number = len(self.documents.setdefault(kb_id, {})) + 1
                told = document(number, body, "queued")
                self.documents[kb_id][told["id"]] = told
                self.bases[kb_id]["documents"] = number
                return 202, {"documents": [told]}
        return 404, {"code": "not_found", "detail": "Not Found"}

    def tell(self, kb_id: str, handler: BaseHTTPRequestHandler) -> None:
        """Write what happens to a knowledge base as it happens, until the stream breaks."""
        with self._changed:
            self.streams += 1
            place, breaks = len(self._said.get(kb_id, [])), self._breaks
        while (events := self._next(kb_id, place, breaks)) is not None:
            place += len(events)
            for kind, told in events:
                handler.wfile.write(f"event: {kind}\r\ndata: {json.dumps(told)}\r\n\r\n".encode())
                handler.wfile.flush()

    def _next(self, kb_id: str, place: int, breaks: int) -> list[tuple[str, Any]] | None:
        """What has happened since; None when the stream is over."""

        def told() -> list[tuple[str, Any]]:
            return self._said.get(kb_id, [])[place:]

        with self._changed:
            heard = self._changed.wait_for(lambda: self._over(breaks) or bool(told()), 20)
            return told() if heard and not self._over(breaks) else None

    def _over(self, breaks: int) -> bool:
        return self._closing or self._breaks != breaks


class _Handler(BaseHTTPRequestHandler):
    knowledge: ScriptedKnowledge

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if not path.startswith(ROOT):
            self._page(path)
            return
        rest = path.removeprefix(ROOT)
        if rest.endswith("/events") and not self.knowledge.no_streams:
            self._begin(200, "text/event-stream")
            with suppress(ConnectionError):
                self.knowledge.tell(unquote(rest.split("/")[1]), self)
            return
        self._call("GET", rest, None)

    def do_POST(self) -> None:
        self._call("POST", urlsplit(self.path).path.removeprefix(ROOT), self._body())

    def do_PUT(self) -> None:
        self._call("PUT", urlsplit(self.path).path.removeprefix(ROOT), self._body())

    def do_DELETE(self) -> None:
        self._call("DELETE", urlsplit(self.path).path.removeprefix(ROOT), None)

    def _call(self, method: str, rest: str, body: Any) -> None:
        self.knowledge.keys.append(self.headers.get("Authorization", ""))
        status, answer = self.knowledge.answer(method, rest, body)
        if isinstance(answer, str | bytes):
            self._send(status, answer if isinstance(answer, bytes) else answer.encode())
        elif answer is None:
            self._send(status, b"")
        else:
            self._send(status, json.dumps(answer).encode(), "application/json")

    def _body(self) -> Any:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "multipart" not in self.headers.get("Content-Type", ""):
            return json.loads(body) if body else None
        found = _NAME.search(body)
        return found[1].decode() if found else None

    def _page(self, path: str) -> None:
        if path in _MACHINE:
            self._send(200, json.dumps(_MACHINE[path]).encode(), "application/json")
            return
        file = WEB / ("console.html" if path == "/" else path.removeprefix("/classroom/"))
        if not file.is_file():
            self._send(404, b"")
            return
        self._send(200, file.read_bytes(), mimetypes.guess_type(file.name)[0] or "text/plain")

    def _send(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        missing = bool(self.knowledge.breaking) and self.path.endswith(self.knowledge.breaking)
        self._begin(status, f"{kind}; charset=utf-8", len(body) + missing)
        with suppress(ConnectionError):
            self.wfile.write(body)

    def _begin(self, status: int, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Connection", "close")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """The test tells what happened."""


@contextmanager
def scripted_knowledge() -> Iterator[ScriptedKnowledge]:
    """Scripted knowledge bases on a free port of the loopback."""
    knowledge = ScriptedKnowledge()
    handler = type("Handler", (_Handler,), {"knowledge": knowledge})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        knowledge.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield knowledge
        finally:
            knowledge.close()
            server.shutdown()
            thread.join(5)
