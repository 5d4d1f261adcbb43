"""Speech and recordings for the tests: flite says it, PyAV packs it as a browser would."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from gpuserver.audio import Audio, decode


@cache
def flite(text: str, voice: str = "slt") -> Audio:
    """English speech by Debian's flite; voices: slt (woman), rms (man), kal16 (robot)."""
    program = shutil.which("flite")
    if program is None:
        raise AssertionError("These tests speak with flite: install it (apt-get install flite).")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        command = [program, "-voice", voice, "-t", text, "-o", str(file)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return decode(file.read_bytes(), 120)


def silence(seconds: float) -> NDArray[np.int16]:
    return np.zeros(int(seconds * 16_000), np.int16)


def noise(seconds: float, level: float = 1000.0, seed: int = 0) -> NDArray[np.int16]:
    samples = np.random.default_rng(seed).normal(0, level, int(seconds * 16_000))
    return np.clip(samples, -32768, 32767).astype(np.int16)


def joined(*parts: Audio | NDArray[np.int16]) -> Audio:
    return Audio(np.concatenate([p.samples if isinstance(p, Audio) else p for p in parts]))


def encode(
    audio: Audio, container: str, codec: str, rate: int = 48_000, bits: int = 32_000
) -> bytes:
    """The audio in a container (`webm`, `ogg`, `mp4`, `mp3`, `flac`, `wav` …) by a codec."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        assert isinstance(stream, AudioStream)
        stream.layout = "mono"
        stream.bit_rate = bits
        stream.codec_context.open()
        resampler = AudioResampler(stream.format, "mono", rate, stream.frame_size or 960)
        frame = AudioFrame.from_ndarray(audio.samples[None], format="s16", layout="mono")
        frame.sample_rate = audio.sample_rate
        frame.pts = 0
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return out.getvalue()


def webm_opus(audio: Audio) -> bytes:
    """What Chrome's MediaRecorder makes of a microphone."""
    return encode(audio, "webm", "libopus")
