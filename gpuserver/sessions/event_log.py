"""A session's events in order of their numbers, which every connection reads through a cursor."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gpuserver.sessions.spool import Frame, Spool, Track
from gpuserver.sessions.store import Store, StoreUnreadable

_TAKE_CHARS: Final = 64 << 10
_TAKE_FRAMES: Final = 512
_TIDY_SECONDS: Final = 1.0
_TRIM_STEPS: Final = 8
# Speech that nobody keeps for later must still live until the connection has taken it.
_LEAST_AUDIO_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class LogLimits:
    """How much of a session is kept. Text in memory is a copy of what the store has; without a
    store it is all there is. Sizes are in characters or bytes."""

    events: int = 20_000
    text_seconds: float = 10.0
    text_bytes: int = 1 << 20
    audio_seconds: float = 60.0
    audio_bytes: int = 16 << 20


class EventLog:
    """One session's events. Numbers grow by one; only speech may go missing among them.

    Text is kept by the store, and in memory while it is young; speech only in memory, within its
    limits. A connection reads through the one live `Cursor`. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        session_id: str,
        limits: LogLimits,
        spool: Spool,
        clock: Callable[[], float],
        store: Store | None = None,
        last_seq: int = 0,
        lost_seq: int = 0,
    ) -> None:
        """`last_seq` and `lost_seq` are those of a session that comes back from the store."""
        self._id, self._limits, self._spool, self._clock = session_id, limits, spool, clock
        self._store = store
        self.last_seq = last_seq
        """The highest number given out."""
        self._appended = last_seq
        self._lost = lost_seq if store is not None else last_seq
        self._stored = last_seq
        """Text up to this number is in the store alone; text after it is in memory."""
        self._text, self._audio = Track(), Track()
        self._cursor: Cursor | None = None
        self._taken = last_seq
        self._ages: deque[tuple[float, int]] = deque()
        self._tidy_at = 0.0
        self._step = -(-limits.events // _TRIM_STEPS)
        self._in_step = 0
        self._steps: deque[int] = deque()
        self._over = False

    # Writing

    def next_seq(self) -> int:
        """The number for the next event, which must be appended before anything is awaited."""
        self.last_seq += 1
        return self.last_seq

    def append(self, seq: int, frame: Frame, *, audio: bool = False) -> None:
        """Add an event, and wake whoever waits for it. Raises ValueError when out of order.

        Speech (`audio`) may be dropped later; any other event is a `str` and is not.
        """
        if not self._appended < seq <= self.last_seq:
            raise ValueError(f"event {seq} after {self._appended} of {self.last_seq}")
        self._appended = seq
        if audio:
            if not self._over:
                self._append_audio(seq, frame)
        else:
            text = self._text
            text.seqs.append(seq)
            text.frames.append(frame)
            text.size += len(frame)
            if self._store is not None:
                self._store.append(self._id, seq, frame)  # type: ignore[arg-type]
            self._in_step += 1
            if self._in_step == self._step or text.size > self._limits.text_bytes:
                self._bound_text(seq)
        now = self._clock()
        if now >= self._tidy_at:
            self.sweep(now)
        cursor = self._cursor
        if cursor is not None and cursor.waiting is not None:
            cursor.offer(seq, frame)

    def _append_audio(self, seq: int, frame: Frame) -> None:
        track = self._audio
        before = track.size
        track.seqs.append(seq)
        track.frames.append(frame)
        track.size += len(frame)
        if track.size > self._limits.audio_bytes:
            track.let_go_oldest(max(len(frame), self._limits.audio_bytes // 4))
        self._spool.changed(track, before)

    def _bound_text(self, seq: int) -> None:
        if self._text.size > self._limits.text_bytes:
            through = self._text.let_go_oldest(self._limits.text_bytes // 2)
            self._stored = max(self._stored, through)
            if self._store is None:
                self._lost = max(self._lost, through)
        if self._in_step >= self._step:
            self._in_step = 0
            self._steps.append(seq)
            if len(self._steps) > _TRIM_STEPS:
                self._trim(self._steps.popleft())

    def _trim(self, through: int) -> None:
        if through > self._lost:
            self._lost = through
            self._text.let_go_through(through)
            self._stored = max(self._stored, through)
            if self._store is not None:
                self._store.trim(self._id, through + 1)

    def drop_audio(self) -> None:
        """Forget the speech that the client's connection has not taken yet."""
        before = self._audio.size
        self._audio.let_go_after(self._taken if self._cursor is None else self._cursor.position)
        self._spool.changed(self._audio, before)

    def sweep(self, now: float) -> None:
        """Let go of what has grown old; called now and then also while nothing is appended."""
        if now < self._tidy_at:
            return
        self._tidy_at = now + _TIDY_SECONDS
        if not self._ages or self._ages[-1][1] != self._appended:
            self._ages.append((now, self._appended))
        text, audio = self._older_than(now)
        if self._store is not None and text:
            if self._cursor is not None:
                text = min(text, self._cursor.position)
            self._text.let_go_through(text)
            self._stored = max(self._stored, text)
        if audio and self._audio.size:
            before = self._audio.size
            self._audio.let_go_through(audio)
            self._spool.changed(self._audio, before)

    def _older_than(self, now: float) -> tuple[int, int]:
        """The numbers up to which text and speech are old, as of the latest ticks that say so."""
        text = audio = 0
        text_end = now - self._limits.text_seconds
        audio_end = now - max(self._limits.audio_seconds, _LEAST_AUDIO_SECONDS)
        for then, seq in self._ages:
            if then <= text_end:
                text = seq
            if then <= audio_end:
                audio = seq
        while len(self._ages) > 1 and self._ages[1][0] <= min(text_end, audio_end):
            self._ages.popleft()
        return text, audio

    # Reading

    @property
    def lost_seq(self) -> int:
        """The number up to which text may be missing for good; 0 when all of it is kept."""
        if self._store is None:
            return self._lost
        return max(self._lost, self._store.lost_through(self._id))

    def can_resume(self, last_seq: int) -> bool:
        """Whether all the text after this number is still to be had, and the number is known."""
        return self.lost_seq <= last_seq <= self.last_seq and last_seq >= 0

    def cursor(self, after: int, skipped: Callable[[int, int], str]) -> Cursor:
        """Read on after this number; an earlier cursor is closed.

        `skipped(from_seq, to_seq)` encodes the event that stands for these missing numbers. Raises
        ValueError when `can_resume` says no.
        """
        if not self.can_resume(after):
            raise ValueError(f"can't go on after {after}")
        if self._cursor is not None:
            self._cursor.close()
        self._cursor = Cursor(self, after, skipped)
        return self._cursor

    def forget(self) -> None:
        """The session is over: nothing is written to the store any more, all speech is let go.

        What is appended now, such as a farewell, still reaches the connected client.
        """
        self._store = None
        self._over = True
        self._lost = max(self._lost, self._stored)
        before = self._audio.size
        self._audio.let_go_after(0)
        self._spool.changed(self._audio, before)


class Cursor:
    """One connection's place in the log. Each event is given once, in order, gaps by name."""

    def __init__(self, log: EventLog, after: int, skipped: Callable[[int, int], str]) -> None:
        self.position = after
        """The number of the last event given."""
        self.closed = False
        self.lost = False
        """Whether it closed because text that it needed is no longer to be had."""
        self._log = log
        self._skipped = skipped
        self.waiting: asyncio.Future[None] | None = None
        self.direct: Callable[[Frame], bool] | None = None
        """Takes an event as it is appended, if whoever reads has nothing else to do with what
        came before it; says whether it did."""
        self._read: list[tuple[int, Frame]] = []
        """Text from the store, complete up to number `_read_through`."""
        self._read_through = 0

    def offer(self, seq: int, frame: Frame) -> None:
        """The newest event. A reader who has all before it may take it without being woken."""
        waiter = self.waiting
        if waiter is None or waiter.done():
            return
        if self.direct is not None and self.position == seq - 1 and self.direct(frame):
            self.position = seq
        else:
            waiter.set_result(None)

    def close(self) -> None:
        """Give nothing any more; `next` returns an empty list."""
        log = self._log
        if log._cursor is self:
            log._cursor = None
            log._taken = self.position
        self.closed = True
        self.direct = None
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)

    async def next(self) -> list[Frame]:
        """What comes next, as soon as there is something; empty once the cursor is closed."""
        while not self.closed:
            frames = self.take()
            if frames:
                return frames
            if self._behind():
                await self._read_back()
            else:
                self.waiting = asyncio.get_running_loop().create_future()
                try:
                    await self.waiting
                finally:
                    self.waiting = None
        return []

    def take(self) -> list[Frame]:
        """What can be had at once, up to about 64 kB: what is not taken may still be dropped."""
        log = self._log
        position = self.position
        if self.closed or position >= log._appended:
            return []
        if log._appended == position + 1:
            # One new event is the usual case.
            for track in (log._text, log._audio):
                if track.seqs and track.seqs[-1] > position:
                    self.position = position + 1
                    return [track.frames[-1]]
        if position < self._read_through:
            taken = self._take_after(self._read, self._read_through)
            self._read = [event for event in self._read if event[0] > self.position]
            return taken
        if position < log._stored:
            return []
        track = log._text
        at = bisect_right(track.seqs, position)
        seqs = track.seqs[at : at + _TAKE_FRAMES]
        through = seqs[-1] if len(seqs) == _TAKE_FRAMES else log._appended
        text = list(zip(seqs, track.frames[at : at + _TAKE_FRAMES], strict=True))
        return self._take_after(text, through)

    def _take_after(self, text: list[tuple[int, Frame]], through: int) -> list[Frame]:
        """The next of the text given and of the log's speech, both up to number `through`."""
        track = self._log._audio
        if track.seqs and track.seqs[-1] > self.position:
            at = bisect_right(track.seqs, self.position)
            seqs = track.seqs[at : at + _TAKE_FRAMES]
            if len(seqs) == _TAKE_FRAMES:
                through = min(through, seqs[-1])
            text = sorted([*text, *zip(seqs, track.frames[at : at + _TAKE_FRAMES], strict=True)])
        taken: list[Frame] = []
        size = 0
        position = self.position
        for seq, frame in text:
            if seq > through:
                break
            if seq > position + 1:
                taken.append(self._skipped(position + 1, seq - 1))
            taken.append(frame)
            position = seq
            size += len(frame)
            if size >= _TAKE_CHARS:
                self.position = position
                return taken
        if position < through:
            taken.append(self._skipped(position + 1, through))
        self.position = through
        return taken

    def _behind(self) -> bool:
        return self.position < self._log._stored and self.position >= self._read_through

    async def _read_back(self) -> None:
        """Read the next text from the store. Meanwhile events may come, grow old and be trimmed."""
        log, store = self._log, self._log._store
        # Text up to here had been written when this was asked, so none of it can be missing in
        # the answer; what lies beyond may be in memory alone.
        through = log._stored
        if store is None or self.position < log.lost_seq:
            self._lose()
            return
        try:
            found = await store.frames(log._id, self.position)
        except StoreUnreadable:
            self._lose()
            return
        if self.position < store.lost_through(log._id):
            self._lose()
            return
        # An answer may be a part only, which ends where its last event does.
        self._read_through = min(found[-1][0], through) if found else through
        self._read = [event for event in found if event[0] <= self._read_through]

    def _lose(self) -> None:
        self.lost = True
        self.close()
