"""Listening to an open microphone, with scripted recognition: events, order, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpuserver.audio import Audio
from gpuserver.errors import (
    AudioInvalid,
    AudioTooFast,
    EngineFailed,
    GpuServerError,
    NoSpeech,
    NotUnderstood,
    SpeechUnavailable,
)
from gpuserver.language import Language
from gpuserver.live.endpointing import Endpointing
from gpuserver.live.hearing import Engine
from gpuserver.live.listening import Listening
from gpuserver.live.partial_transcript import PartialTranscript
from gpuserver.providers import Detector, Transcript, WordTime
from tests.speech import noise, silence, webm_opus

CHUNK = 320  # 20 ms at 16 kHz


def timed(text: str, word_ms: int = 300, confidence: float = 0.7) -> Transcript:
    words = text.split()
    times = [WordTime(w, i * word_ms, (i + 1) * word_ms) for i, w in enumerate(words)]
    return Transcript(text, tuple(times), confidence)


def talk(seconds: float) -> NDArray[np.int16]:
    """What a `LoudDetector` takes for speech."""
    return noise(seconds, 1000)


class LoudDetector:
    """What is loud is speech: digital silence does not stay so when its rate is changed."""

    def score(self, frame: NDArray[np.int16]) -> float:
        return float(np.abs(frame).max() > 200)

    def reset(self) -> None:
        pass


@dataclass
class ScriptedEngine:
    """Hears in any sound what `hear` makes of its length, or the next of a script."""

    hear: Callable[[float], Transcript | GpuServerError] | Sequence[Transcript | GpuServerError]
    languages: tuple[Language, ...] = ("en", "zh")
    gate: asyncio.Event | None = None
    heard: list[Audio] = field(default_factory=list)
    running: int = 0

    def hears(self, language: Language) -> None:
        if language not in self.languages:
            raise SpeechUnavailable(language=language, fix="ASR_PROVIDER")

    def detector(self) -> Detector:
        return LoudDetector()

    async def transcribe(self, speech: Audio, language: Language) -> Transcript:
        assert self.running == 0, "two recognitions of one session at a time"
        self.running += 1
        self.heard.append(speech)
        try:
            await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
        finally:
            self.running -= 1
        said = self.hear(speech.seconds) if callable(self.hear) else self.hear[len(self.heard) - 1]
        if isinstance(said, GpuServerError):
            raise said
        return said


@dataclass
class Microphone:
    """Speaks into a `Listening` in real time by a clock of its own, and notes what it tells."""

    engine: Engine
    endpointing: Endpointing = field(default_factory=Endpointing)
    language: Language = "en"
    now: float = 0.0
    events: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    patience: float = 0.0

    def __post_init__(self) -> None:
        self.listening = Listening(
            self.engine, self.endpointing, self, language=self.language, clock=lambda: self.now
        )

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *given: self.events.append((name, given))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Microphone]:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.listening.run())
            yield self
            self.listening.close()

    async def says(self, *parts: NDArray[np.int16] | Audio, rate: int = 16_000) -> None:
        for part in parts:
            samples = part.samples if isinstance(part, Audio) else part
            step = CHUNK * rate // 16_000
            for at in range(0, len(samples), step):
                self.now += 0.02
                self.listening.append(samples[at : at + step].tobytes())
                await self.settled()

    async def settled(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)
        while self.patience and self.listening._recognising is not None:
            await asyncio.sleep(self.patience)

    def told(self, *without: str) -> list[str]:
        return [name for name, _ in self.events if name not in without]

    def all(self, name: str) -> list[tuple[Any, ...]]:
        return [given for what, given in self.events if what == name]

    @property
    def texts(self) -> list[str]:
        return [transcript.text for transcript, *_ in self.all("utterance")]

    def check(self) -> None:
        """What must hold in every story."""
        open_, begun, stable = False, None, ""
        for name, given in self.events:
            if name == "speech_started":
                assert not open_
                open_, stable = True, ""
            elif name == "speech_stopped":
                assert open_
                open_ = False
            elif name == "partial":
                assert open_
                assert given[0].startswith(stable)
                stable = given[0]
            elif name == "pause":
                assert begun is None
                begun = given[0]
            elif name == "go_on":
                assert begun is not None
                begun = None
            elif name == "utterance":
                assert not open_
                assert begun in (None, given[0])
                assert given[0].text.startswith(stable)
                begun = None
            elif name == "nothing":
                assert begun is None
        assert not open_
        assert begun is None


QUESTION = timed("what is a nested loop")


async def test_a_question_is_heard_as_it_is_said() -> None:
    engine = ScriptedEngine(lambda seconds: timed(" ".join("abcdefghij"[: int(seconds / 0.3)])))
    async with Microphone(engine).open() as mic:
        await mic.says(silence(1), talk(2.4), silence(1))
    mic.check()
    assert mic.told("partial") == ["speech_started", "pause", "speech_stopped", "utterance"]
    assert mic.texts == ["a b c d e f g h i"]
    partials = mic.all("partial")
    assert len(partials) >= 3
    assert partials[0][0] == ""
    assert partials[-1][0].startswith("a b c")
    assert [p[3] for p in partials] == sorted(p[3] for p in partials)
    ((_, seconds, ended),) = mic.all("utterance")
    assert seconds == pytest.approx(2.4, abs=0.07)
    assert ended == pytest.approx(3.4, abs=0.07)


async def test_the_turn_ends_at_once_where_the_words_were_known() -> None:
    mic = Microphone(ScriptedEngine(lambda _: QUESTION))
    async with mic.open():
        await mic.says(talk(1), silence(0.46))
        assert mic.told("partial")[-1] == "pause"
        await mic.says(silence(0.1))
        assert mic.texts == [QUESTION.text]
    mic.check()
    # The pause itself was recognised once; nothing was recognised again at the end.
    assert len(mic.engine.heard) <= 3  # type: ignore[attr-defined]


async def test_the_sound_before_the_first_speech_is_kept() -> None:
    engine = ScriptedEngine(lambda _: QUESTION)
    async with Microphone(engine).open() as mic:
        await mic.says(silence(3), talk(0.3), silence(1))
    first = engine.heard[0].samples
    assert 0.28 < np.flatnonzero(first)[0] / 16_000 < 0.36


async def test_two_questions_are_two_turns() -> None:
    engine = ScriptedEngine(lambda _: QUESTION)
    async with Microphone(engine).open() as mic:
        await mic.says(talk(1), silence(1), talk(1), silence(1))
    mic.check()
    assert len(mic.texts) == 2


@pytest.mark.parametrize("language", ["en", "zh"])
async def test_words_that_lead_on_are_waited_for(language: Language) -> None:
    first, whole = {
        "en": ("what is", "what is a nested loop"),
        "zh": ("什么是", "什么是嵌套循环"),
    }[language]
    engine = ScriptedEngine(lambda seconds: Transcript(first if seconds < 1.6 else whole, (), 0.8))
    async with Microphone(engine, language=language).open() as mic:
        await mic.says(talk(0.8), silence(1.2), talk(1), silence(1))
    mic.check()
    assert mic.told("partial") == [
        *("speech_started", "pause", "go_on"),
        *("pause", "speech_stopped", "utterance"),
    ]
    assert mic.texts == [whole]


async def test_noise_is_told_as_nothing() -> None:
    engine = ScriptedEngine(lambda _: Transcript("list", (), 0.05))
    async with Microphone(engine).open() as mic:
        await mic.says(silence(1), talk(0.05), silence(1))  # a click
        assert mic.events == []
        await mic.says(talk(0.6), silence(1))
    mic.check()
    assert mic.told() == ["speech_started", "speech_stopped", "nothing"]
    assert mic.all("nothing") == [(None,)]


async def test_a_slow_recogniser_delays_the_end_but_loses_nothing() -> None:
    engine = ScriptedEngine(lambda _: QUESTION, gate=asyncio.Event())
    async with Microphone(engine).open() as mic:
        await mic.says(talk(1), silence(5))
        assert mic.told() == ["speech_started"]
        assert engine.gate is not None
        engine.gate.set()
        await mic.settled()
        await mic.settled()
        assert mic.told()[-1] == "utterance"
    mic.check()
    assert engine.heard[-1].seconds > 1.1


async def test_a_turn_that_is_too_long_ends_and_the_next_begins() -> None:
    engine = ScriptedEngine(lambda seconds: timed(f"{seconds:.1f}"))
    async with Microphone(engine, Endpointing(max_audio_seconds=2)).open() as mic:
        await mic.says(talk(5), silence(2.5))
    mic.check()
    assert len(mic.texts) == 3
    assert sum(map(float, mic.texts)) == pytest.approx(5.2, abs=0.3)


# Push to talk, commit, clear


async def test_no_silence_ends_a_manual_turn() -> None:
    engine = ScriptedEngine(lambda _: Transcript("a question", (), 0.8))
    mic = Microphone(engine)
    mic.listening.manual = True
    async with mic.open():
        await mic.says(talk(1), silence(4), talk(1), silence(3))
        assert "utterance" not in mic.told()
        mic.listening.commit()
        await mic.settled()
        assert mic.told()[-2:] == ["speech_stopped", "utterance"]
    mic.check()
    assert engine.heard[-1].seconds > 6


async def test_a_commit_ends_the_wait() -> None:
    mic = Microphone(ScriptedEngine(lambda _: timed("what is")))
    async with mic.open():
        await mic.says(talk(1), silence(0.3))
        mic.listening.commit()
        await mic.settled()
        assert mic.texts == ["what is"]
        await mic.says(talk(0.7))
        mic.listening.commit()
        await mic.says(talk(0.5), silence(2))
    mic.check()
    assert mic.texts == ["what is"] * 3


async def test_what_is_committed_is_heard_to_its_last_sample() -> None:
    engine = ScriptedEngine(lambda _: QUESTION)
    mic = Microphone(engine)
    async with mic.open():
        mic.listening.append(talk(1.01).tobytes())
        mic.listening.commit()
        while not mic.texts:
            await asyncio.sleep(0)
    assert np.count_nonzero(engine.heard[-1].samples) == np.count_nonzero(talk(1.01))


async def test_a_commit_without_speech_is_answered() -> None:
    mic = Microphone(ScriptedEngine(lambda _: Transcript("", (), 0.0)))
    async with mic.open():
        mic.listening.commit()
        await mic.says(silence(1))
        await mic.says(talk(1))
        mic.listening.commit()
        await mic.settled()
    mic.check()
    (first,), (second,) = mic.all("nothing")
    assert isinstance(first, NoSpeech)
    assert isinstance(second, NotUnderstood)


async def test_what_is_cleared_is_forgotten() -> None:
    mic = Microphone(ScriptedEngine(lambda _: QUESTION))
    async with mic.open():
        await mic.says(talk(1), silence(0.4))
        mic.listening.clear()
        assert mic.told("partial") == ["speech_started", "pause", "go_on", "speech_stopped"]
        await mic.says(silence(3))
        assert mic.texts == []
        await mic.says(talk(1))
        mic.listening.clear()
        await mic.says(talk(1), silence(1))
    mic.check()
    assert len(mic.texts) == 1


async def test_a_recognition_that_was_cleared_away_does_not_come_back() -> None:
    engine = ScriptedEngine([timed("old words"), QUESTION, QUESTION], gate=asyncio.Event())
    async with Microphone(engine).open() as mic:
        await mic.says(talk(1), silence(0.5))
        mic.listening.clear()
        await mic.says(talk(1), silence(1))
        assert engine.gate is not None
        engine.gate.set()
        for _ in range(3):
            await mic.settled()
    mic.check()
    assert mic.texts == [QUESTION.text]


# Failures


async def test_a_failed_engine_is_told_at_the_end_and_listening_goes_on() -> None:
    failing = True

    def hear(_: float) -> Transcript | GpuServerError:
        return EngineFailed(engine="asr") if failing else QUESTION

    async with Microphone(ScriptedEngine(hear)).open() as mic:
        await mic.says(talk(1.5), silence(1))
        assert mic.told() == ["speech_started", "speech_stopped", "nothing"]
        assert isinstance(mic.all("nothing")[0][0], EngineFailed)
        failing = False
        await mic.says(talk(1), silence(1))
    mic.check()
    assert mic.texts == [QUESTION.text]


async def test_a_failure_half_way_is_made_up_for() -> None:
    engine = ScriptedEngine([EngineFailed(engine="asr"), QUESTION, QUESTION, QUESTION])
    async with Microphone(engine).open() as mic:
        await mic.says(talk(1.3), silence(1))
    mic.check()
    assert mic.texts == [QUESTION.text]
    assert mic.all("nothing") == []


async def test_a_language_without_ears_is_told_once() -> None:
    mic = Microphone(ScriptedEngine(lambda _: QUESTION, languages=("en",)), language="zh")
    async with mic.open():
        with pytest.raises(SpeechUnavailable):
            await mic.says(talk(1))
        await mic.says(talk(1), silence(1))
        mic.listening.commit()
        await mic.settled()
        assert [type(error) for (error,) in mic.all("nothing")] == [SpeechUnavailable]
        mic.listening.language = "en"
        await mic.says(talk(1), silence(1))
    mic.check()
    assert mic.texts == [QUESTION.text]


async def test_sound_far_ahead_of_time_is_left_out_and_told_once() -> None:
    mic = Microphone(ScriptedEngine(lambda seconds: timed(f"{seconds:.1f}")))
    second = talk(1).tobytes()
    async with mic.open():
        for _ in range(5):
            mic.listening.append(second)
        with pytest.raises(AudioTooFast):
            mic.listening.append(second)
        for _ in range(100):
            mic.listening.append(second)
        assert mic.listening._pending_samples <= 5 * 16_000
        for _ in range(200):
            await asyncio.sleep(0)
        mic.now += 6
        await mic.says(silence(1))
        for _ in range(4):
            mic.listening.append(bytes(len(second)))
        with pytest.raises(AudioTooFast):
            mic.listening.append(bytes(2 * len(second)))
    mic.check()
    assert [float(text) for text in mic.texts] == [pytest.approx(5.2, abs=0.1)]


# Formats


async def test_other_rates_and_webm_are_heard() -> None:
    engine = ScriptedEngine(lambda _: QUESTION)
    mic = Microphone(engine)
    async with mic.open():
        mic.listening.configure("pcm16", 24_000)
        await mic.says(np.zeros(24_000, np.int16), np.repeat(talk(1), 3)[::2], rate=24_000)
        await mic.says(np.zeros(24_000, np.int16), rate=24_000)
        assert len(mic.texts) == 1
        mic.listening.configure("webm", 0)
        clip = webm_opus(Audio(np.concatenate([talk(1), silence(1)])))
        for at in range(0, len(clip), 400):
            mic.now += 0.1
            mic.listening.append(clip[at : at + 400])
            await mic.settled()
        mic.listening.commit()
        await mic.settled()
    mic.check()
    assert len(mic.texts) == 2


async def test_what_is_no_webm_is_told_once() -> None:
    mic = Microphone(ScriptedEngine(lambda _: QUESTION))
    mic.listening.configure("webm", 0)
    with pytest.raises(AudioInvalid):
        mic.listening.append(b"not webm at all")
    mic.listening.append(b"not webm at all")
    mic.listening.append(webm_opus(Audio(talk(0.5))))
    assert mic.listening._pending_samples > 7000


# Words


def test_stable_words_only_grow() -> None:
    words = PartialTranscript()
    words.hear(timed("what is a least"), 1300)
    assert (words.stable, words.tentative) == ("", "what is a least")
    words.hear(timed("what is a list and"), 1900)
    assert (words.stable, words.tentative) == ("what is a", "list and")
    words.hear(timed("that is a list and how"), 2100)
    assert words.stable == "what is a list"
    assert words.whole(timed("that is the list and how do")).text == "what is a list and how do"


def test_words_that_come_again_at_another_time_are_not_taken_twice() -> None:
    words = PartialTranscript()
    words.hear(timed("i have another"), 1700)
    words.hear(timed("i have another question"), 2000)
    assert (words.stable, words.tentative) == ("i have another", "question")
    words.hear(timed("i have another question", word_ms=500), 2400)
    assert (words.stable, words.tentative) == ("i have another", "question")


def test_without_times_words_are_aligned() -> None:
    words = PartialTranscript()
    for text in ("what is a", "what is a list and", "what is a list and how do"):
        words.hear(Transcript(text, (), 0.8), 0)
    assert words.stable == "what is a list and"[: len(words.stable)]
    assert words.stable.startswith("what is a")
    final = words.whole(Transcript("but what is the list and how", (), 0.8))
    assert final.text.startswith(words.stable)
    assert final.text.endswith("how")
    assert final.words == ()


def test_chinese_words_stand_without_spaces() -> None:
    words = PartialTranscript()
    for text in ("什么是列表", "什么是列表和 tuple 的", "什么是列表和 tuple 的区别"):
        words.hear(Transcript(text, (), 0.8), 0)
    assert words.stable
    final = words.whole(Transcript("什么是列表和 tuple 的区别？", (), 0.8))
    assert final.text == "什么是列表和 tuple 的区别？"


def test_a_long_utterance_is_cut_where_it_is_settled() -> None:
    words = PartialTranscript()
    said = list("abcdefghijklmnop")
    words.hear(timed(" ".join(said[:12])), 3700)
    words.hear(timed(" ".join(said[:14])), 4300)
    assert words.stable == "a b c d e f g h i j k l"
    assert words.cut_ms == 3600
    words.hear(timed("m n o p"), 4900)
    assert words.stable.endswith("k l m n")
    final = words.whole(timed("m n o p", confidence=0.1))
    assert final.text == " ".join(said)
    assert final.words[-1] == WordTime("p", 4500, 4800)
    assert 0.1 < final.confidence < 0.7
