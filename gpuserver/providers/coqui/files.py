"""What Coqui's voices share: the files of a model, recordings of a voice, samples, a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from gpuserver.errors import ConfigurationError, ProviderUnavailable

_CHECKPOINTS: Final = (
    "model.pth",
    "model_file.pth",
    "model_file.pth.tar",
    "checkpoint.pth",
    "best_model.pth",
)
_RECORDINGS: Final = frozenset((".wav", ".flac", ".ogg", ".mp3"))
_MOST_RECORDINGS: Final = 8
_LEAST_SECONDS: Final = 1.0
_NAMED: Final = 20


def checkpoint(folder: Path) -> Path:
    """The weights in a model's folder. Raises ProviderUnavailable."""
    for name in _CHECKPOINTS:
        if (folder / name).is_file():
            return folder / name
    raise ProviderUnavailable(
        problem=f"The voice in {folder} has no weights ({', '.join(_CHECKPOINTS)}).",
        fix="fetch it again: gpuserver models pull NAME.",
    )


def recordings(path: Path) -> list[Path]:
    """The recording at a path, or those in a folder; [] if there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    found = [x for x in sorted(path.iterdir()) if x.suffix.lower() in _RECORDINGS]
    return found[:_MOST_RECORDINGS]


def read_recording(path: Path, rate: int, seconds: float) -> NDArray[np.float32]:
    """Mono samples of shape (n,) at `rate`, at most so many seconds. Raises ConfigurationError."""
    try:
        with soundfile.SoundFile(path) as file:
            samples = file.read(int(seconds * file.samplerate), "float32", always_2d=True)
            mono = soxr.resample(samples.mean(axis=1), file.samplerate, rate)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ConfigurationError(
            problem=f"The recording {path.name} of a voice can't be read.",
            fix="make it a WAV, FLAC, OGG or MP3 file.",
        ) from error
    if len(mono) < _LEAST_SECONDS * rate:
        raise ConfigurationError(
            problem=f"The recording {path.name} of a voice is too short.",
            fix="use one of 6 to 30 seconds of clear speech.",
        )
    return np.asarray(mono, np.float32)


def pcm16(sound: Any) -> NDArray[np.int16]:
    """Float samples, full scale at 1, as int16 of shape (n,)."""
    samples = np.nan_to_num(np.atleast_1d(np.asarray(sound, np.float32)))
    return (np.clip(samples, -1, 1) * 32_767).astype(np.int16)


def unknown_voice(voice: str, known: Sequence[str]) -> ConfigurationError:
    """What to raise for a voice that a model has not."""
    names = ", ".join(known[:_NAMED]) + (", …" if len(known) > _NAMED else "")
    return ConfigurationError(
        problem=f"The speech engine has no voice {voice!r}.",
        fix=f"choose one of: {names}." if known else "leave the voice out: the model has one.",
    )
