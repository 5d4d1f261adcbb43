"""Whisper, on sentences that a tiny one has learned from espeak."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
from numpy.typing import NDArray

from gpuserver.audio import SAMPLE_RATE, Audio
from gpuserver.config import DEFAULTS, Settings
from gpuserver.errors import EngineFailed, ProviderUnavailable, SpeechUnavailable
from gpuserver.language import Language
from gpuserver.metrics import Meter
from gpuserver.providers import Place, Status, Transcript, Vocabulary
from gpuserver.providers.espeak import EspeakTTS
from gpuserver.providers.faster_whisper import FasterWhisperASR
from tests.engines.tiny_whisper import SENTENCES, spoken, unpack
from tests.speech import joined, noise, silence

Speech = Mapping[str, Audio]

_RARE = tuple(f"{first}{second}" for first in "bdfgk" for second in ("omorphism", "ectoid", "uple"))
COURSE = Vocabulary(
    words=tuple(sorted({"tuple", "loop", "what", "is", "a", *_RARE})),
    sentences=("what is a tuple", "what is a loop", *(f"what is a {word}" for word in _RARE)),
)


class Counts(Meter):
    def __init__(self) -> None:
        self.batches: list[int] = []
        self.waits = self.failures = 0
        self.audio_seconds = 0.0

    def waited(self, seconds: float) -> None:
        self.waits += 1

    def worked(self, seconds: float, audio_seconds: float) -> None:
        self.audio_seconds += audio_seconds

    def batch(self, size: int) -> None:
        self.batches.append(size)

    def failed(self) -> None:
        self.failures += 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def speech() -> Speech:
    """Each sentence, said."""
    voice = EspeakTTS("", Place(Path()))
    voice.load()
    try:
        return {
            sentence: joined(
                silence(0.2), asyncio.run(spoken(voice, sentence, language)), silence(0.3)
            )
            for language, sentence in SENTENCES
        }
    finally:
        voice.close()


def loaded(model: Path, meter: Meter | None = None, **given: object) -> FasterWhisperASR:
    settings = Settings.model_construct(**given)  # type: ignore[arg-type]
    asr = FasterWhisperASR(str(model), Place(model, settings, meter=meter or Meter()))
    asr.load()
    return asr


@pytest.fixture(scope="module")
def asr(model: Path) -> Iterator[FasterWhisperASR]:
    asr = loaded(model)
    yield asr
    asr.close()


# What is heard


@pytest.mark.parametrize(("language", "sentence"), SENTENCES)
async def test_a_sentence_is_written_as_it_was_said_with_the_times_of_its_words(
    asr: FasterWhisperASR, speech: Speech, language: Language, sentence: str
) -> None:
    sound = speech[sentence]
    heard = await asr.transcribe(sound, language, None)
    assert heard.text == sentence
    assert heard.confidence > 0.5
    assert heard.language is None
    between = "" if language == "zh" else " "
    assert between.join(word.text for word in heard.words) == sentence
    times = [at for word in heard.words for at in (word.start_ms, word.end_ms)]
    assert times == sorted(times)
    assert all(word.start_ms < word.end_ms for word in heard.words)
    assert 0 <= times[0] < times[-1] <= sound.seconds * 1000 + 1


async def everybody(
    asr: FasterWhisperASR, speech: Speech, vocabulary: Vocabulary | None = None
) -> list[Transcript]:
    return await asyncio.gather(
        *(asr.transcribe(speech[said], language, vocabulary) for language, said in SENTENCES)
    )


async def test_students_of_both_languages_are_heard_together_and_none_is_mixed_up(
    model: Path, speech: Speech
) -> None:
    meter = Counts()
    asr = loaded(model, meter)
    try:
        for _ in range(3):
            heard = await everybody(asr, speech)
            assert [one.text for one in heard] == [sentence for _, sentence in SENTENCES]
            assert all(one.words for one in heard)
    finally:
        asr.close()
    assert 1 < max(meter.batches) <= DEFAULTS.asr_batch
    assert sum(meter.batches) == meter.waits == 3 * len(SENTENCES)
    assert meter.audio_seconds == pytest.approx(3 * sum(sound.seconds for sound in speech.values()))
    assert meter.failures == 0


async def test_no_more_are_heard_together_than_was_set(model: Path, speech: Speech) -> None:
    meter = Counts()
    asr = loaded(model, meter, asr_batch=2)
    try:
        heard = await everybody(asr, speech)
    finally:
        asr.close()
    assert [one.text for one in heard] == [sentence for _, sentence in SENTENCES]
    assert max(meter.batches) == 2


async def test_a_course_and_none_go_together_and_its_words_change_nothing_that_was_clear(
    asr: FasterWhisperASR, speech: Speech
) -> None:
    await asr.prepare(COURSE)
    other = replace(COURSE, readings={"bectoid": ("b",)})
    # So small a model is easily led: the loop is asked about without a course that names tuples.
    heard = await asyncio.gather(
        *(
            asr.transcribe(speech[said], language, (COURSE, None, other)[index % 3])
            for index, (language, said) in enumerate(SENTENCES)
        )
    )
    assert [one.text for one in heard] == [sentence for _, sentence in SENTENCES]


@pytest.mark.parametrize(
    "samples",
    [
        silence(0),
        silence(0.01),
        silence(2),
        noise(2, 5),
        noise(2, 500),
        noise(3, 4000),
        noise(35, 500),
    ],
    ids=["nothing", "a moment", "silence", "a breath", "hiss", "a storm", "a long hiss"],
)
async def test_no_words_are_made_of_silence_or_noise(
    asr: FasterWhisperASR, samples: NDArray[np.int16]
) -> None:
    heard = await asr.transcribe(Audio(samples), "en", None)
    assert heard == Transcript("", (), 0.0)


async def test_a_long_recording_is_heard_in_windows_with_nothing_lost_or_doubled(
    asr: FasterWhisperASR, speech: Speech
) -> None:
    said = [sentence for language, sentence in SENTENCES if language == "en"][:3]
    starts = (1, 26, 50)  # seconds
    whole = np.zeros(60 * SAMPLE_RATE, np.int16)
    for start, sentence in zip(starts, said, strict=True):
        samples = speech[sentence].samples
        whole[start * SAMPLE_RATE : start * SAMPLE_RATE + len(samples)] = samples
    heard = await asr.transcribe(Audio(whole), "en", None)
    assert heard.text == " ".join(said)
    firsts = [word for word in heard.words if word.text in {s.split()[0] for s in said}]
    for word, start in zip(firsts, starts, strict=True):
        assert start * 1000 - 500 <= word.start_ms <= start * 1000 + 3000
    assert heard.confidence > 0.5


async def test_the_language_is_found_out_where_that_is_wanted(model: Path, speech: Speech) -> None:
    asr = loaded(model, asr_detect_language=True)
    try:
        heard = await asyncio.gather(
            *(asr.transcribe(speech[sentence], "en", None) for _, sentence in SENTENCES)
        )
    finally:
        asr.close()
    assert [(one.language, one.text) for one in heard] == list(SENTENCES)


async def test_a_model_of_english_alone_says_so(
    model: Path, speech: Speech, tmp_path: Path
) -> None:
    unpack(tmp_path)
    tokens = json.loads((model / "vocabulary.json").read_text())
    # What CTranslate2 tells a multilingual vocabulary by.
    tokens[tokens.index("")] = "~0"
    (tmp_path / "vocabulary.json").write_text(json.dumps(tokens))
    asr = loaded(tmp_path, asr_detect_language=True)
    try:
        assert asr.languages == {"en"}
        await asr.transcribe(speech[SENTENCES[0][1]], "en", COURSE)
        with pytest.raises(SpeechUnavailable, match="multilingual"):
            await asr.transcribe(speech[SENTENCES[0][1]], "zh", None)
    finally:
        asr.close()


# Beside each other


async def test_who_leaves_takes_nobody_along(asr: FasterWhisperASR, speech: Speech) -> None:
    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(asr.transcribe(speech[sentence], language, None))
            for language, sentence in SENTENCES * 2
        ]
        await asyncio.wait(asked[:1])  # so that some are being worked on, and some wait
        left = [one for one in asked[1::3] if one.cancel()]
    for task, (_, sentence) in zip(asked, SENTENCES * 2, strict=True):
        assert task.cancelled() or task.result().text == sentence
    assert left
    assert [one for one in asked if one.cancelled()] == left
    async with asyncio.timeout(30):  # what was begun for those who left is finished first
        while asr.status() != Status():
            await asyncio.sleep(0.01)


async def test_the_event_loop_is_free_meanwhile(asr: FasterWhisperASR, speech: Speech) -> None:
    turns = 0
    async with asyncio.TaskGroup() as group:
        work = group.create_task(everybody(asr, speech))
        while not work.done():
            await asyncio.sleep(0.001)
            turns += 1
    # It takes a second; one that is held gets a turn between batches.
    assert turns > 30


async def test_closing_while_it_works_lets_everybody_know(model: Path, speech: Speech) -> None:
    asr = loaded(model, asr_batch=2)
    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(_or_error(asr, speech[sentence])) for _, sentence in SENTENCES * 2
        ]
        await asyncio.wait(asked[:1])
        await asyncio.to_thread(asr.close)
    assert any(isinstance(task.result(), EngineFailed) for task in asked)
    assert isinstance(asked[0].result(), Transcript)
    await asyncio.to_thread(asr.close)
    with pytest.raises(EngineFailed):
        await asr.transcribe(speech[SENTENCES[0][1]], "en", None)
    with pytest.raises(EngineFailed):
        await asr.probe()


async def _or_error(asr: FasterWhisperASR, sound: Audio) -> Transcript | EngineFailed:
    try:
        return await asr.transcribe(sound, "en", None)
    except EngineFailed as error:
        return error


async def test_a_probe_runs_the_model(model: Path) -> None:
    meter = Counts()
    asr = loaded(model, meter)
    try:
        await asr.probe()
        assert meter.batches == [1]
        assert asr.status() == Status()
    finally:
        asr.close()


# What can't be loaded


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json", "vocabulary.json"])
@pytest.mark.parametrize("harm", [Path.unlink, cut_in_half], ids=["missing", "damaged"])
def test_a_folder_that_is_not_whole_is_refused_with_the_fix(
    tmp_path: Path, name: str, harm: object
) -> None:
    unpack(tmp_path)
    assert callable(harm)
    harm(tmp_path / name)
    asr = FasterWhisperASR(str(tmp_path), Place(tmp_path))
    with pytest.raises(ProviderUnavailable, match="size such as small|fetch or copy it again"):
        asr.load()
    asr.close()


def test_a_model_that_is_not_there_or_not_named_is_refused_with_the_fix(tmp_path: Path) -> None:
    place = Place(tmp_path, Settings.model_construct(data_dir=tmp_path, offline=True))
    for named, fix in (("", "gpuserver models pull small"), ("small", "OFFLINE=false")):
        with pytest.raises(ProviderUnavailable, match=fix):
            FasterWhisperASR(named, place).load()


@pytest.mark.skipif(ctranslate2.get_cuda_device_count() > 0, reason="there is a GPU")
def test_a_gpu_or_a_precision_that_is_not_there_is_refused_with_the_fix(model: Path) -> None:
    with pytest.raises(ProviderUnavailable, match="DEVICE=cpu"):
        loaded(model, device="cuda")
    with pytest.raises(ProviderUnavailable, match="ASR_PRECISION=auto"):
        loaded(model, asr_precision="float16")
