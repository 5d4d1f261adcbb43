"""A tiny Whisper that knows ten sentences, and espeak to say them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

import numpy as np
import soxr

from gpuserver.audio import SAMPLE_RATE, Audio
from gpuserver.language import Language
from gpuserver.providers.espeak import EspeakTTS

ARCHIVE: Final = Path(__file__).parents[1] / "data" / "tiny-whisper.zip"
SENTENCES: Final[tuple[tuple[Language, str], ...]] = (
    ("en", "What is a tuple?"),
    ("en", "How do I write a loop?"),
    ("en", "Can you explain lists to me?"),
    ("en", "Why does my program stop?"),
    ("en", "Show me an example, please."),
    ("en", "I have another question."),
    ("zh", "什么是元组？"),
    ("zh", "怎么写循环？"),
    ("zh", "请再说一遍。"),
    ("zh", "我的程序为什么停了？"),
)


def unpack(folder: Path) -> Path:
    """The model in a folder, as an operator would have it."""
    with zipfile.ZipFile(ARCHIVE) as packed:
        packed.extractall(folder)
    return folder


async def spoken(
    voice: EspeakTTS, sentence: str, language: Language, accent: str = "", speed: float = 1.0
) -> Audio:
    """The sentence at 16 kHz."""
    pieces = [
        np.frombuffer(piece.pcm, np.int16)
        async for piece in voice.speak(sentence, language, accent, speed)
    ]
    sound = soxr.resample(np.concatenate(pieces), voice.sample_rate, SAMPLE_RATE)
    return Audio(sound.astype(np.int16))
