"""What the store's tables hold: their schema, and every write and read of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Final, Generic, TypeVar

import orjson

from gpuserver.errors import ConfigurationError

_VERSION: Final = 1
# Events of all sessions lie side by side in the order of writing: a commit then touches few pages,
# where a table sorted by session costs three times the processor time.
_SCHEMA: Final = f"""
CREATE TABLE session(
    id TEXT PRIMARY KEY, tutor_id INTEGER NOT NULL, student_id INTEGER NOT NULL, kb_id TEXT,
    token_sha256 BLOB NOT NULL, created_at REAL NOT NULL, last_activity REAL NOT NULL,
    expires_at REAL NOT NULL, last_seq INTEGER NOT NULL, lost_seq INTEGER NOT NULL,
    turns INTEGER NOT NULL, open_turn TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE event(
    session_id TEXT NOT NULL, last_seq INTEGER NOT NULL, frames BLOB NOT NULL,
    PRIMARY KEY(session_id, last_seq)) STRICT;
CREATE TABLE exchange(
    session_id TEXT NOT NULL, n INTEGER NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY(session_id, n)) STRICT, WITHOUT ROWID;
CREATE TABLE feedback(
    session_id TEXT NOT NULL, turn_id TEXT NOT NULL, rating INTEGER NOT NULL,
    comment TEXT NOT NULL, PRIMARY KEY(session_id, turn_id)) STRICT, WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""
# What only grows must not shrink when an older picture of the session is written later.
_SAVE: Final = """
INSERT INTO session VALUES(?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(id) DO UPDATE SET
    last_activity = excluded.last_activity, expires_at = excluded.expires_at,
    last_seq = max(last_seq, excluded.last_seq), lost_seq = max(lost_seq, excluded.lost_seq),
    turns = excluded.turns, open_turn = excluded.open_turn"""
_LOAD: Final = """
SELECT id, tutor_id, student_id, kb_id, token_sha256, created_at, last_activity, expires_at,
    max(last_seq, coalesce((SELECT max(last_seq) FROM event WHERE session_id = id), 0)),
    lost_seq, turns, open_turn
FROM session ORDER BY created_at"""
_FRAMES: Final = "SELECT frames FROM event WHERE session_id = ? AND last_seq > ? ORDER BY last_seq"
_EXCHANGES: Final = "SELECT n, payload FROM exchange WHERE session_id = ?"
_CHECKPOINT_PAGES: Final = 4000
_ROW_FRAMES: Final = 256
_ROWS_A_STATEMENT: Final = 64
_READ_BYTES: Final = 256 << 10

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session as it is kept. Times are wall time, in seconds since 1970.

    Of its text events, those up to number `lost_seq` are no longer complete.
    """

    id: str
    tutor_id: int
    student_id: int
    kb_id: str | None
    token_sha256: bytes = field(repr=False)
    created_at: float
    last_activity: float
    expires_at: float
    last_seq: int = 0
    lost_seq: int = 0
    turns: int = 0
    open_turn: str | None = None


Text = tuple[str, int, str]
"""A text event to be written: session id, number, frame. A plain tuple, as there are many."""


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """Any other write: its statements. A later one of the same kind and item replaces it."""

    session_id: str
    kind: str
    statements: tuple[tuple[str, tuple[Any, ...]], ...]
    item: object = None


@dataclass(frozen=True, slots=True, eq=False)
class Read(Generic[_T]):
    """A question: `find` looks in the tables, then at the writes that still wait.

    `answer` is called once, with what was found or with None and why not.
    """

    find: Callable[[sqlite3.Connection, list[Text | Write]], _T]
    answer: Callable[[_T | None, Exception | None], None]


Operation = Text | Write | Read[Any]


def prepare(db: sqlite3.Connection) -> set[str]:
    """Make the tables where there are none yet; returns the ids of the sessions kept.

    Raises ConfigurationError when a newer version wrote them, and sqlite3.Error.
    """
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {_CHECKPOINT_PAGES * 4096}")
    # Pupils' words that are deleted do not stay in the file's free pages.
    db.execute("PRAGMA secure_delete = ON")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _VERSION:
        raise ConfigurationError(
            problem=f"The state in DATA_DIR was written by a newer gpuserver (format {version}; "
            f"this one reads {_VERSION}).",
            fix="run that version, or set DATA_DIR to another folder.",
        )
    if version == 0:
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    return {row[0] for row in db.execute("SELECT id FROM session")}


# Writes


def saving(session: StoredSession) -> Write:
    """The session's row as it is now."""
    values = tuple(getattr(session, column.name) for column in fields(session))
    return Write(session.id, "save", ((_SAVE, values),))


def dropping(session_id: str) -> Write:
    """Nothing of the session stays."""
    rest = ("event", "exchange", "feedback")
    statements = tuple((f"DELETE FROM {t} WHERE session_id = ?", (session_id,)) for t in rest)
    return Write(
        session_id, "drop", (("DELETE FROM session WHERE id = ?", (session_id,)), *statements)
    )


def trimming(session_id: str, before_seq: int) -> Write:
    """Text events with lower numbers go, and count as lost."""
    lost = before_seq - 1
    return Write(
        session_id,
        "trim",
        (
            ("DELETE FROM event WHERE session_id = ? AND last_seq <= ?", (session_id, lost)),
            ("UPDATE session SET lost_seq = max(lost_seq, ?) WHERE id = ?", (lost, session_id)),
        ),
    )


def remembering(session_id: str, n: int, payload: bytes, keep: int) -> Write:
    """The n-th exchange, and of those before it the last `keep` - 1."""
    return Write(
        session_id,
        "exchange",
        (
            ("INSERT OR REPLACE INTO exchange VALUES(?,?,?)", (session_id, n, payload)),
            ("DELETE FROM exchange WHERE session_id = ? AND n <= ?", (session_id, n - keep)),
        ),
        # As many items as exchanges are kept: one that is no longer kept has been replaced.
        item=n % max(1, keep),
    )


def rating_of(session_id: str, turn_id: str, rating: int, comment: str) -> Write:
    """What the student thinks of an answer."""
    statement = "INSERT OR REPLACE INTO feedback VALUES(?,?,?,?)"
    values = (session_id, turn_id, rating, comment)
    return Write(session_id, "feedback", ((statement, values),), item=turn_id)


def event_rows(session_id: str, flat: list[int | str]) -> list[tuple[str, int, bytes]]:
    """Text events of one session, given as number, frame, number, frame …, as rows."""
    parts = [flat[at : at + 2 * _ROW_FRAMES] for at in range(0, len(flat), 2 * _ROW_FRAMES)]
    return [(session_id, int(part[-2]), orjson.dumps(part)) for part in parts]


def insert_events(db: sqlite3.Connection, rows: list[tuple[str, int, bytes]]) -> None:
    """Write rows, many a statement: at each statement this thread waits for its turn in Python."""
    for at in range(0, len(rows), _ROWS_A_STATEMENT):
        some = rows[at : at + _ROWS_A_STATEMENT]
        values = ",".join(["(?,?,?)"] * len(some))
        db.execute(f"INSERT OR REPLACE INTO event VALUES{values}", [v for row in some for v in row])


def without_needless(ops: list[Text | Write]) -> Iterator[Text | Write]:
    """The same without what a later write replaces, which moves up into its first place."""
    latest = {(op.session_id, op.kind, op.item): op for op in ops if isinstance(op, Write)}
    for op in ops:
        if isinstance(op, tuple):
            yield op
        elif (key := (op.session_id, op.kind, op.item)) in latest:
            yield latest.pop(key)


# Reads; `waiting` are writes that could not be made yet, in order


def find_sessions(db: sqlite3.Connection, waiting: list[Text | Write]) -> list[StoredSession]:
    """Every session in the tables, oldest first."""
    return [StoredSession(*row) for row in db.execute(_LOAD)]


def find_frames(
    db: sqlite3.Connection, waiting: list[Text | Write], session_id: str, after: int
) -> list[tuple[int, str]]:
    """The next text events after a number: about 256 kB of them."""
    found: list[tuple[int, str]] = []
    size = 0
    for (body,) in db.execute(_FRAMES, (session_id, after)):
        flat = orjson.loads(body)
        found += [p for p in zip(flat[::2], flat[1::2], strict=True) if p[0] > after]
        size += len(body)
        if size >= _READ_BYTES:
            return found
    for op in waiting:
        if isinstance(op, tuple):
            if op[0] == session_id and op[1] > after:
                found.append(op[1:])
        elif op.session_id == session_id and op.kind == "drop":
            found.clear()
    return found


def find_exchanges(
    db: sqlite3.Connection, waiting: list[Text | Write], session_id: str
) -> list[bytes]:
    """The exchanges of a conversation, oldest first."""
    found: dict[int, bytes] = dict(db.execute(_EXCHANGES, (session_id,)).fetchall())
    for op in waiting:
        if isinstance(op, tuple) or op.session_id != session_id:
            continue
        if op.kind == "drop":
            found.clear()
        elif op.kind == "exchange":
            (_, (_, n, payload)), (_, (_, gone)) = op.statements
            found = {k: v for k, v in found.items() if k > gone} | {n: payload}
    return [payload for _, payload in sorted(found.items())]
