"""Long recordings in windows of at most half a minute, cut where nobody speaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuserver.audio import SAMPLE_RATE

WINDOW_SECONDS: Final = 30
"""What Whisper hears at once."""
_WINDOW: Final = WINDOW_SECONDS * SAMPLE_RATE
_BLOCK: Final = SAMPLE_RATE // 20
_LATE: Final = WINDOW_SECONDS // 2 * SAMPLE_RATE // _BLOCK
_LEAD: Final = 6
"""Blocks of silence before the first word of a window."""
_FAINT: Final = 30.0
"""Root mean square, of 32,767: -61 dB. Speech into a far microphone measures above 100."""
_PAUSE: Final = 0.1
"""Of the level of the speech: what is softer is a pause."""

_Samples = NDArray[np.int16]


def windows(samples: _Samples) -> Iterator[tuple[int, _Samples]]:
    """The stretches that are to be recognised, with where they start; none for silence.

    Words at the ends of two windows are neither lost nor doubled: a cut lies in the last of the
    longest pause in the second half of a window, or at its softest moment if there is none.
    """
    levels = _levels(samples)
    if not len(levels) or levels.max() < _FAINT:
        return
    if len(samples) <= _WINDOW:
        yield 0, samples
        return
    quiet = levels < max(_FAINT, _PAUSE * float(np.quantile(levels, 0.9)))
    at = 0
    while (at := _next_sound(quiet, at)) < len(levels):
        end = min(len(levels), at + _WINDOW // _BLOCK)
        if end < len(levels):
            end = _cut(levels, quiet, at + _LATE, end)
        yield at * _BLOCK, samples[at * _BLOCK : end * _BLOCK]
        at = end


def _levels(samples: _Samples) -> NDArray[np.float32]:
    """The root mean square of each block; the last one may be shorter."""
    whole = len(samples) // _BLOCK * _BLOCK
    blocks = [samples[:whole].astype(np.float32).reshape(-1, _BLOCK)]
    if whole < len(samples):
        rest = np.zeros((1, _BLOCK), np.float32)
        rest[0, : len(samples) - whole] = samples[whole:]
        blocks.append(rest)
    levels: NDArray[np.float32] = np.sqrt((np.concatenate(blocks) ** 2).mean(axis=1))
    return levels


def _next_sound(quiet: NDArray[np.bool_], at: int) -> int:
    """Where a window that may start at `at` does; the end where no sound follows."""
    loud = np.flatnonzero(~quiet[at:])
    return max(at, at + int(loud[0]) - _LEAD) if len(loud) else len(quiet)


def _cut(levels: NDArray[np.float32], quiet: NDArray[np.bool_], first: int, last: int) -> int:
    """The block before which a window ends, from `first` on and before `last`."""
    softest = first + int(np.argmin(levels[first:last]))
    end = longest = run = 0
    for block in range(first, last):
        run = run + 1 if quiet[block] else 0
        if run > longest:
            end, longest = block + 1, run
    # The next window begins with a little of the pause.
    return end - min(_LEAD, longest // 2) if longest else softest
