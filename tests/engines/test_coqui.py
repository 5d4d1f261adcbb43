"""Coqui's voices: real tiny models, a VITS in its worker process and an XTTS in this one."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from TTS.tts.utils.text.phonemizers.espeak_wrapper import ESpeak

from gpuserver.config import DEFAULTS, Settings
from gpuserver.errors import ConfigurationError, EngineFailed, OutOfMemory, ProviderUnavailable
from gpuserver.language import Language
from gpuserver.metrics import Meter
from gpuserver.providers import Place, Speech, Viseme, WordTime
from gpuserver.providers.coqui import CoquiTTS
from gpuserver.providers.coqui.engine import CoquiEngine
from tests.engines import tiny_coqui

SENTENCE = "Hello, student: today we learn about light."
WORDS = ["Hello", "student", "today", "we", "learn", "about", "light"]


class Counts(Meter):
    def __init__(self) -> None:
        self.waits: list[float] = []
        self.work: list[tuple[float, float]] = []
        self.failures = 0

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def worked(self, seconds: float, audio_seconds: float) -> None:
        self.work.append((seconds, audio_seconds))

    def failed(self) -> None:
        self.failures += 1


@pytest.fixture(scope="module")
def meter() -> Counts:
    return Counts()


@pytest.fixture(scope="module")
def voice(meter: Counts) -> Iterator[CoquiTTS]:
    """A VITS of two speakers, by its own folder."""
    tts = CoquiTTS(str(tiny_coqui.vits()), Place(Path(), meter=meter))
    tts.load()
    yield tts
    tts.close()


async def say(tts: CoquiTTS, text: str, voice: str = "", speed: float = 1.0) -> list[Speech]:
    return [piece async for piece in tts.speak(text, "en", voice, speed)]


def seconds(pieces: Sequence[Speech]) -> float:
    return sum(len(piece.pcm) / 2 / piece.sample_rate for piece in pieces)


def loudness(pieces: Sequence[Speech]) -> float:
    samples = np.frombuffer(b"".join(piece.pcm for piece in pieces), "<i2").astype(np.float64)
    return float(np.sqrt(np.mean(samples**2)))


def check_times(pieces: Sequence[Speech]) -> list[WordTime]:
    """The words on the clock of all the pieces, if they and the mouth are in time."""
    words: list[WordTime] = []
    mouth: list[tuple[int, Viseme]] = []
    start = 0.0
    for piece in pieces:
        words += [
            WordTime(w.text, w.start_ms + round(start), w.end_ms + round(start))
            for w in piece.words
        ]
        mouth += [(mark.ms + round(start), mark.viseme) for mark in piece.visemes]
        start += len(piece.pcm) * 500 / piece.sample_rate
    bounds = [ms for word in words for ms in (word.start_ms, word.end_ms)]
    assert bounds == sorted(bounds)
    assert bounds[0] >= 0
    assert bounds[-1] <= start + 1
    assert [ms for ms, _ in mouth] == sorted({ms for ms, _ in mouth})
    assert mouth[0] == (0, "sil")
    assert mouth[-1][1] == "sil"
    assert {shape for _, shape in mouth} <= set(get_args(Viseme))
    assert all(a != b for (_, a), (_, b) in zip(mouth, mouth[1:], strict=False))
    return words


async def test_a_clause_has_sound_words_and_mouth_shapes_in_time(voice: CoquiTTS) -> None:
    pieces = await say(voice, SENTENCE)
    assert voice.voices == {"en": "ada"}
    assert {piece.sample_rate for piece in pieces} == {voice.sample_rate} == {tiny_coqui.VITS_RATE}
    assert seconds(pieces) > 1
    assert loudness(pieces) > 100
    assert [word.text for word in check_times(pieces)] == WORDS
    assert len(pieces[0].visemes) > len(WORDS)


async def test_the_model_tells_when_its_words_sound(voice: CoquiTTS) -> None:
    (short,) = await say(voice, "a bbbbbbbbbbbbbbbbbbbb")
    first, second = short.words
    # By letters alone the second would begin at a twentieth; here each has its own length.
    assert second.end_ms - second.start_ms > 3 * (first.end_ms - first.start_ms)
    assert first.end_ms < second.start_ms
    # A number is read as other words than are written: then the words share the time.
    assert [w.text for w in check_times(await say(voice, "take 3 of them"))] == [
        "take",
        "3",
        "of",
        "them",
    ]


async def test_a_faster_voice_is_shorter_within_bounds(voice: CoquiTTS) -> None:
    by_speed = {x: seconds(await say(voice, SENTENCE, speed=x)) for x in (0.1, 0.5, 1.0, 2.0, 9.0)}
    assert by_speed[0.5] > 1.4 * by_speed[1.0] > 1.4 * 1.4 * by_speed[2.0]
    assert by_speed[0.1] == pytest.approx(by_speed[0.5], rel=0.05)
    assert by_speed[9.0] == pytest.approx(by_speed[2.0], rel=0.05)


@pytest.mark.parametrize("clause", ["", "  ", "...", "?! —", "你好。", "©", "\x00\x1f", "👩‍🏫"])
async def test_what_has_no_sound_says_nothing(voice: CoquiTTS, clause: str) -> None:
    assert await say(voice, clause) == []


async def test_characters_that_the_model_does_not_know_are_left_out(voice: CoquiTTS) -> None:
    pieces = await say(voice, "Water (水) is H₂O — ça va? \ud800 \x07 ok")
    assert seconds(pieces) > 0.2
    assert [word.text for word in check_times(pieces)][:3] == ["Water", "水", "is"]


async def test_a_long_clause_is_said_to_its_end(voice: CoquiTTS) -> None:
    pieces = await say(voice, "word " * 200)
    assert len(pieces) > 1
    assert len([word for piece in pieces for word in piece.words]) == 200


async def test_speakers_are_chosen_by_name_and_unknown_ones_refused(
    voice: CoquiTTS, meter: Counts
) -> None:
    before = meter.failures
    assert seconds(await say(voice, SENTENCE, "bo")) > 1
    with pytest.raises(ConfigurationError, match="no voice 'eve'.*one of: ada, bo"):
        await say(voice, SENTENCE, "eve")
    assert meter.failures == before
    assert seconds(await say(voice, "Hello.")) > 0


async def test_a_language_it_does_not_speak(voice: CoquiTTS) -> None:
    with pytest.raises(EngineFailed):
        await anext(voice.speak("你好", "zh", "", 1.0))


async def test_students_take_turns_clause_by_clause(voice: CoquiTTS) -> None:
    order: list[str] = []

    async def student(name: str) -> None:
        for _ in range(3):
            assert await say(voice, SENTENCE)
            order.append(name)

    await asyncio.gather(*map(student, "abc"))
    assert order == ["a", "b", "c"] * 3


async def test_thirty_two_students_at_once(voice: CoquiTTS, meter: Counts) -> None:
    meter.waits.clear()
    meter.work.clear()
    asked = [asyncio.create_task(say(voice, SENTENCE)) for _ in range(32)]
    await asyncio.sleep(0)
    while voice.status().waiting < 20:
        await asyncio.sleep(0.001)
    assert voice.status().running == 1
    assert all(seconds(pieces) > 1 for pieces in await asyncio.gather(*asked))
    assert voice.status().waiting == voice.status().running == 0
    assert len(meter.work) == len(meter.waits) == 32
    assert max(meter.waits) > min(meter.waits)
    assert all(work > 0 and audio > 1 for work, audio in meter.work)


async def test_students_who_leave_hold_nobody_up(voice: CoquiTTS) -> None:
    leaving = [asyncio.create_task(say(voice, SENTENCE * 9)) for _ in range(8)]
    await asyncio.sleep(0.05)
    for one in leaving:
        one.cancel()
    async with asyncio.timeout(20):
        assert await say(voice, "Hello.")
    assert voice.status().waiting == 0


async def test_a_killed_worker_costs_what_it_was_saying(voice: CoquiTTS, meter: Counts) -> None:
    before, failures = voice.status().pids, meter.failures
    speaking = asyncio.create_task(say(voice, SENTENCE * 9))
    while not voice.status().running:
        await asyncio.sleep(0.001)
    os.kill(before[0], signal.SIGKILL)
    with pytest.raises(EngineFailed):
        await speaking
    assert voice.status().state == "restarting"
    assert meter.failures == failures + 1
    async with asyncio.timeout(100):
        assert await say(voice, SENTENCE)
    assert voice.status().state == "ready"
    assert voice.status().pids != before
    await voice.probe()
    assert await voice.pronounce(["light"]) == {}


# XTTS


class Clock:
    """Counts the audio tokens that a model makes, by its checkpoint."""

    tokens = 0

    def __call__(self) -> None:
        self.tokens += 1


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def xtts(clock: Clock) -> CoquiEngine:
    return CoquiEngine(tiny_coqui.xtts(), "cpu", clock)


def stream(engine: CoquiEngine, text: str, language: Language = "en", **how: Any) -> list[Speech]:
    made = engine.speak(text, language, how.get("voice", "voice.wav"), how.get("speed", 1.0))
    return [piece.speech for piece in made]


def test_xtts_speaks_while_it_makes_speech(xtts: CoquiEngine, clock: Clock) -> None:
    clock.tokens = 0
    with closing(xtts.speak(SENTENCE, "en", "voice.wav", 1.0)) as made:  # type: ignore[type-var]
        first = next(made).speech
        tokens = clock.tokens
        assert 0 < tokens < tiny_coqui.XTTS_TOKENS / 2
        pieces = [first, *(piece.speech for piece in made)]
    assert clock.tokens > 2 * tokens
    assert len(pieces) == 3
    assert {piece.sample_rate for piece in pieces} == {xtts.describe().sample_rate}
    assert loudness(pieces) > 10
    assert [word.text for word in check_times(pieces)] == WORDS
    assert first.words
    assert first.words[-1].end_ms <= seconds([first]) * 1000 + 1


def test_closing_it_stops_the_model(xtts: CoquiEngine, clock: Clock) -> None:
    clock.tokens = 0
    made = xtts.speak(SENTENCE, "en", "voice.wav", 1.0)
    next(made)
    made.close()  # type: ignore[attr-defined]
    assert 0 < clock.tokens < tiny_coqui.XTTS_TOKENS / 2


def test_xtts_speaks_chinese_character_by_character(xtts: CoquiEngine) -> None:
    assert set(xtts.describe().limits) == {"en", "zh"}
    pieces = stream(xtts, "你好，我们学习 Python。", "zh", speed=0.5)
    assert [word.text for word in check_times(pieces)] == [*"你好我们学习", "Python"]
    assert {"nn", "I", "kk", "aa", "O"} <= {m.viseme for piece in pieces for m in piece.visemes}


def test_a_voice_of_xtts_is_a_recording(xtts: CoquiEngine, tmp_path: Path) -> None:
    assert xtts.describe().voice == "voice.wav"
    tiny_coqui.record(tmp_path / "b.wav", 1.5)
    (tmp_path / "c.wav").write_bytes(b"RIFF no sound")
    (tmp_path / "d.txt").write_text("no sound either")
    tiny_coqui.record(tmp_path / "short.wav", 0.1)
    first = next(iter(xtts.speak("Hi", "en", str(tmp_path / "b.wav"), 2.0)))
    assert seconds([first.speech]) > 0
    for name, says in [
        ("c.wav", "c.wav.*can't be read"),
        ("short.wav", "too short"),
        ("none.wav", "no voice .*the path of a recording"),
    ]:
        with pytest.raises(ConfigurationError, match=says):
            next(iter(xtts.speak("Hi", "en", str(tmp_path / name), 1.0)))


def test_commands_of_the_model_and_huge_numbers_are_text(xtts: CoquiEngine) -> None:
    first = next(iter(xtts.speak("[STOP] [en] 你 € " + "123456789 " * 20, "en", "voice.wav", 2.0)))
    assert first.speech.pcm


# What can't be loaded


def copied(source: Path, folder: Path, *but: str) -> Path:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*but))
    return folder


class _Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hacked",)


def _cut_short(folder: Path) -> None:
    weights = folder / "model.pth"
    weights.write_bytes(weights.read_bytes()[:5000])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model": "glow_tts"}'), "glow_tts"),
        (lambda folder: (folder / "model.pth").unlink(), "no weights"),
        (_cut_short, "damaged"),
        (lambda folder: (folder / "model.pth").write_bytes(pickle.dumps(_Code())), "damaged"),
    ],
)
def test_a_damaged_folder_is_told_in_a_sentence(harm: Any, says: str, tmp_path: Path) -> None:
    folder = copied(tiny_coqui.vits(), tmp_path / "voice")
    harm(folder)
    with pytest.raises(ProviderUnavailable, match=says):
        CoquiEngine(folder, "cpu", lambda: None)
    assert not (Path.cwd() / "hacked").exists()


def test_memory_that_is_short_at_the_first_words_is_told_with_the_fix(tmp_path: Path) -> None:
    folder = copied(tiny_coqui.vits(), tmp_path / "voice")
    config = (folder / "config.json").read_text()
    # So slow that one word is longer than any memory.
    (folder / "config.json").write_text(
        config.replace('"length_scale": 3.0', '"length_scale": 1e15')
    )
    tts = CoquiTTS(str(folder), Place(tmp_path))
    try:
        with pytest.raises(OutOfMemory, match="ran out of CPU memory.*Fix: unload a model"):
            tts.load()
    finally:
        tts.close()


@pytest.mark.parametrize(("missing", "says"), [("vocab.json", "vocab.json"), ("*.wav", "no voice")])
def test_xtts_lacks_a_file(missing: str, says: str, tmp_path: Path) -> None:
    folder = copied(tiny_coqui.xtts(), tmp_path / "voice", missing)
    with pytest.raises(ProviderUnavailable, match=says):
        CoquiEngine(folder, "cpu", lambda: None)


def test_a_voice_that_reads_phonemes_needs_espeak(tmp_path: Path) -> None:
    if ESpeak.is_available():
        pytest.skip("espeak-ng is installed here")
    folder = copied(tiny_coqui.vits(), tmp_path / "voice")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"use_phonemes": false', '"use_phonemes": true')
    )
    with pytest.raises(ProviderUnavailable, match="apt-get install espeak-ng"):
        CoquiEngine(folder, "cpu", lambda: None)


@pytest.mark.parametrize(("model", "says"), [("", "TTS_MODEL names"), ("a/b", "is not here")])
def test_no_model(model: str, says: str, tmp_path: Path) -> None:
    tts = CoquiTTS(model, Place(tmp_path, Settings(data_dir=tmp_path, offline=True)))
    with pytest.raises(ProviderUnavailable, match=says):
        tts.load()
    tts.close()
    assert tts.status().state == "restarting"


async def test_closing_while_loading_leaves_no_process() -> None:
    tts = CoquiTTS(str(tiny_coqui.vits()), Place(Path(), DEFAULTS))
    loading = asyncio.create_task(asyncio.to_thread(tts.load))
    await asyncio.sleep(0.5)
    await asyncio.to_thread(tts.close)
    with pytest.raises(ProviderUnavailable):
        await loading
    assert tts.status().pids == ()
