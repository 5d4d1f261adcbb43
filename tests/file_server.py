"""A server of files over HTTP for the tests of downloads: it can break off, move and forget."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Asked:
    """One request that came in."""

    method: str
    path: str
    range: str
    token: str


@dataclass
class FileServer:
    """Files by path; the other fields say what goes wrong with them."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    break_off: dict[str, int] = field(default_factory=dict)
    """Path → bytes after which the next answers' connection breaks; once for each entry."""
    hang_after: dict[str, int] = field(default_factory=dict)
    """Path → bytes after which nothing more comes until the server is closed."""
    moved_to: dict[str, str] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    def add_repository(self, name: str, files: Mapping[str, bytes], **sizes: int) -> None:
        """A model as the hub's API tells of it; `sizes` are told instead of the real ones."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        siblings = []
        for path, data in files.items():
            entry = {"rfilename": path, "size": sizes.get("size", len(data)), "blobId": "0" * 40}
            if path.endswith((".safetensors", ".bin")):
                sha = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": entry["size"], "pointerSize": 130}
            siblings.append(entry)
            self.files[f"/{name}/resolve/{commit}/{path}"] = data
        answer = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
        self.files[f"/api/models/{name}"] = json.dumps(answer).encode()

    def requests(self, path_end: str, method: str = "GET") -> list[Asked]:
        return [x for x in self.asked if x.path.endswith(path_end) and x.method == method]


@contextmanager
def serving(server: FileServer) -> Iterator[FileServer]:
    """Serve on a free port of the loopback."""

    class Handler(_Handler):
        files = server

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            http.shutdown()
            thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    files: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "")
        wanted = self.headers.get("Range", "")
        self.files.asked.append(Asked(self.command, path, wanted, token))
        if path in self.files.moved_to:
            self._head(302, 0, {"Location": self.files.moved_to[path]})
            return
        data = self.files.files.get(path)
        status = self.files.status.get(path, 200 if data is not None else 404)
        if data is None or status != 200:
            self._head(status, 0, {"X-Error-Code": "RepoNotFound"} if status == 404 else {})
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and self.files.ranges else 0
        more = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self._head(206 if start else 200, len(data) - start, more)
        if body:
            self._send(path, data[start:], start)

    def _head(self, status: int, length: int, more: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, path: str, data: bytes, start: int) -> None:
        if path in self.files.hang_after:
            self.wfile.write(data[: self.files.hang_after[path]])
            self.wfile.flush()
            self.files.closing.wait(60)
            self.close_connection = True
        elif (end := self.files.break_off.pop(path, None)) is not None:
            self.wfile.write(data[: end - start])
            self.close_connection = True
        else:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
