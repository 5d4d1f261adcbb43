"""Listening with the real voice detector and the real recogniser, on speech that flite says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from gpuserver.audio import Audio
from gpuserver.language import Language
from gpuserver.providers import Detector, Place, Transcript, Vocabulary
from gpuserver.providers.pocketsphinx import PocketsphinxASR
from gpuserver.providers.silero import SileroVAD
from tests.speech import flite, joined, noise, silence, webm_opus
from tests.test_listening import Microphone

pytestmark = pytest.mark.slow

SENTENCES = (
    "what is a list",
    "what is a loop",
    "how do i write a function",
    "what is the difference between a list and a loop",
    "i do not understand this function",
)


class Ears:
    """The embedded detector and recogniser, with a small vocabulary."""

    def __init__(self, folder: Path) -> None:
        self.vad = SileroVAD("", Place(folder))
        self.asr = PocketsphinxASR("", Place(folder))
        words = tuple(sorted({word for sentence in SENTENCES for word in sentence.split()}))
        self.vocabulary = Vocabulary(words, SENTENCES)

    def hears(self, language: Language) -> None:
        pass

    def detector(self) -> Detector:
        return self.vad.detector()

    async def transcribe(self, speech: Audio, language: Language) -> Transcript:
        return await self.asr.transcribe(speech, language, self.vocabulary)


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory) -> Any:
    ears = Ears(tmp_path_factory.mktemp("data"))
    ears.vad.load()
    ears.asr.load()
    yield ears
    ears.asr.close()


@asynccontextmanager
async def microphone(ears: Ears) -> AsyncIterator[Microphone]:
    async with Microphone(ears, patience=0.001).open() as mic:
        yield mic
    mic.check()


def room(*parts: Audio | NDArray[np.int16]) -> Audio:
    """As recorded in a quiet room."""
    clip = joined(*parts)
    return joined(
        (clip.samples * 0.8 + noise(clip.seconds + 1, 8)[: len(clip.samples)]).astype("i2")
    )


async def test_questions_are_heard_one_by_one(ears: Ears) -> None:
    async with microphone(ears) as mic:
        await mic.says(room(silence(1), flite("what is a list", "rms"), silence(1.5)))
        await mic.says(room(flite("how do i write a function", "slt"), silence(1.5)))
    assert mic.texts == ["what is a list", "how do i write a function"]
    assert all(transcript.confidence > 0.3 for transcript, *_ in mic.all("utterance"))
    assert mic.told("partial").count("speech_started") == 2


@pytest.mark.parametrize("gap", [0.7, 1.1])
async def test_a_student_who_thinks_is_not_cut_off(ears: Ears, gap: float) -> None:
    first = flite("what is the difference between", "rms")
    rest = flite("a list and a loop", "rms")
    async with microphone(ears) as mic:
        await mic.says(room(silence(0.5), first, silence(gap - 0.3), rest, silence(1.5)))
    assert mic.texts == ["what is the difference between a list and a loop"]
    assert "go_on" in mic.told()


async def test_noise_and_clicks_are_not_heard(ears: Ears) -> None:
    click = np.concatenate([noise(0.02, 12_000), silence(0.5)])
    async with microphone(ears) as mic:
        await mic.says(noise(8, 30), noise(4, 3000), silence(2), *[click] * 5, noise(4, 300))
    assert mic.events == []


async def test_a_loud_room_does_not_hide_the_question(ears: Ears) -> None:
    speech = flite("what is a loop", "rms")
    level = float(np.sqrt((speech.samples.astype(float) ** 2).mean())) / 10 ** (15 / 20)
    clip = joined(silence(2), speech, silence(2))
    noisy = clip.samples * 0.9 + noise(clip.seconds + 1, level)[: len(clip.samples)]
    async with microphone(ears) as mic:
        await mic.says(noisy.astype(np.int16))
    assert mic.texts == ["what is a loop"]


async def test_24_khz_and_webm(ears: Ears) -> None:
    clip = room(silence(0.5), flite("what is a list", "rms"), silence(1.5))
    async with microphone(ears) as mic:
        mic.listening.configure("pcm16", 24_000)
        await mic.says(soxr.resample(clip.samples, 16_000, 24_000), rate=24_000)
        mic.listening.configure("webm", 0)
        data = webm_opus(clip)
        step = len(data) // int(clip.seconds * 10)
        for at in range(0, len(data), step):
            mic.now += 0.1
            mic.listening.append(data[at : at + step])
            await mic.settled()
    assert mic.texts == ["what is a list"] * 2


async def test_push_to_talk(ears: Ears) -> None:
    async with microphone(ears) as mic:
        mic.listening.manual = True
        await mic.says(room(flite("what is", "rms"), silence(2.5), flite("a list", "rms")))
        assert mic.texts == []
        mic.listening.commit()
        await mic.settled()
        while not mic.texts:
            await asyncio.sleep(0.01)
    assert mic.texts == ["what is a list"]
