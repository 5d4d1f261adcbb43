"""Which passages hold which words, as arrays: made for one document, joined for a shelf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Rows = NDArray[np.int32]
Counts = NDArray[np.uint16]

MOST = np.iinfo(np.uint16).max


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """For each key the rows that hold it and how often.

    `keys` (K) rise; those of key i are `rows` and `counts` from `starts[i]` to `starts[i + 1]`.
    """

    keys: Keys
    starts: Rows
    rows: Rows
    counts: Counts

    @classmethod
    def of(cls, held: Sequence[Mapping[int, int]]) -> Postings:
        """Of rows that are each given as the counts of its keys."""
        keys = np.array([key for row in held for key in row], np.uint64)
        rows = np.repeat(np.arange(len(held), dtype=np.int32), [len(row) for row in held])
        counts = np.array([min(n, MOST) for row in held for n in row.values()], np.uint16)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = _firsts(keys)
        starts = np.append(first, len(keys)).astype(np.int32)
        return cls(keys[first], starts, rows[order], counts[order])

    @classmethod
    def join(cls, parts: Sequence[Postings], offsets: Sequence[int]) -> Postings:
        """All of them as one; the rows of each are moved by its offset.

        What is sorted are the keys of the parts, not what they hold, which is moved in blocks.
        """
        if not parts:
            return cls.of([])
        keys = np.concatenate([part.keys for part in parts])
        sizes = np.concatenate([np.diff(part.starts) for part in parts])
        rows = np.concatenate(
            [part.rows + np.int32(offset) for part, offset in zip(parts, offsets, strict=True)]
        )
        counts = np.concatenate([part.counts for part in parts])
        order = np.argsort(keys, kind="stable")
        begins = np.cumsum(sizes) - sizes
        sizes = sizes[order]
        moved = spans(begins[order], sizes)
        keys = keys[order]
        first = _firsts(keys)
        starts = np.append((np.cumsum(sizes) - sizes)[first], len(rows)).astype(np.int32)
        return cls(keys[first], starts, rows[moved], counts[moved])

    @property
    def sizes(self) -> Rows:
        """How many rows hold each key."""
        held: Rows = np.diff(self.starts)
        return held

    def find(self, key: int) -> int:
        """The place of a key, -1 where no row holds it."""
        place = int(np.searchsorted(self.keys, np.uint64(key)))
        return place if place < len(self.keys) and int(self.keys[place]) == key else -1

    def at(self, place: int) -> slice:
        return slice(int(self.starts[place]), int(self.starts[place + 1]))


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """How often each key occurs in all; `keys` rise."""

    keys: Keys
    counts: Rows

    @classmethod
    def of(cls, counted: Mapping[int, int]) -> Tally:
        keys = np.array(sorted(counted), np.uint64)
        return cls(keys, np.array([counted[key] for key in sorted(counted)], np.int32))

    @classmethod
    def join(cls, parts: Sequence[Tally]) -> Tally:
        if not parts:
            return cls.of({})
        keys = np.concatenate([part.keys for part in parts])
        counts = np.concatenate([part.counts for part in parts])
        if not len(keys):
            return cls(keys, counts)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = _firsts(keys)
        return cls(keys[first], np.add.reduceat(counts[order], first, dtype=np.int32))

    def counted(self, keys: Keys) -> Rows:
        """How often each of these occurs, 0 for one that never does."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int32)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        counts: Rows = np.where(self.keys[places] == keys, self.counts[places], 0)
        return counts


def spans(begins: NDArray[np.integer], sizes: NDArray[np.integer]) -> NDArray[np.intp]:
    """The numbers from each beginning on, as many as its size, one span behind another."""
    begins, sizes = begins[sizes > 0], sizes[sizes > 0]
    steps = np.ones(int(sizes.sum()), np.intp)
    if len(steps):
        # A step to the first of the next span, from the last of this one.
        steps[0] = begins[0]
        steps[np.cumsum(sizes)[:-1]] = begins[1:] - (begins[:-1] + sizes[:-1] - 1)
    return np.cumsum(steps)


def _firsts(keys: Keys) -> NDArray[np.intp]:
    """Where in sorted keys each one is first."""
    if not len(keys):
        return np.zeros(0, np.intp)
    return np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
