"""Uploads: a multipart form whose files are written to disk while it comes, within limits."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from gpuserver.course_errors import DocumentNameInvalid, DocumentTooLarge, UploadInvalid
from gpuserver.errors import BodyTooSlow, ShuttingDown
from gpuserver.knowledge.disk import check_room, full_disk_told
from gpuserver.threads import finish_in_thread

SILENCE_SECONDS: Final = 20.0
"""An upload of which nothing comes for so long is dropped; in all it may take its time."""
MOST_FILES: Final = 100
"""Files of one form."""

_OVERHEAD: Final = 1 << 20
"""Bytes of a form that are no file's: headers, other fields, what stands around the parts."""
_BATCH: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that has arrived; `name` is what the form calls it, folders and all."""

    name: str
    path: Path


@dataclass(slots=True)
class Form:
    """What a form holds: files in their order, and its other fields."""

    files: list[Upload] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a form may hold.

    `accept` is called with each file's name before its content is taken, and raises what is wrong.
    `closing` is set when the server stops. `large` forms end before the disk is full.
    """

    megabytes: int
    accept: Callable[[str], object]
    closing: asyncio.Event
    files: int = MOST_FILES
    fields: frozenset[str] = frozenset()
    large: bool = False


@asynccontextmanager
async def received(request: Request, folder: Path, rules: Rules) -> AsyncIterator[Form]:
    """The form in the request's body. Files that still lie in `folder` at the end are deleted.

    Raises UploadInvalid, DocumentTooLarge, DiskFull, BodyTooSlow, ShuttingDown, and what
    `rules.accept` raises: as soon as it is known, while the rest of the body is still coming.
    """
    receiver = _Receiver(_boundary(request, rules), folder, rules)
    try:
        await _receive(request, receiver, rules)
        yield receiver.form
    finally:
        await finish_in_thread(receiver.discard)


async def _receive(request: Request, receiver: _Receiver, rules: Rules) -> None:
    """Hand the body over in large pieces: parsing and writing block."""
    batch = bytearray()
    chunks = request.stream()
    try:
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                chunk = await anext(chunks, None)
            if rules.closing.is_set():
                raise ShuttingDown(retry_after=5)
            if chunk is not None:
                batch += chunk
            if batch and (chunk is None or len(batch) >= _BATCH):
                await finish_in_thread(receiver.feed, bytes(batch))
                batch.clear()
            if chunk is None:
                break
    except TimeoutError as error:
        raise BodyTooSlow(limit=round(SILENCE_SECONDS)) from error
    except ClientDisconnect as error:
        raise _cut() from error
    finally:
        await chunks.aclose()
    receiver.finish()


class _Receiver:
    """Takes a form apart and writes its files. Blocking; used by one thread at a time."""

    def __init__(self, boundary: bytes, folder: Path, rules: Rules) -> None:
        self.form = Form()
        self._folder, self._rules = folder, rules
        self._limit = rules.megabytes << 20
        self._overhead = 0
        self._scratch: list[Path] = []
        self._file: BinaryIO | None = None
        self._size = 0
        self._name = self._value = self._disposition = b""
        self._field: str | None = None
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._form_end,
            },
        )

    def feed(self, data: bytes) -> None:
        """The next bytes of the body. Raises UploadInvalid, DocumentTooLarge, DiskFull."""
        self._overhead += len(data)
        if self._rules.large:
            check_room(self._folder, len(data))
        try:
            with full_disk_told():
                self._parser.write(data)
        except FormParserError as error:
            raise _no_form() from error
        if self._overhead > _OVERHEAD:
            raise _invalid("it holds too much beside its files", "除文件外的内容太多")

    def finish(self) -> None:
        """The body is over. Raises UploadInvalid."""
        if not self._ended:
            raise _cut()
        if not self.form.files:
            raise _invalid("there is no file in the field 'file'", "file 字段里没有文件")

    def discard(self) -> None:
        """Delete what nobody took."""
        if self._file is not None:
            # On a full disk even closing fails.
            with suppress(OSError):
                self._file.close()
        for path in self._scratch:
            path.unlink(missing_ok=True)

    # What the parser tells

    def _begin(self) -> None:
        self._disposition = b""
        self._field = None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"name", b"").decode("latin-1")
        if b"filename" not in options:
            if name == "file":
                raise _invalid(
                    "the field 'file' holds text instead of a file (curl: -F file=@lesson.pdf)",
                    "file 字段里是文字而不是文件（curl 应写 -F file=@lesson.pdf）",
                )
            self._field = name if name in self._rules.fields else None
            return
        if name != "file":
            raise _invalid("files belong in the field 'file'", "文件应放在 file 字段里")
        try:
            self._open(options[b"filename"].decode())
        except UnicodeDecodeError:
            raise DocumentNameInvalid from None

    def _open(self, name: str) -> None:
        if not name:
            # What a browser sends of a file chooser in which nothing was chosen.
            return
        if len(self.form.files) >= self._rules.files:
            raise _invalid(
                f"it holds more than {self._rules.files} file(s)",
                f"文件超过 {self._rules.files} 个",
            )
        self._rules.accept(name)
        path = self._folder / f"{secrets.token_hex(8)}.upload"
        self._scratch.append(path)
        try:
            self._file, self._size = path.open("xb"), 0
        except FileNotFoundError:
            raise _invalid("the knowledge base was deleted meanwhile", "知识库已被删除") from None
        self.form.files.append(Upload(name, path))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._overhead -= end - start
            self._size += end - start
            if self._size > self._limit:
                name = self.form.files[-1].name
                raise _too_large(self._rules.megabytes, name)
            self._file.write(data[start:end])
        elif self._field is not None:
            text = data[start:end].decode(errors="replace")
            self.form.fields[self._field] = self.form.fields.get(self._field, "") + text

    def _end(self) -> None:
        if self._file is not None:
            # Closing writes the last bytes: what the disk has no room for is told here.
            self._file.close()
            self._file = None

    def _form_end(self) -> None:
        self._ended = True


def _too_large(megabytes: int, name: str) -> DocumentTooLarge:
    return DocumentTooLarge(limit=f"{megabytes} MB", name=name[-200:])


def _boundary(request: Request, rules: Rules) -> bytes:
    """Raises UploadInvalid, and DocumentTooLarge for a body that says it is."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise _no_form()
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 200:
        raise _no_form()
    # uvicorn has seen to it that this is a number.
    length = int(request.headers.get("content-length", 0))
    if length > rules.files * (rules.megabytes << 20) + _OVERHEAD:
        raise _too_large(rules.megabytes, "the upload")
    return boundary


def _invalid(problem: str, problem_zh: str) -> UploadInvalid:
    return UploadInvalid(problem=problem, problem_zh=problem_zh)


def _no_form() -> UploadInvalid:
    return _invalid(
        "it is no multipart form (curl: -F file=@lesson.pdf)",
        "它不是 multipart 表单（curl：-F file=@lesson.pdf）",
    )


def _cut() -> UploadInvalid:
    return _invalid("it ended in the middle", "上传中途中断")
