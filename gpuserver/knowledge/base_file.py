"""The SQLite file of one uploaded knowledge base: its documents, passages, words and vectors."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import orjson

from gpuserver.course_errors import KnowledgeBaseBusy, KnowledgeBaseDamaged
from gpuserver.errors import ConfigurationError, KnowledgeBaseNotFound
from gpuserver.knowledge.disk import full_disk_told
from gpuserver.knowledge.info import UNFINISHED, DocumentInfo
from gpuserver.language import Language
from gpuserver.providers import Passage

_VERSION: Final = 1
# What is large has tables of its own, so that a list of documents touches few pages.
_SCHEMA: Final = f"""
CREATE TABLE document(
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, file TEXT NOT NULL, sha256 BLOB NOT NULL,
    bytes INTEGER NOT NULL, state TEXT NOT NULL, code TEXT NOT NULL, problem TEXT NOT NULL,
    problem_zh TEXT NOT NULL, updated_at REAL NOT NULL, answers INTEGER NOT NULL, pages INTEGER,
    passages INTEGER NOT NULL, empty_pages TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE content(document_id TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT;
CREATE TABLE passage(
    document_id TEXT NOT NULL, n INTEGER NOT NULL, language TEXT NOT NULL, document TEXT NOT NULL,
    heading TEXT NOT NULL, page INTEGER, text TEXT NOT NULL, PRIMARY KEY(document_id, n)) STRICT;
CREATE TABLE part(
    document_id TEXT NOT NULL, language TEXT NOT NULL, terms BLOB NOT NULL, starts BLOB NOT NULL,
    keys BLOB NOT NULL, vectors BLOB NOT NULL, model TEXT NOT NULL, dimension INTEGER NOT NULL,
    seconds REAL NOT NULL, digest BLOB NOT NULL, PRIMARY KEY(document_id, language)) STRICT;
PRAGMA user_version = {_VERSION};
"""
_SAVE: Final = f"""
INSERT INTO document VALUES({",".join("?" * 14)}) ON CONFLICT(id) DO UPDATE SET
    name = excluded.name, file = excluded.file, sha256 = excluded.sha256, bytes = excluded.bytes,
    state = excluded.state, code = excluded.code, problem = excluded.problem,
    problem_zh = excluded.problem_zh, updated_at = excluded.updated_at,
    answers = excluded.answers, pages = excluded.pages, passages = excluded.passages,
    empty_pages = excluded.empty_pages"""
_PASSAGES: Final = "SELECT document_id, n, language, document, heading, page, text FROM passage"
BUSY_SECONDS: Final = 10.0
"""So long a call waits for another process that holds the file, such as a backup."""
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
# A file that is no longer as it was written holds whatever it may.
_UNREADABLE: Final = (
    sqlite3.Error, OSError, LookupError, ValueError, TypeError, ArithmeticError,
)  # fmt: skip
_OF_CONTENT: Final = ("content", "passage", "part")


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document, the file that was uploaded last under its name, and that file's digest.

    Every upload has a `file` of its own, which tells it from the ones before.
    """

    info: DocumentInfo
    file: str
    sha256: bytes


def uploaded(before: StoredDocument | None, name: str, sha256: bytes, size: int) -> StoredDocument:
    """A document with a file that is new, the version before it still answering."""
    now = datetime.now(UTC)
    if before is None:
        info = DocumentInfo(
            id=uuid.uuid4().hex[:16], name=name, state="queued", done=0, total=0, bytes=size,
            pages=None, passages=0, empty_pages=(), problem=None, problem_zh="", updated_at=now,
            answers=False,
        )  # fmt: skip
    else:
        info = replace(
            before.info, name=name, state="queued", done=0, total=0, bytes=size, problem=None,
            problem_zh="", updated_at=now,
        )  # fmt: skip
    return StoredDocument(info, uuid.uuid4().hex, sha256)


@dataclass(frozen=True, slots=True)
class StoredPart:
    """What the search needs of a document in one language, as bytes.

    `keys` are of the embedded texts, 16 bytes each; `vectors` are float32 rows of `dimension`, of
    the model `model`, which took `seconds` to make them. Both are empty for a language the model
    does not know.
    """

    language: Language
    terms: bytes
    starts: bytes
    keys: bytes = b""
    vectors: bytes = b""
    model: str = ""
    dimension: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Stored:
    """All that a file holds, but for the texts: documents, and by id their passages and parts."""

    documents: tuple[StoredDocument, ...]
    passages: dict[str, list[Passage]]
    parts: dict[str, list[StoredPart]]


class BaseFile:
    """One base's file. Blocking; any thread, one at a time.

    It is opened for each call, as a school may have more bases than a process may have files. Its
    journal is SQLite's plain one, and not a write-ahead log: that needs room on the disk even to be
    read, and keeps what was deleted for a while.

    Every method raises KnowledgeBaseDamaged for a file that can't be read, KnowledgeBaseBusy for
    one that another process holds for longer than `BUSY_SECONDS`, DiskFull where there is no room
    to write, and KnowledgeBaseNotFound after `close`.
    """

    def __init__(self, path: Path, kb_id: str, *, new: bool = False) -> None:
        """Look at the file, or with `new` make one that only this user can read.

        Raises ConfigurationError, too, when a newer version wrote it.
        """
        self._path, self._kb_id = path, kb_id
        self._lock = threading.Lock()
        self._closed = False
        with self._told():
            # What is missing or empty is no new base, whose originals nobody needs.
            os.close(os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0), 0o600))
        with self._open() as db:
            _prepare(db, new=new)

    def close(self) -> None:
        """Wait for what is being written; nothing is from now on."""
        with self._lock:
            self._closed = True

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with full_disk_told():
                yield
        except _UNREADABLE as error:
            # The low byte says what is wrong, the others where.
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY:
                raise KnowledgeBaseBusy(kb_id=self._kb_id) from error
            raise KnowledgeBaseDamaged(kb_id=self._kb_id) from error

    @contextmanager
    def _alone(self) -> Iterator[float]:
        """One call at a time; seconds that it may still wait for other processes.

        Whoever waits behind a call that waits does not wait anew: each has one of the threads that
        students' searches need as well.
        """
        began = time.monotonic()
        if not self._lock.acquire(timeout=BUSY_SECONDS):
            raise KnowledgeBaseBusy(kb_id=self._kb_id)
        try:
            yield max(0.0, BUSY_SECONDS - (time.monotonic() - began))
        finally:
            self._lock.release()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._alone() as patience, self._told():
            if self._closed:
                raise KnowledgeBaseNotFound(kb_id=self._kb_id)
            address = f"file:{quote(str(self._path))}?mode=rw"
            db = sqlite3.connect(address, timeout=patience, isolation_level=None, uri=True)
            try:
                # The file of an older upload is unlinked once the newer one is committed.
                db.execute("PRAGMA synchronous = FULL")
                # What a teacher deletes does not stay in the file's free pages.
                db.execute("PRAGMA secure_delete = ON")
                yield db
            finally:
                db.close()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """All of the block's changes or none; KnowledgeBaseBusy comes before the block, if ever."""
        with self._open() as db:
            db.execute("BEGIN EXCLUSIVE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                # A full disk has rolled it back already.
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    # Reads

    def load(self) -> Stored:
        """Everything, checked against the digests it was written with."""
        with self._open() as db:
            db.execute("BEGIN")  # one state of it, whatever another process writes meanwhile
            documents = tuple(map(_document, db.execute("SELECT * FROM document ORDER BY name")))
            passages: dict[str, list[Passage]] = {item.info.id: [] for item in documents}
            for row in db.execute(f"{_PASSAGES} ORDER BY document_id, n"):
                passages[row[0]].append(self._passage(row))
            parts: dict[str, list[StoredPart]] = {item.info.id: [] for item in documents}
            for document_id, *row, digest in db.execute("SELECT * FROM part"):
                part = StoredPart(*row)
                own = [p for p in passages[document_id] if p.language == part.language]
                if digest != _digest(part, own):
                    raise ValueError("a part is not what was written")
                parts[document_id].append(part)
            return Stored(documents, passages, parts)

    def text(self, document_id: str) -> str:
        """What was extracted; "" before anything was."""
        with self._open() as db:
            query = "SELECT text FROM content WHERE document_id = ?"
            row = db.execute(query, (document_id,)).fetchone()
            return row[0] if row else ""

    def parts(self, document_id: str) -> list[StoredPart]:
        """Of the version that answers."""
        with self._open() as db:
            rows = db.execute("SELECT * FROM part WHERE document_id = ?", (document_id,))
            return [StoredPart(*row[1:-1]) for row in rows]

    def _passage(self, row: tuple[str, int, Language, str, str, int | None, str]) -> Passage:
        document_id, n, language, document, heading, page, text = row
        return Passage(
            f"{document_id}#{n}", self._kb_id, document, heading, text, language, page,
            document_id=document_id, n=n,
        )  # fmt: skip

    # Writes

    def save(self, documents: Sequence[StoredDocument]) -> None:
        """Keep documents as they are now: all or none."""
        with self._changing() as db:
            db.executemany(_SAVE, map(_row, documents))

    def publish(
        self,
        document: StoredDocument,
        text: str | None,
        passages: Sequence[Passage],
        parts: Sequence[StoredPart],
        ahead: Callable[[], None],
    ) -> None:
        """The new version in place of the old one; `text` None: as it was.

        `ahead` is called before anything is written, and what it raises leaves the file as it was.
        """
        document_id = document.info.id
        with self._changing() as db:
            _do(ahead)
            for table in _OF_CONTENT if text is not None else _OF_CONTENT[1:]:
                db.execute(f"DELETE FROM {table} WHERE document_id = ?", (document_id,))
            if text is not None:
                db.execute("INSERT INTO content VALUES(?,?)", (document_id, text))
            db.executemany(
                "INSERT INTO passage VALUES(?,?,?,?,?,?,?)",
                [(document_id, p.n, p.language, p.document, p.heading, p.page, p.text)
                 for p in passages],
            )  # fmt: skip
            for part in parts:
                own = [p for p in passages if p.language == part.language]
                db.execute(
                    f"INSERT INTO part VALUES({','.join('?' * 10)})",
                    (document_id, *_columns(part), _digest(part, own)),
                )
            db.execute(_SAVE, _row(document))

    def remove(self, document_id: str, ahead: Callable[[], None]) -> None:
        """Nothing of it stays; `ahead` as in `publish`."""
        with self._changing() as db:
            _do(ahead)
            for table in _OF_CONTENT:
                db.execute(f"DELETE FROM {table} WHERE document_id = ?", (document_id,))
            db.execute("DELETE FROM document WHERE id = ?", (document_id,))


def _prepare(db: sqlite3.Connection, *, new: bool) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _VERSION:
        raise ConfigurationError(
            problem=f"This knowledge base was written by a newer gpuserver (format {version}; "
            f"this one reads {_VERSION}).",
            fix="run that version.",
        )
    if (version == 0) is not new:
        raise ValueError("no base was ever written here")
    if new:
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")


def _do(ahead: Callable[[], None]) -> None:
    """A bug in what is called must not look like a damaged file, which somebody might delete."""
    try:
        ahead()
    except _UNREADABLE as error:
        raise RuntimeError("what comes before writing failed") from error


def _columns(part: StoredPart) -> tuple[object, ...]:
    return (
        part.language, part.terms, part.starts, part.keys, part.vectors, part.model,
        part.dimension, part.seconds,
    )  # fmt: skip


def _digest(part: StoredPart, passages: Sequence[Passage]) -> bytes:
    """Of all that the search holds of a part: SQLite does not notice a changed bit."""
    found = hashlib.sha256()
    for column in (part.terms, part.starts, part.keys, part.vectors):
        found.update(len(column).to_bytes(8, "big"))
        found.update(column)
    for p in passages:
        found.update(orjson.dumps([p.n, p.document, p.heading, p.page, p.text]))
    return found.digest()


def _row(document: StoredDocument) -> tuple[object, ...]:
    info = document.info
    code, problem = info.problem or ("", "")
    state = "queued" if info.state in UNFINISHED else info.state
    return (
        info.id, info.name, document.file, document.sha256, info.bytes, state, code, problem,
        info.problem_zh, info.updated_at.timestamp(), info.answers, info.pages, info.passages,
        orjson.dumps(info.empty_pages).decode(),
    )  # fmt: skip


def _document(row: tuple[Any, ...]) -> StoredDocument:
    (document_id, name, file, sha256, size, state, code, problem, problem_zh, updated_at, answers,
     pages, passages, empty_pages) = row  # fmt: skip
    done = passages if state == "ready" else 0
    info = DocumentInfo(
        id=document_id, name=name, state=state, done=done, total=done, bytes=size, pages=pages,
        passages=passages, empty_pages=tuple(orjson.loads(empty_pages)),
        problem=(code, problem) if code else None, problem_zh=problem_zh,
        updated_at=datetime.fromtimestamp(updated_at, UTC), answers=bool(answers),
    )  # fmt: skip
    return StoredDocument(info, file, sha256)
