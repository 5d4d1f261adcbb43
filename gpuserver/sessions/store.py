"""The SQLite store of sessions, their text events and conversations: one writer thread."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from gpuserver.errors import ConfigurationError, FolderNotWritable
from gpuserver.observability import get_logger
from gpuserver.sessions import tables
from gpuserver.sessions.tables import Operation, Read, StoredSession, Text, Write

log = get_logger(__name__)

_GATHER_SECONDS: Final = 0.04
_RETRY_SECONDS: Final = 0.5
_BUSY_SECONDS: Final = 0.2
"""How long another process that reads the file, such as a backup, is waited for at a time."""
_PENDING_BYTES: Final = 32 << 20
_OVERHEAD: Final = 150
"""Bytes that a waiting text event takes beside its text."""

# What can't be written however often it is tried; the rest of SQLite's errors may pass.
_REFUSED: Final = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    OverflowError,
    UnicodeError,
    TypeError,
)
_T = TypeVar("_T")


class StoreUnreadable(Exception):
    """What is stored can't be read at the moment, or the store is closed."""


class Store:
    """Sessions, text events and exchanges at a path; every call returns at once unless it says so.

    Writes are committed together, within 50 ms of the first that waits; a process that is killed
    loses no more than that. Reads see every write that was asked for before them. While the disk
    can't be written, writes wait in memory, the oldest text events being given up beyond
    `pending_bytes`. Used from one thread (the event loop's), but for `open`, `load` and `close`.
    """

    def __init__(self, path: Path, pending_bytes: int = _PENDING_BYTES) -> None:
        self._path = path
        self._pending_bytes = pending_bytes
        self._queue: deque[Operation] = deque()
        self._bell: SimpleQueue[bool] = SimpleQueue()
        self._rung = False
        # Counters and tables that only one of the two threads writes need no lock.
        self._bytes_in = self._bytes_out = 0
        self._refused: dict[str, int] = {}
        self._given_up: dict[str, int] = {}
        self._closed = True
        # From here on the writer thread's own.
        self._failing = False
        self._batch: list[Operation] = []
        self._known: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    # Start and end: these block

    def open(self) -> None:
        """Open the file, or make one that only this user can read. Blocks.

        Raises ConfigurationError when that can't be done, with what to do about it.
        """
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            self._path.chmod(0o600)
        except OSError as error:
            raise FolderNotWritable(folder=self._path.parent, reason=error.strerror) from None
        self._db = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._known = tables.prepare(self._db)
        except ConfigurationError:
            self._db.close()
            raise
        except sqlite3.Error as error:
            self._db.close()
            raise self._unusable(error) from None
        self._closed = False
        self._thread.start()

    def _unusable(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(
            problem=f"The file {self._path} can't be used ({error}).",
            fix="if it is not gpuserver's own move it away, or set DATA_DIR to another folder.",
        )

    @property
    def opened(self) -> bool:
        return not self._closed

    def load(self) -> list[StoredSession]:
        """Every session that is kept, oldest first. Blocks. Raises ConfigurationError."""
        found: Future[list[StoredSession]] = Future()
        self._ask(Read(tables.find_sessions, partial(_settle, found)))
        try:
            return found.result()
        except StoreUnreadable as error:
            raise self._unusable(error) from None

    def close(self) -> None:
        """Write all that waits and close the file; later calls do nothing. Blocks."""
        if not self._closed:
            self._closed = True
            self._bell.put(True)
            self._thread.join()

    # Writes

    @property
    def failing(self) -> bool:
        """Whether writing fails at the moment."""
        return self._failing or self._bytes_in - self._bytes_out > 2 * self._pending_bytes

    def append(self, session_id: str, seq: int, frame: str) -> None:
        """Keep a text event; those of a session come in order of their numbers."""
        if self._bytes_in - self._bytes_out > 2 * self._pending_bytes:
            # The writer is stuck in the disk.
            self._refused[session_id] = seq
            return
        self._bytes_in += len(frame) + _OVERHEAD
        self._queue.append((session_id, seq, frame))
        if not self._rung:
            # The writer lowers the flag before it empties the queue: no write is left behind.
            self._rung = True
            self._bell.put(False)

    def save(self, session: StoredSession) -> None:
        """Keep a session as it is now. Nothing else is kept of one that was never saved."""
        self._write(tables.saving(session))

    def drop(self, session_id: str) -> None:
        """Delete all that is kept of a session; what is written of it later is ignored."""
        self._refused.pop(session_id, None)
        self._write(tables.dropping(session_id))

    def trim(self, session_id: str, before_seq: int) -> None:
        """Let text events with lower numbers go; they count as lost from now on."""
        self._write(tables.trimming(session_id, before_seq))

    def remember(self, session_id: str, n: int, payload: bytes, keep: int) -> None:
        """Keep the n-th exchange of a conversation, and of those before it the last `keep` - 1."""
        self._write(tables.remembering(session_id, n, payload, keep))

    def rate(self, session_id: str, turn_id: str, rating: int, comment: str) -> None:
        """Keep what the student thinks of an answer, in place of what they thought before."""
        self._write(tables.rating_of(session_id, turn_id, rating, comment))

    def _write(self, write: Write) -> None:
        self._queue.append(write)
        if not self._rung:
            self._rung = True
            self._bell.put(False)

    # Reads

    def lost_through(self, session_id: str) -> int:
        """The highest number of a text event that could not be kept; 0 when none was lost."""
        if not self._refused and not self._given_up:
            return 0
        return max(self._refused.get(session_id, 0), self._given_up.get(session_id, 0))

    async def frames(self, session_id: str, after: int) -> list[tuple[int, str]]:
        """The next kept text events after number `after`, in order: about 256 kB of them.

        Raises StoreUnreadable.
        """
        return await self._find(partial(tables.find_frames, session_id=session_id, after=after))

    async def recall(self, session_id: str) -> list[bytes]:
        """The kept exchanges of a conversation, oldest first. Raises StoreUnreadable."""
        return await self._find(partial(tables.find_exchanges, session_id=session_id))

    async def _find(self, find: Callable[[sqlite3.Connection, list[Text | Write]], _T]) -> _T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def answer(found: _T | None, error: Exception | None) -> None:
            # A loop that has closed meanwhile wants no answer.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, future, found, error)

        self._ask(Read(find, answer))
        return await future

    def _ask(self, read: Read[Any]) -> None:
        if self._closed:
            raise StoreUnreadable("the store is closed")
        self._queue.append(read)
        self._bell.put(True)

    # The writer thread

    def _run(self) -> None:
        while not self._closed or self._queue:
            self._wait()
            self._rung = False
            while self._queue:
                self._batch.append(self._queue.popleft())
            try:
                self._commit()
            # The top of the thread: without it nothing would be kept any more.
            except Exception:
                log.exception("a batch of state is given up")
                self._abandon()
        if self._batch:
            log.error("state is lost: it could not be written", writes=len(self._batch))
        with suppress(sqlite3.Error):
            self._db.close()

    def _abandon(self) -> None:
        with suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
        for op in self._batch:
            if isinstance(op, Read):
                op.answer(None, ValueError("given up"))
        self._bytes_out += sum(map(_size, self._batch))
        self._given_up.update({op[0]: op[1] for op in self._batch if isinstance(op, tuple)})
        self._batch = []

    def _wait(self) -> None:
        """Return when it is time for the next commit: 40 ms after the first write, or hurried."""
        with suppress(Empty):
            hurry = self._bell.get(timeout=_RETRY_SECONDS if self._batch else None)
            end = time.monotonic() + (_RETRY_SECONDS if self._failing else _GATHER_SECONDS)
            while not hurry and (left := end - time.monotonic()) > 0:
                hurry = self._bell.get(timeout=left)

    def _commit(self) -> None:
        """Make all the writes of the batch or none, and answer its reads in their place."""
        writes = any(not isinstance(op, Read) for op in self._batch)
        reads = iter([op for op in self._batch if isinstance(op, Read)])
        known = set(self._known) if writes else self._known
        try:
            if writes:
                self._db.execute("BEGIN IMMEDIATE")
            self._apply(reads)
            if writes:
                self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            # What was undone must be done again, and not be taken for done.
            self._known = known
            self._fail(error, set(reads))
            return
        for op in self._batch:
            if isinstance(op, Write) and op.kind == "drop":
                self._given_up.pop(op.session_id, None)
        if writes and self._failing:
            log.warning("state is written again")
            self._failing = False
        self._bytes_out += sum(map(_size, self._batch))
        self._batch = []

    def _apply(self, reads: Iterator[Read[Any]]) -> None:
        texts: dict[str, list[int | str]] = {}
        for op in self._batch:
            if isinstance(op, tuple):
                group = texts.get(op[0])
                if group is None:
                    group = texts[op[0]] = []
                group.append(op[1])
                group.append(op[2])
                continue
            self._apply_texts(texts)
            if isinstance(op, Read):
                self._reply(next(reads), [])
            else:
                self._apply_write(op)
        self._apply_texts(texts)

    def _apply_texts(self, texts: dict[str, list[int | str]]) -> None:
        rows: list[tuple[str, int, bytes]] = []
        for session_id, flat in texts.items():
            if session_id in self._known:
                with _refusals_logged():
                    rows += tables.event_rows(session_id, flat)
        texts.clear()
        tables.insert_events(self._db, rows)

    def _apply_write(self, write: Write) -> None:
        if write.kind == "save":
            self._known.add(write.session_id)
        if write.session_id not in self._known:
            return
        with _refusals_logged():
            for statement, values in write.statements:
                self._db.execute(statement, values)
        if write.kind == "drop":
            self._known.discard(write.session_id)

    def _reply(self, read: Read[Any], waiting: list[Text | Write]) -> None:
        try:
            found = read.find(self._db, waiting)
        except (sqlite3.Error, ValueError) as error:
            read.answer(None, error)
        else:
            read.answer(found, None)

    def _fail(self, error: sqlite3.Error, unanswered: set[Read[Any]]) -> None:
        """Keep the writes for the next attempt; answer reads from what there is."""
        if not self._failing:
            self._failing = True
            log.error("state can't be written; it waits in memory", reason=str(error))
        waiting: list[Text | Write] = []
        for op in self._batch:
            if not isinstance(op, Read):
                waiting.append(op)
            elif op in unanswered:
                self._reply(op, waiting)
        self._batch = list(tables.without_needless(waiting))
        if sum(map(_size, self._batch)) > self._pending_bytes:
            self._give_up(self._pending_bytes // 2)

    def _give_up(self, room: int) -> None:
        """Let the oldest text events of the batch go until the rest fits in `room` bytes."""
        excess = sum(map(_size, self._batch)) - room
        kept: list[Operation] = []
        lost: dict[str, int] = {}
        for op in self._batch:
            if excess > 0 and isinstance(op, tuple):
                lost[op[0]] = op[1]
                self._bytes_out += _size(op)
                excess -= _size(op)
            else:
                kept.append(op)
        # In place: the event loop may be looking.
        self._given_up.update(lost)
        self._batch = kept + [tables.trimming(of, seq + 1) for of, seq in lost.items()]


def _size(op: Operation) -> int:
    return len(op[2]) + _OVERHEAD if isinstance(op, tuple) else 0


def _settle(future: asyncio.Future[_T] | Future[_T], found: Any, error: Exception | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(found)
        else:
            future.set_exception(StoreUnreadable(str(error)))


@contextmanager
def _refusals_logged() -> Iterator[None]:
    """Leave out what SQLite can never take; trying it again would hold up all the rest."""
    try:
        yield
    except _REFUSED as error:
        log.error("a piece of state can't be kept", kind=type(error).__name__)
