"""Reading a document in a process of its own, with limits on its memory and time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from gpuserver import course_errors
from gpuserver.course_errors import DocumentUnreadable
from gpuserver.documents import Piece, ReadDocument, ReadingLimits
from gpuserver.documents.kinds import suffix_of
from gpuserver.documents.messages import BYTES_PER_CHARACTER, LINE_BYTES, decode
from gpuserver.errors import GpuServerError

__all__ = ["ReadingLimits", "read_document"]

_SLACK_BYTES: Final = 1 << 22
_CHUNK: Final = 1 << 16
_LINES_AT_ONCE: Final = 32
_logger = logging.getLogger(__name__)


async def read_document(
    path: Path, name: str, limits: ReadingLimits, told: Callable[[int, int], None]
) -> ReadDocument:
    """Extract and cut a document in a child process that is killed when it goes too far.

    `name` is what its teacher calls it: its suffix says what it is, and its content must agree.
    `told` is called with (pages done, pages). Raises DocumentTypeUnknown, DocumentUnreadable,
    DocumentTooLarge, DocumentEmpty. When the awaiting task is cancelled, the child is killed.
    """
    suffix_of(name)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-B", "-X", "utf8", "-m", "gpuserver.documents",
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}, start_new_session=True, limit=LINE_BYTES,
    )  # fmt: skip
    reply = _Reply(name, limits, told)
    try:
        async with asyncio.timeout(limits.seconds):
            await _ask(process, path, name, limits)
            await reply.take_from(process)
            code = await process.wait()
    except TimeoutError as error:
        raise _too_slow(name, limits) from error
    finally:
        await _end(process)
    return reply.result(code)


async def _ask(process: Process, path: Path, name: str, limits: ReadingLimits) -> None:
    assert process.stdin is not None
    request = {
        "path": str(path), "name": name, "limits": asdict(limits), "parent": os.getpid(),
    }  # fmt: skip
    process.stdin.write(orjson.dumps(request))
    process.stdin.close()


async def _end(process: Process) -> None:
    """Kill what is left of it, and of what it started, and take its exit."""
    assert process.stdout is not None
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGKILL)
    while await process.stdout.read(_CHUNK):
        pass
    await process.wait()


@dataclass(slots=True)
class _Reply:
    """What the child has written so far."""

    name: str
    limits: ReadingLimits
    told: Callable[[int, int], None]
    _document: tuple[str, int | None] | None = None
    _empty_pages: list[int] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _pieces: list[Piece] = field(default_factory=list)
    _last: list[Any] = field(default_factory=list)

    async def take_from(self, process: Process) -> None:
        """Until it closes its pipe, or writes what it never would."""
        assert process.stdout is not None
        left = self.limits.characters * BYTES_PER_CHARACTER + _SLACK_BYTES
        lines = 0
        try:
            async for line in process.stdout:
                left -= len(line)
                if left < 0:
                    raise ValueError("too much")
                self._take(decode(line))
                lines += 1
                if lines % _LINES_AT_ONCE == 0:  # others have their turn
                    await asyncio.sleep(0)
        except (ValueError, TypeError) as error:
            await _end(process)  # it would wait for somebody to read the rest
            self._last = ["failed", f"it wrote what it should not, {type(error).__name__}"]

    def _take(self, message: list[Any]) -> None:
        match message:
            case ["progress", int(done), int(total)]:
                self.told(done, total)
            case ["document", str(title), pages]:
                self._document = title, pages
            case ["empty", list(pages)]:
                self._empty_pages += pages
            case ["text", str(part)]:
                self._text.append(part)
            case ["piece", str(text), str(heading), page, language]:
                self._pieces.append(Piece(text, heading, page, language))
            case _:
                self._last = message

    def result(self, code: int) -> ReadDocument:
        """Of a child that ended with this code. Raises as `read_document` does."""
        match self._last:
            case ["done"] if self._document is not None:
                title, pages = self._document
                text, pieces = "".join(self._text), tuple(self._pieces)
                return ReadDocument(title, text, pieces, pages, tuple(self._empty_pages))
            case ["refused", str(kind), dict(details)]:
                raise _refusal(kind, details)
            case ["memory"]:
                raise _too_big(self.name, self.limits)
            case ["failed", str(where)]:
                _logger.error("The reader of documents failed: %s", where)
                raise _damaged(self.name)
        if code in {-signal.SIGXCPU, -signal.SIGKILL}:
            raise _too_slow(self.name, self.limits)
        _logger.error("The process that reads documents ended with %d.", code)
        if code == 0:  # it thought that all went well: no lack of memory
            raise _damaged(self.name)
        raise _too_big(self.name, self.limits)


def _refusal(kind: str, details: dict[str, Any]) -> GpuServerError:
    error = getattr(course_errors, kind, None)
    if isinstance(error, type) and issubclass(error, GpuServerError):
        return error(**details)
    return GpuServerError()


def _damaged(name: str) -> DocumentUnreadable:
    return DocumentUnreadable(name=name, problem="the file is damaged", problem_zh="文件已损坏")


def _too_slow(name: str, limits: ReadingLimits) -> DocumentUnreadable:
    seconds = f"{limits.seconds:g}"
    return DocumentUnreadable(
        name=name,
        problem=f"it took longer than {seconds} seconds (INDEXING_SECONDS)",
        problem_zh=f"超过了 {seconds} 秒（INDEXING_SECONDS）",
    )


def _too_big(name: str, limits: ReadingLimits) -> DocumentUnreadable:
    megabytes = limits.memory_mb
    return DocumentUnreadable(
        name=name,
        problem=f"it is damaged, or needs more than {megabytes} MB (INDEXING_MEMORY_MB)",
        problem_zh=f"文件已损坏，或需要超过 {megabytes} MB 内存（INDEXING_MEMORY_MB）",
    )
