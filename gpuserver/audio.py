"""Audio as bytes and as samples: recordings decoded safely, WAV written."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from numpy.typing import NDArray

from gpuserver.errors import AudioInvalid, AudioTooLong

SAMPLE_RATE: Final = 16_000
"""The rate, in hertz, at which the server listens."""

_MAX_STREAMS: Final = 16
_MAX_CHANNELS: Final = 8
_RATES: Final = range(4_000, 192_001)

# Only these read the bytes: not the playlist formats, which name other files and addresses.
_DEMUXERS: Final = "wav,matroska,webm,ogg,mov,mp4,m4a,3gp,3g2,mj2,mp3,flac,aac"
_CODECS: Final = frozenset(
    (
        "opus",
        "libopus",
        "vorbis",
        "aac",
        "mp3",
        "mp3float",
        "flac",
        "alac",
        "pcm_alaw",
        "pcm_mulaw",
        "pcm_u8",
        "pcm_s16le",
        "pcm_s16be",
        "pcm_s24le",
        "pcm_s32le",
        "pcm_f32le",
        "pcm_f64le",
    )
)
_OPTIONS: Final = {
    "format_whitelist": _DEMUXERS,
    "codec_whitelist": ",".join(sorted(_CODECS)),
    "protocol_whitelist": "",
    "max_streams": str(_MAX_STREAMS),
}


_FLOATS: Final[Mapping[str, np.dtype[Any]]] = {
    "flt": np.dtype(np.float32),
    "dbl": np.dtype(np.float64),
}
_LOUDEST: Final = 8.0
"""Beyond this, where 1 is full scale, it is no sound that was merely recorded too loud."""

_SLACK_SECONDS: Final = 0.5
"""A recorder that stops at the limit stops a little late."""


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """Mono sound: int16 samples of shape (n,) at `sample_rate` hertz."""

    samples: NDArray[np.int16]
    sample_rate: int = SAMPLE_RATE

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def decode(data: bytes, max_seconds: float) -> Audio:
    """A recording as mono samples at 16 kHz. Blocking: call it in a thread.

    A clip that was cut off gives what it holds. What a header says of the length is not believed:
    decoded samples are counted, and decoding stops once they pass `max_seconds`.
    Raises AudioInvalid and AudioTooLong.
    """
    if not data:
        raise AudioInvalid(problem="it is empty")
    try:
        container = av.open(
            io.BytesIO(data),
            "r",
            options=_OPTIONS,
            io_open=_no_other_file,
            # A title in another encoding must not make the sound unreadable.
            metadata_errors="replace",
        )
    except (FFmpegError, ValueError, OSError, MemoryError) as error:
        raise AudioInvalid(problem="unknown format") from error
    with container:
        stream = _sound_of(container)
        samples = _counted(_resampled(container, stream), max_seconds)
    if not len(samples):
        raise AudioInvalid(problem="no sound in it")
    return Audio(samples)


def _no_other_file(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("a recording can't name other files")


def _sound_of(container: InputContainer) -> AudioStream:
    """The first sound track, if it is of a kind that recorders make."""
    if len(container.streams) > _MAX_STREAMS:
        raise AudioInvalid(problem="too many tracks")
    if not container.streams.audio:
        raise AudioInvalid(problem="no sound track")
    stream = container.streams.audio[0]
    # A codec that is unknown has no context at all.
    context = stream.codec_context
    if context is None or context.name not in _CODECS:
        raise AudioInvalid(problem="unknown codec")
    if context.sample_rate not in _RATES or not 1 <= context.channels <= _MAX_CHANNELS:
        raise AudioInvalid(problem="unusual sample rate or number of channels")
    return stream


def _resampled(container: InputContainer, stream: AudioStream) -> Iterator[NDArray[np.int16]]:
    resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    try:
        for frame in _frames(container, stream):
            yield from (piece.to_ndarray()[0] for piece in resampler.resample(frame))
        yield from (piece.to_ndarray()[0] for piece in resampler.resample(None))
    except (FFmpegError, ValueError):
        # The sound changes its form half way, or the file ends in the middle of a packet: what
        # came before it is still good.
        return


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except FFmpegError:
            continue  # one damaged packet
        for frame in frames:
            if frame.sample_rate not in _RATES:
                return
            yield finite(frame)


def finite(frame: AudioFrame) -> AudioFrame:
    """The frame, in which floats that are no sound have been written over.

    One NaN would spoil its whole neighbourhood when the rate is changed.
    """
    kind = _FLOATS.get(frame.format.packed.name)
    if kind is None:
        return frame
    for plane in frame.planes:
        values = np.frombuffer(memoryview(plane), kind)
        if not (np.abs(values) <= _LOUDEST).all():
            values[:] = np.clip(np.nan_to_num(values), -1, 1)
    return frame


def _counted(pieces: Iterator[NDArray[np.int16]], max_seconds: float) -> NDArray[np.int16]:
    limit = int((max_seconds + _SLACK_SECONDS) * SAMPLE_RATE)
    kept: list[NDArray[np.int16]] = []
    count = 0
    for piece in pieces:
        count += len(piece)
        if count > limit:
            raise AudioTooLong(limit=f"{max_seconds:g}")
        kept.append(piece)
    return np.concatenate(kept) if kept else np.empty(0, np.int16)


def wav(pcm: bytes, sample_rate: int) -> bytes:
    """A WAV file of PCM16 mono little-endian."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(pcm)
    return out.getvalue()
