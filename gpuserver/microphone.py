"""An open microphone's chunks as samples: PCM16 at its rate, or WebM with Opus, cut anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import av
import numpy as np
import soxr
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.error import FFmpegError
from av.packet import Packet
from numpy.typing import NDArray

from gpuserver.audio import SAMPLE_RATE, finite
from gpuserver.errors import AudioInvalid

Encoding = Literal["pcm16", "webm"]
_UNLIMITED: Final = 1 << 62


class Microphone:
    """Turns what one client's microphone sends, chunk by chunk, into samples at 16 kHz.

    `sample_rate` counts for pcm16, mono and little-endian; WebM says its own, and holds Opus.
    """

    def __init__(self, encoding: Encoding = "pcm16", sample_rate: int = SAMPLE_RATE) -> None:
        self.overflowed = False
        self._rate = sample_rate
        self._odd = b""
        self._webm = _WebM() if encoding == "webm" else None
        self._resampler = (
            soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="int16")
            if encoding == "pcm16" and sample_rate != SAMPLE_RATE
            else None
        )

    def feed(self, data: bytes, limit: int = _UNLIMITED) -> NDArray[np.int16]:
        """The sound that has become whole with this chunk: int16 of shape (n,), n may be 0.

        Chunks may be cut anywhere. After about `limit` samples the rest of the chunk is left out,
        and `overflowed` tells so until the next call. A second of pcm16 that must change its rate
        takes about 0.7 ms, one of WebM 8 ms. Raises AudioInvalid; after that, WebM is expected to
        begin anew.
        """
        self.overflowed = False
        if self._webm is None:
            return self._samples(data, limit)
        pieces: list[NDArray[np.int16]] = []
        for packet in self._webm.feed(data):
            if limit <= 0:
                self.overflowed = True
                continue
            piece = self._webm.decode(packet)
            pieces += piece
            # A damaged packet costs time too.
            limit -= sum(map(len, piece)) or _LEAST_PACKET
        return np.concatenate(pieces) if pieces else np.empty(0, np.int16)

    def drop_partial(self) -> None:
        """Forget the half sample that the last chunk ended in."""
        self._odd = b""

    def _samples(self, data: bytes, limit: int) -> NDArray[np.int16]:
        whole = self._odd + data if self._odd else data
        even = len(whole) & ~1
        self._odd = whole[even:]
        samples = np.frombuffer(whole, "<i2", even // 2)
        most = max(0, limit) * self._rate // SAMPLE_RATE
        if len(samples) > most:
            self.overflowed, samples = True, samples[:most]
        return samples if self._resampler is None else self._resampler.resample_chunk(samples)


# Elements of WebM. What a master holds is read as if it stood in its place; so is what follows a
# segment or cluster whose length nobody knew when it was begun.
_EBML: Final = 0x1A45DFA3
_BEGINNING: Final = _EBML.to_bytes(4)
_TRACK: Final = 0xAE
_MASTERS: Final = frozenset((0x18538067, 0x1F43B675, 0x1654AE6B, _TRACK, 0xA0))
_TRACK_NUMBER: Final = 0xD7
_CODEC: Final = 0x86
_CODEC_PRIVATE: Final = 0x63A2
_BLOCKS: Final = frozenset((0xA3, 0xA1))
_WANTED: Final = _BLOCKS | {_TRACK_NUMBER, _CODEC, _CODEC_PRIVATE}
_MOST_BYTES: Final = 1 << 16  # of an element that is wanted
_MOST_SKIPPED: Final = 1 << 20
_MOST_TRACKS: Final = 16
_MOST_ELEMENTS: Final = 1000  # in one chunk: five seconds of sound are 250 packets
_LEAST_PACKET: Final = 40  # samples, the shortest that Opus knows
_LACED: Final = 0x06
_OPUS_RATE: Final = 48_000
_OPUS_HEAD: Final = 19  # bytes, at least


class _WebM:
    """Reads the Opus packets of a WebM stream that comes in pieces.

    FFmpeg's own reader would block a thread for each microphone until the next piece is there.
    """

    def __init__(self) -> None:
        self._elements = 0
        self._restart()

    def _restart(self) -> None:
        self._buffer = bytearray()
        self._skip = 0
        self._begun = False
        self._tracks: list[dict[int, bytes]] = []
        self._number: int | None = None
        self._decoder: AudioCodecContext | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The packets that are whole now. Raises AudioInvalid, and then begins anew."""
        if data.startswith(_BEGINNING):  # another recording, whatever the last one ended in
            self._restart()
        self._buffer += data
        self._elements = 0
        try:
            while (element := self._next()) is not None:
                kind, payload = element
                if kind in _BLOCKS:
                    packet = self._packet(payload)
                    if packet:
                        yield packet
                elif kind == _TRACK:
                    if len(self._tracks) == _MOST_TRACKS:
                        raise AudioInvalid(problem="too many tracks")
                    self._tracks.append({})
                elif kind in _WANTED and self._tracks:
                    self._tracks[-1].setdefault(kind, payload)
        except AudioInvalid:
            self._restart()
            raise

    def decode(self, packet: bytes) -> list[NDArray[np.int16]]:
        """A packet's samples at 16 kHz; none for a damaged one."""
        assert self._decoder is not None
        try:
            frames = [finite(frame) for frame in self._decoder.decode(Packet(packet))]
            return [
                piece.to_ndarray()[0]
                for frame in frames
                for piece in self._resampler.resample(_without_time(frame))
            ]
        except (FFmpegError, ValueError):
            return []

    def _next(self) -> tuple[int, bytes] | None:
        """The next element that matters; None when more bytes are needed."""
        while True:
            self._elements += 1
            if self._elements > _MOST_ELEMENTS:
                raise AudioInvalid(problem="too many parts in one piece")
            skipped = min(self._skip, len(self._buffer))
            del self._buffer[:skipped]
            self._skip -= skipped
            header = self._header()
            if header is None:
                return None
            kind, size, length = header
            self._begin(kind)
            if kind in _MASTERS:
                del self._buffer[:length]
                if kind == _TRACK:
                    return kind, b""
            elif size is None or size > (_MOST_BYTES if kind in _WANTED else _MOST_SKIPPED):
                raise AudioInvalid(problem="damaged")
            elif kind not in _WANTED:
                self._skip = length + size
            elif len(self._buffer) < length + size:
                return None
            else:
                payload = bytes(self._buffer[length : length + size])
                del self._buffer[: length + size]
                return kind, payload

    def _begin(self, kind: int) -> None:
        """A recording begins with one kind of element, and may follow upon another's end."""
        if kind == _EBML and self._begun:
            rest = self._buffer
            self._restart()
            self._buffer = rest
        if not self._begun and kind != _EBML:
            raise AudioInvalid(problem="unknown format")
        self._begun = True

    def _header(self) -> tuple[int, int | None, int] | None:
        """Of the element in front: what it is, its size if known, its header's length."""
        kind = _number(self._buffer, 0, 4)
        size = _number(self._buffer, kind[1], 8) if kind else None
        if kind is None or size is None:
            return None
        bits = 7 * (size[1] - kind[1])
        value = size[0] - (1 << bits)  # its first bit only says how long it is
        return kind[0], value if value != (1 << bits) - 1 else None, size[1]

    def _packet(self, block: bytes) -> bytes:
        """The packet in a block; empty when it belongs to another track."""
        if self._number is None:
            self._choose()
        number = _number(block, 0, 8)
        if number is None or len(block) < number[1] + 3:
            raise AudioInvalid(problem="damaged")
        at = number[1]
        if number[0] - (1 << 7 * at) != self._number:
            return b""
        if block[at + 2] & _LACED:
            raise AudioInvalid(problem="packets tied together")
        return block[at + 3 :]

    def _choose(self) -> None:
        """Get ready for the first track of Opus."""
        for track in self._tracks:
            if track.get(_CODEC, b"").rstrip(b"\0") == b"A_OPUS":
                head = track.get(_CODEC_PRIVATE, b"")
                if len(head) < _OPUS_HEAD or not 1 <= head[9] <= 2:
                    raise AudioInvalid(problem="unusual sample rate or number of channels")
                self._number = int.from_bytes(track.get(_TRACK_NUMBER, b"\1"))
                decoder = av.CodecContext.create("opus", "r")
                assert isinstance(decoder, AudioCodecContext)
                decoder.extradata, decoder.sample_rate = head, _OPUS_RATE
                decoder.layout = "mono" if head[9] == 1 else "stereo"
                self._decoder = decoder
                self._resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
                return
        raise AudioInvalid(problem="unknown codec")


def _number(data: bytes | bytearray, at: int, longest: int) -> tuple[int, int] | None:
    """A number of EBML with its leading bit, and where it ends; None if it is not all there.

    Raises AudioInvalid.
    """
    if at >= len(data):
        return None
    length = 9 - data[at].bit_length()
    if length > longest:
        raise AudioInvalid(problem="damaged")
    if at + length > len(data):
        return None
    return int.from_bytes(data[at : at + length]), at + length


def _without_time(frame: AudioFrame) -> AudioFrame:
    # A packet that was lost leaves a gap, which the resampler would not accept.
    frame.pts = None
    return frame
