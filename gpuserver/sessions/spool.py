"""Frames in memory, and the room that the speech of all sessions shares."""

from __future__ import annotations

from bisect import bisect_right

Frame = str | bytes
"""An encoded event: a text frame or a binary one. What is in it nobody here knows."""


class Track:
    """Numbered frames of one kind: added at the end, let go at either end."""

    __slots__ = ("frames", "seqs", "size")

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.frames: list[Frame] = []
        self.size = 0

    def let_go_through(self, seq: int) -> None:
        """Forget the frames up to this number."""
        self._cut(0, bisect_right(self.seqs, seq))

    def let_go_after(self, seq: int) -> None:
        """Forget the frames after this number."""
        self._cut(bisect_right(self.seqs, seq), len(self.seqs))

    def let_go_oldest(self, size: int) -> int:
        """Forget at least so much of the oldest, if there is as much; returns the last number."""
        count = 0
        while size > 0 and count < len(self.frames):
            size -= len(self.frames[count])
            count += 1
        last = self.seqs[count - 1] if count else 0
        self._cut(0, count)
        return last

    def _cut(self, start: int, end: int) -> None:
        if start < end:
            self.size -= sum(map(len, self.frames[start:end]))
            del self.seqs[start:end]
            del self.frames[start:end]


class Spool:
    """The room that the speech of all sessions shares: the biggest gives way, oldest first."""

    def __init__(self, limit: int) -> None:
        """`limit` is in bytes."""
        self.limit = limit
        self.size = 0
        self._tracks: dict[int, Track] = {}

    def changed(self, track: Track, before: int) -> None:
        """Note the size of a track, which was `before`; makes room where it has become too much."""
        self.size += track.size - before
        if track.size:
            self._tracks[id(track)] = track
        else:
            self._tracks.pop(id(track), None)
        if self.size > self.limit:
            self._make_room()

    def _make_room(self) -> None:
        # A little more than needed, so that not every frame looks for the biggest.
        while self.size > self.limit - self.limit // 64 and self._tracks:
            biggest = max(self._tracks.values(), key=lambda track: track.size)
            before = biggest.size
            biggest.let_go_oldest(max(1, before // 8))
            self.changed(biggest, before)
